//! `fcap wait`.

use super::capsules::for_each;
use crate::client::Reference;
use crate::target::Globals;

/// Waits until capsules have ended and prints their exit codes
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "CAPSULE")]
    capsules: Vec<Reference>,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        for_each(&fleet, &self.capsules, async |node, id, _| Ok(node.wait(id).await?.exit_code.to_string()))
            .await
    }
}
