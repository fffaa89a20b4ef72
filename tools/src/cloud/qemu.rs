//! Starts one QEMU machine.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::image::NodeImage;
use super::{Accelerator, AtPath, CloudError, Flavor, Result};

/// QEMU's program.
pub(super) const QEMU: &str = "qemu-system-x86_64";
/// The shell's port inside comparison nodes.
const SHELL_PORT: u16 = 7071;
/// How often to look whether something has happened that sends no event.
const LOOK: Duration = Duration::from_millis(10);
/// Other programs may take a free port between choosing and using it.
const PORT_TRIES: usize = 10;

/// A machine to be started.
pub(super) struct Machine<'a> {
    /// Its folder, which exists.
    pub(super) folder: &'a Path,
    /// What it boots.
    pub(super) image: &'a NodeImage,
    /// More for dom0's kernel command line.
    pub(super) linux_args: &'a str,
    /// Its size.
    pub(super) flavor: &'a Flavor,
    /// How its processors are run.
    pub(super) accelerator: Accelerator,
    /// File that is its memory.
    pub(super) memory: &'a Path,
    /// Whether what it writes to memory goes to that file.
    pub(super) share: bool,
    /// Whether it waits for a template's devices instead of booting.
    pub(super) incoming: bool,
    /// Whether it has a shell for test harnesses.
    pub(super) shell: bool,
}

/// A machine that runs.
pub(super) struct Running {
    /// QEMU.
    pub(super) child: Child,
    folder: PathBuf,
    /// Port on 127.0.0.1 that reaches the daemon.
    pub(super) port: u16,
    /// Port on 127.0.0.1 that reaches the shell.
    pub(super) shell_port: Option<u16>,
}

impl Machine<'_> {
    /// Starts it; returns when its control socket is there.
    pub(super) fn start(&self) -> Result<Running> {
        let mut last = None;
        for _ in 0..PORT_TRIES {
            let port = free_port(self.folder)?;
            let shell_port = self.shell.then(|| free_port(self.folder)).transpose()?;
            let mut running = Running { child: self.spawn(port, shell_port)?, folder: self.folder.into(), port, shell_port };
            match running.wait_for_socket() {
                Err(CloudError::MachineEnded { output, node }) if output.contains("host forwarding") => {
                    last = Some(CloudError::MachineEnded { output, node });
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(running),
            }
        }
        Err(last.expect("at least one try was made"))
    }

    fn spawn(&self, port: u16, shell_port: Option<u16>) -> Result<Child> {
        let Self { image, flavor, .. } = self;
        let forward = |host: u16, guest: u16| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}");
        let mut network = format!("user,id=net0{}", forward(port, fcap_api::DEFAULT_PORT));
        if let Some(shell_port) = shell_port {
            network += &forward(shell_port, SHELL_PORT);
        }
        let memory = format!(
            "memory-backend-file,id=ram,size={}M,mem-path={},share={},prealloc=off",
            flavor.memory_mib,
            comma(self.memory),
            if self.share { "on" } else { "off" }
        );
        // Paths in -initrd are separated by commas from the next module.
        let modules = format!(
            "{} {} {},{}",
            comma(&image.vmlinuz),
            image.linux_args.replace(',', ",,"),
            self.linux_args.replace(',', ",,"),
            comma(&image.initramfs)
        );
        let log = self.folder.join("qemu.log");
        let log_file = File::create(&log).at("write", &log)?;
        let mut command = Command::new(QEMU);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-name", "fcap"])
            .args(["-machine", "pc,memory-backend=ram", "-object", &memory])
            .args(["-m", &format!("{}M", flavor.memory_mib), "-smp", &flavor.cpus.to_string()])
            .args(self.accelerator.arguments())
            .arg("-kernel")
            .arg(&image.xen)
            .args(["-append", &image.xen_args, "-initrd", &modules])
            .args(["-netdev", &network, "-device", "virtio-net-pci,netdev=net0,romfile="])
            .args(["-serial", "file:console.log", "-qmp", "unix:qmp,server=on,wait=off"])
            .arg("-pidfile")
            .arg(self.folder.join("pid"));
        if self.incoming {
            command.args(["-incoming", "defer"]);
        }
        command
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .stdout(log_file.try_clone().at("write", &log)?)
            .stderr(log_file)
            // Ctrl-C is for fcap, not for the cloud.
            .process_group(0)
            .spawn()
            .map_err(CloudError::NoQemu)
    }
}

impl Running {
    fn node(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Fails if QEMU has ended.
    pub(super) fn check(&mut self) -> Result<()> {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            return Ok(());
        }
        Err(CloudError::MachineEnded { node: self.node(), output: tail(&self.folder.join("qemu.log")) })
    }

    /// QEMU makes the socket when its arguments are right and its ports are its own.
    fn wait_for_socket(&mut self) -> Result<()> {
        while !self.folder.join("qmp").exists() || !self.folder.join("pid").exists() {
            self.check()?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until the daemon answers, and returns its version.
    pub(super) fn wait_for_daemon(&mut self, limit: Duration) -> Result<fcap_api::Version> {
        let start = Instant::now();
        // A forwarded port accepts at once and hangs until the node answers, so each try is short.
        let agent: ureq::Agent =
            ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(2))).build().into();
        let url = format!("http://127.0.0.1:{}/v1/version", self.port);
        while start.elapsed() < limit {
            self.check()?;
            let answer = agent.get(&url).call().and_then(|mut answer| answer.body_mut().read_to_vec());
            if let Some(version) = answer.ok().and_then(|body| serde_json::from_slice(&body).ok()) {
                return Ok(version);
            }
            std::thread::sleep(LOOK);
        }
        Err(CloudError::Silent {
            node: self.node(),
            seconds: limit.as_secs(),
            console: tail(&self.folder.join("console.log")),
        })
    }
}

/// A port that is free now.
fn free_port(folder: &Path) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").at("find a free port for", folder)?;
    Ok(listener.local_addr().at("find a free port for", folder)?.port())
}

/// A path in an option of QEMU, where a comma is written twice.
fn comma(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// The last lines of a file, in one, fit for a terminal.
fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join(" | ");
    last.chars().filter(|c| !c.is_control()).collect()
}
