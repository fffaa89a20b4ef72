//! The controller of a local cloud: a process of this program beside the nodes.
//!
//! ```text
//! controller.json   written last: where it listens, its token, its process
//! controller.redb   what it must not forget
//! controller.log    what it said, of this start and the one before
//! authority.pem     the cluster's authority: key and certificate
//! ```
//! It comes up by itself whenever a command needs it, and ends when there is nothing left to
//! control. Whether it runs is asked of the system: its command line names `controller.json`.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use fcap_cluster::controller::{Controller, Security};
use fcap_cluster::execute::Limits;
use fcap_cluster::nodes::Rhythm;
use fcap_cluster::store::{Local, StoreError};
use fcap_tls::VALIDITY;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::{AtPath, Cloud, CloudError, Result, make_private, process, random_hex};

/// How long it may take until it serves.
const START: Duration = Duration::from_secs(20);
/// How often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(10);
/// A controller that nobody needs ends after this.
const NEEDLESS: Duration = Duration::from_secs(60);
/// How often a controller looks whether it is needed.
const CHECK: Duration = Duration::from_secs(2);

/// Where a controller listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Address {
    /// Base of its URLs.
    pub url: String,
    /// The token that it wants.
    pub token: String,
    /// Its process.
    pub pid: u32,
}

fn file(cloud: &Cloud) -> PathBuf {
    cloud.folder().join("controller.json")
}

/// The controller of a cloud, if it runs.
pub fn find(cloud: &Cloud) -> Option<Address> {
    let file = file(cloud);
    let address: Address = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
    process::is_about(&file, address.pid).then_some(address)
}

/// Has the controller of a cloud come up, if it does not run, and does not wait for it.
///
/// # Errors
/// When it cannot be started.
pub fn begin(cloud: &Cloud) -> Result<()> {
    if find(cloud).is_none() {
        start(cloud)?;
    }
    Ok(())
}

fn log(cloud: &Cloud) -> PathBuf {
    cloud.folder().join("controller.log")
}

fn start(cloud: &Cloud) -> Result<Child> {
    make_private(cloud.folder())?;
    let log = log(cloud);
    if log.exists() {
        let _ = fs::rename(&log, log.with_extension("log.1"));
    }
    let output = File::create(&log).at("make", &log)?;
    let program = std::env::current_exe().at("find", "the program that runs".as_ref())?;
    Command::new(&program)
        .args(["--cloud", cloud.name(), "cluster", "serve", "--file"])
        .arg(file(cloud))
        // It is nobody's session's: Ctrl-C is not for it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        .spawn()
        .at("start", &program)
}

/// The controller of a cloud, which is started if it does not run.
///
/// # Errors
/// When it does not come up.
pub fn ensure(cloud: &Cloud) -> Result<Address> {
    if let Some(address) = find(cloud) {
        return Ok(address);
    }
    let mut child = start(cloud)?;
    let begun = Instant::now();
    let mut ended = None;
    loop {
        if let Some(address) = find(cloud) {
            return Ok(address);
        }
        // One that another command has started at the same time may be the one that stays.
        ended = ended.or(child.try_wait().ok().flatten().map(|status| (status, Instant::now())));
        let is_over = ended.is_some_and(|(status, at)| !status.success() || at.elapsed() > START / 4);
        if is_over || begun.elapsed() > START {
            let text = fs::read_to_string(log(cloud)).unwrap_or_default();
            let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
            return Err(CloudError::Controller { cloud: cloud.name().into(), reason: last.into() });
        }
        std::thread::sleep(LOOK);
    }
}

/// Ends the controller of a cloud, if it runs.
pub(super) fn end(cloud: &Cloud) {
    process::end_all_about(&file(cloud));
}

/// Is the controller of a cloud, until nobody needs it. Machines that want to join ask at the
/// address `machines`.
///
/// # Errors
/// When its store or the cloud cannot be used.
pub async fn serve(cloud: Cloud, machines: SocketAddr) -> anyhow::Result<()> {
    let store = match Local::open(&cloud.folder().join("controller.redb")) {
        Ok(store) => Arc::new(store),
        // Another one was faster.
        Err(StoreError::InUse(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let token = random_hex(32)?;
    let provider = Arc::new(cloud.clone());
    let security =
        Security { token: token.clone(), authority: Arc::new(cloud.authority()?), validity: VALIDITY };
    let controller =
        Controller::start(store, provider, security, Rhythm::default(), Limits::default()).await?;
    let machines = TcpListener::bind(machines)
        .await
        .with_context(|| format!("failed to listen for machines on {machines}"))?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let address = Address { url, token, pid: std::process::id() };
    write(&cloud, &address)?;
    tracing::info!(url = address.url, "serving");
    tokio::select! {
        served = controller.clone().serve(listener) => served?,
        served = controller.clone().serve_machines(machines) => served?,
        () = until_needless(&cloud, &controller) => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn until_needless(cloud: &Cloud, controller: &Controller) {
    let mut needed = Instant::now();
    while needed.elapsed() < NEEDLESS && file(cloud).exists() {
        tokio::time::sleep(CHECK).await;
        if controller.is_needed() {
            needed = Instant::now();
        }
    }
}

fn write(cloud: &Cloud, address: &Address) -> Result<()> {
    use std::io::Write as _;
    let whole = file(cloud);
    let half = cloud.folder().join("controller.json.half");
    let _ = fs::remove_file(&half);
    let mut out = File::options().write(true).create_new(true).mode(0o600).open(&half).at("make", &half)?;
    let text = serde_json::to_vec_pretty(address).expect("an address is serialized");
    out.write_all(&text).at("write", &half)?;
    fs::rename(&half, &whole).at("write", &whole)
}
