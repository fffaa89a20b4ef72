//! Which machines run, asked of the system.
//!
//! A machine's command line names its folder (`-pidfile FOLDER/pid`), so that a process number
//! that was used again is not mistaken for a machine, and a machine whose starter was killed
//! before it could write anything down is found all the same.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Whether process `pid` is the machine of `folder`.
pub(super) fn runs(folder: &Path, pid: u32) -> bool {
    is_about(&folder.join("pid"), pid)
}

/// Whether the command line of process `pid` names a file.
pub(super) fn is_about(wanted: &Path, pid: u32) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut words = line.split(|&byte| byte == 0).map(OsStr::from_bytes);
    words.any(|word| word == wanted.as_os_str())
}

/// Ends all machines of `folder` and waits until they are gone.
pub(super) fn end_all(folder: &Path) {
    end_all_about(&folder.join("pid"));
}

/// Ends all processes whose command line names a file, and waits until they are gone.
pub(super) fn end_all_about(file: &Path) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if is_about(file, pid) {
            end(pid);
        }
    }
}

/// Kills a process and waits for its end, whoever its parent is.
fn end(pid: u32) {
    let Ok(raw) = i32::try_from(pid) else { return };
    if kill(Pid::from_raw(raw), Signal::SIGKILL).is_err() {
        return;
    }
    // Our own child is a zombie until it is waited for; another's is waited for by its parent,
    // and the system tells nobody else: so look until its memory is gone.
    if nix::sys::wait::waitpid(Pid::from_raw(raw), None).is_ok() {
        return;
    }
    while fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty()) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
