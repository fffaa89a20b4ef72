//! Bulk throughput of capsules against Linux with iperf3: to dom0, from dom0, to another guest on
//! the node and on another node.

use anyhow::Context;
use serde_json::json;

use super::guest::Guest;
use crate::rig::{self, Node};
use crate::stats::{ratio, summary};

const ROUNDS: usize = 3;
const SECONDS: u32 = 6;
const PORT: u16 = 5201;

/// Runs the benchmark and returns its line of JSON.
pub fn run() -> anyhow::Result<serde_json::Value> {
    let [node, other] = Node::two_bench()?;
    node.put("/tmp/fcap-probe", &std::fs::read(rig::probe())?)?;
    node.sh("chmod +x /tmp/fcap-probe")?;
    let port = PORT.to_string();
    let ours = Guest::capsule(&node, "bulk", "guest-bulk", &["serve", &port])?;
    let ours_there = Guest::capsule(&other, "bulk-there", "guest-bulk", &["serve", &port])?;
    let linux = Guest::linux(&node, "iperf3", "fcap.serve=iperf3")?;
    let linux_there = Guest::linux(&other, "iperf3-there", "fcap.serve=iperf3")?;
    for guest in [&ours, &ours_there, &linux, &linux_there] {
        guest.wait_for(PORT)?;
    }

    let names = ["tx", "rx", "local", "remote"];
    let mut samples: [[Vec<f64>; 2]; 4] = Default::default();
    for round in 0..ROUNDS {
        for (way, sides) in names.iter().zip(&mut samples) {
            rig::quiet(&node.api())?;
            let mbit = match *way {
                "tx" => probe(&node, "receive", &ours)?,
                "rx" => probe(&node, "send", &ours)?,
                "local" => between(&node, &ours)?,
                _ => between(&node, &ours_there)?,
            };
            rig::quiet(&node.api())?;
            let peer = match *way {
                "tx" => iperf3(&node, &linux, "--reverse")?,
                "rx" => iperf3(&node, &linux, "")?,
                "local" => between_linux(&node, &linux)?,
                _ => between_linux(&node, &linux_there)?,
            };
            eprintln!("round {round}: {way:6} ours {mbit:7.0} Mbit/s, Linux {peer:7.0} Mbit/s");
            sides[0].push(mbit);
            sides[1].push(peer);
        }
    }
    let mut figures = serde_json::Map::new();
    figures.insert("bench".into(), json!("tcp"));
    for (way, [ours, linux]) in names.iter().zip(&samples) {
        println!("{}", summary(&format!("{way}, ours"), "Mbit/s", ours));
        println!("{}", summary(&format!("{way}, Linux"), "Mbit/s", linux));
        figures.insert(format!("{way}_ratio"), json!(ratio(ours, linux)));
    }
    Ok(figures.into())
}

/// Between dom0 and a capsule.
fn probe(node: &Node, direction: &str, guest: &Guest<'_>) -> anyhow::Result<f64> {
    let output = node.sh(&format!("/tmp/fcap-probe {direction} {}:{PORT} {SECONDS}", guest.address))?;
    output
        .lines()
        .last()
        .and_then(|line| line.parse().ok())
        .with_context(|| format!("no figure in {output:?}"))
}

/// From a capsule on `node` to another.
fn between(node: &Node, server: &Guest<'_>) -> anyhow::Result<f64> {
    let (address, port, seconds) = (server.address.to_string(), PORT.to_string(), SECONDS.to_string());
    let client = Guest::capsule(node, "bulk-client", "guest-bulk", &["send", &address, &port, &seconds])?;
    client.wait()?;
    let log = client.log()?;
    let figure = || {
        let (bytes, ns) = log.lines().last()?.split_once(' ')?;
        Some(bytes.parse::<f64>().ok()? * 8e3 / ns.trim().parse::<f64>().ok()?)
    };
    figure().with_context(|| format!("no figure in {log:?}"))
}

/// Between dom0 and Linux.
fn iperf3(node: &Node, guest: &Guest<'_>, option: &str) -> anyhow::Result<f64> {
    read(&node.sh(&format!("iperf3 --client {} --time {SECONDS} --json {option}", guest.address))?)
}

/// From Linux on `node` to another.
fn between_linux(node: &Node, server: &Guest<'_>) -> anyhow::Result<f64> {
    let append = format!("fcap.serve=iperf3-client fcap.peer={} fcap.seconds={SECONDS}", server.address);
    let client = Guest::linux(node, "iperf3-client", &append)?;
    client.wait()?;
    read(&client.log()?)
}

/// What arrived, from iperf3's report; there may be other lines around it.
fn read(output: &str) -> anyhow::Result<f64> {
    let report = || {
        let report = output.get(output.find('{')?..=output.rfind('}')?)?;
        serde_json::from_str::<serde_json::Value>(report).ok()
    };
    let report = report().with_context(|| format!("iperf3 said {output:?}"))?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.with_context(|| format!("no rate in {report}"))? / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_iperf3_is_read_from_among_other_lines() {
        let output = "serving\n{\"end\": {\"sum_received\": {\"bits_per_second\": 5e8}}}\r\nbye\n";
        assert_eq!(read(output).unwrap(), 500.0);
        assert!(read("{\"error\": \"unable to connect\"}").is_err());
    }
}
