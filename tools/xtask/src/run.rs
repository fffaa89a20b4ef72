//! Runs programs, says what it runs, and keeps long output out of the way until it is wanted.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::tree;

/// A program, to be run in the source tree.
pub(crate) fn program(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(tree());
    command
}

/// Cargo, the one that runs this.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(tree());
    command
}

/// A command as people would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| word.to_string_lossy().into_owned());
    words.collect::<Vec<_>>().join(" ").replace(&format!("{}/", tree().display()), "")
}

/// Runs it with its output in sight.
pub(crate) fn visibly(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", shown(command));
    let status = command.status().with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{}: {status}", shown(command));
    }
    Ok(())
}

/// What a step did.
pub(crate) struct Logged {
    /// Whether it succeeded.
    pub(crate) success: bool,
    /// All it wrote, standard error included.
    pub(crate) output: String,
    /// Where that stands.
    pub(crate) log: PathBuf,
    /// How long it took.
    pub(crate) seconds: f64,
}

/// Runs it with its output in `target/logs/NAME.log`.
pub(crate) fn logged(name: &str, command: &mut Command) -> Result<Logged> {
    let folder = tree().join("target/logs");
    fs::create_dir_all(&folder)?;
    let log = folder.join(format!("{name}.log"));
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let start = Instant::now();
    let status = command
        .stdin(std::process::Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    let output = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    Ok(Logged { success: status.success(), output, log, seconds: start.elapsed().as_secs_f64() })
}
