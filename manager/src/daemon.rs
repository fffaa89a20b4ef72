//! The capsules of this node.
//!
//! # What a new daemon makes of what it finds
//!
//! A daemon can be killed at any moment; the next one compares what is kept ([`crate::store`])
//! with the domains that there are. Each capsule has at most one domain, whose handle is the
//! capsule's id.
//!
//! | kept: end of its last run? | domain? | then |
//! |---|---|---|
//! | no | runs, or has shut down | it is taken back; its end, if it has one, is recorded as usual |
//! | no | cannot be taken back: half built | the domain is destroyed, the run counts as lost |
//! | no | none, and was never started | it stays as it was made |
//! | no | none | the run counts as lost |
//! | yes | any | the domain is destroyed: that was still to be done |
//! | yes | none | it has ended |
//!
//! Then its restart policy and `remove` apply. Domains of nobody are somebody else's: a
//! capsule's directory goes only after its domain.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use fcap_api::{
    Action, CreateCapsule, End, EndReason, Event, NetStats, Node, NodeUpdate, Pruned, RestartPolicy, State,
    Stats,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use crate::capsule::config::{self, Config};
use crate::capsule::console::Console;
use crate::capsule::driver::{Begin, Driver};
use crate::capsule::end::without_epitaph;
use crate::capsule::{Capsule, Command, Record};
use crate::clock::now_ms;
use crate::cluster::Membership;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::id::CapsuleId;
use crate::images::Images;
use crate::log::{Cursor, Log};
use crate::metrics::Metrics;
use crate::migration::journal::{Attempt, Out};
use crate::migration::leave::settle;
use crate::migration::{Migrations, arrive};
use crate::net::Fabric;
use crate::net::networks::Networks;
use crate::net::overlay::{self, Links};
use crate::node::Identity;
use crate::store::{Loaded, Saved, SavedEnd, Store};
use crate::toolstack::{self, DomainInfo, EventSink, Shutdown, Toolstack};

/// How long the answer to a start waits for the capsule to connect to its networks.
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// Where the toolstack's events go. Exists before the toolstack does.
#[derive(Default)]
pub struct Signals {
    consoles: Mutex<HashMap<u32, Arc<Console>>>,
    domains: Notify,
}

impl Signals {
    /// What the toolstack calls.
    pub fn sink(self: &Arc<Self>) -> EventSink {
        let signals = self.clone();
        Arc::new(move |event| match event {
            toolstack::Event::Console(domid) => {
                let console = signals.consoles.lock().unwrap().get(&domid).cloned();
                console.inspect(Console::pump);
            }
            toolstack::Event::Domains => signals.domains.notify_one(),
        })
    }

    /// Has events of a domain's console go to it.
    pub fn connect(&self, domid: u32, console: Arc<Console>) {
        self.consoles.lock().unwrap().insert(domid, console);
    }

    /// Ends that.
    pub fn disconnect(&self, domid: u32) {
        self.consoles.lock().unwrap().remove(&domid);
    }
}

/// Limits that the operator can set.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of each capsule's log.
    pub log_bytes: u64,
    /// Bytes of all images together.
    pub image_bytes: u64,
    /// Pre-built capsules to hold ready.
    pub pool: u32,
}

/// The capsules of this node, and what they need.
pub struct Daemon {
    /// The hypervisor.
    pub toolstack: Arc<dyn Toolstack>,
    /// The networks of the node.
    pub networks: Networks,
    /// The other nodes of the overlay.
    pub links: Links,
    /// What survives.
    pub store: Store,
    /// What capsules are made of.
    pub images: Images,
    /// What has happened lately.
    pub events: Arc<Events>,
    /// Where the toolstack's events come in.
    pub signals: Arc<Signals>,
    /// Who this node is.
    pub identity: Identity,
    /// Its place in a cluster.
    pub membership: Arc<Membership>,
    /// Capsules that come and go.
    pub migrations: Arc<Migrations>,
    /// What is counted.
    pub metrics: Metrics,
    runtime: Handle,
    options: Options,
    table: Mutex<Table>,
    pool: Mutex<u32>,
    started: Instant,
}

#[derive(Default)]
struct Table {
    capsules: BTreeMap<CapsuleId, Arc<Capsule>>,
    names: HashMap<String, CapsuleId>,
    /// When the newest was made.
    newest_ms: u64,
}

impl Table {
    /// The time of a capsule that is made now, later than that of all before it: lists keep the
    /// order in which capsules were made.
    fn creation_ms(&mut self) -> u64 {
        self.newest_ms = now_ms().max(self.newest_ms + 1);
        self.newest_ms
    }
}

/// Does something that may take a while on a thread that may wait.
///
/// # Errors
/// When the daemon is about to end.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::ShuttingDown)
}

impl Daemon {
    /// Takes up what an earlier daemon left, and serves from then on.
    ///
    /// # Errors
    /// When the disk or the hypervisor does not answer.
    pub async fn start(
        toolstack: Arc<dyn Toolstack>,
        fabric: Arc<dyn Fabric>,
        signals: Arc<Signals>,
        store: Store,
        identity: Identity,
        options: Options,
    ) -> anyhow::Result<Arc<Self>> {
        let images = Images::open_dir(store.images_dir(), options.image_bytes, toolstack.clone())?;
        let networks = Networks::load(fabric, &store).context("failed to read the node's networks")?;
        let membership = Arc::new(Membership::load(&store)?);
        let migrations =
            Migrations::open(&store, membership.clone()).context("failed to read what is known of moves")?;
        let daemon = Arc::new(Self {
            migrations: Arc::new(migrations),
            metrics: Metrics::default(),
            runtime: Handle::current(),
            toolstack,
            networks,
            links: Links::default(),
            store,
            images,
            events: Arc::default(),
            signals,
            identity,
            membership,
            table: Mutex::default(),
            pool: Mutex::new(options.pool),
            options,
            started: Instant::now(),
        });
        let this = daemon.clone();
        blocking(move || this.networks.ensure()).await?;
        daemon.recover().await?;
        overlay::resume(&daemon).await;
        let (toolstack, pool) = (daemon.toolstack.clone(), daemon.options.pool);
        blocking(move || toolstack.set_pool(pool)).await??;
        tokio::spawn(daemon.clone().watch_domains());
        // For what happened since the domains were listed.
        daemon.signals.domains.notify_one();
        Ok(daemon)
    }

    async fn recover(self: &Arc<Self>) -> anyhow::Result<()> {
        let found = self.migrations.journal.load().context("failed to read what is known of moves")?;
        arrive::recover(self, &found)?;
        let mut handed_over: HashMap<CapsuleId, (Attempt, Out)> =
            found.out.into_iter().map(|(attempt, out)| (out.capsule, (attempt, out))).collect();
        let saved = self.store.load()?;
        let mut domains: HashMap<[u8; 16], Vec<DomainInfo>> = HashMap::new();
        for domain in self.toolstack.domains()? {
            domains.entry(domain.uuid).or_default().push(domain);
        }
        for loaded in saved {
            let id = loaded.saved.config.id;
            let mut domains = domains.remove(&id.0).unwrap_or_default();
            if let Some((attempt, out)) = handed_over.remove(&id) {
                let suspended = |info: &DomainInfo| info.shutdown == Some(Shutdown::Suspend) && !info.dying;
                let copy = domains.iter().position(suspended).map(|at| domains.swap_remove(at));
                if copy.is_some() || domains.is_empty() {
                    self.recover_leaving(loaded, copy, attempt, out).await?;
                    continue;
                }
                // It goes on because its claim could not be written: nobody else was told to run it.
                self.migrations.journal.remove(&attempt, "out")?;
            }
            if let Err(error) = self.recover_one(loaded, domains).await {
                tracing::error!(capsule = %id, %error, "a capsule cannot be taken back");
            }
        }
        for (attempt, out) in handed_over.into_values() {
            tokio::spawn(settle(self.clone(), attempt, out, None));
        }
        let this = self.clone();
        blocking(move || {
            let list = this.list();
            let running = list.iter().filter_map(|capsule| {
                capsule.look(|record| record.run.as_ref().map(|_| (capsule.id, record.config.networks.len())))
            });
            this.networks.retain(running);
        })
        .await?;
        Ok(())
    }

    /// Takes up a capsule that was handed over to another node. Without a copy of it, it is not
    /// known here any more, but that it is not elsewhere either must still be heard.
    async fn recover_leaving(
        self: &Arc<Self>,
        loaded: Loaded,
        copy: Option<DomainInfo>,
        attempt: Attempt,
        out: Out,
    ) -> anyhow::Result<()> {
        let Some(info) = copy else {
            tokio::spawn(settle(self.clone(), attempt, out, None));
            return Ok(());
        };
        let Loaded { saved: Saved { config, progress }, log, .. } = loaded;
        let toolstack = self.toolstack.clone();
        let domain = blocking(move || toolstack.adopt(info.domid)).await??;
        self.networks.enter(&config);
        let log = Log::open(self.store.log_base(config.id), log, self.options.log_bytes)?;
        let (capsule, commands) = Capsule::new(config, progress, None, log);
        self.enter(&capsule);
        let (sender, leaving) = oneshot::channel();
        let driver = Driver::new(self.clone(), capsule, Begin::Leaving(domain, sender)).await;
        tokio::spawn(driver.drive(commands));
        tokio::spawn(settle(self.clone(), attempt, out, leaving.await.ok()));
        Ok(())
    }

    async fn recover_one(self: &Arc<Self>, loaded: Loaded, domains: Vec<DomainInfo>) -> anyhow::Result<()> {
        let Loaded { saved, end, log } = loaded;
        let Saved { config, mut progress } = saved;
        self.networks.enter(&config);
        let ended = end.as_ref().is_some_and(|end| end.run >= progress.run);
        let mut adopted = None;
        for info in domains {
            let domid = info.domid;
            let toolstack = self.toolstack.clone();
            if !ended && adopted.is_none() && !info.dying {
                match blocking(move || toolstack.adopt(domid)).await? {
                    Ok(domain) => {
                        adopted = Some((domain, info));
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(capsule = %config.id, domid, %error, "half a domain is destroyed")
                    }
                }
            }
            let toolstack = self.toolstack.clone();
            if let Err(error) = blocking(move || toolstack.destroy(domid)).await? {
                tracing::error!(capsule = %config.id, domid, %error, "a domain that should be gone is left");
            }
        }
        let mut end = end.map(|end| end.end);
        let mut begin = Begin::Idle;
        match adopted {
            Some((domain, info)) => begin = Begin::Running(domain, info),
            None if progress.run > 0 => {
                if !ended {
                    let message = "the node lost it: its domain was gone when the daemon started";
                    let lost = without_epitaph(137, EndReason::Lost, Some(message.into()), now_ms());
                    let saved = SavedEnd { run: progress.run, end: lost.clone() };
                    if let Err(error) = self.store.save_end(config.id, &saved) {
                        tracing::warn!(capsule = %config.id, %error, "the end of a lost run is not kept");
                    }
                    end = Some(lost);
                }
                // What the operator stopped stays so, unless it is to run always.
                if progress.stopped && config.restart == RestartPolicy::Always {
                    progress.stopped = false;
                }
                begin = Begin::Ended;
            }
            None => {}
        }
        let log = Log::open(self.store.log_base(config.id), log, self.options.log_bytes)?;
        let (capsule, commands) = Capsule::new(config, progress, end, log);
        self.enter(&capsule);
        let driver = Driver::new(self.clone(), capsule, begin).await;
        tokio::spawn(driver.drive(commands));
        Ok(())
    }

    /// Tells drivers when their domains have shut down or gone.
    async fn watch_domains(self: Arc<Self>) {
        loop {
            self.signals.domains.notified().await;
            // Before the domains: one that is built meanwhile is not taken for gone.
            let running: Vec<_> = self
                .list()
                .into_iter()
                .filter_map(|capsule| {
                    let domid = capsule.look(|record| record.run.as_ref().map(|run| run.domid))?;
                    Some((capsule, domid))
                })
                .collect();
            let domains = match self.domains() {
                Ok(domains) => domains,
                Err(error) => {
                    tracing::error!(error = ?error.body().message, "the domains cannot be listed");
                    continue;
                }
            };
            for (capsule, domid) in running {
                match domains.get(&capsule.id.0).filter(|info| info.domid == domid) {
                    None => capsule.tell(Command::Vanished(domid)),
                    Some(info) if info.shutdown.is_some() || info.dying => {
                        capsule.tell(Command::Look(info.clone()));
                    }
                    Some(_) => {}
                }
            }
        }
    }

    /// All domains by handle, in one look.
    ///
    /// # Errors
    /// When the hypervisor does not answer.
    pub fn domains(&self) -> Result<HashMap<[u8; 16], DomainInfo>> {
        Ok(self.toolstack.domains()?.into_iter().map(|info| (info.uuid, info)).collect())
    }

    /// All capsules, the oldest first.
    pub fn list(&self) -> Vec<Arc<Capsule>> {
        let mut capsules: Vec<_> = self.table.lock().unwrap().capsules.values().cloned().collect();
        capsules.sort_by_cached_key(|capsule| (capsule.look(|record| record.config.created_ms), capsule.id));
        capsules
    }

    /// The capsule that a full id, a name, or a unique prefix of an id stands for.
    ///
    /// # Errors
    /// When there is none, or several.
    pub fn find(&self, text: &str) -> Result<Arc<Capsule>> {
        let table = self.table.lock().unwrap();
        let none = || Error::NoSuchCapsule(text.chars().take(80).collect());
        if let Ok(id) = text.parse::<CapsuleId>() {
            return table.capsules.get(&id).cloned().ok_or_else(none);
        }
        if let Some(id) = table.names.get(text) {
            return table.capsules.get(id).cloned().ok_or_else(none);
        }
        let Some(first) = lowest_with_prefix(text) else { return Err(none()) };
        let fits = table.capsules.range(first..).take_while(|(id, _)| id.to_string().starts_with(text));
        let fits: Vec<_> = fits.map(|(_, capsule)| capsule).take(10).collect();
        match &fits[..] {
            [] => Err(none()),
            [capsule] => Ok((*capsule).clone()),
            _ => Err(Error::Ambiguous {
                prefix: text.to_owned(),
                candidates: fits.iter().map(|fit| format!("{} ({})", fit.id, fit.name())).collect(),
            }),
        }
    }

    /// The time of a capsule that is made now, which no other one of this node has.
    pub fn creation_ms(&self) -> u64 {
        self.table.lock().unwrap().creation_ms()
    }

    /// Makes a capsule, and starts it unless that is not wanted. The cursor reads its output
    /// from the beginning, and the capsule waits for it.
    ///
    /// # Errors
    /// When the request is bad or the node cannot fulfil it; then nothing is left of it.
    pub async fn create(self: Arc<Self>, request: CreateCapsule) -> Result<(Arc<Capsule>, Cursor)> {
        let image = self.images.open(&request.image).await?;
        if let Some(initrd) = &request.initrd {
            self.images.get(initrd)?;
        }
        let start = !request.no_start;
        let id = CapsuleId::random();
        let (capsule, commands) = {
            let mut table = self.table.lock().unwrap();
            let name = config::name(request.name.as_deref(), |name| table.names.contains_key(name))?;
            check_free(&table, &name)?;
            self.networks.check_name(&name)?;
            let (mut config, networks) =
                Config::check(request, id, name.clone(), &*image, table.creation_ms())?;
            config.networks = self.networks.allocate(&networks, !config.ports.is_empty())?;
            let log = Log::open(self.store.log_base(id), Vec::new(), self.options.log_bytes)
                .inspect_err(|_| self.networks.release(&config.networks))
                .map_err(Error::disk(format!("begin the log of capsule {name}")))?;
            self.networks.enter(&config);
            let (capsule, commands) = Capsule::new(config, Default::default(), None, log);
            table.names.insert(name, id);
            table.capsules.insert(id, capsule.clone());
            (capsule, commands)
        };
        let cursor = capsule.log.cursor(0, true);
        // One that is to be started at once is kept with its start.
        if !start && let Err(error) = self.store.save(&capsule.look(|record| record.saved())) {
            self.forget(&capsule);
            return Err(error);
        }
        self.event(&capsule, Action::Create, None);
        let driver = Driver::new(self.clone(), capsule.clone(), Begin::Idle).await;
        tokio::spawn(driver.drive(commands));
        if start && let Err(error) = capsule.ask(Command::Start).await {
            let _ = capsule.ask(|reply| Command::Remove(true, reply)).await;
            return Err(error);
        }
        Ok((capsule, cursor))
    }

    /// Waits until a capsule that was just started can be reached through its networks, but not
    /// long, and not for one that has ended or does not use them: who asked for it may speak to it
    /// at once, and what is sent before is lost.
    pub async fn until_reachable(&self, capsule: &Capsule) {
        let config = capsule.look(|record| record.config.clone());
        if config.networks.is_empty() {
            return;
        }
        if self.images.open(&config.image).await.is_ok_and(|image| image.wants_network()) {
            let _ = tokio::time::timeout(CONNECT_TIME, self.networks.connected(&config)).await;
        }
    }

    /// Puts a capsule into the table.
    pub fn enter(&self, capsule: &Arc<Capsule>) {
        let mut table = self.table.lock().unwrap();
        table.names.insert(capsule.name(), capsule.id);
        table.capsules.insert(capsule.id, capsule.clone());
    }

    /// Takes a capsule from the table that is elsewhere now.
    pub fn leave(&self, capsule: &Capsule) {
        self.migrations.forget(capsule.id);
        let mut table = self.table.lock().unwrap();
        table.capsules.remove(&capsule.id);
        table.names.retain(|_, id| *id != capsule.id);
    }

    /// Has the domains looked at, for what may have happened to them.
    pub fn look_at_domains(&self) {
        self.signals.domains.notify_one();
    }

    /// Where asynchronous work is done, for threads that are not.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Bytes of each capsule's log.
    pub fn log_bytes(&self) -> u64 {
        self.options.log_bytes
    }

    /// Reserves the name of a capsule that comes from elsewhere.
    ///
    /// # Errors
    /// When it cannot be a name, or is taken on this node.
    pub fn claim_name(&self, name: &str, id: CapsuleId) -> Result<()> {
        crate::names::check(name).map_err(Error::BadRequest)?;
        let mut table = self.table.lock().unwrap();
        check_free(&table, name)?;
        table.names.insert(name.to_owned(), id);
        Ok(())
    }

    /// Gives the name free of a capsule that did not come.
    pub fn release_claimed_name(&self, name: &str, id: CapsuleId) {
        let mut table = self.table.lock().unwrap();
        if table.names.get(name) == Some(&id) {
            table.names.remove(name);
        }
    }

    /// Takes a removed capsule from the table, and its addresses back.
    pub fn forget(&self, capsule: &Capsule) {
        self.migrations.forget(capsule.id);
        capsule.look(|record| self.networks.forget(&record.config));
        let mut table = self.table.lock().unwrap();
        table.capsules.remove(&capsule.id);
        table.names.retain(|_, id| *id != capsule.id);
    }

    /// Reserves a name for a capsule that is to be renamed.
    ///
    /// # Errors
    /// When it cannot be a name, or is taken.
    pub fn reserve_name(&self, name: &str, id: CapsuleId) -> Result<()> {
        crate::names::check(name).map_err(Error::BadRequest)?;
        let mut table = self.table.lock().unwrap();
        check_free(&table, name)?;
        self.networks.check_name(name)?;
        table.names.insert(name.to_owned(), id);
        Ok(())
    }

    /// Gives a name free.
    pub fn release_name(&self, name: &str) {
        self.table.lock().unwrap().names.remove(name);
    }

    /// Reports that something happened to a capsule.
    pub fn event(&self, capsule: &Capsule, action: Action, end: Option<End>) {
        self.events.push(Event {
            time_ms: now_ms(),
            action,
            id: capsule.id.to_string(),
            name: capsule.name(),
            node: self.identity.name(),
            end,
        });
    }

    /// Whether a capsule uses the image.
    pub fn uses_image(&self, digest: &str) -> bool {
        let table = self.table.lock().unwrap();
        table.capsules.values().any(|capsule| {
            capsule.look(|record| {
                record.config.image == digest || record.config.initrd.as_deref() == Some(digest)
            })
        })
    }

    /// A capsule as the API shows it.
    ///
    /// # Errors
    /// When the hypervisor does not answer.
    pub fn show(&self, capsule: &Capsule) -> Result<fcap_api::Capsule> {
        let record = capsule.record();
        let cpu_time_ns = match &record.run {
            Some(_) => self.domains()?.get(&capsule.id.0).map_or(0, |info| info.cpu_time_ns),
            None => 0,
        };
        let net = record.run.as_ref().and_then(|_| self.counters(&record));
        Ok(fcap_api::Capsule { steps: record.steps(), net, ..self.api(&record, cpu_time_ns) })
    }

    /// All capsules as the API shows them; without `all`, only those that have not ended.
    ///
    /// # Errors
    /// When the hypervisor does not answer.
    pub fn show_all(&self, all: bool) -> Result<Vec<fcap_api::Capsule>> {
        let domains = self.domains()?;
        let wanted = |state| all || !matches!(state, State::Created | State::Exited);
        let capsules = self.list();
        let shown = capsules.iter().filter(|capsule| capsule.look(|record| wanted(record.state)));
        Ok(shown
            .map(|capsule| {
                let cpu = domains.get(&capsule.id.0).map_or(0, |info| info.cpu_time_ns);
                capsule.look(|record| self.api(record, cpu))
            })
            .collect())
    }

    fn api(&self, record: &Record, cpu_time_ns: u64) -> fcap_api::Capsule {
        let networks = self.networks.endpoints(&record.config.networks);
        fcap_api::Capsule { networks, ..record.api(&self.identity.name(), cpu_time_ns) }
    }

    fn counters(&self, record: &Record) -> Option<NetStats> {
        self.networks.counters(record.config.id, record.config.networks.len())
    }

    /// What the capsules use.
    ///
    /// # Errors
    /// When the hypervisor does not answer.
    pub fn stats(&self) -> Result<Vec<Stats>> {
        let domains = self.domains()?;
        let monotonic_ns = self.started.elapsed().as_nanos() as u64;
        let stats = self.list().into_iter().filter_map(|capsule| {
            let info = domains.get(&capsule.id.0)?;
            capsule.look(|record| {
                record.run.as_ref()?;
                Some(Stats {
                    id: capsule.id.to_string(),
                    name: record.config.name.clone(),
                    monotonic_ns,
                    cpu_time_ns: info.cpu_time_ns,
                    memory_kib: info.memory_kib,
                    max_memory_kib: record.config.max_memory_kib(),
                    vcpus: info.vcpus,
                    cpu_cap: record.config.cpu_cap,
                    weight: record.config.weight,
                    output_bytes: capsule.log.end(),
                    net: self.counters(record),
                })
            })
        });
        Ok(stats.collect())
    }

    /// This node.
    ///
    /// # Errors
    /// When the hypervisor does not answer.
    pub fn node(&self) -> Result<Node> {
        let host = self.toolstack.host()?;
        let running =
            self.list().iter().filter(|capsule| capsule.look(|record| record.run.is_some())).count();
        Ok(Node {
            name: self.identity.name(),
            flavor: self.identity.flavor(),
            hypervisor: host.hypervisor,
            cpus: host.cpus,
            memory_kib: host.memory_kib,
            free_memory_kib: host.free_memory_kib,
            capsules: u32::try_from(running).unwrap_or(u32::MAX),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            log_dirty: host.log_dirty,
            pool_size: *self.pool.lock().unwrap(),
            pool_ready: self.toolstack.pool_ready(),
            dom0_cpu_time_ns: host.dom0_cpu_time_ns,
        })
    }

    /// Changes settings of this node.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    pub async fn update_node(&self, update: NodeUpdate) -> Result<Node> {
        if let Some(size) = update.pool_size {
            let toolstack = self.toolstack.clone();
            blocking(move || toolstack.set_pool(size)).await??;
            *self.pool.lock().unwrap() = size;
        }
        self.node()
    }

    /// Removes ended capsules, and images that no capsule uses.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn prune(&self) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        for capsule in self.list() {
            if !capsule.look(|record| record.state == State::Exited) {
                continue;
            }
            match capsule.ask(|reply| Command::Remove(false, reply)).await {
                Ok(()) => pruned.capsules.push(capsule.id.to_string()),
                // It was started again or removed meanwhile.
                Err(Error::WrongState(_) | Error::NoSuchCapsule(_)) => {}
                Err(error) => return Err(error),
            }
        }
        for image in self.images.list() {
            if !self.uses_image(&image.digest) {
                self.images.delete(&image.digest)?;
                pruned.images.push(image.digest);
            }
        }
        Ok(pruned)
    }
}

fn check_free(table: &Table, name: &str) -> Result<()> {
    match table.names.get(name) {
        Some(owner) => Err(Error::NameTaken { name: name.to_owned(), owner: owner.to_string() }),
        None => Ok(()),
    }
}

/// The least id that starts with these hex digits.
fn lowest_with_prefix(prefix: &str) -> Option<CapsuleId> {
    (!prefix.is_empty() && prefix.len() < 32).then(|| format!("{prefix:0<32}").parse().ok()).flatten()
}

#[cfg(test)]
pub(crate) mod tests;
