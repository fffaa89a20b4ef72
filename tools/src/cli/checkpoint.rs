//! `fcap checkpoint`.

use super::save::to_file;
use crate::client::Reference;
use crate::target::Globals;
use fcap_api::migrate::SaveMode;

/// Puts a running capsule into a file, and lets it go on
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id, unique prefix of an id, or name
    #[arg(value_name = "CAPSULE")]
    capsule: Reference,
    /// File to write, - for standard output
    #[arg(value_name = "FILE")]
    file: String,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let (node, capsule) = fleet.find(&self.capsule).await?;
        to_file(node, &capsule.id, SaveMode::Checkpoint, &self.file).await?;
        Ok(0)
    }
}
