//! `fcap stop`.

use super::capsules::for_each;
use crate::client::Reference;
use crate::target::Globals;
use std::cell::Cell;

/// Seconds until force is used, as docker has it.
pub(super) const DEFAULT_TIMEOUT_S: u64 = 10;

/// Asks capsules to stop, and ends those that have not after some time
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "CAPSULE")]
    capsules: Vec<Reference>,
    /// Seconds to wait before a capsule is ended by force
    #[arg(short = 't', long = "time", alias = "timeout", value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT_S)]
    time: u64,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let had_ports = Cell::new(false);
        let code = for_each(&fleet, &self.capsules, async |node, id, reference| {
            had_ports.set(had_ports.get() | !node.stop(id, self.time).await?.ports.is_empty());
            Ok(reference.to_string())
        })
        .await;
        globals.forwards()?.tidy_after(had_ports.get()).await;
        code
    }
}
