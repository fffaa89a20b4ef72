//! `fcap restart`.

use super::capsules::for_each;
use super::stop::DEFAULT_TIMEOUT_S;
use crate::client::{Reference, Verb};
use crate::target::Globals;
use fcap_api::{ErrorCode, State};

/// Stops capsules and starts them again
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
        let forwards = globals.forwards()?;
        for_each(&fleet, &self.capsules, async |node, _, reference| {
            let capsule = node.capsule(reference).await?;
            let id = capsule.id.as_str();
            if !matches!(capsule.state, State::Created | State::Exited) {
                match node.stop(id, self.time).await {
                    // It may have ended by itself in between.
                    Err(error) if error.code() != Some(ErrorCode::WrongState) => return Err(error.into()),
                    _ => {}
                }
                node.wait(id).await?;
            }
            forwards.add(&node.act(id, Verb::Start).await?).await?;
            Ok(reference.to_string())
        })
        .await
    }
}
