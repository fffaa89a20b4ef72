//! `fcap stats`.

use super::sample::{Sampler, Usage, net_text, percent_text};
use crate::client::{ClientError, Reference};
use crate::fleet::{FindError, Fleet};
use crate::human::{cpu_time, size, size_kib};
use crate::output::{self, TextFormat, short_id, table};
use crate::target::Globals;
use crate::terminal::one_line;
use std::collections::HashSet;
use std::io::IsTerminal as _;
use std::time::Duration;

/// Time between samples.
const PERIOD: Duration = Duration::from_secs(1);
/// Clears the screen and goes to its top.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Shows use of processor, memory and network by running capsules
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ids, unique prefixes of ids, or names; all that run otherwise
    #[arg(value_name = "CAPSULE")]
    capsules: Vec<Reference>,
    /// Show it once, measured over a second
    #[arg(long)]
    no_stream: bool,
    /// Format; as JSON, each sample is one line
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: TextFormat,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let wanted = self.wanted(&fleet).await?;
        let mut sampler = Sampler::default();
        let mut ticks = tokio::time::interval(PERIOD);
        let redraw = !self.no_stream && self.output == TextFormat::Table && std::io::stdout().is_terminal();
        let mut samples = 0;
        loop {
            ticks.tick().await;
            let mut usage = self.sample(&mut sampler, &fleet).await?;
            samples += 1;
            if samples == 1 && (self.no_stream || self.output != TextFormat::Table) {
                continue; // Rates need two samples.
            }
            if let Some(wanted) = &wanted {
                usage.retain(|usage| wanted.contains(&usage.stats.id));
            }
            usage.sort_by(|a, b| a.stats.name.cmp(&b.stats.name));
            self.print(&usage, redraw)?;
            if self.no_stream {
                return Ok(0);
            }
        }
    }

    async fn wanted(&self, fleet: &Fleet) -> Result<Option<HashSet<String>>, FindError> {
        if self.capsules.is_empty() {
            return Ok(None);
        }
        let mut ids = HashSet::new();
        for reference in &self.capsules {
            ids.insert(fleet.find(reference).await?.1.id);
        }
        Ok(Some(ids))
    }

    async fn sample(&self, sampler: &mut Sampler, fleet: &Fleet) -> Result<Vec<Usage>, ClientError> {
        sampler.sample(fleet).await.noted().map(|(usage, _)| usage)
    }

    fn print(&self, usage: &[Usage], redraw: bool) -> anyhow::Result<()> {
        match self.output {
            TextFormat::Json if self.no_stream => output::json(&usage),
            TextFormat::Json => output::print(&(serde_json::to_string(usage)? + "\n")),
            TextFormat::Yaml => output::yaml(&usage),
            TextFormat::Table => {
                let head = [
                    "CAPSULE ID",
                    "NAME",
                    "CPU %",
                    "CPU TIME",
                    "MEM / LIMIT",
                    "CAP",
                    "WEIGHT",
                    "NET I/O",
                    "OUTPUT",
                ];
                let rows = usage.iter().map(|Usage { cpu_percent, stats }| {
                    vec![
                        short_id(&stats.id, self.no_trunc),
                        one_line(&stats.name),
                        percent_text(*cpu_percent),
                        cpu_time(stats.cpu_time_ns),
                        format!("{} / {}", size_kib(stats.memory_kib), size_kib(stats.max_memory_kib)),
                        if stats.cpu_cap == 0 { "-".into() } else { format!("{}%", stats.cpu_cap) },
                        stats.weight.to_string(),
                        net_text(stats.net),
                        size(stats.output_bytes),
                    ]
                });
                let clear = if redraw { CLEAR } else { "" };
                output::print(&(clear.to_owned() + &table(&head, rows)))
            }
        }
    }
}
