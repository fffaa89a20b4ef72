//! `xen-configs/image.list`: what is in which image.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

/// One of the images that can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// What nodes run.
    Node,
    /// With xl beside, for comparison.
    Xl,
    /// The same on the older hypervisor that has log-dirty.
    XlLogDirty,
    /// As `Xl`, with servers and load generators.
    Bench,
    /// No node: a Linux guest with the servers that capsules are compared with.
    Guest,
}

impl Variant {
    pub(crate) const ALL: [Variant; 5] =
        [Variant::Node, Variant::Xl, Variant::XlLogDirty, Variant::Bench, Variant::Guest];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Variant::Node => "node",
            Variant::Xl => "xl",
            Variant::XlLogDirty => "xl-4.17.5",
            Variant::Bench => "bench",
            Variant::Guest => "guest",
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Variant> {
        Variant::ALL.into_iter().find(|variant| variant.name() == name).with_context(|| {
            format!(
                "there is no image variant {name:?}: it is one of {}",
                Variant::ALL.map(Variant::name).join(", ")
            )
        })
    }

    /// Whether what a line says for `line` holds for this variant: one holds what it is made from.
    pub(crate) fn includes(self, line: Variant) -> bool {
        let base = match self {
            Variant::Node | Variant::Guest => return line == self,
            Variant::Xl => Variant::Node,
            Variant::XlLogDirty | Variant::Bench => Variant::Xl,
        };
        line == self || base.includes(line)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a package's version comes from when the pins are renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The newest that apt offers.
    Newest,
    /// Exactly this one.
    Version(String),
    /// The newest of the package that this metapackage depends on.
    Follows(String),
}

/// A package that is pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    /// How other lines call it.
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) source: Source,
    /// Whether programs may take shared libraries from it.
    pub(crate) libraries: bool,
}

/// What a line adds to an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A kernel, put beside the initramfs.
    Boot { package: String, path: String, file: String },
    /// A file of a package.
    File { package: String, path: String, target: String },
    /// A file of ours.
    Own { file: String, mode: u32, target: String },
    /// A symbolic link.
    Link { target: String, to: String },
    /// An empty directory.
    Dir { path: String },
    /// A shared library that no program names, because it is loaded later.
    Soname { name: String },
}

/// A module of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// Below the kernel's module directory, without `.ko`.
    pub(crate) path: String,
    /// With what it is loaded: `name=value`, parted by spaces.
    pub(crate) options: String,
}

/// The whole list.
#[derive(Debug, Default)]
pub(crate) struct List {
    pub(crate) packages: Vec<Package>,
    /// In the order of loading.
    pub(crate) modules: Vec<(Variant, Module)>,
    pub(crate) items: Vec<(Variant, Item)>,
}

impl List {
    pub(crate) fn parse(text: &str) -> Result<List> {
        let mut list = List::default();
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.is_empty() || words[0].starts_with('#') {
                continue;
            }
            list.line(&words).with_context(|| format!("line {} of image.list: {line}", number + 1))?;
        }
        Ok(list)
    }

    fn line(&mut self, words: &[&str]) -> Result<()> {
        let item = |variant: &str, item| Ok::<_, anyhow::Error>((Variant::parse(variant)?, item));
        match *words {
            ["package", name] => self.package(name, name, Source::Newest, false),
            ["package", name, "follows", meta] => {
                self.package(name, name, Source::Follows(meta.into()), false)
            }
            ["package", name, version] => {
                let version = version.strip_prefix('=').context("a version starts with `=`")?;
                self.package(&format!("{name}={version}"), name, Source::Version(version.into()), false)
            }
            ["libraries", name] => self.package(name, name, Source::Newest, true),
            ["module", variant, path, ref options @ ..] => {
                let module = Module { path: path.into(), options: options.join(" ") };
                self.modules.push((Variant::parse(variant)?, module));
                Ok(())
            }
            ["boot", variant, package, path, file] => {
                self.check_package(package)?;
                let boot = Item::Boot { package: package.into(), path: path.into(), file: file.into() };
                self.items.push(item(variant, boot)?);
                Ok(())
            }
            ["file", variant, package, path, ref rest @ ..] if rest.len() < 2 => {
                self.check_package(package)?;
                let target = rest.first().unwrap_or(&path);
                self.items.push(item(
                    variant,
                    Item::File { package: package.into(), path: path.into(), target: (*target).into() },
                )?);
                Ok(())
            }
            ["own", variant, file, mode, target] => {
                let mode = u32::from_str_radix(mode, 8).context("the mode is octal")?;
                let own = Item::Own { file: file.into(), mode, target: target.into() };
                self.items.push(item(variant, own)?);
                Ok(())
            }
            ["link", variant, target, to] => {
                self.items.push(item(variant, Item::Link { target: target.into(), to: to.into() })?);
                Ok(())
            }
            ["dir", variant, path] => {
                self.items.push(item(variant, Item::Dir { path: path.into() })?);
                Ok(())
            }
            ["soname", variant, name] => {
                self.items.push(item(variant, Item::Soname { name: name.into() })?);
                Ok(())
            }
            ["applets", variant, ref names @ ..] => {
                for name in names {
                    let link = Item::Link { target: format!("/bin/{name}"), to: "busybox".into() };
                    self.items.push(item(variant, link)?);
                }
                Ok(())
            }
            _ => bail!("not a known line, or one with too few or too many words"),
        }
    }

    fn package(&mut self, key: &str, name: &str, source: Source, libraries: bool) -> Result<()> {
        ensure!(self.packages.iter().all(|package| package.key != key), "{key} is named twice");
        self.packages.push(Package { key: key.into(), name: name.into(), source, libraries });
        Ok(())
    }

    fn check_package(&self, key: &str) -> Result<()> {
        ensure!(
            self.packages.iter().any(|package| package.key == key),
            "no `package` line above names {key}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_line_by_line() {
        let list = List::parse(
            "# comment\n\npackage a\npackage a =1.2\npackage k follows meta\nlibraries l\n\
             file node a /bin/a\nfile xl a=1.2 /bin/a /bin/b\nown node init 755 /init\nmodule node x/y a=1 b=2\n",
        )
        .unwrap();
        assert_eq!(list.packages.len(), 4);
        assert_eq!(list.packages[1].source, Source::Version("1.2".into()));
        assert!(list.packages[3].libraries);
        let module = Module { path: "x/y".into(), options: "a=1 b=2".into() };
        assert_eq!(list.modules, [(Variant::Node, module)]);
        assert_eq!(list.items.len(), 3);
        let second = &list.items[1].1;
        assert_eq!(
            *second,
            Item::File { package: "a=1.2".into(), path: "/bin/a".into(), target: "/bin/b".into() }
        );
    }

    #[test]
    fn mistakes_name_the_line() {
        for text in ["file node a /x", "nonsense", "package a\npackage a", "dir moon /x", "own node i 9 /i"] {
            let error = format!("{:#}", List::parse(text).unwrap_err());
            assert!(error.contains("line"), "{error}");
        }
    }

    #[test]
    fn a_variant_holds_what_it_is_made_from() {
        assert!(Variant::XlLogDirty.includes(Variant::Node));
        assert!(Variant::Bench.includes(Variant::Xl));
        assert!(Variant::Xl.includes(Variant::Xl));
        assert!(!Variant::Node.includes(Variant::Xl));
        assert!(!Variant::Bench.includes(Variant::XlLogDirty));
        assert!(!Variant::Guest.includes(Variant::Node));
    }
}
