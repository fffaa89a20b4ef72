//! How a machine's processors are run: by the hardware if it can run Xen, else by emulation.
//!
//! A `/dev/kvm` that opens proves nothing: it may make virtual machines and processors and then
//! fail at Xen's first instructions. So Xen is tried, once; the answer is kept in the cache.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::image::NodeImage;
use super::{AtPath, CloudError, Progress, Result, make_private, processor, qemu, user_folder};

/// How a machine's processors are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// By the hardware.
    Kvm,
    /// By QEMU's emulation.
    Tcg,
}

/// Xen prints this when it has started and is about to run dom0's first instruction.
const STARTED: &str = "Dom0 has maximum";
/// Longest time that the trial may take.
const TRIAL_LIMIT: Duration = Duration::from_secs(10);

impl Accelerator {
    /// Its arguments for QEMU.
    pub(super) fn arguments(self) -> [&'static str; 4] {
        match self {
            // Virtualization below the node is of no use to paravirtualized guests.
            Self::Kvm => ["-accel", "kvm", "-cpu", "host,-svm,-vmx"],
            // With SMAP, QEMU 7.2 faults where dom0 returns from an exception. Where the processor
            // is said to be fast at it, kernels and libraries copy and clear memory byte by byte
            // (`rep movsb`), and QEMU does just that: a tenth of the speed of whole words.
            Self::Tcg => ["-accel", "tcg", "-cpu", "max,-svm,-smap,-smep,-erms,-fsrm"],
        }
    }

    /// Its name, as QEMU has it.
    pub fn name(self) -> &'static str {
        self.arguments()[1]
    }

    /// Finds out which one this computer can use.
    pub(super) fn choose(image: &NodeImage, progress: Progress<'_>) -> Result<Self> {
        if !hardware_virtualization() || File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Self::Tcg);
        }
        let cache = user_folder("XDG_CACHE_HOME", ".cache")?;
        make_private(&cache)?;
        // A new hypervisor or another computer asks again.
        let file = cache.join(format!("accelerator-{}", machine(image)));
        let known = fs::read_to_string(&file).ok();
        if let Some(known) = known.and_then(|text| serde_json::from_str(&text).ok()) {
            return Ok(known);
        }
        progress("trying whether /dev/kvm can run Xen");
        let chosen =
            if runs_xen(&qemu::find()?, Self::Kvm, image, TRIAL_LIMIT)? { Self::Kvm } else { Self::Tcg };
        progress(match chosen {
            Self::Kvm => "it can: nodes run on hardware virtualization",
            Self::Tcg => "it cannot: nodes run in software emulation",
        });
        let text = serde_json::to_string(&chosen).expect("a name is serialized");
        fs::write(&file, text).at("write", &file)?;
        Ok(chosen)
    }
}

/// Names this computer's processor and the image.
fn machine(image: &NodeImage) -> String {
    let processor: String = processor().chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{processor}-{}", &image.digest[..image.digest.len().min(16)])
}

/// Whether the processor says that it can virtualize. A KVM without that makes machines which
/// stand still at Xen's first unusual instruction.
fn hardware_virtualization() -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find(|line| line.starts_with("flags")).unwrap_or("");
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

/// Boots Xen, and looks for its word that it has started.
fn runs_xen(qemu: &Path, accelerator: Accelerator, image: &NodeImage, limit: Duration) -> Result<bool> {
    let mut child = Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-machine", "pc", "-m", "512M", "-serial", "stdio"])
        .args(accelerator.arguments())
        .args(qemu::boot_arguments(image, ""))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(CloudError::NoQemu)?;
    let stdout = child.stdout.take().expect("standard output is piped");
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stdout).split(b'\n').map_while(std::io::Result::ok);
        // Nobody listens any more once the time is over.
        let _ = send.send(lines.any(|line| String::from_utf8_lossy(&line).contains(STARTED)));
    });
    let booted = receive.recv_timeout(limit).unwrap_or(false);
    // It has done what it was for, or hangs.
    let _ = child.kill();
    let _ = child.wait();
    Ok(booted)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    use super::*;

    /// Tries Xen with a script in QEMU's place.
    fn trial(script: &str, limit: Duration) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let qemu = dir.path().join("qemu");
        fs::write(&qemu, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
        let image = NodeImage {
            xen: "/xen".into(),
            vmlinuz: "/vmlinuz".into(),
            initramfs: "/initramfs".into(),
            xen_args: String::new(),
            linux_args: String::new(),
            digest: "0".repeat(64),
        };
        runs_xen(&qemu, Accelerator::Kvm, &image, limit).unwrap()
    }

    #[test]
    fn a_machine_that_reaches_dom0_is_good() {
        assert!(trial("echo '(XEN) Dom0 has maximum 1 VCPUs'; exec sleep 100", Duration::from_secs(60)));
    }

    #[test]
    fn a_machine_that_ends_early_is_not() {
        assert!(!trial("echo '(XEN) Xen version 4.17'; exit 1", Duration::from_secs(60)));
    }

    #[test]
    fn a_machine_that_stands_still_is_given_up() {
        let start = Instant::now();
        assert!(!trial("exec sleep 100", Duration::from_millis(100)));
        assert!(start.elapsed() < Duration::from_secs(50));
    }
}
