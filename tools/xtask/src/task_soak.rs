//! `cargo xtask soak`: long runs.

use anyhow::Result;

use crate::image::list::Variant;
use crate::task_bench;

pub(crate) const HELP: &str = "\
cargo xtask soak NAME [--short] [--seed N]

  restart  fcapd is killed 50 times at random moments under 20 counting capsules
  churn    1,000 capsules are made and destroyed in a row
  net      10,000 capsules with network and published ports are started and stopped in a row
  serve    a web server and a store move 100 times while clients ask them
  memory   a capsule that verifies 64 MiB which it keeps rewriting moves 200 times
  faults   500 moves in which a daemon is killed, the link fails, or there is no memory
  control  200 kills of the controller and of fcapd while nodes are emptied and replaced
  --short  what the tests run
  --seed   repeats a run that has printed its seed";

pub(crate) fn run(mut args: lexopt::Parser) -> Result<()> {
    let args: Vec<_> = args.raw_args()?.collect();
    task_bench::run_binary("fcap-soak", &[Variant::Node, Variant::Xl], &args)
}
