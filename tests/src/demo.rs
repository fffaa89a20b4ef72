//! What a cluster is for, shown with real nodes under load, with the bill.

pub mod consolidate;
pub mod scale_up;

use anyhow::Context;
use serde_json::Value;

use crate::cli;
use crate::rig::Node;

/// What binds capsules to the node that clients come to: it stays where it is.
const EDGE: &str = "role=edge";

/// Makes a node the one that clients come to.
pub fn be_edge(node: &Node) -> anyhow::Result<()> {
    node.cloud_ok(&["node", "label", node.name(), EDGE]).map(drop)
}

/// The node that clients come to, and one for servers.
fn edge_and_worker() -> anyhow::Result<[Node; 2]> {
    let nodes: [Node; 2] = Node::several(2, "small")?.try_into().ok().context("two nodes were asked for")?;
    be_edge(&nodes[0])?;
    Ok(nodes)
}

/// Starts a web server on a node, and a proxy for it where clients come to; its port on this computer.
pub fn server(edge: &Node, home: &Node, name: &str) -> anyhow::Result<u16> {
    let image = cli::image("httpd");
    let image = image.to_str().context("the tree's path is text")?;
    edge.cloud_ok(&["run", "-d", "--name", name, "--node", home.name(), "-m", "16m", image])?;
    front(edge, name)
}

/// Starts a proxy for a web server on the node that clients come to; its port on this computer.
fn front(edge: &Node, server: &str) -> anyhow::Result<u16> {
    let image = cli::image("proxy");
    let image = image.to_str().context("the tree's path is text")?;
    let (name, to) = (format!("{server}-front"), format!("tcp://{server}:80"));
    let label = format!("fcap.nodes={EDGE}");
    let place = ["--node", edge.name(), "-l", &label, "-m", "16m", "-p", "80"];
    edge.cloud_ok(&[&["run", "-d", "--name", &name][..], &place, &[image, &to, "80"]].concat())?;
    let capsule = edge.cloud_json(&["inspect", &name])?;
    let port = capsule[0]["ports"][0]["host_port"].as_u64().and_then(|port| port.try_into().ok());
    port.with_context(|| format!("{name} has a port on this computer: {capsule}"))
}

/// Runs a command and shows it with what it says.
fn show(node: &Node, args: &[&str]) -> anyhow::Result<()> {
    println!("$ fcap {}", args.join(" "));
    let text = node.cloud_ok(args)?;
    println!("{text}");
    Ok(())
}

/// Nodes, and what an hour of all of them costs, in millionths.
fn bill(node: &Node) -> anyhow::Result<(Vec<String>, u64)> {
    let nodes = node.cloud_json(&["node", "ls"])?;
    let nodes = nodes.as_array().context("a list")?;
    let text = |node: &Value, key: &str| node[key].as_str().unwrap_or_default().to_owned();
    let names = nodes.iter().map(|node| format!("{} ({})", text(node, "name"), text(node, "flavor")));
    let prices = nodes.iter().filter_map(|node| node["price_micros"].as_u64());
    Ok((names.collect(), prices.sum()))
}

fn print_bill(when: &str, (nodes, micros): &(Vec<String>, u64)) {
    println!("{when}: {} cost {:.4} an hour", nodes.join(", "), *micros as f64 / 1e6);
}
