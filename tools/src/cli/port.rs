//! `fcap port`, and how published ports are written.

use crate::client::Reference;
use crate::output::{self, DataFormat};
use crate::target::Globals;
use anyhow::bail;
use fcap_api::{Capsule, Protocol, PublishPort, PublishedPort};
use std::net::Ipv4Addr;

/// Shows which ports of its node lead to a capsule
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id, unique prefix of an id, or name
    #[arg(value_name = "CAPSULE")]
    capsule: Reference,
    /// Only those that lead to this port of the capsule
    #[arg(value_name = "PORT[/PROTOCOL]", value_parser = parse_port)]
    port: Option<(u16, Option<Protocol>)>,
    /// Format, in place of lines
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<DataFormat>,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let (_, capsule) = fleet.find(&self.capsule).await?;
        // A restart by its policy may have changed what the node chose.
        let forwards = globals.forwards()?;
        forwards.tidy_after(!capsule.ports.is_empty()).await;
        let wanted = |it: &&PublishedPort| {
            self.port.is_none_or(|(port, protocol)| {
                it.port == port && protocol.is_none_or(|protocol| it.protocol == protocol)
            })
        };
        let ports: Vec<PublishedPort> = capsule.ports.iter().filter(wanted).copied().collect();
        if let (Some((port, _)), true) = (self.port, ports.is_empty()) {
            bail!("no port of the node leads to port {port} of {}", self.capsule);
        }
        match self.output {
            Some(format) => output::data(format, &ports)?,
            None => {
                // On a node by itself published ports are open on all its addresses.
                let host = if forwards.any() { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
                let line =
                    |it: &PublishedPort| format!("{}/{} -> {host}:{}\n", it.port, it.protocol, it.host_port);
                output::print(&ports.iter().map(line).collect::<String>())?;
            }
        }
        Ok(0)
    }
}

/// "8080->80/tcp, 53->53/udp", as docker writes it.
pub(super) fn summary(capsule: &Capsule) -> String {
    let one = |it: &PublishedPort| format!("{}->{}/{}", it.host_port, it.port, it.protocol);
    capsule.ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn parse_protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err("the protocol is tcp or udp".to_owned()),
    }
}

fn parse_number(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|&port| port != 0).ok_or_else(|| "ports are 1 to 65535".to_owned())
}

/// `80` or `80/udp`.
fn parse_port(text: &str) -> Result<(u16, Option<Protocol>), String> {
    match text.split_once('/') {
        Some((port, protocol)) => Ok((parse_number(port)?, Some(parse_protocol(protocol)?))),
        None => Ok((parse_number(text)?, None)),
    }
}

/// `8080:80`, `80`, either with `/udp`.
pub(super) fn parse_publish(text: &str) -> Result<PublishPort, String> {
    let (host_port, rest) = match text.split_once(':') {
        Some((host_port, rest)) => (Some(parse_number(host_port)?), rest),
        None => (None, text),
    };
    let (port, protocol) = parse_port(rest)?;
    Ok(PublishPort { host_port, port, protocol: protocol.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_docker_reads_them() {
        let published = |host_port, port, protocol| Ok(PublishPort { host_port, port, protocol });
        assert_eq!(parse_publish("8080:80"), published(Some(8080), 80, Protocol::Tcp));
        assert_eq!(parse_publish("80"), published(None, 80, Protocol::Tcp));
        assert_eq!(parse_publish("53:5353/udp"), published(Some(53), 5353, Protocol::Udp));
        assert_eq!(parse_publish("80/tcp"), published(None, 80, Protocol::Tcp));
        for bad in ["", ":", "0", "80:", ":80", "0:80", "80:0", "65536", "1:2:3", "80/", "80/sctp", "x", "-1"]
        {
            assert!(parse_publish(bad).is_err(), "{bad}");
        }
    }
}
