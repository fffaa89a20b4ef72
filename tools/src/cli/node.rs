//! `fcap node`: the nodes of a cluster.

use super::operation::Waiting;
use crate::client::{Client, Reference};
use crate::human::{ago, now_ms, parse_span, size_kib};
use crate::output::{self, DataFormat, Format, table};
use crate::target::Globals;
use crate::terminal::one_line;
use anyhow::bail;
use fcap_api::cluster::{
    AddNode, ClusterNode, Drain, Failure, MakeToken, NodeState, Replace, UpdateClusterNode,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// Shows, adds, empties, replaces and removes the nodes of a cluster
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists nodes
    #[command(alias = "list")]
    Ls {
        /// Format of the list
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Format,
    },
    /// Shows all that is known of nodes
    #[command(alias = "show")]
    Inspect {
        /// Names of nodes
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<Reference>,
        /// Format of the answer
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: DataFormat,
    },
    /// Starts a node
    Add(AddArgs),
    /// Destroys nodes that are empty
    Rm {
        /// Names of nodes
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<Reference>,
        /// Destroy them with all their capsules
        #[arg(short, long)]
        force: bool,
    },
    /// Lets nothing new come to nodes; what is there stays
    Cordon {
        /// Names of nodes
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<Reference>,
    },
    /// Lets new capsules come to nodes again
    Uncordon {
        /// Names of nodes
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<Reference>,
    },
    /// Gives a node labels, or takes them away
    Label {
        /// Name of the node
        #[arg(value_name = "NODE")]
        node: Reference,
        /// KEY=VALUE gives a label, KEY- takes it away
        #[arg(required = true, value_name = "LABEL")]
        labels: Vec<String>,
    },
    Drain(DrainArgs),
    Replace(ReplaceArgs),
    Token(TokenArgs),
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// Size of the node; `fcap cloud flavors` lists them
    #[arg(long, value_name = "FLAVOR", default_value = "small")]
    flavor: String,
    /// A label, KEY=VALUE; can be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
}

/// Moves all running capsules of a node away, several at a time, and lets nothing new come to it
///
/// Capsules go on while they move. Stops at the first failure; `fcap operation resume` goes on.
/// Ctrl-C ends this command only: `fcap operation cancel` ends the drain.
#[derive(Debug, clap::Args)]
struct DrainArgs {
    /// Name of the node
    #[arg(value_name = "NODE")]
    node: Reference,
    /// Most capsules that move at the same time
    #[arg(short, long, value_name = "COUNT")]
    parallel: Option<u32>,
    /// If not all can go, bring those back that have gone
    #[arg(long)]
    back: bool,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
}

/// Starts a node, moves everything to it, and destroys the old one
///
/// If anything fails before the old node is being destroyed, everything goes back to it, and the new
/// one is destroyed again.
#[derive(Debug, clap::Args)]
struct ReplaceArgs {
    /// Name of the node
    #[arg(value_name = "NODE")]
    node: Reference,
    /// Size of the new node; that of the old one unless given
    #[arg(long, value_name = "FLAVOR")]
    flavor: Option<String>,
    /// Most capsules that move at the same time
    #[arg(short, long, value_name = "COUNT")]
    parallel: Option<u32>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
}

/// Prints a token with which one machine joins the cluster: `fcapd --join TOKEN` there
///
/// Whoever has the token can join with it once, until it expires.
#[derive(Debug, clap::Args)]
struct TokenArgs {
    /// How long the token is good: 30s, 10m or 2h30m
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_span)]
    ttl: Duration,
    /// Host and port at which the machine reaches the controller; where it listens unless given
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let controller = globals.controller().await?;
        match self.verb {
            Verb::Ls { output } => {
                let nodes = controller.cluster_nodes().await?;
                output::list(output, &nodes, |node| &node.name, |wide| listed(&nodes, wide))?;
                Ok(0)
            }
            Verb::Inspect { nodes, output } => {
                let mut found = Vec::new();
                for node in &nodes {
                    found.push(controller.cluster_node(node.as_str()).await?);
                }
                output::data(output, &found)?;
                Ok(0)
            }
            Verb::Add(args) => args.call(&controller).await,
            Verb::Rm { nodes, force } => {
                let mut code = 0;
                for node in &nodes {
                    let operation = controller.remove_node(node.as_str(), force).await?;
                    code = code.max(Waiting::SILENTLY.wait(&controller, &operation).await?);
                }
                Ok(code)
            }
            Verb::Cordon { nodes } => cordon(&controller, &nodes, true).await,
            Verb::Uncordon { nodes } => cordon(&controller, &nodes, false).await,
            Verb::Label { node, labels } => {
                let labels =
                    labels.iter().map(|text| change_of_label(text)).collect::<anyhow::Result<_>>()?;
                controller.update_cluster_node(node.as_str(), &UpdateClusterNode { labels }).await?;
                Ok(0)
            }
            Verb::Drain(args) => {
                let on_failure = if args.back { Failure::Back } else { Failure::Leave };
                let drain = Drain { parallel: args.parallel, on_failure, reason: args.reason };
                let operation = controller.drain(args.node.as_str(), &drain).await?;
                args.waiting.wait(&controller, &operation).await
            }
            Verb::Token(args) => {
                let make = MakeToken { ttl_s: Some(args.ttl.as_secs()), address: args.address };
                output::print(&format!("{}\n", controller.make_token(&make).await?.token))?;
                Ok(0)
            }
            Verb::Replace(args) => {
                let replace = Replace { flavor: args.flavor, parallel: args.parallel, reason: args.reason };
                let operation = controller.replace(args.node.as_str(), &replace).await?;
                args.waiting.wait(&controller, &operation).await
            }
        }
    }
}

impl AddArgs {
    async fn call(self, controller: &Client) -> anyhow::Result<u8> {
        let mut labels = BTreeMap::new();
        for label in &self.labels {
            let Some((key, value)) = label.split_once('=').filter(|(key, _)| !key.is_empty()) else {
                bail!("{label:?} is no label: write KEY=VALUE");
            };
            labels.insert(key.to_owned(), value.to_owned());
        }
        let add = AddNode { flavor: self.flavor, labels, reason: self.reason };
        let operation = controller.add_node(&add).await?;
        self.waiting.wait(controller, &operation).await
    }
}

fn change_of_label(text: &str) -> anyhow::Result<(String, Option<String>)> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) if !key.is_empty() => Ok((key.to_owned(), None)),
        _ => bail!("{text:?} is no label: write KEY=VALUE to give it, KEY- to take it away"),
    }
}

async fn cordon(controller: &Client, nodes: &[Reference], cordoned: bool) -> anyhow::Result<u8> {
    for node in nodes {
        controller.cordon(node.as_str(), cordoned).await?;
    }
    Ok(0)
}

fn state(node: &ClusterNode) -> String {
    let state = match node.state {
        NodeState::Starting => "starting",
        NodeState::Ready => "ready",
        NodeState::Suspect => "suspect",
        NodeState::Lost => "lost",
        NodeState::Stopping => "stopping",
    };
    if node.cordoned { format!("{state},cordoned") } else { state.to_owned() }
}

fn listed(nodes: &[ClusterNode], wide: bool) -> String {
    let now = now_ms();
    let mut head =
        vec!["NODE", "STATE", "FLAVOR", "CPUS", "CPU", "MEM", "FREE", "CAPSULES", "PRICE/H", "STARTED"];
    if wide {
        head.extend(["LABELS", "OPERATION", "ADDRESS", "MESSAGE"]);
    }
    table(&head, nodes.iter().map(|node| row(node, now, wide)))
}

fn row(node: &ClusterNode, now_ms: u64, wide: bool) -> Vec<String> {
    let mut row = vec![
        node.name.clone(),
        state(node),
        node.flavor.clone().unwrap_or_else(|| "-".into()),
        node.cpus.to_string(),
        format!("{:.2}", node.used.minute.cpu_milli as f64 / 1000.0),
        size_kib(node.memory_kib),
        size_kib(node.free_memory_kib),
        node.capsules.to_string(),
        node.price_micros.map_or_else(|| "-".into(), |micros| format!("{:.2}", micros as f64 / 1e6)),
        ago(node.started_ms, now_ms),
    ];
    if wide {
        let labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        row.extend([
            one_line(&labels.join(",")),
            node.operation.clone().unwrap_or_else(|| "-".into()),
            node.url.clone(),
            one_line(node.message.as_deref().unwrap_or("")),
        ]);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_given_and_taken_away() {
        let read = |text: &str| change_of_label(text).ok();
        assert_eq!(read("a=b=c"), Some(("a".into(), Some("b=c".into()))));
        assert_eq!(read("a="), Some(("a".into(), Some(String::new()))));
        assert_eq!(read("a-"), Some(("a".into(), None)));
        assert_eq!((read("a"), read("="), read("-")), (None, None, None));
    }
}
