//! `fcap cluster`: what `fcap` starts by itself.

use crate::cloud::{Cloud, controller};
use crate::target::Globals;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Is the controller of a local cloud
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Serves until nobody needs it; started by other commands
    Serve {
        /// Where the address is written: that it stands in the command line tells whose it is
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Where machines ask that join with a token
        #[arg(long, value_name = "ADDRESS:PORT", env = "FCAP_JOIN_LISTEN", default_value = "127.0.0.1:0")]
        join_listen: SocketAddr,
    },
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let Verb::Serve { file, join_listen } = self.verb;
        let cloud = Cloud::new(&globals.cloud)?;
        anyhow::ensure!(
            file.parent() == Some(cloud.folder()),
            "{} is not in the folder of cloud {}",
            file.display(),
            cloud.name()
        );
        let filter =
            tracing_subscriber::EnvFilter::try_from_env("FCAP_LOG").unwrap_or_else(|_| "info".into());
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .init();
        controller::serve(cloud, join_listen).await?;
        Ok(0)
    }
}
