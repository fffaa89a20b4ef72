//! `fcap start`.

use super::capsules::{for_each, locate};
use super::session::{Closed, Session};
use crate::client::{LogQuery, Reference, Verb};
use crate::target::Globals;
use anyhow::bail;

/// Starts capsules that were made or have ended
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "CAPSULE")]
    capsules: Vec<Reference>,
    /// Show its output and end with its exit code; for one capsule
    #[arg(short, long)]
    attach: bool,
    /// With -a, give it standard input
    #[arg(short, long, requires = "attach")]
    interactive: bool,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let forwards = globals.forwards()?;
        if !self.attach {
            return for_each(&fleet, &self.capsules, async |node, id, reference| {
                forwards.add(&node.act(id, Verb::Start).await?).await?;
                Ok(reference.to_string())
            })
            .await;
        }
        let [reference] = &self.capsules[..] else {
            bail!("only one capsule can be attached to; start the others without -a");
        };
        let (node, id) = locate(&fleet, reference).await?;
        let capsule = node.act(&id, Verb::Start).await?;
        forwards.add(&capsule).await?;
        // The log has every byte since the start, also those written before this request.
        let query = LogQuery { follow: true, tail: None, since_ms: capsule.started_ms };
        let frames = node.logs(&capsule.id, &query).await?;
        let session = Session {
            node,
            id: Some(capsule.id),
            stdin: self.interactive && capsule.stdin,
            sig_proxy: true,
            when_closed: Closed::Leave,
            colours: globals.colours(),
            forwards: None,
        };
        session.follow(frames).await
    }
}
