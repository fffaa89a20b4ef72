//! `fcap ps` of 10,000 capsules on 200 nodes, and what their controller uses when nothing changes.
//!
//! The nodes are daemons with a simulated hypervisor, all in one process of their own, so that the
//! controller's processor time can be told apart. Between them is what is between real ones: the
//! API, by mutual TLS with certificates of the cluster's authority.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fcap_api::cluster::{Flavor, NodeState};
use fcap_api::{Adopt, CreateCapsule, PublishedPort};
use fcap_cluster::controller::{Controller, Security};
use fcap_cluster::execute::Limits;
use fcap_cluster::nodes::{Rhythm, now_ms};
use fcap_cluster::provider::{Machine, Provider, ProviderError, Result as ProviderResult, Wanted};
use fcap_cluster::store::Local;
use fcap_manager::daemon::{Daemon, Options, Signals};
use fcap_manager::http;
use fcap_manager::log::MIN_BYTES;
use fcap_manager::net::sim::Sim;
use fcap_manager::node::Identity;
use fcap_manager::store::Store;
use fcap_manager::toolstack::sim::World;
use fcap_tls::{Authority, Subject, VALIDITY};
use fcap_tools::client::Client;
use futures_util::future::BoxFuture;
use futures_util::stream;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeVal;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use crate::cli::fcap_command;
use crate::stats::median;

const NODES: usize = 200;
const CAPSULES_PER_NODE: usize = 50;
/// How often `fcap ps` is timed.
const RUNS: usize = 7;
/// How long nothing happens: before it is looked, and while it is.
const SETTLE: Duration = Duration::from_secs(20);
const IDLE: Duration = Duration::from_secs(60);
/// Until all nodes answer.
const PATIENCE: Duration = Duration::from_secs(300);
/// Does nothing for longer than any benchmark.
const PROGRAM: &[u8] = b"SIM:sleep 1000000000";
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// Runs the benchmark and returns its line of JSON.
pub fn run() -> anyhow::Result<serde_json::Value> {
    let folder = tempfile::tempdir()?;
    let authority_file = folder.path().join("authority.pem");
    let authority = Arc::new(Authority::open(&authority_file)?);
    let mut nodes = Command::new(std::env::current_exe()?)
        .args(["ps", "--nodes"])
        .arg(&authority_file)
        // They end with it.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start the nodes")?;
    let mut line = String::new();
    BufReader::new(nodes.stdout.take().context("the nodes say nothing")?).read_line(&mut line)?;
    let ports: Vec<u16> = serde_json::from_str(&line).context("the nodes did not come up")?;
    println!("{} nodes with {CAPSULES_PER_NODE} capsules each are up", ports.len());

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let machines = ports.iter().enumerate().map(|(index, port)| Machine {
        name: name(index),
        flavor: None,
        url: format!("https://127.0.0.1:{port}"),
        token: TOKEN.into(),
        started_ms: now_ms(),
        tag: None,
    });
    let provider = Arc::new(Fixed(machines.collect()));
    let store = Arc::new(Local::open(&folder.path().join("controller.redb"))?);
    let url = runtime.block_on(async {
        let security = Security { token: TOKEN.into(), authority, validity: VALIDITY };
        let controller =
            Controller::start(store, provider, security, Rhythm::default(), Limits::default()).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        tokio::spawn(controller.serve(listener));
        until_ready(&Client::new(url.parse()?, Some(TOKEN), false)?).await?;
        anyhow::Ok(url)
    })?;

    let mut seconds = Vec::new();
    for _ in 0..RUNS {
        let begun = Instant::now();
        let output = fcap_command(&["--host", &url, "--token", TOKEN, "ps"]).output()?;
        let took = begun.elapsed();
        ensure!(output.status.success(), "fcap ps: {}", String::from_utf8_lossy(&output.stderr));
        let lines = output.stdout.iter().filter(|&&byte| byte == b'\n').count();
        // A line above them names the columns.
        ensure!(lines == NODES * CAPSULES_PER_NODE + 1, "fcap ps shows {lines} lines");
        println!("fcap ps: {:.3} s", took.as_secs_f64());
        seconds.push(took.as_secs_f64());
    }
    println!("nothing happens for {} s", (SETTLE + IDLE).as_secs());
    std::thread::sleep(SETTLE);
    let (begun, before) = (Instant::now(), used()?);
    std::thread::sleep(IDLE);
    let idle = (used()? - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    println!("the controller uses {:.1} % of a processor", idle * 100.0);
    drop(nodes.stdin.take());
    nodes.wait()?;
    runtime.shutdown_background();
    Ok(json!({
        "bench": "ps",
        "ps_s": median(&seconds),
        "idle_cpu": idle,
        "nodes": NODES,
        "capsules": NODES * CAPSULES_PER_NODE,
    }))
}

fn name(index: usize) -> String {
    format!("node{}", index + 1)
}

/// Processor time that this process has used.
fn used() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time =
        |time: TimeVal| Duration::from_micros(time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64);
    Ok(time(usage.user_time()) + time(usage.system_time()))
}

/// Waits until the controller knows all nodes and their capsules.
async fn until_ready(client: &Client) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let nodes = client.cluster_nodes().await?;
        let ready = nodes
            .iter()
            .filter(|node| node.state == NodeState::Ready && node.capsules as usize == CAPSULES_PER_NODE);
        let ready = ready.count();
        if ready == NODES {
            println!("all of them answer after {:.1} s", begun.elapsed().as_secs_f64());
            return Ok(());
        }
        ensure!(begun.elapsed() < PATIENCE, "only {ready} nodes answer after {} s", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Machines that are there, and no others.
struct Fixed(Vec<Machine>);

fn fixed<T>(what: String) -> BoxFuture<'static, ProviderResult<T>>
where
    T: Send + 'static,
{
    Box::pin(async { Err(ProviderError::Failed { what, reason: "the nodes are fixed".into() }) })
}

impl Provider for Fixed {
    fn flavors(&self) -> Vec<Flavor> {
        Vec::new()
    }

    fn list(&self) -> BoxFuture<'_, ProviderResult<Vec<Machine>>> {
        let machines = self.0.clone();
        Box::pin(async { Ok(machines) })
    }

    fn create(&self, wanted: Wanted) -> BoxFuture<'_, ProviderResult<Machine>> {
        fixed(format!("start node {}", wanted.name))
    }

    fn destroy(&self, name: &str) -> BoxFuture<'_, ProviderResult<()>> {
        fixed(format!("destroy node {name}"))
    }

    fn move_ports(&self, _: Vec<PublishedPort>, _: &str, _: &str) -> BoxFuture<'_, ProviderResult<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// Is all nodes, until standard input ends. Says at which ports they are.
pub fn nodes(authority: &Path) -> anyhow::Result<()> {
    // Each has a socket, a connection or two, and files.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let authority = Authority::open(authority)?;
    // As node's own disks are: in memory.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ports = runtime.block_on(async {
        let mut ports = Vec::new();
        for index in 0..NODES {
            ports.push(node(&authority, &name(index), &folder.path().join(name(index))).await?.port());
        }
        anyhow::Ok(ports)
    })?;
    println!("{}", serde_json::to_string(&ports)?);
    std::io::stdin().read_to_end(&mut Vec::new())?;
    runtime.shutdown_background();
    Ok(())
}

/// Starts a node with its capsules, and says where it is.
async fn node(authority: &Authority, name: &str, folder: &Path) -> anyhow::Result<SocketAddr> {
    let signals = Arc::<Signals>::default();
    let toolstack = Arc::new(World::new(4, 16 << 20).toolstack(signals.sink()));
    let store = Store::open(folder)?;
    let identity = Identity::load(&store, None, false)?;
    let options = Options { log_bytes: MIN_BYTES, image_bytes: 1 << 20, pool: 0 };
    let daemon = Daemon::start(toolstack, Arc::<Sim>::default(), signals, store, identity, options).await?;
    let adopt = Adopt {
        name: name.into(),
        flavor: None,
        token: TOKEN.into(),
        seed: "0".repeat(64),
        wall_time_ns: 0,
        lan: None,
        identity: None,
    };
    let refused = |error: fcap_manager::error::Error| anyhow::anyhow!(error.body().message);
    daemon.identity.adopt(&daemon.store, &adopt).map_err(refused)?;
    daemon.membership.enter(authority.identity(&Subject::node(name)?, VALIDITY)?).map_err(refused)?;
    let digest: String = Sha256::digest(PROGRAM).iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = format!("sha256:{digest}");
    let body = stream::iter([Ok::<_, std::convert::Infallible>(PROGRAM.into())]);
    daemon.images.put(&digest, Some(PROGRAM.len() as u64), body, |_| false).await.map_err(refused)?;
    for number in 1..=CAPSULES_PER_NODE {
        let capsule = CreateCapsule {
            name: Some(format!("web-{name}-{number}")),
            image: digest.clone(),
            image_name: Some("web".into()),
            memory_kib: Some(16 << 10),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            ..CreateCapsule::default()
        };
        daemon.clone().create(capsule).await.map_err(refused)?;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let membership = daemon.membership.clone();
    let (_, guarded) = http::routers(daemon);
    tokio::spawn(http::serve_tcp(listener, guarded, membership));
    Ok(address)
}
