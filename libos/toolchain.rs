//! How capsules are compiled and linked: the one place that says so.
//!
//! Not a module of the library OS: build tools include this file with
//! `#[path = ".../libos/toolchain.rs"] mod toolchain;`. It needs `std` alone.
//!
//! A build is `cargo build --release --target TARGET` with [`rustflags`] in
//! `CARGO_ENCODED_RUSTFLAGS` (separated by `\x1f`) and [`PROFILE`] in the
//! environment. The target is named even though it is the host's, because only
//! then do the flags leave build scripts and macros alone. The linker script must
//! be a file: write [`LINKER_SCRIPT`] somewhere that stays in place, or name the
//! one in the source tree.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// The target that the prebuilt `core` and `alloc` are for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The linker script's text.
pub const LINKER_SCRIPT: &str = include_str!("xen.lds");

/// Flags for the compiler, without the linker script.
pub const RUSTFLAGS: &[&str] = &[
    // Linked at the top 2 GiB, at a fixed place.
    "-Ccode-model=kernel",
    "-Crelocation-model=static",
    // Fault handlers push frames right below the stack pointer.
    "-Cno-redzone=yes",
    // For the addresses in panic reports.
    "-Cforce-frame-pointers=yes",
    "-Cpanic=abort",
    // Neither libc nor its start-up code; no dynamic linking.
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-no-pie",
    "-Clink-arg=-Wl,--gc-sections",
    "-Clink-arg=-Wl,--build-id=none",
    "-Clink-arg=-Wl,-z,norelro",
    "-Clink-arg=-Wl,-z,max-page-size=4096",
    "-Clink-arg=-Wl,-z,noexecstack",
    "-Cdefault-linker-libraries=no",
    // What finds a processor's extensions by itself would find some that Xen has
    // not enabled, and would be wrong after a move to another host.
    "--cfg=chacha20_backend=\"soft\"",
    "--cfg=poly1305_backend=\"soft\"",
    "--cfg=sha2_backend=\"soft\"",
    // Randomness comes from the library OS, not from a system call.
    "--cfg=getrandom_backend=\"custom\"",
];

/// Environment variables that set cargo's release profile: small, whole-program
/// optimized, so that nothing unused is left.
pub const PROFILE: &[(&str, &str)] = &[
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
];

/// All flags for the compiler, with the linker script at `script`.
pub fn rustflags(script: &Path) -> Vec<String> {
    let script = format!("-Clink-arg=-Wl,-T,{}", script.display());
    let names = registries().into_iter().map(|path| format!("--remap-path-prefix={}=", path.display()));
    RUSTFLAGS.iter().map(ToString::to_string).chain([script]).chain(names).collect()
}

/// Where cargo keeps the sources of crates. A program names them wherever it can panic: without
/// them it is smaller, and the same on whichever computer it is built.
fn registries() -> Vec<PathBuf> {
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let sources = cargo.and_then(|cargo| fs::read_dir(cargo.join("registry/src")).ok());
    let mut registries: Vec<PathBuf> = sources.into_iter().flatten().flatten().map(|it| it.path()).collect();
    registries.sort();
    registries
}
