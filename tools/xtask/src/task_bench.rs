//! Benchmarks and long runs: builds what they need and runs them.

use anyhow::Result;

use crate::image::list::Variant;
use crate::run::{cargo, program, visibly};
use crate::{task_build, task_setup};

pub(crate) const HELP: &str = "\
cargo xtask bench NAME

  run      request to first byte of output: fcapd cold and with its pool, and `xl create -c`
  density  200 idle capsules on a node of 1 GiB: what they cost, and what `fcap ps` takes
  cloud    a node from its template to its daemon answering

Both sides run alternately in one run. The last line is JSON.";

pub(crate) fn run(args: lexopt::Parser) -> Result<()> {
    run_binary("fcap-bench", args)
}

/// Builds what benchmarks and long runs need, and runs a binary of `fcap-tests` with `args`.
pub(crate) fn run_binary(binary: &str, mut args: lexopt::Parser) -> Result<()> {
    task_setup::ensure_installed()?;
    task_build::everything(&[Variant::Node, Variant::Xl])?;
    visibly(&mut cargo(&["build", "--locked", "--release", "--package", "fcap-tests", "--bins"]))?;
    visibly(program(&[&format!("target/release/{binary}")]).args(args.raw_args()?))
}
