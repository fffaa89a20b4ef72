//! `fcap audit`.

use crate::human::{ago, now_ms};
use crate::output::{self, TextFormat, table};
use crate::target::Globals;
use crate::terminal::one_line;

/// Shows who had the cluster changed, how, and why
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only the latest
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
    lines: usize,
    /// Format of the list
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: TextFormat,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let mut entries = globals.controller().await?.audit().await?;
        entries.truncate(self.lines);
        match self.output {
            TextFormat::Json => output::json(&entries)?,
            TextFormat::Yaml => output::yaml(&entries)?,
            TextFormat::Table => {
                let now = now_ms();
                let rows = entries.into_iter().map(|entry| {
                    let operation = entry.operation.unwrap_or_else(|| "-".into());
                    let (by, what) = (one_line(&entry.by), one_line(&entry.what));
                    vec![ago(entry.time_ms, now), by, what, operation, one_line(&entry.reason)]
                });
                output::print(&table(&["WHEN", "WHO", "WHAT", "OPERATION", "WHY"], rows))?;
            }
        }
        Ok(0)
    }
}
