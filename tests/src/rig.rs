//! Nodes with real Xen for tests, benchmarks and long runs.
//!
//! Each is a clone in a local cloud of its own, which ends with the [`Node`]. Comparison nodes
//! have `xl`, and a root shell on a port of its own, through which the harness looks at what
//! the daemon under test cannot be asked about.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use fcap_api::PublishedPort;
use fcap_tools::cloud::{self, Cloud, Flavor, Request, Variant};

use crate::api::Api;
use crate::cli::{self, Fcap};

/// Longest time that [`wait_until`] waits.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);
/// Clouds of tests begin with this and the number of their process.
const PREFIX: &str = "fcap-test-";

/// A node of a cloud that only the test has.
pub struct Node {
    node: cloud::Node,
    cloud: Arc<OwnCloud>,
}

/// Ends with the last of its nodes.
struct OwnCloud(Cloud);

impl Drop for OwnCloud {
    fn drop(&mut self) {
        if let Err(error) = self.0.down(&|_| ()) {
            eprintln!("{error}");
        }
    }
}

impl Node {
    /// A small node as users have it.
    pub fn plain() -> anyhow::Result<Self> {
        Self::start(Variant::Node, "small")
    }

    /// A small node with `xl` and a shell.
    pub fn compare() -> anyhow::Result<Self> {
        Self::start(Variant::Xl, "small")
    }

    /// The same with a hypervisor that tracks dirty pages of PV guests.
    pub fn log_dirty() -> anyhow::Result<Self> {
        Self::start(Variant::XlLogDirty, "small")
    }

    /// A node of two processors with `xl`, a shell, servers and load generators; dom0 has the
    /// first processor for itself alone once [`Node::pin`] was called for all its guests.
    pub fn bench() -> anyhow::Result<Self> {
        Self::start(Variant::Bench, "medium")
    }

    /// Two small nodes with `xl` and a shell, in one cloud.
    pub fn two(encrypt: bool) -> anyhow::Result<[Self; 2]> {
        Self::pair(Variant::Xl, "small", encrypt)
    }

    /// The same for all tests of a process, one test at a time: the cloud ends with the process.
    pub fn shared_two() -> (MutexGuard<'static, ()>, &'static [Self; 2]) {
        static NODES: OnceLock<[Node; 2]> = OnceLock::new();
        static TURN: Mutex<()> = Mutex::new(());
        // A failed test has reported what it found; the next one starts anew.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        (turn, NODES.get_or_init(|| Self::two(false).expect("two nodes come up")))
    }

    /// Nodes as users have them, in one cloud.
    pub fn several(nodes: usize, flavor: &str) -> anyhow::Result<Vec<Self>> {
        let flavor = Flavor::named(flavor)?;
        Self::start_all(Request { nodes, flavor, variant: Variant::Node, encrypt: false })
    }

    /// Two nodes as [`Node::log_dirty`], in one cloud: their hypervisor tracks dirty pages of PV guests.
    pub fn two_log_dirty() -> anyhow::Result<[Self; 2]> {
        Self::pair(Variant::XlLogDirty, "small", false)
    }

    /// Two nodes as [`Node::bench`], in one cloud.
    pub fn two_bench() -> anyhow::Result<[Self; 2]> {
        Self::pair(Variant::Bench, "medium", false)
    }

    fn start(variant: Variant, flavor: &str) -> anyhow::Result<Self> {
        Self::start_all(Request { nodes: 1, flavor: Flavor::named(flavor)?, variant, encrypt: false })?
            .pop()
            .context("one node was asked for")
    }

    fn pair(variant: Variant, flavor: &str, encrypt: bool) -> anyhow::Result<[Self; 2]> {
        let nodes = Self::start_all(Request { nodes: 2, flavor: Flavor::named(flavor)?, variant, encrypt })?;
        nodes.try_into().ok().context("two nodes were asked for")
    }

    fn start_all(request: Request) -> anyhow::Result<Vec<Self>> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        forget_dead()?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let cloud = Cloud::new(&format!("{PREFIX}{}-{number}", std::process::id()))?;
        let nodes = started_with_us(cloud.clone(), request)?;
        let cloud = Arc::new(OwnCloud(cloud));
        Ok(nodes.into_iter().map(|node| Self { node, cloud: cloud.clone() }).collect())
    }

    /// All nodes of its cloud that run now.
    pub fn all(&self) -> anyhow::Result<Vec<Self>> {
        let nodes = self.cloud.0.nodes()?;
        Ok(nodes.into_iter().map(|node| Self { node, cloud: self.cloud.clone() }).collect())
    }

    /// The command line for its cloud, as users have it: it finds the nodes by itself.
    pub fn cloud_fcap(&self, args: &[&str]) -> std::process::Command {
        let mut command = cli::fcap_command(args);
        command.env("FCAP_CLOUD", self.cloud.0.name());
        command
    }

    /// Runs the command line for its cloud; what it writes.
    pub fn cloud_ok(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.cloud_fcap(args).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "fcap {}: {error}", args.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// The same with JSON.
    pub fn cloud_json(&self, args: &[&str]) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.cloud_ok(&[args, &["-o", "json"]].concat())?)?)
    }

    /// Kills the controller of its cloud where it is.
    pub fn kill_controller(&self) -> anyhow::Result<()> {
        let address = cloud::controller::find(&self.cloud.0).context("the controller does not run")?;
        let status = std::process::Command::new("kill").args(["-9", &address.pid.to_string()]).status()?;
        ensure!(status.success(), "the controller cannot be killed");
        wait_until("the controller is gone", || Ok(cloud::controller::find(&self.cloud.0).is_none()))
    }

    /// Its name in its cloud.
    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// Makes published ports of it reachable on this computer.
    pub fn publish(&self, ports: &[PublishedPort]) -> anyhow::Result<()> {
        Ok(self.cloud.0.publish(&self.node.name, ports)?)
    }

    /// Has no other ports of this computer than these lead to it any more.
    pub fn unpublish_others(&self, ports: &[PublishedPort]) -> anyhow::Result<()> {
        Ok(self.cloud.0.unpublish_others(&self.node.name, ports)?)
    }

    /// Keeps dom0 on the first processor and a guest on the second, unless it has ended by now.
    pub fn pin(&self, domid: u32) -> anyhow::Result<()> {
        let guest = format!("{{ xl vcpu-pin {domid} all 1 || ! xl list {domid}; }}");
        self.sh(&format!("xl vcpu-pin 0 all 0 && {guest}")).map(drop)
    }

    /// Speaks to its daemon.
    pub fn api(&self) -> Api {
        Api::new(&self.node.url(), &self.node.token)
    }

    /// The command line for it.
    pub fn fcap(&self) -> Fcap {
        Fcap { host: self.node.url(), token: self.node.token.clone() }
    }

    fn shell(&self) -> anyhow::Result<TcpStream> {
        let port = self.node.shell_port.context("only comparison nodes have a shell")?;
        Ok(TcpStream::connect(("127.0.0.1", port))?)
    }

    /// Runs a command in dom0 and returns what it writes; fails if the command does.
    pub fn sh(&self, command: &str) -> anyhow::Result<String> {
        let mut shell = self.shell()?;
        // The shell's own end of a line of output: no command prints it by chance.
        let mark = format!("--fcap-{:016x}--", rand::random::<u64>());
        shell.write_all(format!("(\n{command}\n) </dev/null 2>&1; echo \"{mark} $?\"; exit\n").as_bytes())?;
        // Not to the end of the connection: what the command leaves running may hold it open.
        let mut reader = BufReader::new(shell);
        let mut output = Vec::new();
        while reader.read_until(b'\n', &mut output)? > 0 {
            let text = String::from_utf8_lossy(&output);
            if let Some((output, status)) = text.rsplit_once(&mark)
                && status.ends_with('\n')
            {
                ensure!(status.trim() == "0", "{command}: status {}: {output}", status.trim());
                return Ok(output.to_owned());
            }
        }
        bail!("{command}: the shell has gone after {:?}", String::from_utf8_lossy(&output))
    }

    /// Writes a file in dom0.
    pub fn put(&self, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let mut shell = self.shell()?;
        // Only when head reads are the bytes its own and not the shell's.
        shell.write_all(
            format!("echo ready; head -c {} >{path}; echo done; exit\n", bytes.len()).as_bytes(),
        )?;
        let mut answers = BufReader::new(shell.try_clone()?).lines();
        let mut expect = |wanted: &str| -> anyhow::Result<()> {
            let line = answers.next().context("the shell has gone")??;
            ensure!(line == wanted, "{path}: {line}");
            Ok(())
        };
        expect("ready")?;
        shell.write_all(bytes)?;
        expect("done")
    }

    /// Reads a file in dom0.
    pub fn get(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let mut shell = self.shell()?;
        shell.write_all(format!("cat {path}; exit\n").as_bytes())?;
        let mut bytes = Vec::new();
        shell.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Starts nodes that end with this process, however it ends. A machine ends with the thread that
/// has started it, and tests' threads end early: so one that stays starts them all.
fn started_with_us(cloud: Cloud, request: Request) -> anyhow::Result<Vec<cloud::Node>> {
    type Job = (Cloud, Request, Sender<cloud::Result<Vec<cloud::Node>>>);
    static STARTER: LazyLock<Sender<Job>> = LazyLock::new(|| {
        let (send, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (cloud, request, answer) in jobs {
                // Whoever asked may have panicked meanwhile.
                let _ = answer.send(cloud.up_tied(&request, &|line| eprintln!("{line}")));
            }
        });
        send
    });
    let (send, answer) = mpsc::channel();
    STARTER.send((cloud, request, send))?;
    Ok(answer.recv()??)
}

/// Removes what is left of clouds of tests that have ended.
fn forget_dead() -> anyhow::Result<()> {
    for cloud in Cloud::all()? {
        let owner = cloud.name().strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if let Some(pid) = owner
            && !Path::new("/proc").join(pid).exists()
        {
            cloud.down(&|_| ())?;
        }
    }
    Ok(())
}

/// Asks until the answer is yes, or fails after a minute: for what sends no event.
pub fn wait_until(what: &str, question: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    wait_for(what, PATIENCE, question)
}

/// The same with another time.
pub fn wait_for(
    what: &str,
    patience: Duration,
    mut question: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < patience {
        if question()? {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    bail!("waited for {patience:?}: {what}")
}

/// Waits until dom0 has nothing left to do of what came before: domains are taken apart, and
/// xenstored's watches served, in the background.
pub fn quiet(api: &Api) -> anyhow::Result<()> {
    let used = || api.node().map(|node| node.dom0_cpu_time_ns).map_err(anyhow::Error::msg);
    wait_until("dom0 is quiet", || {
        let (start, before) = (Instant::now(), used()?);
        std::thread::sleep(Duration::from_millis(500));
        Ok(Duration::from_nanos(used()? - before) < start.elapsed() / 20)
    })
}

/// The program that measures inside dom0.
pub fn probe() -> PathBuf {
    cli::tree().join("target/release/fcap-probe")
}

/// Debian's own kernel, as it is in the node image.
pub fn vmlinuz() -> PathBuf {
    cli::tree().join("target/fcap/image/node/vmlinuz")
}

/// Debian's Linux as a guest, with the servers that capsules are compared with.
pub mod linux_guest {
    use std::path::PathBuf;

    use crate::cli;

    /// Its kernel.
    pub fn kernel() -> PathBuf {
        cli::tree().join("target/fcap/image/guest/vmlinuz")
    }

    /// Its file system.
    pub fn initramfs() -> PathBuf {
        cli::tree().join("target/fcap/image/guest/initramfs")
    }

    /// Memory that it needs.
    pub const MEMORY: &str = "128m";
}

/// An initramfs with busybox, taken from a node, that runs `script` as its init.
pub fn busybox_initramfs(node: &Node, script: &str) -> anyhow::Result<Vec<u8>> {
    let init = format!(
        "#!/bin/sh\n/bin/busybox mkdir -p /proc /dev\n/bin/busybox mount -t proc proc /proc\n\
         /bin/busybox mount -t devtmpfs dev /dev\nexec </dev/hvc0 >/dev/hvc0 2>&1\n\
         /bin/busybox --install -s /bin\nexport PATH=/bin\n{script}\n"
    );
    let file = |name: &str, mode: u32| cpio::NewcBuilder::new(name).mode(mode).nlink(1);
    let busybox = node.get("/bin/busybox")?;
    ensure!(busybox.starts_with(b"\x7fELF"), "busybox could not be read");
    let entries: [(cpio::NewcBuilder, &[u8]); 4] = [
        (file("bin", 0o040_755), b""),
        (file("bin/busybox", 0o100_755), &busybox),
        (cpio::NewcBuilder::new("bin/sh").mode(0o120_777).nlink(1), b"busybox"),
        (file("init", 0o100_755), init.as_bytes()),
    ];
    let mut archive = Vec::new();
    for (inode, (builder, bytes)) in (1..).zip(entries) {
        let mut writer = builder.ino(inode).write(&mut archive, u32::try_from(bytes.len())?);
        writer.write_all(bytes)?;
        writer.finish()?;
    }
    cpio::newc::trailer(&mut archive)?;
    Ok(archive)
}

/// Adds a file to an initramfs: Linux unpacks archives one after the other, the later over the
/// earlier.
pub fn append_file(initramfs: &mut Vec<u8>, path: &str, bytes: &[u8]) {
    // An archive begins at a multiple of four bytes.
    initramfs.resize(initramfs.len().next_multiple_of(4), 0);
    let builder = cpio::NewcBuilder::new(path).mode(0o100_755).nlink(1).ino(1);
    let len = u32::try_from(bytes.len()).expect("scripts are short");
    let mut writer = builder.write(&mut *initramfs, len);
    writer.write_all(bytes).expect("memory takes it");
    writer.finish().expect("memory takes it");
    cpio::newc::trailer(initramfs).expect("memory takes it");
}
