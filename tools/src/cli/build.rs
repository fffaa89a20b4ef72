//! `fcap build`.

use crate::human::size;
use crate::output;
use crate::project::build::{Options, build};
use std::path::PathBuf;

/// Builds images of applications with cargo, for `fcap run`
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// With optimization; so it does anyway
    #[arg(short, long)]
    release: bool,
    /// Without optimization: builds faster, makes larger images
    #[arg(long, conflicts_with = "release")]
    dev: bool,
    /// Package of the workspace
    #[arg(short, long, value_name = "NAME")]
    package: Option<String>,
    /// Only this program
    #[arg(long, value_name = "NAME")]
    bin: Vec<String>,
    /// Only this example
    #[arg(long, value_name = "NAME")]
    example: Vec<String>,
    /// Features to build with
    #[arg(short = 'F', long, value_name = "FEATURES")]
    features: Vec<String>,
    /// Path to Cargo.toml
    #[arg(long, value_name = "FILE")]
    manifest_path: Option<PathBuf>,
    /// Keep to the versions in Cargo.lock
    #[arg(long)]
    locked: bool,
    /// Folder for the images; target/capsule of the workspace otherwise
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

impl Args {
    pub(super) fn call(self) -> anyhow::Result<u8> {
        let options = Options {
            manifest_path: self.manifest_path,
            package: self.package,
            bins: self.bin,
            examples: self.example,
            dev: self.dev,
            features: self.features,
            locked: self.locked,
            out: self.out,
        };
        for image in build(&options)? {
            let path = std::env::current_dir()
                .ok()
                .and_then(|here| image.path.strip_prefix(here).ok())
                .unwrap_or(&image.path);
            output::print(&format!("{} ({})\n", path.display(), size(image.bytes)))?;
        }
        Ok(0)
    }
}
