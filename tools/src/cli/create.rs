//! `fcap create`.

use super::spec::{SpecArgs, failure_code};
use crate::output;
use crate::target::Globals;

/// Makes a capsule without starting it, and prints its id
#[derive(Debug, clap::Args)]
#[command(override_usage = "fcap create [OPTIONS] IMAGE [ARG]...")]
pub(super) struct Args {
    #[command(flatten)]
    spec: SpecArgs,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        match self.create(globals).await {
            Ok(id) => output::print(&(id + "\n")).map(|()| 0),
            Err(error) => {
                super::report(&error);
                Ok(failure_code(&error))
            }
        }
    }

    async fn create(self, globals: &Globals) -> anyhow::Result<String> {
        let mut prepared = self.spec.prepare()?;
        prepared.spec.no_start = true;
        let fleet = globals.fleet_or_start().await?;
        let node = prepared.place(globals, &fleet).await?;
        Ok(prepared.submit(node, async |spec| node.create(spec).await).await?.id)
    }
}
