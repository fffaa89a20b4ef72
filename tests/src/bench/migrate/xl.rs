//! The same with `xl migrate`.
//!
//! What xl sends goes over a plain TCP connection, which is less work than the ssh that it takes by
//! default. Its guests have a bridge of their own on both nodes, with a tunnel between them.

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, ensure};
use xen_proto::boot::{self, Kind, Net};

use super::{CLIENT_MIB, KERNEL, Load, Pair, Trip, lan_address, longest, now_ns, wait_for_port};
use crate::rig::{self, Node};
use crate::stats::ms;

/// Where `xl migrate-receive` waits.
const PORT: u16 = 9999;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Of the guest that moves, and of its client.
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 3)];
/// Makes its bridge, and has the console daemon write all output of guests into files.
const SET_UP: &str = "\
brctl addbr xenbr0
ip link add vxlan-xl type vxlan id 77 local LOCAL remote REMOTE dstport 4790 dev eth1
brctl addif xenbr0 vxlan-xl
ip link set vxlan-xl up
ip link set xenbr0 up
kill $(pidof xenconsoled); while pidof xenconsoled >/dev/null; do :; done
mkdir -p /tmp/console
/usr/lib/xen-4.17/bin/xenconsoled --log=guest --log-dir=/tmp/console
printf '#!/bin/sh\\nexec xl migrate-receive 2>/tmp/receive.log\\n' >/tmp/receive
chmod +x /tmp/receive";

/// xl on both nodes.
pub(super) struct Xl<'a> {
    pair: &'a Pair,
    addresses: [String; 2],
}

impl<'a> Xl<'a> {
    pub(super) fn new(pair: &'a Pair) -> anyhow::Result<Self> {
        let addresses = [lan_address(&pair.nodes[0])?, lan_address(&pair.nodes[1])?];
        for (node, (local, remote)) in
            pair.nodes.iter().zip([(&addresses[0], &addresses[1]), (&addresses[1], &addresses[0])])
        {
            node.sh(&SET_UP.replace("LOCAL", local).replace("REMOTE", remote))?;
        }
        Ok(Self { pair, addresses })
    }

    /// Starts a guest on the first node.
    fn start(&self, name: &str, mib: u64, vif: Option<usize>, args: &[&str]) -> anyhow::Result<()> {
        let node = &self.pair.nodes[0];
        node.put(&format!("/tmp/{name}.boot"), &boot_module(vif, args))?;
        let vif = vif.map_or(String::new(), |index| format!("\"mac={},bridge=xenbr0\"", text(mac(index))));
        let config = format!(
            "name = \"{name}\"\nkernel = \"/tmp/image\"\nramdisk = \"/tmp/{name}.boot\"\nmemory = {mib}\n\
             vcpus = 1\ntsc_mode = \"native\"\nvif = [{vif}]\non_poweroff = \"destroy\"\n"
        );
        node.put(&format!("/tmp/{name}.cfg"), config.as_bytes())?;
        node.sh(&format!("rm -f /tmp/console/guest-{name}*; xl create /tmp/{name}.cfg"))?;
        rig::wait_until(&format!("{name} is ready"), || {
            Ok(log(node, name)?.lines().any(|line| line.trim_end() == "ready"))
        })
    }

    /// Moves a guest to the other node and back.
    pub(super) fn trip(&self, load: Load) -> anyhow::Result<Trip> {
        self.start("peer", load.mib, load.vif.then_some(0), &["rest", &load.fill.to_string(), load.content])?;
        if load.vif {
            self.start("client", CLIENT_MIB, Some(1), &["ask", &ADDRESSES[0].to_string()])?;
        }
        let mut ways = Vec::new();
        for (from, to) in [(0, 1), (1, 0)] {
            self.pair.quiet(load)?;
            let nodes = &self.pair.nodes;
            let command = self.prepare(to)?;
            let since = now_ns();
            let start = Instant::now();
            nodes[from].sh(&command)?;
            let total_ms = ms(start.elapsed());
            let app_ms = figure(&nodes[to], "peer", "moved", since)?;
            let client_ms = load.vif.then(|| figure(&nodes[0], "client", "silence", since)).transpose()?;
            ways.push((total_ms, app_ms, client_ms, Default::default()));
        }
        let domains = if load.vif { "peer client" } else { "peer" };
        self.pair.nodes[0].sh(&format!(
            "for name in {domains}; do xl destroy $name; while xl domid $name >/dev/null 2>&1; do sleep 0.1; done; done"
        ))?;
        Ok(super::trip(ways))
    }

    /// Has xl wait on a node; returns the command that moves a guest there.
    fn prepare(&self, to: usize) -> anyhow::Result<String> {
        let node = &self.pair.nodes[to];
        node.sh(&format!(
            "rm -f /tmp/console/guest-peer* /tmp/receive.log; setsid /tmp/fcap-probe serve {PORT} /tmp/receive >/dev/null 2>&1 &"
        ))?;
        wait_for_port(node, PORT)?;
        Ok(format!("xl migrate -s '' peer '/tmp/fcap-probe pipe {}:{PORT}' 2>&1", self.addresses[to]))
    }

    /// What xl says where it cannot move a guest.
    pub(super) fn refusal(&self) -> anyhow::Result<String> {
        self.start("peer", CLIENT_MIB, None, &["rest", "1", "words"])?;
        let command = self.prepare(1)?;
        let output = self.pair.nodes[0].sh(&format!("{command} && echo moved || true"))?;
        self.pair.nodes[0].sh("xl destroy peer")?;
        ensure!(!output.contains("moved"), "xl has moved a guest: {output}");
        let line = output.lines().find(|line| line.contains("logdirty")).or(output.lines().last());
        Ok(line.context("xl says nothing")?.trim().to_owned())
    }
}

/// What a guest has written on a node, under this name or while it arrives under another.
fn log(node: &Node, name: &str) -> anyhow::Result<String> {
    node.sh(&format!("cat /tmp/console/guest-{name}*.log 2>/dev/null || true"))
}

fn figure(node: &Node, name: &str, word: &str, since: u128) -> anyhow::Result<f64> {
    let mut figure = None;
    rig::wait_until(&format!("{name} says how long its {word} was"), || {
        figure = longest(&log(node, name)?, word, since);
        Ok(figure.is_some())
    })?;
    figure.context("there was one just now")
}

fn mac(index: usize) -> [u8; 6] {
    [0x00, 0x16, 0x3e, 0, 0, 2 + index as u8]
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What fcapd would tell the capsule; xl passes it as a ramdisk.
fn boot_module(vif: Option<usize>, args: &[&str]) -> Vec<u8> {
    let mut module = Vec::new();
    boot::begin(&mut module);
    boot::record(&mut module, Kind::Seed, &rand::random::<[u8; 32]>());
    boot::record(&mut module, Kind::Arg, KERNEL.as_bytes());
    args.iter().for_each(|arg| boot::record(&mut module, Kind::Arg, arg.as_bytes()));
    if let Some(index) = vif {
        let net = Net {
            mac: mac(index),
            mtu: 1400,
            ipv4: ADDRESSES[index].octets(),
            gateway4: GATEWAY.octets(),
            dns4: GATEWAY.octets(),
            prefix4: 24,
            ..Net::default()
        };
        boot::record(&mut module, Kind::Net, &net.emit());
    }
    boot::record(&mut module, Kind::End, &[]);
    module
}
