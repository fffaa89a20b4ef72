//! Where the node image is, and what is in it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{AtPath, CloudError, Result};

/// What nodes are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// What runs capsules, and nothing else.
    #[default]
    Node,
    /// For benchmarks and tests: with `xl`, and a root shell on its own port.
    Xl,
    /// The same on the last hypervisor of Debian 12 that can track dirty pages of PV guests.
    XlLogDirty,
    /// As `Xl`, with servers and load generators.
    Bench,
}

impl Variant {
    fn folder(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Xl => "xl",
            Self::XlLogDirty => "xl-4.17.5",
            Self::Bench => "bench",
        }
    }

    /// Whether it has a shell for test harnesses.
    pub(super) fn has_shell(self) -> bool {
        self != Self::Node
    }
}

/// A node image.
#[derive(Clone, Debug)]
pub(super) struct NodeImage {
    /// Xen, as QEMU's multiboot loader takes it.
    pub(super) xen: PathBuf,
    /// dom0's kernel.
    pub(super) vmlinuz: PathBuf,
    /// dom0's file system.
    pub(super) initramfs: PathBuf,
    /// Arguments of Xen.
    pub(super) xen_args: String,
    /// Arguments of dom0's kernel.
    pub(super) linux_args: String,
    /// Names its content.
    pub(super) digest: String,
}

impl NodeImage {
    /// Finds the image: in `FCAP_IMAGE_DIR`, in the source tree that this program was built
    /// from, or where a package would install it.
    pub(super) fn find(variant: Variant) -> Result<Self> {
        let tree = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/fcap/image"));
        let base = match std::env::var_os("FCAP_IMAGE_DIR") {
            Some(folder) => folder.into(),
            None if tree.exists() => tree.to_owned(),
            None => PathBuf::from("/usr/share/fcap/image"),
        };
        Self::open(&base.join(variant.folder()))
    }

    fn open(folder: &Path) -> Result<Self> {
        let file = |name: &str| {
            let path = folder.join(name);
            if path.exists() { Ok(path) } else { Err(CloudError::NoImage(folder.into())) }
        };
        let text = |name: &str| -> Result<String> {
            let path = file(name)?;
            Ok(fs::read_to_string(&path).at("read", &path)?.trim().to_owned())
        };
        Ok(Self {
            xen: file("xen")?,
            vmlinuz: file("vmlinuz")?,
            initramfs: file("initramfs")?,
            xen_args: text("xen.args")?,
            linux_args: text("linux.args")?,
            digest: text("id")?,
        })
    }
}
