//! `cargo xtask soak`: long runs.

use anyhow::Result;

use crate::task_bench;

pub(crate) const HELP: &str = "\
cargo xtask soak NAME [--short] [--seed N]

  restart  fcapd is killed 50 times at random moments under 20 counting capsules
  churn    1,000 capsules are made and destroyed in a row
  --short  what the tests run
  --seed   repeats a run that has printed its seed";

pub(crate) fn run(args: lexopt::Parser) -> Result<()> {
    task_bench::run_binary("fcap-soak", args)
}
