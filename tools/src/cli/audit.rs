//! `fcap audit`.

use crate::filter::{self, Filter};
use crate::human::{ago, now_ms, rfc3339_ns};
use crate::output::{self, TextFormat, table};
use crate::target::Globals;
use crate::terminal::one_line;
use anyhow::ensure;
use fcap_api::cluster::AuditEntry;

/// What entries can be chosen by.
const KEYS: [&str; 4] = ["who", "what", "why", "operation"];

/// Shows who had the cluster changed, how, and why
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only the latest
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
    lines: usize,
    /// Go on with what happens, until Ctrl-C; a line for each
    #[arg(short, long)]
    follow: bool,
    /// Only those that fit: who=, operation=; what= and why= take a part of the text
    #[arg(short = 'F', long, value_name = "KEY=VALUE", value_parser = filter::parser(&KEYS))]
    filter: Vec<Filter>,
    /// Format of the list
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: TextFormat,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let controller = globals.controller().await?;
        if self.follow {
            ensure!(self.output != TextFormat::Yaml, "what is followed can be -o table or -o json");
            let mut entries = controller.follow_audit(self.lines).await?;
            while let Some(entry) = entries.next().await? {
                if self.fits(&entry) {
                    output::print(&match self.output {
                        TextFormat::Table => line(&entry),
                        TextFormat::Json | TextFormat::Yaml => serde_json::to_string(&entry)? + "\n",
                    })?;
                }
            }
            return Ok(0);
        }
        let mut entries = controller.audit().await?;
        entries.retain(|entry| self.fits(entry));
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

    fn fits(&self, entry: &AuditEntry) -> bool {
        filter::all_hold(&self.filter, |key, value| match key {
            "who" => entry.by == value,
            "what" => entry.what.contains(value),
            "why" => entry.reason.contains(value),
            _ => entry.operation.as_deref() == Some(value),
        })
    }
}

/// Time, who, what, and what more there is to say.
fn line(entry: &AuditEntry) -> String {
    let time = rfc3339_ns(entry.time_ms.saturating_mul(1_000_000));
    let mut line = format!("{time} {}: {}", one_line(&entry.by), one_line(&entry.what));
    if let Some(operation) = &entry.operation {
        line += &format!(" (operation {})", one_line(operation));
    }
    if !entry.reason.is_empty() {
        line += &format!(", because {}", one_line(&entry.reason));
    }
    line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_one_safe_line() {
        let mut entry = AuditEntry {
            time_ms: 1500,
            by: "policy scale".into(),
            what: "move 1 capsule".into(),
            reason: "node1 is\nidle".into(),
            operation: Some("7".into()),
        };
        assert_eq!(
            line(&entry),
            "1970-01-01T00:00:01.500000000Z policy scale: move 1 capsule (operation 7), because \
             node1 is\u{fffd}idle\n"
        );
        (entry.operation, entry.reason) = (None, String::new());
        assert_eq!(line(&entry), "1970-01-01T00:00:01.500000000Z policy scale: move 1 capsule\n");
    }
}
