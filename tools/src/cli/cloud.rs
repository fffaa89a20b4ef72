//! `fcap cloud`: nodes on the user's own computer.

use crate::cloud::{Cloud, FLAVORS, Flavor, Node, Request, Variant, controller};
use crate::human::{ago, now_ms, size_kib};
use crate::output::{self, Format, table};
use crate::progress::Steps;
use crate::target::Globals;
use serde::Serialize;

/// Starts, shows and ends local clouds: nodes on this computer
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Up(UpArgs),
    #[command(alias = "list")]
    Ls(ListArgs),
    Down(DownArgs),
    /// Lists flavors: sizes of nodes, with prices
    Flavors,
}

/// Adds nodes to a cloud, and makes it if need be
#[derive(Debug, clap::Args)]
struct UpArgs {
    /// How many nodes to add
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    /// Size of the nodes; `fcap cloud flavors` lists them
    #[arg(long, value_name = "FLAVOR", default_value = FLAVORS[0].name, value_parser = Flavor::named)]
    flavor: &'static Flavor,
    /// Name of the cloud; the same as --cloud
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Encrypt what the nodes of the cloud send each other, from now on
    #[arg(long)]
    encrypt: bool,
    /// Nodes that also have xl and a shell without a password, to compare with
    #[arg(long, hide = true)]
    compare: bool,
}

/// Lists clouds and their nodes
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Format of the list
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// Ends all nodes of a cloud, with everything on them
#[derive(Debug, clap::Args)]
struct DownArgs {
    /// Name of the cloud; the same as --cloud
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// All clouds
    #[arg(short, long, conflicts_with = "name")]
    all: bool,
}

/// A cloud and its nodes, as data. Tokens stay where they are.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    nodes: Vec<ListedNode>,
}

#[derive(Debug, Serialize)]
struct ListedNode {
    name: String,
    flavor: String,
    cpus: Option<u32>,
    memory_mib: Option<u32>,
    price_per_hour: Option<f64>,
    url: String,
    pid: u32,
    started_ms: u64,
}

impl Args {
    pub(super) fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        match self.verb {
            Verb::Up(args) => args.call(globals),
            Verb::Ls(args) => args.call(),
            Verb::Down(args) => args.call(globals),
            Verb::Flavors => flavors(),
        }
    }
}

impl UpArgs {
    fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let name = self.name.as_ref().unwrap_or(&globals.cloud);
        let variant = if self.compare { Variant::Xl } else { Variant::Node };
        let request = Request { nodes: self.nodes, flavor: self.flavor, variant, encrypt: self.encrypt };
        let steps = Steps::new();
        let cloud = Cloud::new(name)?;
        let started = cloud.up(&request, &|step| steps.step(step));
        steps.finish();
        let started = started?;
        controller::begin(&cloud)?;
        for node in started {
            output::print(&format!("{}\n", node.name))?;
        }
        Ok(0)
    }
}

impl ListArgs {
    fn call(self) -> anyhow::Result<u8> {
        let mut clouds = Vec::new();
        for cloud in Cloud::all()? {
            let nodes = cloud.nodes()?.iter().map(listed).collect();
            clouds.push(Listed { name: cloud.name().to_owned(), nodes });
        }
        let now = now_ms();
        let rows = clouds.iter().flat_map(|cloud| cloud.nodes.iter().map(|node| row(cloud, node, now)));
        let head = ["CLOUD", "NODE", "FLAVOR", "CPUS", "MEM", "PRICE/H", "STARTED", "ADDRESS", "PID"];
        output::list(self.output, &clouds, |cloud| &cloud.name, |_| table(&head, rows))?;
        Ok(0)
    }
}

fn listed(node: &Node) -> ListedNode {
    let flavor = Flavor::named(&node.flavor).ok();
    ListedNode {
        name: node.name.clone(),
        flavor: node.flavor.clone(),
        cpus: flavor.map(|flavor| flavor.cpus),
        memory_mib: flavor.map(|flavor| flavor.memory_mib),
        price_per_hour: flavor.map(|flavor| flavor.price_per_hour),
        url: node.url(),
        pid: node.pid,
        started_ms: node.started_ms,
    }
}

fn row(cloud: &Listed, node: &ListedNode, now_ms: u64) -> Vec<String> {
    let unknown = || "-".to_owned();
    vec![
        cloud.name.clone(),
        node.name.clone(),
        node.flavor.clone(),
        node.cpus.map_or_else(unknown, |cpus| cpus.to_string()),
        node.memory_mib.map_or_else(unknown, |mib| size_kib(u64::from(mib) * 1024)),
        node.price_per_hour.map_or_else(unknown, price),
        ago(node.started_ms, now_ms),
        node.url.clone(),
        node.pid.to_string(),
    ]
}

impl DownArgs {
    fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let clouds = if self.all {
            Cloud::all()?
        } else {
            vec![Cloud::new(self.name.as_ref().unwrap_or(&globals.cloud))?]
        };
        let steps = Steps::new();
        for cloud in clouds {
            let ended = cloud.down(&|step| steps.step(step));
            steps.finish();
            let nodes = ended?;
            output::print(&format!(
                "cloud {}: {nodes} node{} ended\n",
                cloud.name(),
                if nodes == 1 { "" } else { "s" }
            ))?;
        }
        Ok(0)
    }
}

fn flavors() -> anyhow::Result<u8> {
    let rows = FLAVORS.iter().map(|flavor| {
        let memory = size_kib(u64::from(flavor.memory_mib) * 1024);
        vec![flavor.name.into(), flavor.cpus.to_string(), memory, price(flavor.price_per_hour)]
    });
    output::print(&table(&["FLAVOR", "CPUS", "MEM", "PRICE/H"], rows))?;
    Ok(0)
}

fn price(per_hour: f64) -> String {
    format!("{per_hour:.2}")
}
