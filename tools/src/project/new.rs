//! A new application: one dependency, and a `main` to start from.

use std::io::Write as _;
use std::path::{Path, PathBuf};

/// A package that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NewError {
    /// Cargo would not take the name.
    #[error("{0:?} is not a name for a package: use letters, digits, - and _, with a letter first")]
    BadName(String),
    /// Something is in the way.
    #[error("{} exists already; choose another name or remove it", .0.display())]
    Exists(PathBuf),
    /// The library OS is not where it should be.
    #[error("the library OS is not at {}; name its folder with --libos", .0.display())]
    NoLibos(PathBuf),
    /// Writing failed.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The library OS in the source tree that this program was built from.
pub fn default_libos() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../libos")).to_owned()
}

/// Makes a package at `path`, named after its last part, that uses the library OS at `libos`.
///
/// # Errors
/// When the name will not do, something is in the way, or writing fails.
pub fn create(path: &Path, libos: &Path) -> Result<String, NewError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !letters || !name.starts_with(|c: char| c.is_ascii_alphabetic()) || name.len() > 64 {
        return Err(NewError::BadName(name));
    }
    let libos = libos
        .canonicalize()
        .ok()
        .filter(|libos| libos.join("Cargo.toml").is_file())
        .ok_or_else(|| NewError::NoLibos(libos.to_owned()))?;
    if path.exists() {
        return Err(NewError::Exists(path.to_owned()));
    }
    // A path may hold quotes and backslashes, and TOML's basic strings escape as Rust's do.
    let libos = format!("{:?}", libos.display().to_string());
    let fill = |text: &str| text.replace("{{name}}", &name).replace("{{libos}}", &libos);
    write(&path.join("Cargo.toml"), &fill(MANIFEST))?;
    write(&path.join("src/main.rs"), MAIN)?;
    write(&path.join("README.md"), &fill(README))?;
    write(&path.join(".gitignore"), "/target\n")?;
    Ok(name)
}

fn write(path: &Path, text: &str) -> Result<(), NewError> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent)
        .and_then(|()| std::fs::File::create_new(path)?.write_all(text.as_bytes()))
        .map_err(|source| NewError::Write { path: path.to_owned(), source })
}

const MANIFEST: &str = r#"[package]
name = "{{name}}"
version = "0.1.0"
edition = "2024"

[dependencies]
libos = { package = "fcap-libos", path = {{libos}} }

# A workspace of its own, so that it may stand anywhere, also below another one.
[workspace]
"#;

const MAIN: &str = r#"#![no_std]
#![no_main]

use libos::{env, println};

#[libos::main]
async fn main() {
    let name = env::args().nth(1).unwrap_or_else(|| "world".into());
    println!("hello, {name}");
}
"#;

const README: &str = r"# {{name}}

An application that runs as a capsule: by itself on Xen, without an operating system below it.

    fcap build              # makes target/capsule/{{name}}
    fcap run {{name}} you   # runs it and gives its exit code
    fcap ps                 # shows what runs
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_has_one_dependency_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let app = dir.path().join("app");
        assert_eq!(create(&app, &default_libos()).unwrap(), "app");
        let manifest = std::fs::read_to_string(app.join("Cargo.toml")).unwrap();
        assert!(manifest.contains("name = \"app\""), "{manifest}");
        assert_eq!(manifest.matches("path = ").count(), 1);
        assert!(matches!(create(&app, &default_libos()), Err(NewError::Exists(_))));
    }

    #[test]
    fn bad_names_and_places_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["1app", "a b", "ä", "..", "a\"b"] {
            assert!(
                matches!(create(&dir.path().join(bad), &default_libos()), Err(NewError::BadName(_))),
                "{bad}"
            );
        }
        assert!(matches!(create(&dir.path().join("app"), dir.path()), Err(NewError::NoLibos(_))));
    }
}
