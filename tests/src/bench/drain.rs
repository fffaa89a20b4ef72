//! `fcap node drain` of a node with 50 servers, and `fcap migrate` of each, one after the other. All of
//! them are asked for pages meanwhile.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use crate::demo;
use crate::load::Clients;
use crate::rig::{Node, wait_until};
use crate::stats::{median, ms, summary};

const CAPSULES: usize = 50;
const ROUNDS: usize = 3;
/// Between an answer of a server and the next question to it.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs the benchmark and returns its line of JSON.
pub fn run() -> anyhow::Result<serde_json::Value> {
    let nodes = Node::several(3, "medium")?;
    let [edge, one, two] = &nodes[..] else { anyhow::bail!("three nodes were asked for") };
    demo::be_edge(edge)?;
    let names: Vec<String> = (1..=CAPSULES).map(|number| format!("web{number}")).collect();
    let mut ports = Vec::new();
    for name in &names {
        ports.push(demo::server(edge, one, name)?);
    }
    let clients = Clients::start(&ports, PAUSE);
    let (mut by_one, mut drained) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let start = Instant::now();
        for name in &names {
            one.cloud_ok(&["migrate", "-q", name, two.name()])?;
        }
        by_one.push(ms(start.elapsed()) / 1e3);
        let start = Instant::now();
        one.cloud_ok(&["node", "drain", "-q", two.name()])?;
        drained.push(ms(start.elapsed()) / 1e3);
        one.cloud_ok(&["node", "uncordon", two.name()])?;
        let listed = one.cloud_ok(&["ps", "-q"])?;
        ensure!(listed.lines().count() == 2 * CAPSULES, "round {round}: not all run: {listed}");
        wait_until("what has gone is gone", || {
            let capsules = two.api().get::<Vec<fcap_api::Capsule>>("/v1/capsules?all=true");
            Ok(capsules.is_ok_and(|capsules| capsules.is_empty()))
        })?;
    }
    println!("{} requests, no error", clients.end()?);
    println!("{}", summary("50 times fcap migrate", "s", &by_one));
    println!("{}", summary("fcap node drain", "s", &drained));
    Ok(json!({ "bench": "drain", "drain_ratio": median(&by_one) / median(&drained) }))
}
