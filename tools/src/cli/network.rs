//! `fcap network`: networks of capsules.

use crate::client::{Client, ClientError};
use crate::fleet::Fleet;
use crate::output::{self, DataFormat, Format, table};
use crate::target::Globals;
use crate::terminal::one_line;
use anyhow::{Context as _, ensure};
use fcap_api::{CreateNetwork, ErrorCode, MAX_NETWORK_NAME, Network};
use std::collections::BTreeMap;

/// Lists, makes and removes networks of capsules
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    #[command(alias = "list")]
    Ls(ListArgs),
    Create(CreateArgs),
    #[command(visible_alias = "show")]
    Inspect(InspectArgs),
    #[command(alias = "delete")]
    Rm(RemoveArgs),
}

/// Lists networks
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
    /// Format of the list
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// Makes a network, on all nodes
///
/// Its capsules reach each other by address and by name, on whatever node, and no capsule of
/// another network.
#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// Name of the network
    #[arg(value_name = "NAME", value_parser = parse_name)]
    name: String,
    /// Its private IPv4 addresses, such as 10.90.0.0/16; free ones otherwise
    #[arg(long, value_name = "ADDRESS/BITS")]
    subnet: Option<String>,
    /// Keep its capsules from what is beyond their node
    #[arg(long)]
    internal: bool,
}

/// Tells everything about networks
#[derive(Debug, clap::Args)]
struct InspectArgs {
    /// Names of networks
    #[arg(required = true, value_name = "NAME", value_parser = parse_name)]
    names: Vec<String>,
    /// Format of the list
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: DataFormat,
}

/// Removes networks that no capsule is in, from all nodes
#[derive(Debug, clap::Args)]
struct RemoveArgs {
    /// Names of networks
    #[arg(required = true, value_name = "NAME", value_parser = parse_name)]
    names: Vec<String>,
}

/// What may name a network. Only such text reaches a URL.
pub(super) fn parse_name(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = text.len() <= MAX_NETWORK_NAME && text.chars().all(inner);
    if fits && text.starts_with(|c: char| c.is_ascii_lowercase()) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "not a name of a network: a lower-case letter, then lower-case letters, digits and '-', \
             at most {MAX_NETWORK_NAME}"
        ))
    }
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        match self.verb {
            Verb::Ls(args) => args.call(&globals.fleet().await?).await,
            Verb::Create(args) => args.call(&globals.fleet_or_start().await?).await,
            Verb::Inspect(args) => args.call(&globals.fleet().await?).await,
            Verb::Rm(args) => args.call(&globals.fleet().await?).await,
        }
    }
}

/// All networks of all nodes, each once, with the capsules of all nodes.
async fn networks(fleet: &Fleet) -> anyhow::Result<(Vec<Network>, bool)> {
    let (lists, complete) = fleet.ask(|node| node.networks()).await.noted()?;
    let mut all: BTreeMap<String, Network> = BTreeMap::new();
    for network in lists.into_iter().flatten() {
        match all.get_mut(&network.name) {
            Some(there) => there.capsules += network.capsules,
            None => drop(all.insert(network.name.clone(), network)),
        }
    }
    Ok((all.into_values().collect(), complete))
}

impl ListArgs {
    async fn call(self, fleet: &Fleet) -> anyhow::Result<u8> {
        let (networks, complete) = networks(fleet).await?;
        let names = || networks.iter().map(|network| network.name.clone() + "\n").collect::<String>();
        match self.output {
            _ if self.quiet => output::print(&names())?,
            Format::Name => output::print(&names())?,
            Format::Json => output::json(&networks)?,
            Format::Yaml => output::yaml(&networks)?,
            Format::Table | Format::Wide => {
                let rows = networks.iter().map(|it| {
                    let mut row = vec![
                        one_line(&it.name),
                        one_line(&it.subnet4),
                        if it.outbound { "yes".into() } else { "no".into() },
                        it.capsules.to_string(),
                    ];
                    if self.output == Format::Wide {
                        row.extend([it.gateway4.to_string(), one_line(&it.subnet6), it.mtu.to_string()]);
                    }
                    row
                });
                let mut head = vec!["NAME", "SUBNET", "OUTBOUND", "CAPSULES"];
                if self.output == Format::Wide {
                    head.extend(["GATEWAY", "IPV6", "MTU"]);
                }
                output::print(&table(&head, rows))?;
            }
        }
        Ok(u8::from(!complete))
    }
}

impl CreateArgs {
    async fn call(self, fleet: &Fleet) -> anyhow::Result<u8> {
        let first = fleet.nodes().first().context("there is no node")?;
        let request = CreateNetwork { name: self.name, subnet: self.subnet, internal: self.internal };
        let made = first.create_network(&request).await?;
        // The others get what the first one chose.
        for node in &fleet.nodes()[1..] {
            make_on(node, &made).await?;
        }
        output::print(&(made.name + "\n")).map(|()| 0)
    }
}

/// Makes a network of another node on this one.
async fn make_on(node: &Client, network: &Network) -> Result<(), ClientError> {
    let Network { name, subnet4, outbound, .. } = network;
    let request = CreateNetwork { name: name.clone(), subnet: Some(subnet4.clone()), internal: !outbound };
    match node.create_network(&request).await {
        // It is there already.
        Err(error) if error.code() == Some(ErrorCode::WrongState) => Ok(()),
        made => made.map(drop),
    }
}

/// Makes networks on a node that are there on another one.
pub(super) async fn bring(fleet: &Fleet, node: &Client, names: &[String]) -> anyhow::Result<()> {
    let there: Vec<String> = node.networks().await?.into_iter().map(|network| network.name).collect();
    for name in names.iter().filter(|name| !there.contains(name)) {
        let elsewhere = fleet.ask(|node| node.networks()).await.flat();
        if let Some(network) = elsewhere.values.iter().find(|network| network.name == *name) {
            make_on(node, network).await?;
        }
    }
    Ok(())
}

impl InspectArgs {
    async fn call(self, fleet: &Fleet) -> anyhow::Result<u8> {
        let (networks, _) = networks(fleet).await?;
        let mut found = Vec::new();
        let mut code = 0;
        for name in &self.names {
            match networks.iter().find(|network| network.name == *name) {
                Some(network) => found.push(network),
                None => {
                    eprintln!("fcap: no such network: {name}; `fcap network ls` shows all");
                    code = 1;
                }
            }
        }
        output::data(self.output, &found)?;
        Ok(code)
    }
}

impl RemoveArgs {
    async fn call(self, fleet: &Fleet) -> anyhow::Result<u8> {
        let mut code = 0;
        for name in &self.names {
            match remove(fleet, name).await {
                Ok(()) => output::print(&format!("{name}\n"))?,
                Err(error) => {
                    eprintln!("fcap: {}", one_line(&format!("{error:#}")));
                    code = 1;
                }
            }
        }
        Ok(code)
    }
}

async fn remove(fleet: &Fleet, name: &str) -> anyhow::Result<()> {
    // First a look at all of them: it is not to go from a part of the nodes.
    let (networks, complete) = networks(fleet).await?;
    ensure!(complete, "network {name} stays, as not all nodes could be asked");
    let used = networks.iter().find(|network| network.name == name).map_or(0, |network| network.capsules);
    ensure!(used == 0, "network {name} is in use by capsules ({used}); remove them first");
    let answers = fleet.ask(|node| node.remove_network(name)).await;
    let is_missing = |error: &ClientError| error.code() == Some(ErrorCode::NoSuchNetwork);
    let removed = !answers.values.is_empty();
    let failure = answers.failures.into_iter().find(|error| !removed || !is_missing(error));
    failure.map_or(Ok(()), |error| Err(error.into()))
}
