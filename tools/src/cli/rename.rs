//! `fcap rename`.

use super::capsules::locate;
use crate::client::Reference;
use crate::target::Globals;
use fcap_api::UpdateCapsule;

/// Gives a capsule another name
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id, unique prefix of an id, or name
    #[arg(value_name = "CAPSULE")]
    capsule: Reference,
    /// The new name
    #[arg(value_name = "NAME")]
    name: String,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let (node, id) = locate(&fleet, &self.capsule).await?;
        fleet.check_name(&self.name, node).await?;
        node.update(&id, &UpdateCapsule { name: Some(self.name), ..UpdateCapsule::default() }).await?;
        Ok(0)
    }
}
