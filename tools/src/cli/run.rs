//! `fcap run`.

use super::session::{Closed, Session};
use super::spec::{SpecArgs, failure_code};
use crate::output;
use crate::target::Globals;

/// Runs an image as a new capsule and gives its output and its exit code
///
/// Without -d, what the capsule writes comes out here, and fcap ends with the capsule's exit code.
/// Ctrl-C asks the capsule to stop; a second Ctrl-C ends it at once. When nobody reads the output
/// any more (`fcap run app | head`), the capsule is ended as a process would be.
///
/// IMAGE with a slash is a path. Otherwise it is a name, looked for in the directories of FCAP_PATH,
/// in target/capsule here and in each directory above (where `fcap build` puts images), and in the
/// working directory. sha256:DIGEST is an image that a node already has. A Linux kernel (vmlinuz) is
/// an image too; see --initrd and --append.
///
/// Exit codes of fcap's own: 125 it failed, 126 the image cannot be run, 127 there is no such image.
#[derive(Debug, clap::Args)]
#[command(override_usage = "fcap run [OPTIONS] IMAGE [ARG]...")]
pub(super) struct Args {
    /// Leave it running and print its id
    #[arg(short, long)]
    detach: bool,
    /// Whether Ctrl-C stops the capsule; with false it only ends this command
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, require_equals = true, num_args = 0..=1, default_missing_value = "true")]
    sig_proxy: bool,
    #[command(flatten)]
    spec: SpecArgs,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        match self.run(globals).await {
            Ok(code) => Ok(code),
            Err(error) => {
                let own = super::report(&error);
                Ok(if own == super::BROKEN_PIPE { own } else { failure_code(&error) })
            }
        }
    }

    async fn run(self, globals: &Globals) -> anyhow::Result<u8> {
        let interactive = self.spec.interactive;
        let mut prepared = self.spec.prepare()?;
        let fleet = globals.fleet_or_start().await?;
        let node = prepared.place(globals, &fleet).await?;
        let forwards = globals.forwards()?;
        if self.detach {
            let capsule = prepared.submit(node, async |spec| node.create(spec).await).await?;
            forwards.add_or_remove(node, &capsule).await?;
            output::print(&(capsule.id + "\n"))?;
            return Ok(0);
        }
        let frames = prepared.submit(node, async |spec| node.run(spec).await).await?;
        let session = Session {
            node,
            id: None,
            stdin: interactive,
            sig_proxy: self.sig_proxy,
            when_closed: Closed::Kill,
            colours: globals.colours(),
            forwards: Some(&forwards),
        };
        let ended = session.follow(frames).await;
        forwards.tidy_after(!prepared.spec.ports.is_empty()).await;
        ended
    }
}
