//! `fcap prune`.

use super::capsules::confirm;
use crate::output;
use crate::target::Globals;
use std::collections::BTreeSet;

/// Removes all capsules that have ended, and all images that no capsule uses
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Do not ask first
    #[arg(short, long)]
    force: bool,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let question =
            "This removes all capsules that have ended and all images that no capsule uses. Go on?";
        if !self.force && !confirm(question)? {
            return Ok(1);
        }
        let (pruned, complete) = fleet.ask(|node| node.prune()).await.noted()?;
        // Several nodes may have held the same image.
        let ids: BTreeSet<String> =
            pruned.into_iter().flat_map(|pruned| pruned.capsules.into_iter().chain(pruned.images)).collect();
        output::print(&ids.into_iter().map(|id| id + "\n").collect::<String>())?;
        Ok(u8::from(!complete))
    }
}
