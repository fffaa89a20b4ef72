//! `cargo xtask image`: builds the node image.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lexopt::Arg::Long;
use lexopt::ValueExt;

use crate::image::list::{List, Variant};
use crate::image::{self, Inputs, packages};
use crate::tree;

pub(crate) const HELP: &str = "\
cargo xtask image [--variant node|xl|xl-4.17.5|bench|guest|all] [--fcapd FILE | --no-fcapd]
                  [--out DIR] [--cache DIR] [--update-lock]

Builds the node image from pinned Debian packages and xen-configs/ into target/fcap/image.
  --variant      which one; all of them if not given
  --fcapd        take this daemon instead of building it
  --no-fcapd     build an image without it: it boots, but serves nothing
  --update-lock  pin the versions that apt offers today, then build";

pub(crate) fn run(mut args: lexopt::Parser) -> Result<()> {
    let mut variants = Variant::ALL.to_vec();
    let (mut update, mut without) = (false, false);
    let mut fcapd = None;
    let mut out = tree().join("target/fcap/image");
    let mut cache = tree().join("target/fcap/cache");
    while let Some(arg) = args.next()? {
        match arg {
            Long("variant") => {
                let name = args.value()?.string()?;
                if name != "all" {
                    variants = vec![Variant::parse(&name)?];
                }
            }
            Long("fcapd") => fcapd = Some(PathBuf::from(args.value()?)),
            Long("no-fcapd") => without = true,
            Long("out") => out = PathBuf::from(args.value()?),
            Long("cache") => cache = PathBuf::from(args.value()?),
            Long("update-lock") => update = true,
            _ => return Err(arg.unexpected().into()),
        }
    }
    let configs = tree().join("xen-configs");
    if update {
        let list = List::parse(&fs::read_to_string(configs.join("image.list"))?)?;
        fs::write(configs.join("packages.lock"), packages::make_lock(&list.packages)?)?;
        eprintln!("wrote xen-configs/packages.lock");
    }
    if fcapd.is_none() && !without {
        fcapd = Some(build_fcapd()?);
    }
    build_all(&Inputs { configs, cache, fcapd }, &variants, &out)
}

/// Builds these variants with that daemon, into the place where `fcap` looks for them.
pub(crate) fn build(variants: &[Variant], fcapd: &Path) -> Result<()> {
    let inputs = Inputs {
        configs: tree().join("xen-configs"),
        cache: tree().join("target/fcap/cache"),
        fcapd: Some(fcapd.into()),
    };
    build_all(&inputs, variants, &tree().join("target/fcap/image"))
}

fn build_all(inputs: &Inputs, variants: &[Variant], out: &Path) -> Result<()> {
    for &variant in variants {
        let built = image::build(inputs, variant, out)?;
        let what = if built.cached { "is up to date" } else { "built" };
        eprintln!("node image {variant} {what}: {} ({})", built.dir.display(), &built.id[..12]);
    }
    Ok(())
}

fn build_fcapd() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--package", "fcap-manager", "--bin", "fcapd"])
        .current_dir(tree())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "fcapd does not build; `cargo xtask setup` installs what it needs");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| tree().join("target"), PathBuf::from);
    Ok(target.join("release/fcapd"))
}
