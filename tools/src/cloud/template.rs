//! Templates: a node is booted once, and its RAM and devices are kept.
//!
//! RAM is a file that the booting machine maps shared; the devices are a migration stream
//! without RAM (`x-ignore-shared`). A clone maps the file privately, reads the stream, and goes
//! on where the template stopped, within milliseconds. All clones share the pages that they do
//! not change.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::image::NodeImage;
use super::qemu::{self, Begin, Machine};
use super::{
    Accelerator, AtPath, Flavor, Progress, Result, Variant, folders, make_private, process, processor,
    random_hex, user_folder,
};

/// A boot under emulation takes ten seconds; a busy computer may need many times that.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Templates that are kept, newest first; each takes some hundred MiB.
const KEPT: usize = 6;

/// Raised when machines are made differently from the same image.
const FORMAT: u32 = 2;

/// A booted node, to be cloned.
pub(super) struct Template {
    /// What it has booted.
    pub(super) image: NodeImage,
    /// How it was run, and clones must be.
    pub(super) accelerator: Accelerator,
    /// What it is made of.
    pub(super) variant: Variant,
    folder: PathBuf,
}

impl Template {
    /// Its memory.
    pub(super) fn memory(&self) -> PathBuf {
        self.folder.join("ram")
    }

    /// Its devices, as a command for QEMU to read them from.
    pub(super) fn devices(&self) -> String {
        format!("exec:cat {}", quoted(&self.folder.join("devices")))
    }

    /// The token that its daemon, and so each clone's, begins with.
    pub(super) fn token(&self) -> Result<String> {
        let path = self.folder.join("token");
        fs::read_to_string(&path).at("read", &path)
    }
}

/// Finds the template for such nodes, or boots one.
pub(super) fn ensure(variant: Variant, flavor: &Flavor, progress: Progress<'_>) -> Result<Template> {
    let image = NodeImage::find(variant)?;
    let accelerator = Accelerator::choose(&image, progress)?;
    let templates = templates()?;
    make_private(&templates)?;
    let key = key(&image, flavor, accelerator)?;
    let folder = templates.join(&key);
    let template = Template { image, accelerator, variant, folder };
    discard_halves()?;
    let lock_path = templates.join(format!("{key}.lock"));
    let lock = fs::File::create(&lock_path).at("open", &lock_path)?;
    if lock.try_lock().is_err() {
        progress("waiting for another fcap that boots the same template");
        lock.lock().at("lock", &lock_path)?;
    }
    if !template.folder.exists() {
        let half = templates.join(format!("{key}.half"));
        progress(&format!("booting a {} node once, as the template for clones", flavor.name));
        if let Err(error) = boot(&template, flavor, &half) {
            discard(&half)?;
            return Err(error);
        }
        fs::rename(&half, &template.folder).at("make", &template.folder)?;
        forget_old(&templates, &key)?;
    }
    // Newest by use, not by age.
    let _ = fs::File::open(&template.folder).and_then(|file| file.set_modified(SystemTime::now()));
    Ok(template)
}

fn templates() -> Result<PathBuf> {
    Ok(user_folder("XDG_CACHE_HOME", ".cache")?.join("templates"))
}

/// Names all that a template depends on: what it boots, what runs it, and the processor, whose
/// clock Xen has measured.
fn key(image: &NodeImage, flavor: &Flavor, accelerator: Accelerator) -> Result<String> {
    let qemu = qemu::find()?;
    let meta = fs::metadata(&qemu).at("look at", &qemu)?;
    let mut hash = Sha256::new();
    let arguments = accelerator.arguments();
    hash.update(format!("{FORMAT} {} {flavor:?} {arguments:?} {}", image.digest, processor()));
    // Asking QEMU for its version would take longer than a clone.
    hash.update(format!("{} {} {:?}", qemu.display(), meta.len(), meta.modified().ok()));
    let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{digest}", flavor.name))
}

fn boot(template: &Template, flavor: &Flavor, folder: &Path) -> Result<()> {
    make_private(folder)?;
    let token = random_hex(32)?;
    let machine = Machine {
        folder,
        flavor,
        accelerator: template.accelerator,
        memory: &folder.join("ram"),
        shell: template.variant.has_shell(),
        // Of no use to anybody else.
        tied: true,
        begin: Begin::Boot { image: &template.image, linux_args: &format!("fcap.token={token}") },
    };
    let mut running = machine.start()?;
    running.wait_for_daemon(BOOT_LIMIT)?;
    running.prepare_migration()?;
    // Stopped first: a clone begins with a machine at rest, and is let go when it is ready.
    running.execute("stop", json!({}))?;
    running.migrate("migrate", format!("exec:cat >{}", quoted(&folder.join("devices"))))?;
    running.execute("quit", json!({}))?;
    running.child.wait().at("wait for QEMU in", folder)?;
    let token_file = folder.join("token");
    fs::write(&token_file, token).at("write", &token_file)
}

/// Removes what is left of boots that were killed: they no longer hold their lock.
pub(super) fn discard_halves() -> Result<()> {
    let templates = &templates()?;
    for name in folders(templates)? {
        let Some(key) = name.strip_suffix(".half") else { continue };
        let path = templates.join(format!("{key}.lock"));
        if fs::File::create(&path).at("open", &path)?.try_lock().is_ok() {
            discard(&templates.join(&name))?;
        }
    }
    Ok(())
}

/// Ends the machine of an unfinished template and removes its folder.
fn discard(folder: &Path) -> Result<()> {
    process::end_all(folder);
    if folder.exists() {
        fs::remove_dir_all(folder).at("remove", folder)?;
    }
    Ok(())
}

/// Removes the templates that were not used for longest. Machines that run keep the memory
/// that they have mapped.
fn forget_old(templates: &Path, key: &str) -> Result<()> {
    let mut all: Vec<_> = folders(templates)?
        .into_iter()
        .filter(|name| name != key && !name.ends_with(".half"))
        .map(|name| templates.join(name))
        .collect();
    all.sort_by_key(|path| std::cmp::Reverse(path.metadata().and_then(|meta| meta.modified()).ok()));
    for path in all.into_iter().skip(KEPT - 1) {
        fs::remove_dir_all(&path).at("remove", &path)?;
    }
    Ok(())
}

/// A path for a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_safe_in_a_shell() {
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
