//! `fcap rm`.

use super::capsules::for_each;
use crate::client::Reference;
use crate::target::Globals;

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
        for_each(&fleet, &self.capsules, async |node, id, reference| {
            node.remove(id, self.force).await?;
            Ok(reference.to_string())
        })
        .await
    }
}
