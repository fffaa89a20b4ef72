//! The file tree of an image, and its archive.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use cpio::newc;

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Dir,
    File { mode: u32, bytes: Vec<u8> },
    Link(String),
}

const DIR: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

/// Files by absolute path. Parents are there before their children, as the kernel wants them,
/// because a map of paths is sorted.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    pub(crate) fn dir(&mut self, path: &str) -> Result<()> {
        self.add(path, Node::Dir)
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) -> Result<()> {
        self.add(path, Node::File { mode, bytes })
    }

    pub(crate) fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.add(path, Node::Link(to.into()))
    }

    fn add(&mut self, path: &str, node: Node) -> Result<()> {
        let Some((parent, _)) = path.rsplit_once('/') else {
            bail!("{path:?} is not an absolute path");
        };
        if !parent.is_empty() {
            match self.nodes.get(parent) {
                Some(Node::Dir) => {}
                None => self.add(parent, Node::Dir)?,
                Some(_) => bail!("{path} lies below {parent}, which is no directory"),
            }
        }
        match self.nodes.insert(path.into(), node.clone()) {
            Some(before) if before != node => bail!("{path} comes twice, and differently"),
            _ => Ok(()),
        }
    }

    /// Contents of all regular files that are programs or libraries.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.nodes.iter().filter_map(|(path, node)| match node {
            Node::File { bytes, .. } => Some((path.as_str(), &bytes[..])),
            _ => None,
        })
    }

    /// The initramfs: always the same bytes for the same files. Owner root, time 0, inodes
    /// counted. It stays uncompressed: under emulation the kernel unpacks gzip or zstd slower
    /// than the loader copies the difference.
    pub(crate) fn archive(&self) -> Result<Vec<u8>> {
        let mut archive = Vec::new();
        // The console must exist before init has mounted anything.
        let console =
            newc::Builder::new("dev/console").mode(0o020_600).rdev_major(5).rdev_minor(1).ino(1).nlink(1);
        let mut inode = 1;
        for (path, node) in &self.nodes {
            inode += 1;
            let (mode, bytes) = match node {
                Node::Dir => (DIR, &[][..]),
                Node::File { mode, bytes } => (FILE | mode, &bytes[..]),
                Node::Link(to) => (LINK, to.as_bytes()),
            };
            let header = newc::Builder::new(&path[1..]).mode(mode).ino(inode).nlink(1);
            append(&mut archive, header, bytes)?;
        }
        append(&mut archive, console, &[])?;
        newc::trailer(&mut archive)?;
        Ok(archive)
    }
}

fn append(archive: &mut Vec<u8>, header: newc::Builder, bytes: &[u8]) -> Result<()> {
    let len = u32::try_from(bytes.len())?;
    let mut writer = header.write(archive, len);
    std::io::Write::write_all(&mut writer, bytes)?;
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_made_and_contradictions_refused() {
        let mut tree = Tree::default();
        tree.file("/a/b/c", 0o644, b"x".to_vec()).unwrap();
        tree.dir("/a").unwrap();
        assert!(tree.file("/a/b", 0o644, Vec::new()).is_err());
        assert!(tree.file("/a/b/c/d", 0o644, Vec::new()).is_err());
        assert!(tree.file("relative", 0o644, Vec::new()).is_err());
        assert_eq!(tree.nodes.keys().collect::<Vec<_>>(), ["/a", "/a/b", "/a/b/c"]);
    }

    #[test]
    fn the_order_of_additions_does_not_matter() {
        let mut one = Tree::default();
        one.dir("/dev").unwrap();
        one.file("/x", 0o755, b"x".to_vec()).unwrap();
        one.link("/l", "x").unwrap();
        let mut two = Tree::default();
        two.link("/l", "x").unwrap();
        two.file("/x", 0o755, b"x".to_vec()).unwrap();
        two.dir("/dev").unwrap();
        assert_eq!(one.archive().unwrap(), two.archive().unwrap());
    }
}
