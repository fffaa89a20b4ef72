//! `fcap rm`.

use super::capsules::for_each;
use crate::client::Reference;
use crate::target::Globals;
use std::cell::Cell;

/// Removes capsules that have ended, with their logs
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "CAPSULE")]
    capsules: Vec<Reference>,
    /// End those that still run, at once
    #[arg(short, long)]
    force: bool,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let forwards = globals.forwards()?;
        let had_ports = Cell::new(false);
        let code = for_each(&fleet, &self.capsules, async |node, id, reference| {
            let ports = forwards.any() && !node.capsule(reference).await?.ports.is_empty();
            node.remove(id, self.force).await?;
            had_ports.set(had_ports.get() | ports);
            Ok(reference.to_string())
        })
        .await;
        forwards.tidy_after(had_ports.get()).await;
        code
    }
}
