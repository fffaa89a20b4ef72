//! Templates: a node is booted once, and its RAM and devices are kept.
//!
//! RAM is a file that the booting machine maps shared; the devices are a migration stream
//! without RAM (`x-ignore-shared`). A clone maps the file privately, reads the stream, and goes
//! on where the template stopped, within milliseconds. All clones share the pages that they do
//! not change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::json;
use sha2::{Digest, Sha256};

use super::image::NodeImage;
use super::qemu::{Machine, QEMU};
use super::qmp::Qmp;
use super::{
    Accelerator, AtPath, CloudError, Flavor, Progress, Result, Variant, folders, make_private, process,
    random_hex, user_folder,
};

/// A boot under emulation takes ten seconds; a busy computer may need many times that.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// Templates that are kept, newest first; each takes some hundred MiB.
const KEPT: usize = 6;

/// A booted node, to be cloned.
pub(super) struct Template {
    /// What it has booted.
    pub(super) image: NodeImage,
    /// How it was run, and clones must be.
    pub(super) accelerator: Accelerator,
    /// Whether it has a shell.
    pub(super) shell: bool,
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
    let templates = user_folder("XDG_CACHE_HOME", ".cache")?.join("templates");
    make_private(&templates)?;
    let key = key(&image, flavor, accelerator)?;
    let folder = templates.join(&key);
    let template = Template { image, accelerator, shell: variant.has_shell(), folder };
    discard_halves(&templates)?;
    let lock_path = templates.join(format!("{key}.lock"));
    let lock = fs::File::create(&lock_path).at("open", &lock_path)?;
    lock.lock().at("lock", &lock_path)?;
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

/// Names all that a template depends on.
fn key(image: &NodeImage, flavor: &Flavor, accelerator: Accelerator) -> Result<String> {
    let version = Command::new(QEMU).arg("--version").output().map_err(CloudError::NoQemu)?;
    let mut hash = Sha256::new();
    hash.update(&version.stdout);
    hash.update(format!("{image:?} {flavor:?} {accelerator:?} {}", env!("CARGO_PKG_VERSION")));
    let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("{}-{digest}", flavor.name))
}

fn boot(template: &Template, flavor: &Flavor, folder: &Path) -> Result<()> {
    make_private(folder)?;
    let token = random_hex(32)?;
    let machine = Machine {
        folder,
        image: &template.image,
        linux_args: &format!("fcap.token={token}"),
        flavor,
        accelerator: template.accelerator,
        memory: &folder.join("ram"),
        share: true,
        incoming: false,
        shell: template.shell,
    };
    let mut running = machine.start()?;
    running.wait_for_daemon(BOOT_LIMIT)?;
    let mut qmp = Qmp::connect(folder)?;
    let capability = |name: &str| json!({ "capability": name, "state": true });
    qmp.execute(
        "migrate-set-capabilities",
        json!({ "capabilities": [capability("events"), capability("x-ignore-shared")] }),
    )?;
    // Stopped first: a clone begins with a machine at rest, and is let go when it is ready.
    qmp.execute("stop", json!({}))?;
    qmp.execute("migrate", json!({ "uri": format!("exec:cat >{}", quoted(&folder.join("devices"))) }))?;
    if qmp.wait(&["MIGRATION completed", "MIGRATION failed"])? == "MIGRATION failed" {
        return Err(CloudError::Qmp {
            node: "template".into(),
            command: "migrate".into(),
            answer: "saving its devices failed; is the disk full?".into(),
        });
    }
    qmp.execute("quit", json!({}))?;
    running.child.wait().at("wait for QEMU in", folder)?;
    let token_file = folder.join("token");
    fs::write(&token_file, token).at("write", &token_file)
}

/// Removes what is left of boots that were killed: they no longer hold their lock.
fn discard_halves(templates: &Path) -> Result<()> {
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
