//! `fcap new`.

use crate::output;
use crate::project::new::{create, default_libos};
use std::path::PathBuf;

/// Makes a package for a new application
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder to make; the application is named after it
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Folder of the library OS; that of the source tree otherwise
    #[arg(long, value_name = "FOLDER")]
    libos: Option<PathBuf>,
}

impl Args {
    pub(super) fn call(self) -> anyhow::Result<u8> {
        let name = create(&self.path, &self.libos.unwrap_or_else(default_libos))?;
        let path = self.path.display();
        output::print(&format!("made {path}; next: cd {path} && fcap build && fcap run {name}\n"))?;
        Ok(0)
    }
}
