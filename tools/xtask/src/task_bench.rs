//! Benchmarks and long runs: builds what they need and runs them.

use std::ffi::OsString;

use anyhow::Result;

use crate::image::list::Variant;
use crate::run::{program, visibly};
use crate::{task_build, task_setup};

pub(crate) const HELP: &str = "\
cargo xtask bench NAME

  run      request to first byte of output: fcapd cold and with its pool, and `xl create -c`
  density  200 idle capsules on a node of 1 GiB: what they cost, and what `fcap ps` takes
  cloud    a node from its template to its daemon answering
  run --net  start to first HTTP response: fcapd, and `xl create` with a network device
  http     httpd against nginx in a Linux guest: rate, processor time, 99th percentile
  kv       kv against redis-server in a Linux guest: rate and processor time
  tcp      bulk throughput against iperf3 in a Linux guest: to and from dom0, between guests
  drain    `fcap node drain` of a node with 50 servers against 50 times `fcap migrate`
  policy   a decision for 1,000 nodes and 20,000 capsules, and a simulated day's cost beside that of
           packing anew every five minutes; needs no node
  ps       `fcap ps` of 10,000 capsules on 200 simulated nodes, and the processor time of their
           controller when nothing changes; needs no node
  migrate  a capsule from node to node and back, and `xl migrate` of the same kernel: total time
           and downtime over memory sizes; --quick takes the smallest size alone

Both sides run alternately in one run. The last line is JSON.";

/// Benchmarks that need a node with servers, and a Linux guest.
const WITH_PEERS: [&str; 3] = ["http", "kv", "tcp"];

/// Benchmarks that need no node.
const ALONE: [&str; 2] = ["policy", "ps"];

pub(crate) fn run(mut args: lexopt::Parser) -> Result<()> {
    let args: Vec<_> = args.raw_args()?.collect();
    if args.first().is_some_and(|name| ALONE.iter().any(|alone| name == alone)) {
        return run_alone("fcap-bench", &args);
    }
    let mut variants = vec![Variant::Node, Variant::Xl];
    if args.first().is_some_and(|name| WITH_PEERS.iter().any(|peer| name == peer)) {
        variants.extend([Variant::Bench, Variant::Guest]);
    }
    if args.first().is_some_and(|name| name == "migrate") {
        variants.push(Variant::XlLogDirty);
    }
    run_binary("fcap-bench", &variants, &args)
}

/// Builds what benchmarks and long runs need, and runs a binary of `fcap-tests` with `args`.
pub(crate) fn run_binary(binary: &str, variants: &[Variant], args: &[OsString]) -> Result<()> {
    build()?;
    task_build::around(variants)?;
    run_built(binary, args)
}

/// Builds a binary of `fcap-tests`, which needs no node, and runs it with `args`.
fn run_alone(binary: &str, args: &[OsString]) -> Result<()> {
    build()?;
    run_built(binary, args)
}

fn build() -> Result<()> {
    task_setup::ensure_installed()?;
    visibly(task_build::with_tests("build").args(["--lib", "--bins"]))
}

fn run_built(binary: &str, args: &[OsString]) -> Result<()> {
    visibly(program(&[&format!("target/release/{binary}")]).args(args))
}
