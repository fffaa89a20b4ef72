//! Two nodes that are half idle become one, and two again when the load rises; wrk does not notice.
//!
//! Both ways it is the shipped policy `scale` that decides, with settings and rules for minutes
//! instead of days.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{bill, edge_and_worker, print_bill, server, show};
use crate::load::{Clients, Load};
use crate::rig::{Node, wait_for};

/// Pause of each client between requests while there is little to do.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections of the load that comes.
const CONNECTIONS: &str = "4";
/// How the policy is applied. Capsules of a node never have a whole processor: dom0 shares it.
const APPLY: [&str; 17] = [
    "policy",
    "apply",
    "scale",
    "--every",
    "5s",
    "--set",
    "window=minute",
    "--set",
    "high_percent=20",
    "--set",
    "fill_percent=15",
    "--rule",
    "cooldown=30s",
    "--rule",
    "node_age=30s",
    "--rule",
    "nodes=2",
];
/// Policies first run when the controller has measured for a minute, and what they look at is the
/// last minute.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often the cluster is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Shows it.
pub fn run() -> anyhow::Result<()> {
    let nodes = edge_and_worker()?;
    let [edge, worker] = &nodes;
    let ports = [server(edge, worker, "web1")?, server(edge, edge, "web2")?];
    // Over connections that stay open to the end.
    let clients = Clients::start(&ports, PAUSE);
    show(edge, &["ps"])?;
    let before = bill(edge)?;
    print_bill("two nodes, half idle", &before);

    show(edge, &APPLY)?;
    until("one node is left", || Ok(bill(edge)?.0.len() == 1))?;
    settled(edge)?;
    show(edge, &["policy", "history"])?;
    show(edge, &["ps"])?;
    let one = bill(edge)?;
    print_bill("consolidated", &one);
    ensure!(one.1 < before.1, "one node costs less than two");

    let mut load = Vec::new();
    for port in &ports {
        load.push(Load::wrk(*port, CONNECTIONS)?);
    }
    println!("the load rises");
    until("a server is on another node", || {
        let servers = servers(edge)?;
        Ok(servers.iter().any(|node| node != edge.name()))
    })?;
    settled(edge)?;
    show(edge, &["policy", "history", "--full"])?;
    show(edge, &["ps"])?;
    let two = bill(edge)?;
    print_bill("split", &two);
    ensure!(two.0.len() == 2 && two.1 > one.1, "the second node has its price");

    for (number, load) in load.into_iter().enumerate() {
        println!("web{}: {}; no error", number + 1, load.end_wrk()?);
    }
    println!("clients that were there all the time: {} requests answered", clients.end()?);
    show(edge, &["cost"])?;
    let cost = edge.cloud_json(&["cost"])?;
    ensure!(cost["saved_micros"].as_i64().is_some_and(|saved| saved > 0), "it has saved something: {cost}");
    Ok(())
}

/// The nodes of the servers.
fn servers(edge: &Node) -> anyhow::Result<Vec<String>> {
    let capsules = edge.cloud_json(&["ps"])?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = capsules.as_array().context("a list")?.iter();
    Ok(all.filter(|it| !text(&it["name"]).ends_with("-front")).map(|it| text(&it["node"])).collect())
}

/// Waits until what the policy has begun is done.
fn settled(edge: &Node) -> anyhow::Result<()> {
    until("all operations are over", || {
        let operations = edge.cloud_json(&["operation", "ls"])?;
        let states = operations.as_array().context("a list")?.iter();
        let states: Vec<&str> = states.filter_map(|it| it["state"].as_str()).collect();
        ensure!(!states.contains(&"failed"), "a plan failed: {operations}");
        Ok(states.iter().all(|state| *state == "done"))
    })
}

/// Asks now and then, so that the asking is no load.
fn until(what: &str, mut question: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    wait_for(what, PATIENCE, || {
        std::thread::sleep(LOOK);
        question()
    })
}
