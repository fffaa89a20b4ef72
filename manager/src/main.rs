//! `fcapd`: arguments, logging, signals.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use fcap_api::migrate::MIGRATION_PORT;
use fcap_manager::cluster::{self, Reached};
use fcap_manager::daemon::{Daemon, Options, Signals};
use fcap_manager::http;
use fcap_manager::log::MIN_BYTES;
use fcap_manager::migration::listen;
use fcap_manager::net::{self, Fabric};
use fcap_manager::node::Identity;
use fcap_manager::store::{Store, is_in_memory};
use fcap_manager::toolstack::Toolstack;
use fcap_manager::toolstack::sim::World;
use fcap_tls::JoinToken;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How long threads for what blocks stay when there is nothing to do.
const IDLE_THREADS: Duration = Duration::from_secs(3600);

/// Runs the capsules of one node.
///
/// Ending it leaves the capsules running; the next one takes them back.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Address to serve the API on; needs a token
    #[arg(long, value_name = "ADDRESS:PORT", requires = "token_file")]
    listen: Option<SocketAddr>,
    /// Address to take capsules in on that come from other nodes [default: 0.0.0.0:7072, none when simulating]
    #[arg(long, value_name = "ADDRESS:PORT")]
    migrate_listen: Option<SocketAddr>,
    /// Unix socket to serve the API on
    #[arg(long, value_name = "PATH", default_value = fcap_api::DEFAULT_SOCKET)]
    socket: PathBuf,
    /// Joins a cluster before anything else is done: a token of `fcap node token`; nothing is done if the node is in it already
    #[arg(long, value_name = "TOKEN", env = "FCAPD_JOIN", hide_env_values = true, requires = "listen")]
    join: Option<JoinToken>,
    /// Host at which the cluster's controller is to reach this node [default: the address from which it joins]
    #[arg(long, value_name = "HOST", requires = "join")]
    join_host: Option<String>,
    /// File with the bearer token for the API; rewritten when the node is adopted
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Directory for what has to survive: capsules, logs, images
    #[arg(long, value_name = "PATH", default_value = "/var/lib/fcap")]
    state_dir: PathBuf,
    /// Pre-built capsules to hold ready for each image in recent use
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pool: u32,
    /// Domains without memory, but with a network interface, to hold ready once a capsule with a network was started
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    shells: u32,
    /// Most bytes of each capsule's log
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(MIN_BYTES..))]
    log_bytes: u64,
    /// Most bytes of all images together [default: half of the memory, or 4 GiB on a disk]
    #[arg(long, value_name = "BYTES")]
    image_bytes: Option<u64>,
    /// Simulate the hypervisor: capsules are made of texts like "SIM:hello"
    #[arg(long)]
    simulate: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("FCAPD_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    // Before there are threads.
    fcap_manager::xen::sys::keep_freed_memory();
    // One thread serves: a node's dom0 has one processor, and a second thread would only add
    // switches. What blocks is done on others.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A new thread for each request after a pause would cost more than the idle one.
        .thread_keep_alive(IDLE_THREADS)
        .build()?;
    let result = runtime.block_on(run(args));
    // What blocks must not keep it: everything on disk is in order at any moment.
    runtime.shutdown_background();
    result
}

async fn run(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let store = Store::open(&args.state_dir)?;
    let image_bytes = args.image_bytes.map_or_else(|| default_image_bytes(&args.state_dir), Ok)?;
    let identity = Identity::load(&store, args.token_file, !args.simulate)?;
    if let (Some(token), Some(listen)) = (&args.join, args.listen) {
        let reached = Reached { host: args.join_host, port: listen.port() };
        cluster::join(&store, &identity.name(), token, reached).await?;
    }
    let signals = Arc::<Signals>::default();
    let (toolstack, fabric): (Arc<dyn Toolstack>, Arc<dyn Fabric>) = if args.simulate {
        (Arc::new(World::new(2, 1 << 20).toolstack(signals.sink())), Arc::<net::sim::Sim>::default())
    } else {
        let network = net::linux::Linux::new().context("failed to open the network; is nft installed?")?;
        (real_toolstack(&signals, args.shells)?, Arc::new(network))
    };
    let options = Options { log_bytes: args.log_bytes, image_bytes, pool: args.pool };
    let daemon = Daemon::start(toolstack, fabric, signals, store, identity, options).await?;
    if !args.simulate {
        tokio::spawn(net::dns::server::serve(daemon.clone()));
    }
    let default = (!args.simulate).then_some(SocketAddr::from(([0, 0, 0, 0], MIGRATION_PORT)));
    if let Some(address) = args.migrate_listen.or(default) {
        let listener = std::net::TcpListener::bind(address)
            .with_context(|| format!("failed to listen for other nodes on {address}"))?;
        listen::serve(daemon.clone(), listener)?;
    }
    let membership = daemon.membership.clone();
    let (open, guarded) = http::routers(daemon);
    let tcp = async {
        match args.listen {
            Some(address) => {
                let listener = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("failed to listen on {address}"))?;
                tracing::info!(address = %listener.local_addr()?, "serving");
                http::serve_tcp(listener, guarded, membership).await?;
            }
            None => std::future::pending().await,
        }
        anyhow::Ok(())
    };
    let listener = http::bind_unix(&args.socket)
        .with_context(|| format!("failed to serve on {}", args.socket.display()))?;
    let unix = http::serve_unix(listener, open);
    tokio::select! {
        result = tcp => result,
        result = unix => Ok(result?),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

#[cfg(feature = "xen")]
fn real_toolstack(signals: &Arc<Signals>, shells: u32) -> anyhow::Result<Arc<dyn Toolstack>> {
    let toolstack = fcap_manager::toolstack::xen::Xen::new(signals.sink(), shells);
    Ok(Arc::new(toolstack.context("failed to open the hypervisor; is this dom0?")?))
}

#[cfg(not(feature = "xen"))]
fn real_toolstack(_: &Arc<Signals>, _: u32) -> anyhow::Result<Arc<dyn Toolstack>> {
    anyhow::bail!("this fcapd was built without Xen; it can only --simulate")
}

/// A state directory that is nothing but memory must leave some to live in.
fn default_image_bytes(state_dir: &std::path::Path) -> anyhow::Result<u64> {
    if !is_in_memory(&std::fs::File::open(state_dir)?)? {
        return Ok(4 << 30);
    }
    let text = std::fs::read_to_string("/proc/meminfo").context("failed to read /proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let total: u64 = total.and_then(|kib| kib.parse().ok()).context("/proc/meminfo has no MemTotal")?;
    Ok(total * 1024 / 2)
}
