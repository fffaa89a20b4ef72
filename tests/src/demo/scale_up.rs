//! Web servers move from a small node to a large one and back, and wrk does not notice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{bill, edge_and_worker, print_bill, server, show};
use crate::load::Load;
use crate::rig::{Node, wait_until};

const SERVERS: u32 = 3;
/// Connections to each.
const CONNECTIONS: &str = "2";
/// How often the bill is looked at while it changes.
const LOOK: Duration = Duration::from_millis(250);

/// Shows it.
pub fn run() -> anyhow::Result<()> {
    let nodes = edge_and_worker()?;
    let [edge, worker] = &nodes;
    let mut load = Vec::new();
    for number in 1..=SERVERS {
        load.push(Load::wrk(server(edge, worker, &format!("web{number}"))?, CONNECTIONS)?);
    }
    show(edge, &["ps"])?;
    let before = bill(edge)?;
    print_bill("before", &before);

    let mut worker = worker.name().to_owned();
    for flavor in ["large", "small"] {
        let most = replace(edge, &worker, flavor)?;
        print_bill("meanwhile", &most);
        let (now, _) = bill(edge)?;
        ensure!(now.len() == 2, "the old node is gone: {now:?}");
        worker = other(edge)?;
        show(edge, &["ps"])?;
        let capsules = edge.cloud_json(&["ps"])?;
        let servers = capsules.as_array().into_iter().flatten();
        let moved = servers.filter(|capsule| capsule["node"] == worker.as_str()).count();
        ensure!(moved == SERVERS as usize, "all servers are on {worker}: {capsules}");
        print_bill(if flavor == "large" { "on the large node" } else { "after" }, &bill(edge)?);
    }
    ensure!(bill(edge)?.1 == before.1, "it costs what it did before");
    for (number, load) in load.into_iter().enumerate() {
        println!("web{}: {}; no error", number + 1, load.end_wrk()?);
    }
    Ok(())
}

/// Replaces a node; the largest bill meanwhile.
fn replace(edge: &Node, worker: &str, flavor: &str) -> anyhow::Result<(Vec<String>, u64)> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = (Vec::new(), 0);
            while !done.load(Ordering::Relaxed) {
                let now = bill(edge)?;
                if now.1 > most.1 {
                    most = now;
                }
                std::thread::sleep(LOOK);
            }
            anyhow::Ok(most)
        });
        let replaced = show(edge, &["node", "replace", worker, "--flavor", flavor]);
        done.store(true, Ordering::Relaxed);
        let most = watcher.join().expect("no panic")?;
        replaced.map(|()| most)
    })
}

/// The node that clients do not come to, once it is alone.
fn other(edge: &Node) -> anyhow::Result<String> {
    let mut name = None;
    wait_until("one node is left beside the one that clients come to", || {
        let nodes = edge.cloud_ok(&["node", "ls", "-o", "name"])?;
        let others: Vec<&str> = nodes.lines().filter(|name| *name != edge.name()).collect();
        name = match others[..] {
            [one] => Some(one.to_owned()),
            _ => None,
        };
        Ok(name.is_some())
    })?;
    name.context("it has a name")
}
