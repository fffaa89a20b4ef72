//! `fcap save`, and what it has in common with `fcap checkpoint`.

use crate::client::{Client, Reference, Saving};
use crate::target::Globals;
use anyhow::Context as _;
use fcap_api::migrate::SaveMode;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::Path;

/// Puts a running capsule into a file, and ends it once the file is in safety
///
/// `fcap restore` lets it go on where it was. If anything fails (a full disk, say), the capsule runs
/// on and nothing is left of the file. Unused and zero memory takes no room.
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
        to_file(node, &capsule.id, SaveMode::Save, &self.file).await?;
        node.saved(&capsule.id).await.context("the image is complete, but the capsule may go on")?;
        globals.forwards()?.tidy_after(!capsule.ports.is_empty()).await;
        Ok(0)
    }
}

/// Writes a capsule's image to a file, all or nothing.
pub(super) async fn to_file(node: &Client, id: &str, mode: SaveMode, file: &str) -> anyhow::Result<()> {
    if file == "-" {
        anyhow::ensure!(
            !io::stdout().is_terminal(),
            "an image is nothing for a terminal: name a file, or use a pipe"
        );
        let mut output = io::stdout().lock();
        copy(node.save(id, mode).await?, &mut output).await?;
        return output.flush().context("standard output");
    }
    let part = format!("{file}.part");
    let written = async {
        // Before anything is asked of the capsule.
        let mut output = File::create(&part)?;
        copy(node.save(id, mode).await?, &mut output).await?;
        output.sync_all()?;
        std::fs::rename(&part, file)?;
        let directory = Path::new(file).parent().filter(|path| !path.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
        anyhow::Ok(())
    };
    let written = written.await;
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written.with_context(|| file.to_owned())
}

async fn copy(mut image: Saving, output: &mut impl Write) -> anyhow::Result<()> {
    while let Some(piece) = image.next().await? {
        output.write_all(&piece)?;
    }
    Ok(())
}
