//! Builds what users run: fcap, fcapd, the example applications, the node image.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::image::list::Variant;
use crate::run::{cargo, program, visibly};
use crate::{task_image, task_setup, tree};

pub(crate) const HELP: &str = "\
cargo xtask build

Installs what building needs, then builds fcap and fcapd (target/release), the example
applications (target/capsule) and the node image (target/fcap/image/node).";

pub(crate) fn run(mut args: lexopt::Parser) -> Result<()> {
    if let Some(arg) = args.next()? {
        return Err(arg.unexpected().into());
    }
    task_setup::ensure_installed()?;
    for_use()
}

/// Builds what users run.
pub(crate) fn for_use() -> Result<()> {
    visibly(cargo(&["build", "--locked", "--release"]).args(USED))?;
    around(&[Variant::Node])
}

/// The packages that users run.
const USED: [&str; 4] = ["--package", "fcap-tools", "--package", "fcap-manager"];

/// The end-to-end tests; they are run when they are named.
#[rustfmt::skip]
pub(crate) const E2E: [&str; 18] = [
    "--test", "cloud", "--test", "cluster", "--test", "docs", "--test", "image",
    "--test", "migrate", "--test", "net", "--test", "resize", "--test", "suspend", "--test", "xen",
];

/// `cargo COMMAND` for what end-to-end tests, benchmarks and long runs need, in release form. All of
/// it is always built together: each choice of packages and of tests has features of its own, and
/// with them everything is built again.
pub(crate) fn with_tests(command: &str) -> Command {
    let mut cargo = cargo(&[command, "--locked", "--release", "--package", "fcap-tests"]);
    cargo.args(USED).args(E2E);
    cargo
}

/// Builds what goes with the programs: the applications, and the node image in these variants.
pub(crate) fn around(variants: &[Variant]) -> Result<()> {
    applications()?;
    task_image::build(variants, &tree().join("target/release/fcapd"))
}

/// Builds the example applications and the tests' guests with `fcap build`, and collects their
/// images in `target/capsule`.
pub(crate) fn applications() -> Result<()> {
    let images = tree().join("target/capsule");
    fs::create_dir_all(&images)?;
    for package in ["libos/examples", "tests/guests"] {
        let manifest = format!("{package}/Cargo.toml");
        if !tree().join(&manifest).exists() {
            continue;
        }
        visibly(&mut program(&["target/release/fcap", "build", "--manifest-path", &manifest]))?;
        let built = tree().join(package).join("target/capsule");
        for entry in fs::read_dir(&built).with_context(|| format!("cannot read {}", built.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), images.join(entry.file_name()))?;
            }
        }
    }
    Ok(())
}
