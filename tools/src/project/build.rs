//! Building images: cargo with the library OS's flags, then a look at what came out.

use super::toolchain;
use crate::image::resolve::IMAGE_DIR;
use elf::ElfBytes;
use elf::abi::{ET_EXEC, PT_DYNAMIC, PT_INTERP, PT_NOTE};
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::note::Note;
use serde::Deserialize;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Folder of cargo's own files, below [`IMAGE_DIR`].
const CARGO_DIR: &str = ".build";
/// Number of Xen's note that names the guest's operating system.
const NOTE_GUEST_OS: u64 = 6;

/// What to build.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `Cargo.toml`, when it is not that of the working directory.
    pub manifest_path: Option<PathBuf>,
    /// One package of a workspace.
    pub package: Option<String>,
    /// Only these binaries.
    pub bins: Vec<String>,
    /// Only these examples.
    pub examples: Vec<String>,
    /// Without optimization.
    pub dev: bool,
    /// Features.
    pub features: Vec<String>,
    /// Exactly the versions of `Cargo.lock`.
    pub locked: bool,
    /// Where images go, when not to `target/capsule` of the workspace.
    pub out: Option<PathBuf>,
}

/// An image that was made.
#[derive(Clone, Debug)]
pub struct Built {
    /// The program's name.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// No image was made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Cargo does not start.
    #[error("cargo does not start; install Rust 1.95 or newer from rustup.rs")]
    NoCargo(#[source] std::io::Error),
    /// Cargo finds no package.
    #[error("there is no package here: go to one, name it with --manifest-path, or make one with `fcap new`")]
    NoPackage,
    /// The toolchain lacks the target.
    #[error("the Rust toolchain cannot build for {0}: `rustup target add {0}` adds that")]
    NoTarget(&'static str),
    /// Compiling or linking failed.
    #[error(
        "cargo could not build it, as it says above; docs/writing-applications.md tells what an application may use"
    )]
    Failed,
    /// It built no program.
    #[error("the package has no program: add src/main.rs, or choose one with --bin or --example")]
    Nothing,
    /// A file operation failed.
    #[error("{} cannot be used", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What was built is no image.
    #[error("{name} was built and cannot run as a capsule: {reason}")]
    BadImage {
        /// The program's name.
        name: String,
        /// Why.
        reason: String,
    },
}

/// Builds images.
///
/// # Errors
/// When cargo fails, or what it makes is no image.
pub fn build(options: &Options) -> Result<Vec<Built>, BuildError> {
    let root = workspace_root(options)?;
    let out = options.out.clone().unwrap_or_else(|| root.join(IMAGE_DIR));
    let cargo_dir = root.join(IMAGE_DIR).join(CARGO_DIR);
    make_dir(&cargo_dir)?;
    make_dir(&out)?;
    // Not rewritten when it is the same: a newer script would make cargo link again.
    let script = cargo_dir.join("xen.lds");
    if std::fs::read(&script).ok().as_deref() != Some(toolchain::LINKER_SCRIPT.as_bytes()) {
        write(&script, toolchain::LINKER_SCRIPT.as_bytes())?;
    }
    let programs = compile(options, &cargo_dir, &script)?;
    if programs.is_empty() {
        return Err(BuildError::Nothing);
    }
    programs.into_iter().map(|program| publish(program, &out)).collect()
}

/// The folder of the workspace's `Cargo.toml`, as cargo sees it.
fn workspace_root(options: &Options) -> Result<PathBuf, BuildError> {
    let mut command = cargo();
    command.args(["locate-project", "--workspace", "--message-format", "plain"]);
    if let Some(path) = &options.manifest_path {
        command.arg("--manifest-path").arg(path);
    }
    let output = command.stdin(Stdio::null()).output().map_err(BuildError::NoCargo)?;
    if !output.status.success() {
        return Err(BuildError::NoPackage);
    }
    let manifest = String::from_utf8_lossy(&output.stdout);
    Path::new(manifest.trim()).parent().map(Path::to_owned).ok_or(BuildError::NoPackage)
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// A program that cargo has built.
#[derive(Debug)]
struct Program {
    name: String,
    path: PathBuf,
}

/// What cargo says, as far as we listen.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

fn compile(options: &Options, cargo_dir: &Path, script: &Path) -> Result<Vec<Program>, BuildError> {
    let mut command = cargo();
    command
        .args(["build", "--message-format", "json-render-diagnostics", "--target", toolchain::TARGET])
        .env("CARGO_TARGET_DIR", cargo_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", toolchain::rustflags(script).join("\x1f"))
        .envs(toolchain::PROFILE.iter().copied());
    if !options.dev {
        command.arg("--release");
    }
    if options.locked {
        command.arg("--locked");
    }
    if let Some(path) = &options.manifest_path {
        command.arg("--manifest-path").arg(path);
    }
    if let Some(package) = &options.package {
        command.args(["--package", package]);
    }
    command.args(options.bins.iter().flat_map(|bin| ["--bin", bin]));
    command.args(options.examples.iter().flat_map(|example| ["--example", example]));
    command.args(options.features.iter().flat_map(|feature| ["--features", feature]));
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(BuildError::NoCargo)?;
    let mut programs = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        // A line that is not ours to read is none of our business, whatever it is.
        for message in BufReader::new(stdout).lines().map_while(Result::ok) {
            programs.extend(serde_json::from_str(&message).ok().and_then(program));
        }
    }
    let status = child.wait().map_err(BuildError::NoCargo)?;
    if status.success() {
        return Ok(programs);
    }
    Err(if has_target() { BuildError::Failed } else { BuildError::NoTarget(toolchain::TARGET) })
}

fn program(message: Message) -> Option<Program> {
    let (path, target) = (message.executable?, message.target?);
    let runs = target.kind.iter().any(|kind| kind == "bin" || kind == "example");
    (message.reason == "compiler-artifact" && runs).then_some(Program { name: target.name, path })
}

fn has_target() -> bool {
    Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc")))
        .args(["--print", "target-libdir", "--target", toolchain::TARGET])
        .output()
        .is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

/// Puts a program among the images, if it is one.
fn publish(program: Program, out: &Path) -> Result<Built, BuildError> {
    let bytes = std::fs::read(&program.path)
        .map_err(|source| BuildError::File { path: program.path.clone(), source })?;
    check(&bytes).map_err(|reason| BuildError::BadImage { name: program.name.clone(), reason })?;
    let path = out.join(&program.name);
    // Renamed into place: a running `fcap run` reads the old image or the new one.
    let part = out.join(format!(".{}.{}", program.name, std::process::id()));
    write(&part, &bytes)?;
    std::fs::rename(&part, &path).map_err(|source| BuildError::File { path: path.clone(), source })?;
    Ok(Built { name: program.name, path, bytes: bytes.len() as u64 })
}

fn make_dir(path: &Path) -> Result<(), BuildError> {
    std::fs::create_dir_all(path).map_err(|source| BuildError::File { path: path.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    std::fs::write(path, bytes).map_err(|source| BuildError::File { path: path.to_owned(), source })
}

/// Tells why a file is not an image of a capsule. The node looks closer; this finds what goes wrong
/// when packages are built in unusual ways.
fn check(bytes: &[u8]) -> Result<(), String> {
    let broken = |error: elf::ParseError| format!("it is not a whole ELF file ({error})");
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(broken)?;
    if file.ehdr.class != Class::ELF64 || file.ehdr.e_type != ET_EXEC {
        return Err("it is not linked at a fixed address".into());
    }
    let segments = file.segments().ok_or("it has no segments")?;
    let mut ours = false;
    for segment in segments.iter() {
        match segment.p_type {
            PT_INTERP | PT_DYNAMIC => {
                return Err("it wants shared libraries; a crate that uses libc was linked in".into());
            }
            PT_NOTE => {
                for note in file.segment_data_as_notes(&segment).map_err(broken)? {
                    ours |= matches!(note, Note::Unknown(note) if matches!(note.name_str(), Ok("Xen"))
                        && note.n_type == NOTE_GUEST_OS
                        && note.desc.starts_with(b"fcap"));
                }
            }
            _ => {}
        }
    }
    if let Some((symbols, names)) = file.symbol_table().map_err(broken)? {
        let undefined = symbols.iter().find(|symbol| symbol.is_undefined() && symbol.st_name != 0);
        if let Some(symbol) = undefined {
            let name = names.get(symbol.st_name as usize).unwrap_or("?");
            return Err(format!("{name} is undefined; a crate that needs an operating system was linked in"));
        }
    }
    if ours { Ok(()) } else { Err("it is not linked with the library OS; use #[libos::main]".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_programs_are_no_images() {
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(check(&this).is_err());
        assert!(check(b"").is_err());
        assert!(check(b"#!/bin/sh\n").is_err());
    }

    #[test]
    fn only_programs_among_cargos_messages_count() {
        let parse = |text: &str| serde_json::from_str(text).ok().and_then(program).map(|it| it.name);
        let line = |kind: &str, file: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"x","kind":["{kind}"]}},"executable":{file}}}"#
            )
        };
        assert_eq!(parse(&line("bin", "\"/x\"")), Some("x".into()));
        assert_eq!(parse(&line("example", "\"/x\"")), Some("x".into()));
        assert_eq!(parse(&line("custom-build", "\"/x\"")), None);
        assert_eq!(parse(&line("bin", "null")), None);
        assert_eq!(parse(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(parse("warning: text"), None);
    }

    proptest! {
        #[test]
        fn no_file_panics(at in 0usize..200, bytes: Vec<u8>) {
            let mut file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
            file.truncate(4096);
            file.splice(at..(at + bytes.len()).min(4096), bytes);
            let _ = check(&file);
        }
    }
}
