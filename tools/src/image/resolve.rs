//! From what a user types to an image.
//!
//! With a slash it is a path. `sha256:…` is an image that a node already holds. Anything else is a
//! name, looked for in this order:
//! 1. the directories of `FCAP_PATH`, separated by colons,
//! 2. `target/capsule/` here and in each directory above, where `fcap build` puts images,
//! 3. `target/capsule/` of the source tree that this program was built from: the examples,
//! 4. the file of that name in the working directory.

use super::ImageError;
use std::path::{Path, PathBuf};

/// Directory of images below the directory of a package or workspace.
pub const IMAGE_DIR: &str = "target/capsule";

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// A file.
    File(PathBuf),
    /// An image that is on a node: its digest, or the start of it.
    Digest(String),
}

/// Finds an image for somebody who works in the directory `here`. A path comes back as it was given.
///
/// # Errors
/// When there is none: the error lists where it might have been.
pub fn resolve(name: &str, here: &Path, path_variable: Option<&str>) -> Result<Resolved, ImageError> {
    if let Some(digits) = name.strip_prefix("sha256:") {
        let hex = !digits.is_empty() && digits.len() <= 64 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        return if hex {
            Ok(Resolved::Digest(name.to_ascii_lowercase()))
        } else {
            Err(ImageError::NotFound { name: name.to_owned(), looked: "a digest of hex digits".to_owned() })
        };
    }
    if name.contains('/') {
        return if here.join(name).exists() {
            Ok(Resolved::File(name.into()))
        } else {
            Err(ImageError::NotFound { name: name.to_owned(), looked: "that path".to_owned() })
        };
    }
    let variable = path_variable.unwrap_or_default().split(':').filter(|dir| !dir.is_empty());
    let above = here.ancestors().map(|dir| dir.join(IMAGE_DIR));
    let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(IMAGE_DIR);
    let found = variable
        .map(PathBuf::from)
        .chain(above)
        .chain([source, here.to_owned()])
        .map(|dir| dir.join(name))
        .find(|path| !name.is_empty() && path.is_file());
    found.map(Resolved::File).ok_or_else(|| ImageError::NotFound {
        name: format!("{name:?}"),
        looked: format!("FCAP_PATH, {IMAGE_DIR} here and above, and a file of that name"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_where_builds_put_them() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        let images = dir.path().join("a").join(IMAGE_DIR);
        let extra = dir.path().join("extra");
        for dir in [&below, &images, &extra] {
            std::fs::create_dir_all(dir).unwrap();
        }
        std::fs::write(images.join("app-of-test"), "x").unwrap();
        std::fs::write(below.join("plain-of-test"), "x").unwrap();
        let find = |name, variable| resolve(name, &below, variable).ok();
        assert_eq!(find("app-of-test", None), Some(Resolved::File(images.join("app-of-test"))));
        assert_eq!(find("plain-of-test", None), Some(Resolved::File(below.join("plain-of-test"))));
        assert_eq!(find("./plain-of-test", None), Some(Resolved::File("./plain-of-test".into())));
        std::fs::write(extra.join("app-of-test"), "x").unwrap();
        let variable = format!(":{}", extra.display());
        assert_eq!(find("app-of-test", Some(&variable)), Some(Resolved::File(extra.join("app-of-test"))));
        for nothing in ["", "none-of-test", "./app-of-test", "sha256:", "sha256:xyz"] {
            assert_eq!(find(nothing, None), None, "{nothing}");
        }
    }

    #[test]
    fn digests_are_left_to_the_node() {
        let found = resolve("sha256:ABC", Path::new("/"), None).unwrap();
        assert_eq!(found, Resolved::Digest("sha256:abc".into()));
    }
}
