//! Start and stop capsules with network and published ports, ten thousand times: no interface,
//! bridge port, xenstore node, address or rule is left.

use std::collections::BTreeMap;

use anyhow::ensure;
use fcap_api::{Capsule, CreateCapsule, Network, PublishPort};

use super::churn;
use crate::cli;
use crate::rig::{self, Node};

/// Runs `cycles` cycles.
pub fn run(cycles: u32) -> anyhow::Result<()> {
    let node = Node::compare()?;
    let api = node.api();
    let resolve = api.upload(&cli::image("guest-resolve")).map_err(anyhow::Error::msg)?;
    let cycle = |i: u32| -> anyhow::Result<()> {
        let request = CreateCapsule {
            name: Some("soak".into()),
            image: resolve.digest.clone(),
            image_name: Some("guest-resolve".into()),
            args: vec!["soak".into()],
            memory_kib: Some(4096),
            ports: vec![PublishPort { host_port: None, port: 80, protocol: Default::default() }],
            ..Default::default()
        };
        let capsule: Capsule = api.create(&request).map_err(anyhow::Error::msg)?;
        ensure!(capsule.networks.len() == 1, "cycle {i}: {capsule:?}");
        // Some end by themselves after they have spoken to the name server, others are removed
        // while they connect, or hardly have begun.
        if i.is_multiple_of(2) {
            let end: fcap_api::End =
                api.get(&format!("/v1/capsules/{}/wait", capsule.id)).map_err(anyhow::Error::msg)?;
            ensure!(end.exit_code == 0, "cycle {i}: {end:?}");
        }
        api.delete(&format!("/v1/capsules/{}?force=true", capsule.id)).map_err(anyhow::Error::msg)
    };
    // Caches fill, the allocator takes its arenas: not what is looked for.
    for i in 0..64 {
        cycle(i)?;
    }
    let before = inventory(&node)?;
    println!("before: {before:?}");
    for i in 0..cycles {
        cycle(i)?;
        if (i + 1) % 500 == 0 {
            println!("{} cycles", i + 1);
        }
    }
    let after = inventory(&node)?;
    println!("after:  {after:?}");
    ensure!(before == after, "something is left behind:\n{before:?}\n{after:?}");
    println!("{cycles} cycles: interfaces, ports, xenstore, addresses and rules end where they began");
    Ok(())
}

/// What a networked cycle could leave behind.
pub fn inventory(node: &Node) -> anyhow::Result<BTreeMap<&'static str, String>> {
    rig::wait_until("no interface of a capsule is left", || {
        Ok(node.sh("ls /sys/class/net | grep -c '^vif' || true")?.trim() == "0")
    })?;
    let mut found = churn::inventory(node)?;
    let ask = [
        ("network devices", "ls /sys/class/net | sort | xargs"),
        ("bridge ports", "ls /sys/class/net/*/brif | sort | xargs"),
        // Rules and sets, without what counts.
        ("rules", "nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//' | md5sum"),
        ("neighbours", "ip neigh show nud permanent | wc -l"),
        ("forwarding", "brctl showmacs fcap0 | wc -l"),
    ];
    for (what, command) in ask {
        found.insert(what, node.sh(command)?.trim().to_owned());
    }
    let networks: Vec<Network> = node.api().get("/v1/networks").map_err(anyhow::Error::msg)?;
    let addresses = networks.iter().map(|network| format!("{} {}", network.name, network.capsules));
    found.insert("addresses", addresses.collect::<Vec<_>>().join(", "));
    Ok(found)
}
