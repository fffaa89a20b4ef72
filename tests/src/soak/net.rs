//! Start and stop capsules with network and published ports, ten thousand times: no interface,
//! bridge port, xenstore node, address or rule is left.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{anyhow, ensure};
use fcap_api::{Capsule, CreateCapsule, End, Network, PublishPort};

use super::churn;
use crate::api::Api;
use crate::cli;
use crate::rig::{self, Node};

/// Nodes that work side by side, each with all that is compared.
const NODES: u32 = 2;
/// Capsules of a node that come and go at the same time.
const WORKERS: u32 = 2;
/// Cycles after which caches are filled and the allocator has its arenas: not what is looked for.
const WARM_UP: u32 = 64;
/// Cycles after which the node is looked at.
const PART: u32 = 250;

/// What a capsule has in dom0's network, and how to ask for it. Rules and sets are compared
/// without what counts.
const NETWORK: [(&str, &str); 5] = [
    ("network devices", "ls /sys/class/net | sort | xargs"),
    ("bridge ports", "ls /sys/class/net/*/brif | sort | xargs"),
    ("rules and sets", "nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//' | md5sum"),
    ("neighbours", "ip neigh show nud permanent | wc -l"),
    ("forwarding of bridges in bytes", "cat /sys/class/net/fcap*/brforward | wc -c"),
];

/// Runs `cycles` cycles, a share of them on each node.
pub fn run(cycles: u32) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let nodes: Vec<_> =
            (1..=NODES).map(|number| scope.spawn(move || run_on_one(number, cycles / NODES))).collect();
        nodes.into_iter().try_for_each(|node| node.join().map_err(|_| anyhow!("a node's thread panicked"))?)
    })?;
    println!("{cycles} cycles on {NODES} nodes: nothing is left");
    Ok(())
}

fn run_on_one(number: u32, cycles: u32) -> anyhow::Result<()> {
    let node = Node::compare()?;
    let image = node.api().upload(&cli::image("guest-resolve")).map_err(anyhow::Error::msg)?.digest;
    check_that_capsules_are_seen(&node)?;
    repeat(&node, &image, WARM_UP)?;
    let before = inventory(&node)?;
    println!("node {number} before: {before:?}");
    let mut done = 0;
    while done < cycles {
        let part = PART.min(cycles - done);
        repeat(&node, &image, part)?;
        done += part;
        let after = inventory(&node)?;
        ensure!(
            before == after,
            "something is left behind on node {number} after {done} cycles:\n{before:?}\n{after:?}"
        );
        println!(
            "node {number}, {done} cycles: interfaces, ports, xenstore, addresses and rules are as before"
        );
    }
    Ok(())
}

/// Runs cycles, some at the same time.
fn repeat(node: &Node, image: &str, cycles: u32) -> anyhow::Result<()> {
    let begun = AtomicU32::new(0);
    let work = |worker: u32| {
        let api = node.api();
        loop {
            let i = begun.fetch_add(1, Ordering::Relaxed);
            if i >= cycles {
                return Ok(());
            }
            if let Err(error) = cycle(&api, image, worker, i) {
                let said = node.fcap().call(&["logs", &format!("soak-{worker}")]);
                // The others end with the cycle that they are in.
                begun.store(cycles, Ordering::Relaxed);
                return Err(error.context(format!("cycle {i}: {said:?}")));
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
    })
}

fn cycle(api: &Api, image: &str, worker: u32, i: u32) -> anyhow::Result<()> {
    let name = format!("soak-{worker}");
    let request = capsule(image, &name);
    // Some end by themselves after they have spoken to the name server, others are removed
    // while they connect, or hardly have begun.
    if i.is_multiple_of(2) {
        let capsule: Capsule = api.create(&request).map_err(anyhow::Error::msg)?;
        ensure!(capsule.networks.len() == 1, "{capsule:?}");
        let end: End = api.get(&format!("/v1/capsules/{name}/wait")).map_err(anyhow::Error::msg)?;
        ensure!(end.exit_code == 0, "{end:?}");
    } else {
        api.run(&request).map_err(anyhow::Error::msg)?;
    }
    api.delete(&format!("/v1/capsules/{name}?force=true")).map_err(anyhow::Error::msg)
}

/// A capsule that looks its own name up, with a published port.
fn capsule(image: &str, name: &str) -> CreateCapsule {
    CreateCapsule {
        name: Some(name.into()),
        image: image.to_owned(),
        image_name: Some("guest-resolve".into()),
        args: vec![name.into()],
        memory_kib: Some(4096),
        ports: vec![PublishPort { host_port: None, port: 80, protocol: Default::default() }],
        ..Default::default()
    }
}

/// Fails unless each question about the network has another answer while there is a capsule: one
/// that has the same answer always would find nothing left behind, whatever is.
pub fn check_that_capsules_are_seen(node: &Node) -> anyhow::Result<()> {
    let api = node.api();
    api.set_pool(0).map_err(anyhow::Error::msg)?;
    let without = in_network(node)?;
    let httpd = api.upload(&cli::image("httpd")).map_err(anyhow::Error::msg)?.digest;
    let capsule: Capsule = api
        .create(&CreateCapsule { args: Vec::new(), ..capsule(&httpd, "seen") })
        .map_err(anyhow::Error::msg)?;
    rig::wait_until("its interface is a port of the bridge", || {
        Ok(node.sh("ls /sys/class/net/fcap0/brif")?.contains("vif"))
    })?;
    let with = in_network(node)?;
    api.delete(&format!("/v1/capsules/{}?force=true", capsule.id)).map_err(anyhow::Error::msg)?;
    for (what, before) in &without {
        ensure!(with[what] != *before, "a capsule changes nothing in {what}: {before}");
    }
    Ok(())
}

/// What a networked cycle could leave behind, once the node is quiet and holds nothing ready.
pub fn inventory(node: &Node) -> anyhow::Result<BTreeMap<&'static str, String>> {
    node.api().set_pool(0).map_err(anyhow::Error::msg)?;
    rig::wait_until("no interface of a capsule is left", || {
        Ok(node.sh("ls /sys/class/net | grep -c '^vif' || true")?.trim() == "0")
    })?;
    let mut found = churn::inventory(node)?;
    found.extend(in_network(node)?);
    Ok(found)
}

/// What capsules have in dom0's network now.
fn in_network(node: &Node) -> anyhow::Result<BTreeMap<&'static str, String>> {
    let mut found = BTreeMap::new();
    for (what, command) in NETWORK {
        found.insert(what, node.sh(command)?.trim().to_owned());
    }
    let networks: Vec<Network> = node.api().get("/v1/networks").map_err(anyhow::Error::msg)?;
    let addresses = networks.iter().map(|network| format!("{} {}", network.name, network.capsules));
    found.insert("addresses", addresses.collect::<Vec<_>>().join(", "));
    Ok(found)
}
