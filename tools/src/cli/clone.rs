//! `fcap clone`.

use super::restore::choose;
use crate::client::{ClientError, Reference};
use crate::output;
use crate::target::Globals;
use fcap_api::migrate::SaveMode;

/// Makes a second capsule of a running one
///
/// Both go on from the same moment. The clone has its own name, addresses and randomness; connections
/// stay with the first. Prints the clone's id.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id, unique prefix of an id, or name
    #[arg(value_name = "CAPSULE")]
    capsule: Reference,
    /// Name of the clone
    #[arg(value_name = "NAME")]
    name: Reference,
    /// Node for the clone; otherwise that of the first
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let (source, capsule) = fleet.find(&self.capsule).await?;
        let destination = choose(&fleet, Some(self.node.as_deref().unwrap_or(&capsule.node))).await?;
        fleet.check_name(self.name.as_str(), destination).await?;
        let image = source.save(&capsule.id, SaveMode::Clone).await?;
        let clone = match destination.restore(Some(self.name.as_str()), image.into_body()).await {
            Ok(clone) => clone,
            // The destination sees only that the image breaks off.
            Err(error) => match source.broken(&capsule.id).await {
                Ok(Some(body)) => return Err(ClientError::Refused(body).into()),
                _ => return Err(error.into()),
            },
        };
        output::print(&(clone.id + "\n"))?;
        Ok(0)
    }
}
