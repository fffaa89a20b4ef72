//! Builds node images: from pinned packages and `xen-configs/` to two kernels and one initramfs.
//!
//! An image is a directory with `xen`, `vmlinuz`, `initramfs`, their arguments (`xen.args`,
//! `linux.args`), `id` (digest of all these) and `key` (digest of what it was made from); that of
//! a guest has only what the guest needs. The same inputs give the same bytes; with the same key nothing is built.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

pub(crate) mod libraries;
pub(crate) mod list;
pub(crate) mod packages;
pub(crate) mod tree;

use list::{Item, List, Module, Variant};
use packages::{Cache, Files, Pin};
use tree::Tree;

use crate::task_setup;

/// Raised when the builder makes different bytes of the same inputs.
const BUILDER: u32 = 1;

/// Where Debian's dynamic linker looks, with the linker itself at the place that programs name.
const LIBRARY_DIR: &str = "/usr/lib/x86_64-linux-gnu";
const LINKER: &str = "ld-linux-x86-64.so.2";

pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What images are made from.
pub(crate) struct Inputs {
    /// The folder `xen-configs`.
    pub(crate) configs: PathBuf,
    /// Downloads and unpacked files.
    pub(crate) cache: PathBuf,
    /// The daemon; without it a node boots, but serves nothing.
    pub(crate) fcapd: Option<PathBuf>,
}

/// A finished image.
pub(crate) struct Built {
    pub(crate) dir: PathBuf,
    pub(crate) id: String,
    /// Whether it was there already.
    pub(crate) cached: bool,
}

/// Builds one variant into a directory of its name below `out`.
pub(crate) fn build(inputs: &Inputs, variant: Variant, out: &Path) -> Result<Built> {
    let text = read_text(&inputs.configs.join("image.list"))?;
    let list = List::parse(&text)?;
    let lock = read_text(&inputs.configs.join("packages.lock"))?;
    let pins = packages::parse_lock(&lock)?;
    let args = |name: &str| Ok::<_, anyhow::Error>(arguments(&read_text(&inputs.configs.join(name))?));
    let (xen_args, linux_args) = (args("xen.args")?, args("linux.args")?);
    let fcapd = match &inputs.fcapd {
        Some(path) if variant != Variant::Guest => {
            Some(fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)
        }
        _ => None,
    };
    let items: Vec<&Item> =
        list.items.iter().filter(|(line, _)| variant.includes(*line)).map(|(_, item)| item).collect();

    let modules: Vec<&Module> =
        list.modules.iter().filter(|(line, _)| variant.includes(*line)).map(|(_, module)| module).collect();

    let mut own = Vec::new();
    for item in &items {
        if let Item::Own { file, .. } = item {
            own.push((file.as_str(), read_text(&inputs.configs.join(file))?));
        }
    }
    let key = key(&[
        &BUILDER.to_string(),
        variant.name(),
        &text,
        &lock,
        &xen_args,
        &linux_args,
        &own.iter().map(|(_, text)| digest(text.as_bytes())).collect::<String>(),
        &fcapd.as_deref().map(digest).unwrap_or_default(),
    ]);
    let dir = out.join(variant.name());
    if fs::read_to_string(dir.join("key")).is_ok_and(|before| before == key) {
        let id = read_text(&dir.join("id"))?;
        return Ok(Built { dir, id, cached: true });
    }

    eprintln!("building the node image, variant {variant}");
    let unpacked = unpack(inputs, &list, &items, &modules, &pins)?;
    let find = |package: &str| {
        unpacked.iter().find(|(key, _)| key == package).map(|(_, files)| files).context("not unpacked")
    };

    let mut tree = Tree::default();
    let mut boot: Vec<(&str, Vec<u8>)> = Vec::new();
    let mut sonames = Vec::new();
    for item in &items {
        match item {
            Item::Boot { package, path, file } => {
                let (_, bytes) = find(package)?.get(path)?;
                boot.retain(|(name, _)| *name != file);
                boot.push((file, gunzip(bytes)?));
            }
            Item::File { package, path, target } => {
                let (mode, bytes) = find(package)?.get(path)?;
                tree.file(target, mode, bytes.to_vec())?;
            }
            Item::Own { file, mode, target } => {
                let (_, text) = own.iter().find(|(name, _)| name == file).context("not read")?;
                tree.file(target, *mode, text.clone().into_bytes())?;
            }
            Item::Link { target, to } => tree.link(target, to)?,
            Item::Dir { path } => tree.dir(path)?,
            Item::Soname { name } => sonames.push(name.clone()),
        }
    }
    if let Some(fcapd) = fcapd {
        tree.file("/usr/sbin/fcapd", 0o755, fcapd)?;
    }
    add_modules(&mut tree, &modules, find(KERNEL)?)?;
    add_libraries(&mut tree, &sonames, &unpacked)?;

    boot.push(("initramfs", tree.archive()?));
    if variant != Variant::Guest {
        boot.push(("xen.args", xen_args.into_bytes()));
        boot.push(("linux.args", linux_args.into_bytes()));
    }
    boot.sort();
    let id = key_of_files(&boot);
    boot.push(("id", id.clone().into_bytes()));
    boot.push(("key", key.into_bytes()));
    replace(&dir, &boot)?;
    Ok(Built { dir, id, cached: false })
}

/// The package that has the modules.
const KERNEL: &str = "linux-image-amd64";

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Joins the lines of an argument file, without comments.
fn arguments(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.collect::<Vec<_>>().join(" ")
}

fn key(parts: &[&str]) -> String {
    digest(parts.iter().map(|part| format!("{}\n", digest(part.as_bytes()))).collect::<String>().as_bytes())
}

fn key_of_files(files: &[(&str, Vec<u8>)]) -> String {
    digest(
        files
            .iter()
            .map(|(name, bytes)| format!("{name} {}\n", digest(bytes)))
            .collect::<String>()
            .as_bytes(),
    )
}

/// Takes from each package what the items name.
fn unpack(
    inputs: &Inputs,
    list: &List,
    items: &[&Item],
    modules: &[&Module],
    pins: &[Pin],
) -> Result<Vec<(String, Files)>> {
    let mut wanted: Vec<(&Pin, Vec<String>)> = Vec::new();
    for package in &list.packages {
        let mut paths: Vec<String> = Vec::new();
        if package.libraries {
            paths
                .extend(["/lib/x86_64-linux-gnu/*.so*", "/usr/lib/x86_64-linux-gnu/*.so*"].map(String::from));
        }
        if package.key == KERNEL {
            paths.extend(modules.iter().map(|module| format!("/lib/modules/*/kernel/{}.ko", module.path)));
        }
        for item in items {
            if let Item::Boot { package: key, path, .. } | Item::File { package: key, path, .. } = item
                && *key == package.key
            {
                paths.push(path.clone());
            }
        }
        if paths.is_empty() {
            continue;
        }
        let pin = pins.iter().find(|pin| pin.key == package.key).with_context(|| {
            format!("packages.lock does not have {}: `cargo xtask image --update-lock` adds it", package.key)
        })?;
        wanted.push((pin, paths));
    }
    let cache = Cache::open(inputs.cache.clone())?;
    cache.fetch(&wanted.iter().map(|(pin, _)| *pin).collect::<Vec<_>>(), task_setup::refresh_lists)?;
    let mut unpacked = Vec::new();
    for (pin, paths) in wanted {
        unpacked.push((pin.key.clone(), cache.files(pin, &paths)?));
    }
    Ok(unpacked)
}

fn gunzip(bytes: &[u8]) -> Result<Vec<u8>> {
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes.to_vec());
    }
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain)?;
    Ok(plain)
}

/// Modules, and the order in which init loads them.
fn add_modules(tree: &mut Tree, modules: &[&Module], kernel: &Files) -> Result<()> {
    let mut order = String::new();
    let mut loaded: Vec<String> = Vec::new();
    for Module { path, options } in modules {
        let (_, bytes) = kernel.get(&format!("/lib/modules/*/kernel/{path}.ko"))?;
        let name = path.rsplit('/').next().unwrap_or(path);
        for dependency in libraries::module_depends(bytes).with_context(|| format!("module {path}"))? {
            ensure!(
                loaded.contains(&dependency.replace('-', "_")),
                "module {name} needs {dependency}: name that one in an earlier line of image.list"
            );
        }
        loaded.push(name.replace('-', "_"));
        order.push_str(format!("{name}.ko {options}").trim_end());
        order.push('\n');
        tree.file(&format!("/lib/modules/{name}.ko"), 0o644, bytes.to_vec())?;
    }
    tree.file("/lib/modules/order", 0o644, order.into_bytes())
}

fn add_libraries(tree: &mut Tree, sonames: &[String], unpacked: &[(String, Files)]) -> Result<()> {
    let find = |soname: &str| unpacked.iter().find_map(|(_, files)| files.library(soname));
    let needed = libraries::closure(tree.files(), sonames, find)?;
    for soname in needed {
        let bytes = find(&soname).context("found a moment ago")?.to_vec();
        let dir = if soname == LINKER { "/lib64" } else { LIBRARY_DIR };
        tree.file(&format!("{dir}/{soname}"), 0o755, bytes)?;
    }
    Ok(())
}

/// Puts the finished files in place of an earlier image.
fn replace(dir: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
    let partial = dir.with_extension(format!("new-{}", std::process::id()));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    for (name, bytes) in files {
        fs::write(partial.join(name), bytes)?;
    }
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::rename(&partial, dir).with_context(|| format!("cannot put the image at {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argument_files_are_joined_without_comments() {
        assert_eq!(arguments("# why\n\na=1 b\n  c=2\n"), "a=1 b c=2");
    }

    #[test]
    fn the_list_and_the_lock_of_this_tree_fit_together() {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xen-configs");
        let list = List::parse(&read_text(&configs.join("image.list")).unwrap()).unwrap();
        let pins = packages::parse_lock(&read_text(&configs.join("packages.lock")).unwrap()).unwrap();
        for package in &list.packages {
            assert!(pins.iter().any(|pin| pin.key == package.key), "{} is not pinned", package.key);
        }
        assert_eq!(pins.len(), list.packages.len(), "something is pinned that the list does not name");
    }
}
