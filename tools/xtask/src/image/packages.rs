//! Debian packages: pinned, downloaded through apt, verified, and the wanted files taken out.
//!
//! apt is asked, never a host: what mirror a machine uses is its own affair. Nothing is
//! installed, and nothing here needs root.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::digest;
use super::list::{Package, Source};

/// A package exactly as it was when it was pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) sha256: String,
}

/// Reads packages.lock: four words a line.
pub(crate) fn parse_lock(text: &str) -> Result<Vec<Pin>> {
    let mut pins = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [key, name, version, sha256] = words[..] else {
            bail!("packages.lock: {line:?} does not have the words key, name, version and digest");
        };
        ensure!(
            sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "packages.lock: {sha256:?} is not a SHA-256 digest"
        );
        let [key, name, version, sha256] = [key, name, version, sha256].map(String::from);
        pins.push(Pin { key, name, version, sha256 });
    }
    Ok(pins)
}

/// Asks apt for what the list wants today and returns the text of packages.lock.
pub(crate) fn make_lock(packages: &[Package]) -> Result<String> {
    let mut text = String::from(
        "# Packages of the node image: how image.list calls it, name, version, SHA-256.\n\
         # Written by `cargo xtask image --update-lock`.\n",
    );
    for package in packages {
        let name = match &package.source {
            Source::Follows(meta) => field(&apt_cache(&["show", "--no-all-versions", meta])?, "Depends")
                .and_then(|depends| depends.split([' ', ',']).next().map(String::from))
                .with_context(|| format!("{meta} depends on nothing"))?,
            _ => package.name.clone(),
        };
        let record = match &package.source {
            Source::Version(version) => apt_cache(&["show", &format!("{name}={version}")])?,
            _ => apt_cache(&["show", "--no-all-versions", &name])?,
        };
        let version = field(&record, "Version").with_context(|| format!("{name} has no version"))?;
        let sha256 = field(&record, "SHA256").with_context(|| {
            format!("{name} {version} is in no archive that apt knows: is it only installed here?")
        })?;
        text.push_str(&format!("{} {name} {version} {sha256}\n", package.key));
    }
    Ok(text)
}

fn apt_cache(args: &[&str]) -> Result<String> {
    let output = Command::new("apt-cache").args(args).stderr(Stdio::inherit()).output();
    let output = output.context("cannot run apt-cache; this needs Debian's apt")?;
    ensure!(
        output.status.success(),
        "apt-cache {} failed; `apt-get update` renews apt's lists",
        args.join(" ")
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn field(record: &str, name: &str) -> Option<String> {
    let line = record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Downloaded packages, and the few files taken out of each.
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(crate) fn open(dir: PathBuf) -> Result<Cache> {
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Cache { dir })
    }

    fn deb(&self, pin: &Pin) -> PathBuf {
        self.dir.join(format!("{}.deb", pin.sha256))
    }

    /// Downloads those packages that are not here yet. `refresh` renews apt's lists, which may be
    /// older than the pins.
    pub(crate) fn fetch(&self, pins: &[&Pin], refresh: impl FnOnce() -> Result<()>) -> Result<()> {
        let missing: Vec<&&Pin> = pins.iter().filter(|pin| !self.deb(pin).exists()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter().map(|pin| pin.name.as_str()).collect();
        eprintln!("  downloading {} packages: {}", names.len(), names.join(" "));
        // All in one call, which is quick; one by one only to say which one it was.
        if self.download(&missing).is_ok() {
            return Ok(());
        }
        refresh()?;
        for pin in &missing {
            self.download(std::slice::from_ref(pin))?;
        }
        Ok(())
    }

    fn download(&self, pins: &[&&Pin]) -> Result<()> {
        // Several builds may run at once: each downloads into its own folder and renames.
        let own = self.dir.join(format!("download-{}", std::process::id()));
        let _ = fs::remove_dir_all(&own);
        fs::create_dir_all(&own)?;
        let result = self.download_into(&own, pins);
        fs::remove_dir_all(&own)?;
        result
    }

    fn download_into(&self, own: &Path, pins: &[&&Pin]) -> Result<()> {
        let wanted = pins.iter().map(|pin| format!("{}={}", pin.name, pin.version));
        let status = Command::new("apt-get")
            .args(["download", "-qq", "-o", "APT::Sandbox::User=root"])
            .args(wanted)
            .current_dir(own)
            .stdout(Stdio::null())
            .stderr(if pins.len() == 1 { Stdio::inherit() } else { Stdio::null() })
            .status()
            .context("cannot run apt-get; the node image is made of Debian packages")?;
        ensure!(
            status.success(),
            "{} {} cannot be downloaded. If the network works, this version has left the archive: \
             `cargo xtask image --update-lock` pins the present ones",
            pins[0].name,
            pins[0].version,
        );
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(own)? {
            let path = entry?.path();
            found.insert(digest(&fs::read(&path)?), path);
        }
        for pin in pins {
            let path = found.get(&pin.sha256).with_context(|| {
                format!(
                    "{} {} as downloaded is not what packages.lock pins ({}); if the archive changed it on \
                     purpose, `cargo xtask image --update-lock` pins the new one",
                    pin.name, pin.version, pin.sha256
                )
            })?;
            fs::rename(path, self.deb(pin))?;
        }
        Ok(())
    }

    /// The wanted files of a package. Unpacking is slow (the kernel's is 70 MB of xz), so what
    /// was wanted once is kept.
    pub(crate) fn files(&self, pin: &Pin, wanted: &[String]) -> Result<Files> {
        let key = digest(format!("{}\n{}", pin.sha256, wanted.join("\n")).as_bytes());
        let path = self.dir.join(format!("{}-{}.tar", pin.name, &key[..16]));
        if !path.exists() {
            let deb = self.deb(pin);
            ensure!(
                digest(&fs::read(&deb)?) == pin.sha256,
                "{} is damaged: remove it and try again",
                deb.display()
            );
            let partial = self.dir.join(format!("{}.{}", key, std::process::id()));
            unpack(&deb, wanted, &partial).with_context(|| format!("cannot unpack {}", pin.name))?;
            fs::rename(&partial, &path)?;
        }
        Files::read(&pin.key, &path)
    }
}

/// Copies the wanted entries of a package's tar stream into a small tar file.
fn unpack(deb: &Path, wanted: &[String], to: &Path) -> Result<()> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let stdout = child.stdout.take().context("dpkg-deb has no output")?;
    let mut small = tar::Builder::new(File::create(to)?);
    for entry in tar::Archive::new(BufReader::with_capacity(1 << 20, stdout)).entries()? {
        let entry = entry?;
        let path = absolute(&entry.path()?);
        if wanted.iter().any(|pattern| matches(pattern, &path)) {
            let mut header = entry.header().clone();
            // Long names are spread over several headers: write them anew.
            let link = entry.link_name()?.map(|link| link.into_owned());
            match link {
                Some(link) => small.append_link(&mut header, &path[1..], link)?,
                None => small.append_data(&mut header, &path[1..], entry)?,
            }
        }
    }
    small.finish()?;
    ensure!(child.wait()?.success(), "dpkg-deb failed");
    Ok(())
}

fn absolute(path: &Path) -> String {
    let path = path.to_string_lossy();
    format!("/{}", path.trim_start_matches("./").trim_matches('/'))
}

/// `*` stands for anything, slashes included.
fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((before, after)) => path.strip_prefix(before).is_some_and(|rest| {
            after.is_empty()
                || (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(after, &rest[at..]))
        }),
    }
}

/// Files taken out of one package.
#[derive(Debug)]
pub(crate) struct Files {
    package: String,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    File { mode: u32, bytes: Vec<u8> },
    Link(String),
}

impl Files {
    fn read(package: &str, path: &Path) -> Result<Files> {
        let mut entries = BTreeMap::new();
        for entry in tar::Archive::new(BufReader::new(File::open(path)?)).entries()? {
            let mut entry = entry?;
            let name = absolute(&entry.path()?);
            let kind = entry.header().entry_type();
            if kind.is_symlink() {
                let to = entry.link_name()?.context("a link to nothing")?;
                entries.insert(name, Entry::Link(to.to_string_lossy().into_owned()));
            } else if kind.is_file() {
                let mode = entry.header().mode()? & 0o777;
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes)?;
                entries.insert(name, Entry::File { mode, bytes });
            }
        }
        Ok(Files { package: package.into(), entries })
    }

    /// The one file that a path or pattern names, with its mode.
    pub(crate) fn get(&self, pattern: &str) -> Result<(u32, &[u8])> {
        let mut found = self.entries.iter().filter(|(path, _)| matches(pattern, path));
        let (path, _) = found.next().with_context(|| format!("{} has no file {pattern}", self.package))?;
        ensure!(found.next().is_none(), "{} has several files {pattern}", self.package);
        self.follow(path)
    }

    fn follow(&self, path: &str) -> Result<(u32, &[u8])> {
        let mut path = path.to_owned();
        for _ in 0..8 {
            match self.entries.get(&path) {
                Some(Entry::File { mode, bytes }) => return Ok((*mode, bytes)),
                Some(Entry::Link(to)) if to.starts_with('/') => path = to.clone(),
                Some(Entry::Link(to)) => {
                    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
                    path = format!("{dir}/{to}");
                }
                None => bail!("{} has no file {path}", self.package),
            }
        }
        bail!("{}: too many links at {path}", self.package)
    }

    /// Shared libraries by file name.
    pub(crate) fn library(&self, soname: &str) -> Option<&[u8]> {
        let path = self.entries.keys().find(|path| path.rsplit('/').next() == Some(soname))?;
        self.follow(path).ok().map(|(_, bytes)| bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches("/boot/vmlinuz-*", "/boot/vmlinuz-6.1"));
        assert!(matches("/lib/*/kernel/a.ko", "/lib/modules/6.1/kernel/a.ko"));
        assert!(matches("/lib/*.so*", "/lib/x/liba.so.1.2"));
        assert!(!matches("/lib/*.so*", "/lib/x/liba.a"));
        assert!(!matches("/a", "/ab"));
    }

    #[test]
    fn a_lock_is_four_words_a_line() {
        let digest = "0".repeat(64);
        let pins = parse_lock(&format!("# comment\nlinux linux-6.1 6.1-2 {digest}\n")).unwrap();
        assert_eq!(pins[0].name, "linux-6.1");
        assert!(parse_lock("a b c").is_err());
        assert!(parse_lock("a b c d").is_err());
    }

    #[test]
    fn fields_of_an_apt_record_are_found() {
        let record = "Package: a\nVersion: 1:2-3\nDepends: b-6 (= 1), c\n";
        assert_eq!(field(record, "Version").as_deref(), Some("1:2-3"));
        assert_eq!(field(record, "Depends").as_deref(), Some("b-6 (= 1), c"));
        assert_eq!(field(record, "SHA256"), None);
    }

    #[test]
    fn a_version_that_is_gone_is_named_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache")).unwrap();
        let pin = Pin {
            key: "busybox-static".into(),
            name: "busybox-static".into(),
            version: "0.0.1-gone".into(),
            sha256: "0".repeat(64),
        };
        let error = format!("{:#}", cache.fetch(&[&pin], || Ok(())).unwrap_err());
        for word in ["busybox-static", "0.0.1-gone", "--update-lock"] {
            assert!(error.contains(word), "{error}");
        }
    }
}
