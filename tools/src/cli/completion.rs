//! `fcap completion`, and the manual.

use crate::output;
use anyhow::Context as _;
use std::path::PathBuf;

/// Prints completions for a shell
///
/// For bash: `fcap completion bash > ~/.local/share/bash-completion/completions/fcap`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: clap_complete::Shell,
}

impl Args {
    pub(super) fn call(self) -> anyhow::Result<u8> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "fcap", &mut text);
        output::print(&String::from_utf8(text).context("the completions")?)?;
        Ok(0)
    }
}

/// Writes the manual's pages into a folder
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// The folder
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

impl ManArgs {
    pub(super) fn call(self) -> anyhow::Result<u8> {
        let folder = &self.folder;
        std::fs::create_dir_all(folder)
            .and_then(|()| clap_mangen::generate_to(super::command(), folder))
            .with_context(|| format!("manual pages in {}", folder.display()))?;
        Ok(0)
    }
}
