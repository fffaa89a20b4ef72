//! Shows what fcap does, with real programs on real input, and cleans up after itself.

use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::image::list::Variant;
use crate::run::{program, visibly};
use crate::{task_bench, task_build, task_setup, tree};

pub(crate) const HELP: &str = "\
cargo xtask demo [NAME]

Installs what is missing, builds everything, starts a local cloud of its own, runs real
programs on real input, shows them in `fcap ps` and `fcap logs`, and ends the cloud.

  consolidate  two nodes that are half idle become one, and two again when the load rises: a
               policy decides, with the bill
  scale-up     web servers move from a small node to a large one and back under load, with the bill";

/// A cloud of its own, so that the demo does not disturb another.
const CLOUD: &str = "demo";

pub(crate) fn run(mut args: lexopt::Parser) -> Result<()> {
    let args: Vec<_> = args.raw_args()?.collect();
    if !args.is_empty() {
        return task_bench::run_binary("fcap-demo", &[Variant::Node], &args);
    }
    task_setup::ensure_installed()?;
    task_build::for_use()?;
    let shown = show();
    // Whatever happened, nothing stays behind.
    let down = visibly(&mut fcap(&["cloud", "down"]));
    shown.and(down)?;
    println!("\nAll of this again by hand: export PATH=\"$PWD/target/release:$PATH\", then fcap --help");
    Ok(())
}

fn fcap(args: &[&str]) -> Command {
    let mut command = program(&[&["target/release/fcap"], args].concat());
    command.env("FCAP_CLOUD", CLOUD);
    command
}

fn show() -> Result<()> {
    visibly(&mut fcap(&["cloud", "up"]))?;
    visibly(&mut fcap(&["run", "--rm", "target/capsule/hello"]))?;

    println!("\n# A program reads standard input; its answer is what wc says.");
    let text = tree().join("target/demo-text");
    std::fs::write(&text, std::fs::read(tree().join("Cargo.lock"))?.repeat(20))?;
    let mut wordcount = fcap(&["run", "--rm", "-i", "target/capsule/wordcount"]);
    let answer = wordcount.stdin(File::open(&text)?).output().context("cannot run fcap")?;
    let wc = program(&["wc"]).stdin(File::open(&text)?).output().context("cannot run wc")?;
    let words = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes).split_whitespace().map(String::from).collect::<Vec<_>>()
    };
    println!(
        "fcap run -i wordcount < text: {:?}\nwc < text:                    {:?}",
        words(&answer.stdout),
        words(&wc.stdout)
    );
    ensure!(words(&answer.stdout) == words(&wc.stdout), "wordcount and wc disagree: {answer:?}");

    println!("\n# A program that stays, handled like a process.");
    visibly(&mut fcap(&["run", "-d", "--name", "ticker", "target/capsule/clock"]))?;
    visibly(&mut fcap(&["ps"]))?;
    // Three ticks, as they come.
    visibly(
        program(&["sh", "-c", "target/release/fcap logs -f ticker | head -n 3"]).env("FCAP_CLOUD", CLOUD),
    )?;
    visibly(&mut fcap(&["stats", "--no-stream"]))?;
    visibly(&mut fcap(&["stop", "ticker"]))?;
    visibly(&mut fcap(&["ps", "-a"]))?;
    visibly(&mut fcap(&["rm", "ticker"]))
}
