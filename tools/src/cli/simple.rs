//! `fcap kill`, `fcap pause`, `fcap unpause`: one request for each capsule.

use super::capsules::for_each;
use crate::client::{Reference, Verb};
use crate::target::Globals;
use std::cell::Cell;

/// Ends capsules at once; their exit code is 137
#[derive(Debug, clap::Args)]
pub(super) struct Kill {
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "CAPSULE")]
    capsules: Vec<Reference>,
}

/// Holds capsules: they keep their memory and get no processor time
#[derive(Debug, clap::Args)]
pub(super) struct Pause {
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "CAPSULE")]
    capsules: Vec<Reference>,
}

/// Lets paused capsules go on
#[derive(Debug, clap::Args)]
pub(super) struct Unpause {
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "CAPSULE")]
    capsules: Vec<Reference>,
}

impl Kill {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        act(globals, &self.capsules, Verb::Kill).await
    }
}

impl Pause {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        act(globals, &self.capsules, Verb::Pause).await
    }
}

impl Unpause {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        act(globals, &self.capsules, Verb::Unpause).await
    }
}

async fn act(globals: &Globals, capsules: &[Reference], verb: Verb) -> anyhow::Result<u8> {
    let fleet = globals.fleet().await?;
    let ended_ports = Cell::new(false);
    let code = for_each(&fleet, capsules, async |node, id, reference| {
        let capsule = node.act(id, verb).await?;
        ended_ports.set(ended_ports.get() | (verb == Verb::Kill && !capsule.ports.is_empty()));
        Ok(reference.to_string())
    })
    .await;
    globals.forwards()?.tidy_after(ended_ports.get()).await;
    code
}
