//! `fcap version`.

use crate::output::{self, TextFormat, table};
use crate::target::{Globals, NoCloud};
use crate::terminal::one_line;
use fcap_api::Version;
use serde::Serialize;

/// Shows the version of this program and of the nodes it speaks to
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: TextFormat,
}

#[derive(Debug, Serialize)]
struct Versions {
    client: Client,
    servers: Vec<Server>,
}

#[derive(Debug, Serialize)]
struct Client {
    version: &'static str,
    api: &'static str,
}

#[derive(Debug, Serialize)]
struct Server {
    address: String,
    #[serde(flatten)]
    version: Version,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let client = Client { version: env!("CARGO_PKG_VERSION"), api: "v1" };
        let mut versions = Versions { client, servers: Vec::new() };
        let mut code = 0;
        match globals.fleet().await {
            Ok(fleet) => {
                let answers = fleet
                    .ask(async |node| {
                        Ok(Server { address: node.address().to_string(), version: node.version().await? })
                    })
                    .await;
                versions.servers = answers.values;
                for failure in answers.failures {
                    eprintln!("fcap: {failure}");
                    code = 1;
                }
            }
            Err(error) if error.is::<NoCloud>() => eprintln!("fcap: {error}"),
            Err(error) => return Err(error),
        }
        match self.output {
            TextFormat::Json => output::json(&versions)?,
            TextFormat::Yaml => output::yaml(&versions)?,
            TextFormat::Table => {
                let client = vec!["fcap".into(), versions.client.version.into(), versions.client.api.into()];
                let servers = versions.servers.iter().map(|Server { address, version }| {
                    let what =
                        [&version.version, &version.api, &version.hypervisor].map(|text| one_line(text));
                    [address.clone()].into_iter().chain(what).collect()
                });
                let rows = std::iter::once(client).chain(servers);
                output::print(&table(&["WHAT", "VERSION", "API", "HYPERVISOR"], rows))?;
            }
        }
        Ok(code)
    }
}
