//! Starts one QEMU machine.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::image::NodeImage;
use super::lan::{self, Lan};
use super::qmp::Qmp;
use super::{Accelerator, AtPath, CloudError, Flavor, Result, ports};

/// QEMU's program.
pub(super) const QEMU: &str = "qemu-system-x86_64";
/// The shell's port inside comparison nodes.
const SHELL_PORT: u16 = 7071;
/// How often a booting node is asked whether it answers.
const LOOK: Duration = Duration::from_millis(50);
/// QEMU closes its control channel a moment before it ends.
const LAST_MOMENT: Duration = Duration::from_secs(2);
/// Bounds the files that a machine writes, its console above all: `ulimit` counts 512 bytes,
/// so this is 16 MiB. A write beyond fails; without the trap it would kill.
const BOUNDED: &str = "trap '' XFSZ; ulimit -f 32768; exec \"$@\"";
/// Makes the system end a program with the thread that has started it.
const TIED: [&str; 3] = ["setpriv", "--pdeathsig", "KILL"];

/// A machine to be started.
pub(super) struct Machine<'a> {
    /// Its folder, which exists.
    pub(super) folder: &'a Path,
    /// Its size.
    pub(super) flavor: &'a Flavor,
    /// How its processors are run.
    pub(super) accelerator: Accelerator,
    /// File that is its memory.
    pub(super) memory: &'a Path,
    /// Whether it has a shell for test harnesses.
    pub(super) shell: bool,
    /// Whether it ends with the thread that starts it.
    pub(super) tied: bool,
    /// Where it begins.
    pub(super) begin: Begin<'a>,
}

/// Where a machine begins.
pub(super) enum Begin<'a> {
    /// With Xen's first instruction; what it writes to memory goes to the file.
    Boot {
        /// What it boots.
        image: &'a NodeImage,
        /// More for dom0's kernel command line.
        linux_args: &'a str,
    },
    /// Where a template stopped; what it writes to memory is its own.
    Clone {
        /// What its second card is plugged into.
        lan: &'a Lan,
    },
}

/// A machine that runs.
pub(super) struct Running {
    /// QEMU.
    pub(super) child: Child,
    qmp: Qmp,
    folder: PathBuf,
    /// Port on 127.0.0.1 that reaches the daemon.
    pub(super) port: u16,
    /// Port on 127.0.0.1 that reaches the shell.
    pub(super) shell_port: Option<u16>,
}

/// Where QEMU's program is.
pub(super) fn find() -> Result<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|path| path.join(QEMU)).find(|path| path.is_file());
    found.ok_or_else(|| CloudError::NoQemu(io::ErrorKind::NotFound.into()))
}

/// The last part of a folder's path: the node's name.
pub(super) fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

impl Machine<'_> {
    /// Starts it; returns when QEMU takes commands.
    pub(super) fn start(&self) -> Result<Running> {
        let folder = self.folder.to_owned();
        let (qmp, theirs) =
            Qmp::pair(&name_of(&folder)).at("make a control channel for the machine in", &folder)?;
        let child = self.spawn(theirs.into())?;
        let mut running = Running { child, qmp, folder, port: 0, shell_port: None };
        running.control(|qmp| qmp.greet())?;
        // QEMU has chosen the ports itself, so nobody else can have taken them.
        let table = running.control(|qmp| qmp.monitor(ports::TABLE))?;
        let forwards = ports::forwards(&table);
        let port = |inner| forwards.iter().find(|forward| forward.inner == inner).map(|found| found.outer);
        let none = || CloudError::Qmp {
            node: name_of(self.folder),
            command: ports::TABLE.into(),
            answer: format!("no port reaches the node: {table}"),
        };
        running.port = port(fcap_api::DEFAULT_PORT).ok_or_else(none)?;
        if self.shell {
            running.shell_port = Some(port(SHELL_PORT).ok_or_else(none)?);
        }
        ports::widen(running.child.id(), &table);
        Ok(running)
    }

    fn spawn(&self, control: OwnedFd) -> Result<Child> {
        let Self { folder, flavor, .. } = self;
        let forward = |inside| format!(",hostfwd=tcp:127.0.0.1:0-:{inside}");
        let mut network = format!("user,id={}{}", ports::NETDEV, forward(fcap_api::DEFAULT_PORT));
        if self.shell {
            network += &forward(SHELL_PORT);
        }
        let lan = match self.begin {
            // A socket without a wire.
            Begin::Boot { .. } => "hubport,id=lan,hubid=0".to_owned(),
            Begin::Clone { lan } => lan.netdev("lan"),
        };
        let card = format!("virtio-net-pci,netdev=lan,romfile=,host_mtu={}", lan::MTU);
        let memory = format!(
            "memory-backend-file,id=ram,size={}M,mem-path={},share={},prealloc=off",
            flavor.memory_mib,
            comma(self.memory),
            if matches!(self.begin, Begin::Boot { .. }) { "on" } else { "off" }
        );
        let log = folder.join("qemu.log");
        let log_file = File::create(&log).at("write", &log)?;
        let mut words: Vec<&str> = Vec::new();
        if self.tied {
            words.extend(TIED);
        }
        if matches!(self.begin, Begin::Clone { .. }) {
            words.extend(["sh", "-c", BOUNDED, "sh"]);
        }
        words.push(QEMU);
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-name", "fcap", "-no-reboot"])
            .args(["-machine", "pc,memory-backend=ram", "-object", &memory])
            .args(["-m", &format!("{}M", flavor.memory_mib), "-smp", &flavor.cpus.to_string()])
            .args(self.accelerator.arguments())
            .args(["-netdev", &network])
            .args(["-device", &format!("virtio-net-pci,netdev={},romfile=", ports::NETDEV)])
            .args(["-netdev", &lan, "-device", &card])
            .args(["-serial", "file:console.log"])
            .args(["-chardev", "socket,id=start,fd=0", "-mon", "chardev=start,mode=control"])
            .args(["-qmp", "unix:qmp,server=on,wait=off"])
            // Its folder's name on its command line is how a machine is found again.
            .arg("-pidfile")
            .arg(folder.join("pid"));
        match &self.begin {
            Begin::Boot { image, linux_args } => command.args(boot_arguments(image, linux_args)),
            Begin::Clone { .. } => command.args(["-incoming", "defer"]),
        };
        command
            .current_dir(folder)
            .stdin(Stdio::from(control))
            .stdout(log_file.try_clone().at("write", &log)?)
            .stderr(log_file)
            // Ctrl-C is for fcap, not for the cloud.
            .process_group(0)
            .spawn()
            .map_err(CloudError::NoQemu)
    }
}

/// What makes QEMU boot an image: Xen as a multiboot kernel, dom0's two files as its modules.
pub(super) fn boot_arguments(image: &NodeImage, linux_args: &str) -> [String; 6] {
    // A comma separates modules; one that belongs to a path or an argument is written twice.
    let modules = format!(
        "{} {} {},{}",
        comma(&image.vmlinuz),
        image.linux_args.replace(',', ",,"),
        linux_args.replace(',', ",,"),
        comma(&image.initramfs)
    );
    ["-kernel".into(), text(&image.xen), "-append".into(), image.xen_args.clone(), "-initrd".into(), modules]
}

impl Running {
    /// Runs one command of QEMU's control protocol.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.control(|qmp| qmp.execute(command, arguments))
    }

    /// Turns on what templates and clones need of QEMU's migration.
    pub(super) fn prepare_migration(&mut self) -> Result<()> {
        let capability = |name: &str| json!({ "capability": name, "state": true });
        let both = [capability("events"), capability("x-ignore-shared")];
        self.execute("migrate-set-capabilities", json!({ "capabilities": both })).map(drop)
    }

    /// Runs a migration command and waits until it has done its work.
    pub(super) fn migrate(&mut self, command: &str, uri: String) -> Result<()> {
        self.execute(command, json!({ "uri": uri }))?;
        let end = self.control(|qmp| qmp.wait(&["MIGRATION completed", "MIGRATION failed"]))?;
        if end == "MIGRATION completed" {
            return Ok(());
        }
        self.check()?;
        Err(CloudError::Qmp {
            node: name_of(&self.folder),
            command: command.into(),
            answer: format!("it failed; {}", tail(&self.folder.join("qemu.log"))),
        })
    }

    /// Speaks to QEMU; if that fails because QEMU has ended, says why it ended.
    fn control<T>(&mut self, speak: impl FnOnce(&mut Qmp) -> Result<T>) -> Result<T> {
        let result = speak(&mut self.qmp);
        if result.is_err() {
            let start = Instant::now();
            while start.elapsed() < LAST_MOMENT {
                self.check()?;
                std::thread::sleep(LOOK);
            }
        }
        result
    }

    /// Fails if QEMU has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            return Ok(());
        }
        Err(CloudError::MachineEnded {
            node: name_of(&self.folder),
            output: tail(&self.folder.join("qemu.log")),
        })
    }

    /// Waits until the daemon answers.
    pub(super) fn wait_for_daemon(&mut self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        // A forwarded port accepts at once and hangs until the node answers, so each try is short.
        let agent: ureq::Agent =
            ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(2))).build().into();
        let url = format!("http://127.0.0.1:{}/v1/version", self.port);
        while start.elapsed() < limit {
            self.check()?;
            let answer = agent.get(&url).call().and_then(|mut answer| answer.body_mut().read_to_vec());
            if answer.is_ok_and(|body| serde_json::from_slice::<fcap_api::Version>(&body).is_ok()) {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        Err(self.silent(limit))
    }

    /// The error that it does not answer.
    pub(super) fn silent(&self, limit: Duration) -> CloudError {
        CloudError::Silent {
            node: name_of(&self.folder),
            seconds: limit.as_secs(),
            console: tail(&self.folder.join("console.log")),
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A path in an option of QEMU, where a comma is written twice.
fn comma(path: &Path) -> String {
    text(path).replace(',', ",,")
}

/// The last lines of a file, in one, fit for a terminal.
fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join(" | ");
    last.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_do_not_end_an_option() {
        let image = NodeImage {
            xen: "/a/xen".into(),
            vmlinuz: "/a,b/vmlinuz".into(),
            initramfs: "/a,b/initramfs".into(),
            xen_args: "dom0_mem=1,max:1".into(),
            linux_args: "x=1,2".into(),
            digest: String::new(),
        };
        let arguments = boot_arguments(&image, "t=3");
        assert_eq!(arguments[5], "/a,,b/vmlinuz x=1,,2 t=3,/a,,b/initramfs");
        assert_eq!(arguments[3], "dom0_mem=1,max:1");
    }

    #[test]
    fn the_end_of_a_log_has_no_control_characters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "one\r\ntwo\n\n\x1b[31mthree\nfour\n").unwrap();
        assert_eq!(tail(&path), "two | [31mthree | four");
    }
}
