//! The local cloud: nodes as QEMU machines on the user's own computer, without root.
//!
//! A cloud is a folder with one folder for each of its nodes:
//! ```text
//! $XDG_DATA_HOME/fcap/clouds/NAME/lock          held while nodes come and go
//! $XDG_DATA_HOME/fcap/clouds/NAME/lan.json      the wire between its nodes (see `lan`)
//! $XDG_DATA_HOME/fcap/clouds/NAME/authority.pem  signs the certificates of its machines
//! $XDG_DATA_HOME/fcap/clouds/NAME/controller.*  its controller (see `controller`)
//! $XDG_DATA_HOME/fcap/clouds/NAME/NODE/         made before the machine is started
//!                                 NODE/node.json  written last: the node is up
//!                                 NODE/{pid,qmp,console.log,qemu.log}   of at most 16 MiB each
//! $XDG_CACHE_HOME/fcap/templates/KEY/           RAM and devices of a booted node (see `template`)
//! ```
//! Nothing else is remembered. Whether a machine runs is asked of the system: its command line
//! names its folder. A folder without `node.json` belongs to a start that was cut off, a
//! `node.json` without a machine to a machine that died; whoever holds the lock next removes
//! both. So `kill -9` of anything at any moment leaves nothing for good.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use fcap_api::{Protocol, PublishedPort};
use fcap_tls::{Authority, TlsError};
use serde::{Deserialize, Serialize};

mod accel;
pub mod controller;
mod flavor;
mod image;
mod lan;
mod node;
mod overlay;
mod ports;
mod process;
mod provider;
mod qemu;
mod qmp;
mod template;

use lan::Lan;
use template::Template;

pub use accel::Accelerator;
pub use flavor::{FLAVORS, Flavor};
pub use image::Variant;

/// The cloud that is meant when none is named.
pub const DEFAULT_CLOUD: &str = "default";
/// Most nodes of one cloud.
pub const MAX_NODES: usize = 64;

/// A local cloud cannot do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// Names become folders.
    #[error("{0:?} is no name for a cloud: use up to 40 letters, digits, '-' and '_'")]
    BadName(String),
    /// There is no such flavor.
    #[error("no flavor {name:?}; there are {}", FLAVORS.map(|flavor| flavor.name).join(", "))]
    NoSuchFlavor {
        /// What was asked for.
        name: String,
    },
    /// More nodes than make sense.
    #[error("a local cloud has at most {MAX_NODES} nodes, {0} were asked for")]
    TooManyNodes(usize),
    /// A file or folder cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// There is no node image, or not all of it.
    #[error("no node image in {}: build it with `cargo xtask build`, or set FCAP_IMAGE_DIR", .0.display())]
    NoImage(PathBuf),
    /// QEMU is not installed.
    #[error(
        "cannot run qemu-system-x86_64: install it (`apt install qemu-system-x86`, or `cargo xtask setup`)"
    )]
    NoQemu(#[source] io::Error),
    /// A machine ended before it was up.
    #[error("the machine of node {node} ended while it started: {output}")]
    MachineEnded {
        /// The node.
        node: String,
        /// What QEMU said last.
        output: String,
    },
    /// A machine runs, but its daemon does not answer.
    #[error("node {node} does not answer after {seconds} s; its console said last: {console}")]
    Silent {
        /// The node.
        node: String,
        /// How long was waited.
        seconds: u64,
        /// The end of its console.
        console: String,
    },
    /// QEMU's control socket said no.
    #[error("QEMU refused {command} for node {node}: {answer}")]
    Qmp {
        /// The node.
        node: String,
        /// The command.
        command: String,
        /// QEMU's answer.
        answer: String,
    },
    /// The node's daemon answered, but not as it should.
    #[error("node {node} refused to take its identity: {answer}")]
    Adopt {
        /// The node.
        node: String,
        /// Its answer.
        answer: String,
    },
    /// The node's daemon does not take part in the overlay.
    #[error("node {node} cannot be told of the cloud's other nodes: {answer}")]
    Overlay {
        /// The node.
        node: String,
        /// Its answer.
        answer: String,
    },
    /// There is no such node.
    #[error("cloud {cloud} has no node {node}; `fcap cloud ls` lists them")]
    NoSuchNode {
        /// The cloud.
        cloud: String,
        /// What was asked for.
        node: String,
    },
    /// Nodes of a local cloud are numbered.
    #[error("{0:?} is no name for a node of a local cloud: they are node1, node2 and so on")]
    BadNodeName(String),
    /// Somebody else has started it.
    #[error("there is a node {0} already")]
    NodeTaken(String),
    /// The cloud's controller does not come up.
    #[error("the controller of cloud {cloud} does not come up: {reason}")]
    Controller {
        /// The cloud.
        cloud: String,
        /// What it said.
        reason: String,
    },
    /// Another program listens on the port, or another node forwards it.
    #[error("port {port}/{protocol} of this computer is already taken: publish another one")]
    PortTaken {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// The port cannot be listened on.
    #[error("port {port}/{protocol} of this computer cannot be listened on")]
    Port {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The system's answer.
        source: io::Error,
    },
    /// The cloud's authority, or a certificate of it.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No entropy.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
}

/// Result of an operation on a local cloud.
pub type Result<T> = std::result::Result<T, CloudError>;

/// Adds to an I/O error which file it was about.
trait AtPath<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| CloudError::File { action, path: path.to_owned(), source })
    }
}

/// A node that is up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its number within the cloud, from 1.
    pub index: u16,
    /// Name of its flavor.
    pub flavor: String,
    /// Port on 127.0.0.1 that reaches its daemon.
    pub port: u16,
    /// Port on 127.0.0.1 that reaches the shell of a comparison node.
    pub shell_port: Option<u16>,
    /// The token that its daemon wants.
    pub token: String,
    /// QEMU's process.
    pub pid: u32,
    /// How its processors are run.
    pub accelerator: Accelerator,
    /// What it is made of.
    #[serde(default)]
    pub variant: Variant,
    /// When it was started, milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The operation of the controller that wanted it.
    #[serde(default)]
    pub tag: Option<String>,
    /// Whether it has a certificate of the cloud's authority.
    #[serde(default)]
    pub is_member: bool,
}

impl Node {
    /// Base of its daemon's URLs.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// What is to come up.
#[derive(Clone, Debug)]
pub struct Request {
    /// How many nodes to add.
    pub nodes: usize,
    /// Their flavor.
    pub flavor: &'static Flavor,
    /// What they are made of.
    pub variant: Variant,
    /// Whether the nodes of the cloud encrypt what they send each other; a cloud that does goes
    /// on doing so.
    pub encrypt: bool,
}

/// Where a new node goes.
struct Place {
    index: u16,
    folder: PathBuf,
}

/// Says what is being done, for people who wait.
pub type Progress<'a> = &'a (dyn Fn(&str) + Sync);

/// A local cloud, whether it has nodes or not.
#[derive(Clone, Debug)]
pub struct Cloud {
    name: String,
    folder: PathBuf,
}

impl Cloud {
    /// The cloud of that name; nothing is made yet.
    ///
    /// # Errors
    /// When the name is none, or there is no place for user data.
    pub fn new(name: &str) -> Result<Self> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 40 || !name.chars().all(fits) {
            return Err(CloudError::BadName(name.into()));
        }
        Ok(Self { name: name.into(), folder: clouds()?.join(name) })
    }

    /// All clouds that have nodes, by name.
    ///
    /// # Errors
    /// When the folder of clouds cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        template::discard_halves()?;
        let mut found = Vec::new();
        for name in folders(&clouds()?)? {
            if let Ok(cloud) = Self::new(&name)
                && !cloud.nodes()?.is_empty()
            {
                found.push(cloud);
            }
        }
        Ok(found)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The nodes that are up now, by name.
    ///
    /// # Errors
    /// When the cloud's folder cannot be read.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        if let Some(lock) = self.try_lock()? {
            self.reconcile(&lock)?;
        }
        self.running()
    }

    fn running(&self) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        for name in folders(&self.folder)? {
            let folder = self.folder.join(&name);
            if let Some(node) = node::read(&folder)
                && process::runs(&folder, node.pid)
            {
                nodes.push(node);
            }
        }
        nodes.sort_by_key(|node| (node.name.len(), node.name.clone()));
        Ok(nodes)
    }

    /// Starts nodes, all at once, and returns when each has taken its identity.
    ///
    /// # Errors
    /// When one of them does not come up; then none of the new ones stays.
    pub fn up(&self, request: &Request, progress: Progress<'_>) -> Result<Vec<Node>> {
        let authority = &self.authority()?;
        self.add(request, progress, |places, template, lan| {
            std::thread::scope(|scope| {
                let start =
                    |place: &Place| node::start(place, template, request.flavor, lan, authority, false, None);
                let starts: Vec<_> = places.iter().map(|place| scope.spawn(move || start(place))).collect();
                starts
                    .into_iter()
                    .map(|start| start.join().expect("starting a node does not panic"))
                    .collect()
            })
        })
    }

    /// As [`Cloud::up`], but the nodes end with the calling thread, however it ends: for tests
    /// and benchmarks. They start one after the other.
    ///
    /// # Errors
    /// When one of them does not come up; then none of the new ones stays.
    pub fn up_tied(&self, request: &Request, progress: Progress<'_>) -> Result<Vec<Node>> {
        let authority = &self.authority()?;
        self.add(request, progress, |places, template, lan| {
            let start =
                |place: &Place| node::start(place, template, request.flavor, lan, authority, true, None);
            places.iter().map(start).collect()
        })
    }

    /// Starts one node of that name, or finds the one that was started with the same tag.
    ///
    /// # Errors
    /// When another one has the name, or it does not come up.
    pub fn create(&self, name: &str, flavor: &Flavor, tag: &str, progress: Progress<'_>) -> Result<Node> {
        let index = name.strip_prefix("node").and_then(|number| number.parse().ok());
        let index = index.filter(|&index| index > 0 && name == format!("node{index}"));
        let index = index.ok_or_else(|| CloudError::BadNodeName(name.into()))?;
        let lock = self.lock(progress)?;
        self.reconcile(&lock)?;
        if let Ok((node, _)) = self.node(name) {
            return if node.tag.as_deref() == Some(tag) {
                Ok(node)
            } else {
                Err(CloudError::NodeTaken(name.into()))
            };
        }
        let folder = self.folder.join(name);
        let count = folders(&self.folder)?.len() + 1;
        if count > MAX_NODES {
            return Err(CloudError::TooManyNodes(count));
        }
        // As the others are.
        let variant = self.running()?.first().map_or(Variant::Node, |node| node.variant);
        let template = template::ensure(variant, flavor, progress)?;
        let lan = self.lan(false)?;
        let place = Place { index, folder };
        let started = node::start(&place, &template, flavor, &lan, &self.authority()?, false, Some(tag));
        let joined = started.and_then(|node| {
            let nodes = self.running()?;
            if nodes.len() > 1 {
                overlay::join(&nodes, std::slice::from_ref(&node), &lan, progress)?;
            }
            Ok(node)
        });
        if joined.is_err() {
            node::remove(&place.folder)?;
        }
        joined
    }

    /// Has what led to published ports of one node lead to another. Either may be gone.
    ///
    /// # Errors
    /// As [`Cloud::publish`].
    pub fn move_ports(&self, ports: &[PublishedPort], from: &str, to: &str) -> Result<()> {
        if let Ok((node, folder)) = self.node(from) {
            ports::remove(&folder, &node, ports)?;
        }
        self.publish(to, ports)
    }

    /// Who signs the certificates of the cloud's machines; made when it is first asked for.
    ///
    /// # Errors
    /// When its file cannot be used.
    pub fn authority(&self) -> Result<Authority> {
        make_private(&self.folder)?;
        Ok(Authority::open(&self.folder.join("authority.pem"))?)
    }

    /// Where what belongs to the cloud as a whole is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn add(
        &self,
        request: &Request,
        progress: Progress<'_>,
        start: impl FnOnce(&[Place], &Template, &Lan) -> Vec<Result<Node>>,
    ) -> Result<Vec<Node>> {
        let lock = self.lock(progress)?;
        self.reconcile(&lock)?;
        let taken = folders(&self.folder)?;
        if taken.len() + request.nodes > MAX_NODES {
            return Err(CloudError::TooManyNodes(taken.len() + request.nodes));
        }
        let template = template::ensure(request.variant, request.flavor, progress)?;
        let free =
            (1..).map(|index| (index, format!("node{index}"))).filter(|(_, name)| !taken.contains(name));
        let places: Vec<Place> = free
            .take(request.nodes)
            .map(|(index, name)| Place { index, folder: self.folder.join(name) })
            .collect();
        let lan = self.lan(request.encrypt)?;
        let started = start(&places, &template, &lan).into_iter().collect::<Result<Vec<Node>>>();
        let joined = started.and_then(|new| {
            let nodes = self.running()?;
            // One alone has nobody to be told of.
            if nodes.len() > 1 {
                overlay::join(&nodes, &new, &lan, progress)?;
            }
            Ok(new)
        });
        if joined.is_err() {
            for place in &places {
                node::remove(&place.folder)?;
            }
        }
        joined
    }

    /// The cloud's wire; made for its first nodes.
    fn lan(&self, encrypt: bool) -> Result<Lan> {
        let lan = match Lan::read(&self.folder) {
            Some(lan) if lan.encrypt || !encrypt => return Ok(lan),
            Some(mut lan) => {
                lan.encrypt = true;
                lan
            }
            None => Lan::new(encrypt)?,
        };
        lan.write(&self.folder)?;
        Ok(lan)
    }

    fn node(&self, name: &str) -> Result<(Node, PathBuf)> {
        let folder = self.folder.join(name);
        let known = node::read(&folder).filter(|node| node.name == name && process::runs(&folder, node.pid));
        let node =
            known.ok_or_else(|| CloudError::NoSuchNode { cloud: self.name.clone(), node: name.into() })?;
        Ok((node, folder))
    }

    /// Makes published ports of a node reachable at the same ports of 127.0.0.1 on this
    /// computer; those that are so already stay.
    ///
    /// # Errors
    /// [`CloudError::PortTaken`] and [`CloudError::Port`] when a port cannot be had here; those
    /// before it are reachable then.
    pub fn publish(&self, node: &str, ports: &[PublishedPort]) -> Result<()> {
        let (node, folder) = self.node(node)?;
        ports::add(&folder, &node, ports)
    }

    /// Has no other ports of this computer than these lead to a node any more.
    ///
    /// # Errors
    /// When there is no such node, or its QEMU does not answer.
    pub fn unpublish_others(&self, node: &str, ports: &[PublishedPort]) -> Result<()> {
        let (node, folder) = self.node(node)?;
        ports::retain(&folder, &node, ports)
    }

    /// Ends one node.
    ///
    /// # Errors
    /// When its folder cannot be removed.
    pub fn remove(&self, node: &str, progress: Progress<'_>) -> Result<()> {
        let _lock = self.lock(progress)?;
        node::remove(&self.folder.join(node))?;
        match Lan::read(&self.folder) {
            Some(lan) => overlay::join(&self.running()?, &[], &lan, progress),
            None => Ok(()),
        }
    }

    /// Ends all nodes and removes the cloud; returns how many nodes there were.
    ///
    /// # Errors
    /// When its folder cannot be removed.
    pub fn down(&self, progress: Progress<'_>) -> Result<usize> {
        template::discard_halves()?;
        if !self.folder.exists() {
            return Ok(0);
        }
        // Before it starts a node again that it misses.
        controller::end(self);
        let _lock = self.lock(progress)?;
        let nodes = folders(&self.folder)?;
        for node in &nodes {
            node::remove(&self.folder.join(node))?;
        }
        fs::remove_dir_all(&self.folder).at("remove", &self.folder)?;
        Ok(nodes.len())
    }

    /// Removes what starts that were cut off and machines that died have left.
    fn reconcile(&self, _lock: &File) -> Result<()> {
        for name in folders(&self.folder)? {
            let folder = self.folder.join(name);
            if !node::read(&folder).is_some_and(|node| process::runs(&folder, node.pid)) {
                node::remove(&folder)?;
            }
        }
        Ok(())
    }

    fn lock_file(&self) -> Result<File> {
        make_private(&self.folder)?;
        let path = self.folder.join("lock");
        File::options().create(true).truncate(false).write(true).open(&path).at("open", &path)
    }

    /// Waits until nobody else changes this cloud.
    fn lock(&self, progress: Progress<'_>) -> Result<File> {
        loop {
            let file = self.lock_file()?;
            if file.try_lock().is_err() {
                progress(&format!("waiting for another fcap that changes cloud {}", self.name));
                file.lock().at("lock", &self.folder)?;
            }
            if self.is_current(&file) {
                return Ok(file);
            }
        }
    }

    fn try_lock(&self) -> Result<Option<File>> {
        if !self.folder.exists() {
            return Ok(None);
        }
        let file = self.lock_file()?;
        Ok((file.try_lock().is_ok() && self.is_current(&file)).then_some(file))
    }

    /// Whether the lock file is still the cloud's: `down` removes it with the folder, and
    /// somebody who waited for it then holds a lock on nothing.
    fn is_current(&self, file: &File) -> bool {
        use std::os::unix::fs::MetadataExt;
        let here = fs::metadata(self.folder.join("lock")).map(|meta| meta.ino());
        matches!((here, file.metadata()), (Ok(here), Ok(held)) if here == held.ino())
    }
}

fn clouds() -> Result<PathBuf> {
    Ok(user_folder("XDG_DATA_HOME", ".local/share")?.join("clouds"))
}

/// fcap's folder below one of the XDG base directories.
fn user_folder(variable: &str, default: &str) -> Result<PathBuf> {
    let absolute = |value| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
    let base = std::env::var_os(variable).and_then(absolute);
    let home = || std::env::var_os("HOME").and_then(absolute).map(|home| home.join(default));
    base.or_else(home).map(|base| base.join("fcap")).ok_or_else(|| CloudError::File {
        action: "find a folder for user data:",
        path: format!("neither {variable} nor HOME is set to an absolute path").into(),
        source: io::ErrorKind::NotFound.into(),
    })
}

/// Makes a folder that only the user can look into: it holds tokens and memory of machines.
fn make_private(folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).at("make", folder)
}

/// Names of the folders in `folder`; none, if it does not exist.
fn folders(folder: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("read", folder)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.at("read", folder)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// The name of this computer's processor.
fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name")).unwrap_or("");
    line.split_once(':').map_or("", |(_, name)| name.trim()).to_owned()
}

/// Random bytes as hex digits.
fn random_hex(bytes: usize) -> Result<String> {
    let mut buffer = vec![0; bytes];
    getrandom::fill(&mut buffer).map_err(|error| CloudError::Random(error.to_string()))?;
    Ok(buffer.iter().map(|byte| format!("{byte:02x}")).collect())
}
