//! Whom a command speaks to.
//!
//! In this order: the servers named with `--host`; the daemon of this machine, when its socket is
//! there (inside a node's dom0); the nodes of the local cloud.

use crate::client::{self, Address, Client};
use crate::cloud::{Cloud, DEFAULT_CLOUD, FLAVORS, Node, Request, Variant, controller};
use crate::fleet::Fleet;
use crate::forwards::Forwards;
use crate::progress::Steps;
use anyhow::Context as _;
use fcap_api::DEFAULT_SOCKET;
use std::path::{Path, PathBuf};

/// Options that every command has.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Server to speak to: unix:///path/to/socket or http://host:port; several with commas between
    #[arg(
        short = 'H',
        long,
        global = true,
        env = "FCAP_HOST",
        value_name = "ADDRESS",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub host: Vec<Address>,
    /// Token of the server
    #[arg(long, global = true, env = "FCAP_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File with the token of the server; goes before --token
    #[arg(long, global = true, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Local cloud to use
    #[arg(
        long,
        global = true,
        env = "FCAP_CLOUD",
        value_name = "NAME",
        default_value = DEFAULT_CLOUD,
        hide_env_values = true
    )]
    pub cloud: String,
    /// Do not use colours (also NO_COLOR)
    #[arg(long, global = true)]
    pub no_color: bool,
    /// Show each request and how long it took
    #[arg(short = 'D', long, global = true)]
    pub debug: bool,
}

/// There is nobody to speak to.
#[derive(Debug, thiserror::Error)]
#[error("no cloud {0:?} is up; `fcap cloud up` or `fcap run` starts one")]
pub struct NoCloud(String);

impl Globals {
    /// Whether colours are wanted.
    pub fn colours(&self) -> bool {
        !self.no_color && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    }

    /// All nodes that there are.
    ///
    /// # Errors
    /// [`NoCloud`] when there is neither a server nor a cloud.
    pub async fn fleet(&self) -> anyhow::Result<Fleet> {
        let servers = self.servers()?;
        if !servers.is_empty() {
            return Ok(Fleet::new(servers));
        }
        let nodes = Cloud::new(&self.cloud)?.nodes()?;
        if nodes.is_empty() { Err(NoCloud(self.cloud.clone()).into()) } else { self.fleet_of(&nodes) }
    }

    /// The same; starts a local cloud of one node when there is none, and says so.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn fleet_or_start(&self) -> anyhow::Result<Fleet> {
        match self.fleet().await {
            Err(error) if error.is::<NoCloud>() => {}
            fleet => return fleet,
        }
        let flavor = &FLAVORS[0];
        let steps = Steps::new();
        steps.say(&format!(
            "no cloud is up: starting cloud {} with one {} node; `fcap cloud down` ends it",
            self.cloud, flavor.name
        ));
        let request = Request { nodes: 1, flavor, variant: Variant::Node, encrypt: false };
        let nodes = Cloud::new(&self.cloud)?.up(&request, &|step| steps.step(step));
        steps.finish();
        self.fleet_of(&nodes?)
    }

    /// The controller of the cluster: the server that the user named, or that of the local cloud,
    /// which is started if need be.
    ///
    /// # Errors
    /// When there is neither, or it does not come up.
    pub async fn controller(&self) -> anyhow::Result<Client> {
        let mut servers = self.servers()?;
        if let Some(server) = servers.pop() {
            anyhow::ensure!(servers.is_empty(), "a cluster has one controller: give one --host");
            return Ok(server);
        }
        let cloud = Cloud::new(&self.cloud)?;
        if cloud.nodes()?.is_empty() && controller::find(&cloud).is_none() {
            return Err(NoCloud(self.cloud.clone()).into());
        }
        let address = tokio::task::spawn_blocking(move || controller::ensure(&cloud)).await??;
        Ok(Client::new(address.url.parse()?, Some(&address.token), self.debug)?.named(&user()))
    }

    /// Who says to which nodes of the local cloud nothing may come, where a local cloud is what is
    /// spoken to. For the sake of one node alone no controller is started.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn local_controller(&self, fleet: &Fleet) -> anyhow::Result<Option<Client>> {
        if !self.servers()?.is_empty() {
            return Ok(None);
        }
        let runs = controller::find(&Cloud::new(&self.cloud)?).is_some();
        if runs || fleet.nodes().len() > 1 { self.controller().await.map(Some) } else { Ok(None) }
    }

    /// What of the nodes' published ports is forwarded from this machine.
    ///
    /// # Errors
    /// When the local cloud's folder cannot be read.
    pub fn forwards(&self) -> anyhow::Result<Forwards> {
        if !self.servers()?.is_empty() {
            return Ok(Forwards::default());
        }
        let cloud = Cloud::new(&self.cloud)?;
        let nodes = cloud.nodes()?;
        let names = nodes.iter().map(|node| node.name.clone());
        let nodes = names.zip(self.fleet_of(&nodes)?.nodes().iter().cloned()).collect();
        Ok(Forwards::local(cloud, nodes))
    }

    fn fleet_of(&self, nodes: &[Node]) -> anyhow::Result<Fleet> {
        let client = |node: &Node| Ok(Client::new(node.url().parse()?, Some(&node.token), self.debug)?);
        Ok(Fleet::new(nodes.iter().map(client).collect::<anyhow::Result<_>>()?))
    }

    /// The servers that the user named, or the daemon of this machine.
    fn servers(&self) -> anyhow::Result<Vec<Client>> {
        let socket = Path::new(DEFAULT_SOCKET);
        let addresses = if self.host.is_empty() && socket.exists() {
            vec![Address::Unix(socket.to_owned())]
        } else {
            self.host.clone()
        };
        let from_file = match &self.token_file {
            Some(path) => {
                Some(client::read_token(path).with_context(|| format!("token file {}", path.display()))?)
            }
            None => None,
        };
        let token = from_file.as_deref().or(self.token.as_deref()).filter(|token| !token.is_empty());
        let client = |address| Ok(Client::new(address, token, self.debug)?.named(&user()));
        addresses.into_iter().map(client).collect()
    }
}

/// Who calls, for the record of a controller.
fn user() -> String {
    ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default()
}
