//! `fcap stream`.

use crate::human;
use anyhow::Context as _;
use fcap_migrate::verify::verify;
use std::io::{BufReader, Read};

/// Looks into files of saved capsules
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Verify(VerifyArgs),
}

/// Checks a saved capsule against the format's specification
///
/// Reads the whole file and names the first breach with its place. Nothing is asked of a node.
#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// File to read, - for standard input
    #[arg(value_name = "FILE")]
    file: String,
}

impl Args {
    pub(super) fn call(self) -> anyhow::Result<u8> {
        let Verb::Verify(VerifyArgs { file }) = self.verb;
        let input: Box<dyn Read> = match file.as_str() {
            "-" => Box::new(std::io::stdin().lock()),
            path => Box::new(std::fs::File::open(path).with_context(|| file.clone())?),
        };
        let report = verify(BufReader::new(input)).with_context(|| file.clone())?;
        println!(
            "{file}: good; {} of a domain of {} with {} processors, {} pages with content, {} pieces of state, {}",
            report.reason,
            human::size(report.nr_pages << 12),
            report.vcpus,
            report.pages,
            report.states,
            human::size(report.bytes)
        );
        Ok(0)
    }
}
