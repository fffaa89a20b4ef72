//! `fcap attach`.

use super::capsules::locate;
use super::session::{Closed, Session};
use crate::client::Reference;
use crate::target::Globals;

/// Connects to a running capsule: its output from now on, its input if it was run with -i
///
/// Ctrl-C asks the capsule to stop, as with `fcap run`; with --sig-proxy=false it only leaves.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id, unique prefix of an id, or name
    #[arg(value_name = "CAPSULE")]
    capsule: Reference,
    /// Leave its standard input alone
    #[arg(long)]
    no_stdin: bool,
    /// Whether Ctrl-C stops the capsule; with false it only ends this command
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, require_equals = true, num_args = 0..=1, default_missing_value = "true")]
    sig_proxy: bool,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let (node, id) = locate(&fleet, &self.capsule).await?;
        let frames = node.attach(&id).await?;
        // Its input is asked for after output is ours, so that nothing it answers is missed.
        let stdin = !self.no_stdin && node.capsule(&self.capsule).await?.stdin;
        let session = Session {
            node,
            id: Some(id),
            stdin,
            sig_proxy: self.sig_proxy,
            when_closed: Closed::Leave,
            colours: globals.colours(),
            forwards: None,
        };
        session.follow(frames).await
    }
}
