//! `cargo xtask setup`: installs the Debian packages that building and running need.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

pub(crate) const HELP: &str = "\
cargo xtask setup

Installs the Debian packages that are missing, saying which and why. Uses sudo unless it is
root already. Does nothing when nothing is missing.";

/// Package, and what it is for.
const PACKAGES: [(&str, &str); 14] = [
    ("gcc", "linker, and C parts of crates"),
    ("libc6-dev", "linking"),
    ("libxen-dev", "fcapd: headers and libraries of Xen"),
    ("libclang-14-dev", "fcapd: bindings are made from Xen's headers"),
    ("qemu-system-x86", "the machines of the local cloud"),
    ("perl-doc", "tests: a long text to count words in"),
    ("bsdutils", "tests: a terminal for fcap"),
    ("nftables", "tests: dom0's packet filter, in a network namespace"),
    ("iproute2", "tests: devices in network namespaces"),
    ("curl", "tests: a client of published ports"),
    ("wrk", "tests: many clients of published ports"),
    ("redis-tools", "tests: redis-benchmark against kv"),
    ("prometheus", "tests: scrapes and checks metrics"),
    ("python3-venv", "tests: schemathesis, which tries the APIs"),
];
/// Packages with a service that is not wanted: tests start what they need by themselves.
const SERVICES: [&str; 1] = ["prometheus"];

pub(crate) fn run(mut args: lexopt::Parser) -> Result<()> {
    if let Some(arg) = args.next()? {
        return Err(arg.unexpected().into());
    }
    ensure_installed()
}

/// Installs what is missing; does nothing, quickly, when all is there.
pub(crate) fn ensure_installed() -> Result<()> {
    let mut missing = Vec::new();
    for (package, reason) in PACKAGES {
        if !installed(package)? {
            eprintln!("missing: {package} ({reason})");
            missing.push(package);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    for service in SERVICES.iter().filter(|service| missing.contains(service)) {
        mask(service)?;
    }
    let args = ["install", "--yes", "--no-install-recommends"];
    if !apt_get(&args, &missing)? {
        refresh_lists()?;
        ensure!(apt_get(&args, &missing)?, "cannot install {}", missing.join(" "));
    }
    Ok(())
}

/// Renews apt's lists of packages.
pub(crate) fn refresh_lists() -> Result<()> {
    eprintln!("trying once more with fresh package lists");
    ensure!(apt_get(&["update"], &[])?, "`apt-get update` failed");
    Ok(())
}

fn installed(package: &str) -> Result<bool> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .context("cannot run dpkg-query; this set-up is for Debian 12")?;
    Ok(output.stdout == b"installed")
}

/// Has a service that is about to be installed not start, now or ever, until somebody unmasks it.
fn mask(service: &str) -> Result<()> {
    let unit = format!("/etc/systemd/system/{service}.service");
    let mut command = as_root("install")?;
    command.args(["-d", "/etc/systemd/system"]);
    let mut link = as_root("ln")?;
    link.args(["-sfn", "/dev/null", &unit]);
    ensure!(done(&mut command)? && done(&mut link)?, "cannot mask {unit}");
    Ok(())
}

fn apt_get(args: &[&str], packages: &[&str]) -> Result<bool> {
    let mut command = as_root("apt-get")?;
    done(command.args(args).args(packages).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// A program, with sudo unless that is not needed.
fn as_root(program: &str) -> Result<Command> {
    let id = Command::new("id").arg("-u").output().context("cannot run id")?;
    if id.stdout.trim_ascii() == b"0" {
        return Ok(Command::new(program));
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    Ok(sudo)
}

/// Runs a command in sight; whether it succeeds.
fn done(command: &mut Command) -> Result<bool> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    eprintln!("running: {line}");
    let status = command.status().with_context(|| format!("cannot run {line}"))?;
    Ok(status.success())
}
