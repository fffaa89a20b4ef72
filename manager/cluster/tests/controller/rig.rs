//! A cloud of simulated nodes, and controllers that can be killed at any point. Between them there is
//! mutual TLS, as between real ones.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fcap_api::cluster::{ClusterNode, Flavor, FlavorSpec, NodeState, Operation, OperationState};
use fcap_api::{Adopt, Capsule, CreateCapsule, PublishedPort, State};
use fcap_client::{Client, Reference};
use fcap_cluster::controller::{Controller, Security};
use fcap_cluster::execute::Limits;
use fcap_cluster::flavor;
use fcap_cluster::nodes::Rhythm;
use fcap_cluster::policy::Budget;
use fcap_cluster::provider::{Machine, Provider, ProviderError, Wanted};
use fcap_cluster::store::{
    Entry, Lease, Local, Outcome, Result as StoreResult, Revision, Snapshot, Store, Transaction, Watch,
};
use fcap_manager::cluster::Reached;
use fcap_manager::daemon::{Daemon, Options, Signals};
use fcap_manager::http;
use fcap_manager::log::MIN_BYTES;
use fcap_manager::migration::listen;
use fcap_manager::net::sim::Sim;
use fcap_manager::node::Identity;
use fcap_manager::store::Store as NodeStore;
use fcap_manager::toolstack::sim::World;
use fcap_tls::{Authority, JoinToken, Subject, VALIDITY};
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine with a daemon.
pub(crate) struct SimNode {
    /// What it joins a cluster with when its daemon starts, and the name that it wants.
    pub(crate) joins: Option<(String, JoinToken)>,
    world: Arc<World>,
    fabric: Arc<Sim>,
    directory: tempfile::TempDir,
    running: Option<(tokio::sync::oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
    port: u16,
}

impl SimNode {
    fn start(memory_kib: u64) -> Self {
        let mut node = Self::new(memory_kib);
        node.start_daemon();
        node
    }

    /// A machine whose daemon does not run yet.
    pub(crate) fn new(memory_kib: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), TOKEN).unwrap();
        let world = World::new(2, memory_kib);
        Self { joins: None, world, fabric: Arc::default(), directory, running: None, port: 0 }
    }

    /// Starts the daemon at the port that it had.
    pub(crate) fn start_daemon(&mut self) {
        self.try_to_start().unwrap();
    }

    /// The same for one that may not come to it, because it is not let join.
    pub(crate) fn try_to_start(&mut self) -> Result<(), String> {
        let joins = self.joins.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (world, fabric, port) = (self.world.clone(), self.fabric.clone(), self.port);
        let path = self.directory.path().to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let signals = Arc::<Signals>::default();
                let toolstack = Arc::new(world.toolstack(signals.sink()));
                // The daemon before it may still be about to go.
                let begun = Instant::now();
                let store = loop {
                    match NodeStore::open(&path.join("state")) {
                        Ok(store) => break store,
                        Err(error) => assert!(begun.elapsed() < PATIENCE, "{error:#}"),
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                };
                let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
                let port = listener.local_addr().unwrap().port();
                if let Some((name, token)) = joins {
                    let reached = Reached { host: None, port };
                    if let Err(error) = fcap_manager::cluster::join(&store, &name, &token, reached).await {
                        ready.send(Err(format!("{error:#}"))).unwrap();
                        return;
                    }
                }
                let identity = Identity::load(&store, Some(path.join("token")), false).unwrap();
                let options = Options { log_bytes: MIN_BYTES, image_bytes: 1 << 20, pool: 0 };
                let daemon = Daemon::start(toolstack, fabric, signals, store, identity, options);
                let daemon = daemon.await.unwrap();
                let others = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                listen::serve(daemon.clone(), others).unwrap();
                let membership = daemon.membership.clone();
                let (_, guarded) = http::routers(daemon);
                ready.send(Ok(port)).unwrap();
                tokio::select! {
                    result = http::serve_tcp(listener, guarded, membership) => result.unwrap(),
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        match is_ready.recv().unwrap() {
            Ok(port) => {
                self.port = port;
                self.running = Some((stop, thread));
                Ok(())
            }
            Err(error) => {
                thread.join().unwrap();
                Err(error)
            }
        }
    }

    /// A file of its daemon's directory.
    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join("state").join(name)
    }

    /// Ends the daemon without giving it any time for last things; its capsules run on.
    pub(crate) fn kill_daemon(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            let _ = stop.send(());
            thread.join().unwrap();
            self.world.toolstack(Arc::new(|_| {}));
        }
    }
}

impl Drop for SimNode {
    fn drop(&mut self) {
        self.kill_daemon();
    }
}

/// A provider of simulated nodes.
pub(crate) struct SimCloud {
    /// Signs the certificates of the machines.
    pub(crate) authority: Arc<Authority>,
    machines: Mutex<BTreeMap<String, (SimNode, Machine)>>,
    /// Machines cannot be started.
    pub(crate) is_full: AtomicBool,
    /// How many were ever started.
    pub(crate) started: AtomicI64,
}

impl Default for SimCloud {
    fn default() -> Self {
        Self {
            authority: Arc::new(Authority::generate().unwrap()),
            machines: Mutex::default(),
            is_full: AtomicBool::default(),
            started: AtomicI64::default(),
        }
    }
}

impl SimCloud {
    pub(crate) async fn boot(&self, name: &str, flavor: &str, tag: Option<String>) -> Machine {
        let memory_mib = self.flavors().iter().find(|it| it.name == flavor).unwrap().capacity.memory_kib;
        let node = tokio::task::spawn_blocking(move || SimNode::start(memory_mib)).await.unwrap();
        let url = format!("http://127.0.0.1:{}", node.port);
        let member = self.authority.identity(&Subject::node(name).unwrap(), VALIDITY).unwrap();
        let adopt = Adopt {
            name: name.into(),
            identity: Some(member.to_pem()),
            flavor: Some(flavor.into()),
            token: TOKEN.into(),
            seed: "0".repeat(64),
            wall_time_ns: 0,
            lan: None,
        };
        let adopted = reqwest::Client::new()
            .post(format!("{url}/v1/node/adopt"))
            .bearer_auth(TOKEN)
            .body(serde_json::to_vec(&adopt).unwrap())
            .send();
        assert_eq!(adopted.await.unwrap().status(), 204);
        let machine = Machine {
            name: name.into(),
            flavor: Some(flavor.into()),
            url: url.replace("http:", "https:"),
            token: "not asked for".into(),
            started_ms: fcap_cluster::nodes::now_ms(),
            tag,
        };
        self.started.fetch_add(1, Ordering::Relaxed);
        self.machines.lock().unwrap().insert(name.into(), (node, machine.clone()));
        machine
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.machines.lock().unwrap().keys().cloned().collect()
    }

    /// Does something to a machine.
    pub(crate) fn with<T>(&self, name: &str, work: impl FnOnce(&mut SimNode) -> T) -> T {
        work(&mut self.machines.lock().unwrap().get_mut(name).unwrap().0)
    }

    /// Takes a machine away, as a cloud that fails does.
    pub(crate) fn lose(&self, name: &str) {
        let lost = self.machines.lock().unwrap().remove(name);
        drop(lost);
    }

    /// Where those ask who have a node's token and no certificate: the same port, without TLS.
    pub(crate) fn url(&self, name: &str) -> String {
        self.machines.lock().unwrap()[name].1.url.replace("https:", "http:")
    }

    pub(crate) fn client(&self, name: &str) -> Client {
        Client::new(self.url(name).parse().unwrap(), Some(TOKEN), false).unwrap()
    }

    /// Where each running capsule is, by name; asked of the machines themselves.
    pub(crate) async fn whereabouts(&self) -> BTreeMap<String, Vec<String>> {
        let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for name in self.names() {
            for capsule in self.client(&name).capsules(true).await.unwrap() {
                if capsule.state == State::Running {
                    places.entry(capsule.name).or_default().push(name.clone());
                }
            }
        }
        places
    }

    /// Starts a capsule on a machine.
    pub(crate) async fn run(&self, node: &str, name: &str, memory_mib: u64) -> Capsule {
        self.start(node, name, memory_mib, b"SIM:tick 50", 0).await
    }

    /// Starts a capsule on a machine that can be given up to `max_mib` of memory.
    pub(crate) async fn grows(&self, node: &str, name: &str, memory_mib: u64, max_mib: u64) -> Capsule {
        self.start_with(node, name, [memory_mib, max_mib], b"SIM:tick 50", 0).await
    }

    /// Starts a capsule that uses so much of a processor, until its cap is changed.
    pub(crate) async fn spin(&self, node: &str, name: &str, memory_mib: u64, cpu_percent: u16) -> Capsule {
        self.start(node, name, memory_mib, b"SIM:spin", cpu_percent).await
    }

    /// Starts a capsule that does not suspend when it is asked to.
    pub(crate) async fn stubborn(&self, node: &str, name: &str, memory_mib: u64) -> Capsule {
        self.start(node, name, memory_mib, b"SIM:stubborn", 0).await
    }

    async fn start(
        &self,
        node: &str,
        name: &str,
        memory_mib: u64,
        program: &'static [u8],
        cpu_cap: u16,
    ) -> Capsule {
        self.start_with(node, name, [memory_mib; 2], program, cpu_cap).await
    }

    async fn start_with(
        &self,
        node: &str,
        name: &str,
        [memory_mib, max_mib]: [u64; 2],
        program: &'static [u8],
        cpu_cap: u16,
    ) -> Capsule {
        let digest: String = Sha256::digest(program).iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = format!("sha256:{digest}");
        let client = self.client(node);
        client.put_image(&digest, program.len() as u64, program.to_vec().into()).await.unwrap();
        let spec = CreateCapsule {
            name: Some(name.into()),
            image: digest,
            memory_kib: Some(memory_mib * 1024),
            max_memory_kib: Some(max_mib * 1024),
            cpu_cap,
            ..CreateCapsule::default()
        };
        client.create(&spec).await.unwrap()
    }
}

impl Provider for SimCloud {
    fn flavors(&self) -> Vec<Flavor> {
        let flavor = |name: &str, memory_mib, price| FlavorSpec {
            name: name.into(),
            vcpus: 2,
            memory_mib,
            reserved_memory_mib: Some(64),
            price_per_hour: Some(price),
        };
        flavor::check_all(&[flavor("small", 256, 0.01), flavor("large", 1088, 0.04)]).unwrap()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Machine>, ProviderError>> {
        let machines = self.machines.lock().unwrap().values().map(|(_, machine)| machine.clone()).collect();
        Box::pin(async move { Ok(machines) })
    }

    fn create(&self, wanted: Wanted) -> BoxFuture<'_, Result<Machine, ProviderError>> {
        Box::pin(async move {
            let there = self.machines.lock().unwrap().get(&wanted.name).map(|(_, machine)| machine.clone());
            match there {
                Some(machine) if machine.tag.as_ref() == Some(&wanted.tag) => Ok(machine),
                Some(_) => Err(ProviderError::NameTaken(wanted.name)),
                None if self.is_full.load(Ordering::Relaxed) => Err(ProviderError::Failed {
                    what: format!("start node {}", wanted.name),
                    reason: "the quota is used up".into(),
                }),
                None => Ok(self.boot(&wanted.name, &wanted.flavor, Some(wanted.tag)).await),
            }
        })
    }

    fn destroy(&self, name: &str) -> BoxFuture<'_, Result<(), ProviderError>> {
        let gone = self.machines.lock().unwrap().remove(name);
        Box::pin(async move {
            tokio::task::spawn_blocking(move || drop(gone)).await.unwrap();
            Ok(())
        })
    }

    fn move_ports(
        &self,
        _: Vec<PublishedPort>,
        _: &str,
        _: &str,
    ) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async { Ok(()) })
    }
}

/// A store whose writes end at some point, as those of a controller that is killed do.
pub(crate) struct Cut {
    inner: Arc<Local>,
    /// Writes that are still let through.
    left: AtomicI64,
    /// Whether the last one is done, but nobody hears of it.
    silently: bool,
    cut: tokio::sync::watch::Sender<bool>,
}

impl Cut {
    pub(crate) fn after(inner: Arc<Local>, writes: i64, silently: bool) -> Arc<Self> {
        Arc::new(Self {
            inner,
            left: AtomicI64::new(writes),
            silently,
            cut: tokio::sync::watch::Sender::new(false),
        })
    }

    pub(crate) fn is_cut(&self) -> bool {
        *self.cut.borrow()
    }
}

impl Store for Cut {
    fn range(&self, prefix: &str) -> BoxFuture<'_, StoreResult<Snapshot>> {
        self.inner.range(prefix)
    }

    fn get(&self, key: &str) -> BoxFuture<'_, StoreResult<Option<Entry>>> {
        self.inner.get(key)
    }

    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, StoreResult<Outcome>> {
        Box::pin(async move {
            let left = self.left.fetch_sub(1, Ordering::SeqCst);
            if left > 0 {
                return self.inner.commit(transaction).await;
            }
            if left == 0 && self.silently {
                self.inner.commit(transaction).await?;
            }
            self.cut.send_replace(true);
            std::future::pending().await
        })
    }

    fn watch(&self, prefix: &str, from: Revision) -> BoxFuture<'_, StoreResult<Watch>> {
        self.inner.watch(prefix, from)
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, StoreResult<Lease>> {
        self.inner.grant(ttl)
    }

    fn keep_alive(&self, lease: Lease) -> BoxFuture<'_, StoreResult<()>> {
        self.inner.keep_alive(lease)
    }

    fn revoke(&self, lease: Lease) -> BoxFuture<'_, StoreResult<()>> {
        self.inner.revoke(lease)
    }
}

/// A controller on a thread of its own.
pub(crate) struct Server {
    runtime: Option<tokio::runtime::Runtime>,
    pub(crate) client: Client,
    pub(crate) url: String,
    /// Base of the URLs for machines.
    pub(crate) machines_url: String,
}

impl Server {
    pub(crate) fn start(store: Arc<dyn Store>, cloud: Arc<SimCloud>) -> Self {
        Self::start_with(store, cloud, VALIDITY)
    }

    /// The same with certificates that are good for so long.
    pub(crate) fn start_with(store: Arc<dyn Store>, cloud: Arc<SimCloud>, validity: Duration) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let ms = Duration::from_millis;
        let rhythm = Rhythm {
            ask: ms(100),
            patience: ms(2000),
            lost: ms(1500),
            sample: ms(200),
            list: ms(200),
            settle: ms(600),
            least_interval: ms(100),
            budget: Budget { steps: 1_000_000, ..Budget::default() },
        };
        let limits = Limits { settle: Duration::from_secs(20), ..Limits::default() };
        let (send, receive) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let authority = cloud.authority.clone();
            let security = Security { token: TOKEN.into(), authority, validity };
            let controller = Controller::start(store, cloud, security, rhythm, limits).await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let machines = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
            send.send((port(&listener), port(&machines))).unwrap();
            let serve_machines = controller.clone().serve_machines(machines);
            tokio::select! {
                served = controller.serve(listener) => served.unwrap(),
                served = serve_machines => served.unwrap(),
            }
        });
        // A controller whose store is cut may never come up; the port is then nobody's.
        let (port, machines) = receive.recv_timeout(Duration::from_secs(5)).unwrap_or((1, 1));
        let url = format!("http://127.0.0.1:{port}");
        let machines_url = format!("https://127.0.0.1:{machines}");
        let client = Client::new(url.parse().unwrap(), Some(TOKEN), false).unwrap();
        Self { runtime: Some(runtime), client, url, machines_url }
    }

    /// Ends it where it is.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) async fn node(&self, name: &str) -> Option<ClusterNode> {
        self.client.cluster_nodes().await.unwrap().into_iter().find(|node| node.name == name)
    }

    pub(crate) async fn until_ready(&self, names: &[&str]) {
        until("the nodes are ready", async || {
            let nodes = self.client.cluster_nodes().await.unwrap();
            names.iter().all(|name| nodes.iter().any(|it| it.name == *name && it.state == NodeState::Ready))
        })
        .await;
    }

    /// Waits for the end of an operation.
    pub(crate) async fn ended(&self, id: &str) -> Operation {
        let mut operations = self.client.follow_operation(id).await.unwrap();
        let mut last = None;
        while let Some(operation) = tokio::time::timeout(PATIENCE, operations.next()).await.unwrap().unwrap()
        {
            last = Some(operation);
        }
        last.unwrap()
    }

    /// Waits for the end of an operation, which must have done all.
    pub(crate) async fn done(&self, operation: Operation) -> Operation {
        let operation = self.ended(&operation.id).await;
        assert_eq!(operation.state, OperationState::Done, "{operation:#?}");
        operation
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// A cloud of so many small nodes, and a controller of it.
pub(crate) async fn cluster(nodes: u32) -> (Arc<SimCloud>, Server) {
    let cloud = Arc::new(SimCloud::default());
    let names: Vec<String> = (1..=nodes).map(|number| format!("node{number}")).collect();
    for name in &names {
        cloud.boot(name, "small", None).await;
    }
    let server = Server::start(Arc::new(Local::in_memory()), cloud.clone());
    server.until_ready(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    (cloud, server)
}

/// The same without a controller.
pub(crate) async fn cloud(nodes: u32) -> Arc<SimCloud> {
    let cloud = Arc::new(SimCloud::default());
    for number in 1..=nodes {
        cloud.boot(&format!("node{number}"), "small", None).await;
    }
    cloud
}

/// Every capsule runs once, and no machine is there that the controller does not know, nor the
/// other way round.
pub(crate) async fn check_whole(cloud: &SimCloud, server: &Server, capsules: &[&str]) {
    let places = cloud.whereabouts().await;
    for name in capsules {
        assert_eq!(places.get(*name).map(Vec::len), Some(1), "{name}: {places:?}");
    }
    assert_eq!(places.len(), capsules.len(), "{places:?}");
    until("the record agrees with what runs", async || {
        let nodes = server.client.cluster_nodes().await.unwrap();
        let mut names: Vec<String> = nodes.into_iter().map(|node| node.name).collect();
        names.sort();
        names == cloud.names()
    })
    .await;
}

pub(crate) fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

/// Asks until the answer is yes.
pub(crate) async fn until(what: &str, mut question: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !question().await {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within a minute");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
