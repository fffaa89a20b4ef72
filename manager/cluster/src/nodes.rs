//! Which nodes there are, and how they are.
//!
//! Two say which nodes there are: the store, which knows what was decided about each (labels,
//! whether it is cordoned, whether it is about to go), and the provider, which knows what runs. A
//! machine that the store does not know has been started by somebody else, and is taken in; a node
//! whose machine is gone is shown so until an operator removes it. A machine that has joined with a
//! token is in the store, and no provider's.
//!
//! Each node has a task here that asks it how it is, and listens to what happens on it:
//! ```text
//! Starting ──answers──▶ Ready ──3 questions without an answer──▶ Suspect ──30 s──▶ Lost
//!                         ▲──────────────────answers────────────────┘─────────────┘
//! ```
//! Nothing is done to capsules of a node that is silent: they may well run.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fcap_api::cluster::{Bill, Capacity, CapsuleView, ClusterNode, Flavor, NodeState, NodeView, View};
use fcap_api::{Capsule, Event, Node, State, Stats};
use fcap_client::{Client, ClientError};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::AbortHandle;

use crate::book::Book;
use crate::error::{Error, Result};
use crate::members::Members;
use crate::policy::Budget;
use crate::provider::{Machine, Provider};
use crate::store::{Compare, Store, Transaction, Write};
use crate::usage::{self, History};
use crate::view::affinity;

/// Begins the keys of what is kept of nodes.
const PREFIX: &str = "nodes/";
/// A node without an answer to so many questions is suspect.
const MISSES: u32 = 3;
/// Events that somebody who listens may be behind.
const EVENTS: usize = 1024;

/// How often what is done, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    /// A node is asked how it is.
    pub ask: Duration,
    /// How long it has for an answer.
    pub patience: Duration,
    /// A silent node counts as lost after this.
    pub lost: Duration,
    /// Use of resources is sampled, and capsules are listed even if nothing has happened to them.
    pub sample: Duration,
    /// The provider is asked which machines run.
    pub list: Duration,
    /// Policies are first run when use has been measured for so long.
    pub settle: Duration,
    /// A policy may run as often.
    pub least_interval: Duration,
    /// What one run of it may use.
    pub budget: Budget,
}

impl Default for Rhythm {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            ask: s(2),
            patience: s(5),
            lost: s(30),
            sample: s(10),
            list: s(5),
            settle: s(60),
            least_interval: s(1),
            budget: Budget::default(),
        }
    }
}

/// What is kept of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    labels: BTreeMap<String, String>,
    cordoned: bool,
    flavor: Option<String>,
    /// When it was first known.
    joined_ms: u64,
    /// It is about to be destroyed.
    stopping: bool,
    /// It has joined by itself: no provider has its machine.
    #[serde(default)]
    joined: Option<Joined>,
}

/// What a machine has said when it joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Joined {
    /// Base of its daemon's URLs.
    url: String,
    /// Fingerprint of its key.
    key: String,
}

impl Record {
    /// The machine of a node that has joined by itself.
    fn machine(&self, name: &str) -> Option<Machine> {
        let joined = self.joined.as_ref()?;
        Some(Machine {
            name: name.to_owned(),
            flavor: self.flavor.clone(),
            url: joined.url.clone(),
            token: String::new(),
            started_ms: self.joined_ms,
            tag: None,
        })
    }
}

struct Known {
    record: Record,
    /// Its machine, while the provider has it.
    machine: Option<Machine>,
    client: Option<Client>,
    live: Live,
    /// Has its task look at once.
    look: Arc<Notify>,
    task: Option<AbortHandle>,
}

/// What the node says of itself.
#[derive(Default)]
struct Live {
    answered: Option<Instant>,
    seen_ms: Option<u64>,
    misses: u32,
    error: Option<String>,
    node: Option<Node>,
    capsules: Vec<Capsule>,
}

/// All nodes.
pub struct Nodes {
    store: Arc<dyn Store>,
    provider: Arc<dyn Provider>,
    /// Who the nodes are, and how they are spoken to.
    members: Arc<Members>,
    rhythm: Rhythm,
    known: Mutex<BTreeMap<String, Known>>,
    /// Of all capsules, wherever they are.
    usage: Mutex<HashMap<String, History>>,
    /// When capsules were last moved.
    moved: Mutex<HashMap<String, u64>>,
    /// Which operation has a node.
    claims: Mutex<BTreeMap<String, String>>,
    events: broadcast::Sender<Event>,
    /// Told of each answer of a node, and of each that did not come.
    heard: watch::Sender<()>,
    /// What all nodes have cost.
    book: Book,
    started: Instant,
    started_ms: u64,
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// A panic while a lock is held leaves at worst one node's view stale, and the next answer mends it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Nodes {
    /// Reads what is kept, and finds what runs.
    ///
    /// # Errors
    /// When store or provider fail.
    pub async fn start(
        store: Arc<dyn Store>,
        provider: Arc<dyn Provider>,
        members: Arc<Members>,
        rhythm: Rhythm,
    ) -> Result<Arc<Self>> {
        let nodes = Arc::new(Self {
            book: Book::open(store.clone()).await?,
            store,
            provider,
            members,
            rhythm,
            known: Mutex::default(),
            usage: Mutex::default(),
            moved: Mutex::default(),
            claims: Mutex::default(),
            events: broadcast::channel(EVENTS).0,
            heard: watch::Sender::new(()),
            started: Instant::now(),
            started_ms: now_ms(),
        });
        for entry in nodes.store.range(PREFIX).await?.entries {
            let record: Record = serde_json::from_slice(&entry.value)
                .map_err(|error| Error::Corrupt(entry.key.clone(), error.to_string()))?;
            lock(&nodes.known).insert(entry.key[PREFIX.len()..].to_owned(), Known::new(record));
        }
        nodes.reconcile().await?;
        Ok(nodes)
    }

    /// Goes on finding what runs, for ever.
    pub async fn watch_provider(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.rhythm.list).await;
            self.forget_old_usage();
            if let Err(error) = self.reconcile().await {
                tracing::warn!(%error, "the provider's machines are not known");
            }
        }
    }

    /// Takes in machines that are new, and notes those that are gone. Says how many run.
    ///
    /// # Errors
    /// When store or provider fail.
    pub async fn reconcile(self: &Arc<Self>) -> Result<usize> {
        let machines = self.provider.list().await?;
        self.book.update(&machines, &self.provider.flavors()).await?;
        let count = machines.len();
        let running: HashSet<String> = machines.iter().map(|machine| machine.name.clone()).collect();
        for machine in machines {
            let is_new = !lock(&self.known).contains_key(&machine.name);
            if is_new {
                let record =
                    Record { flavor: machine.flavor.clone(), joined_ms: now_ms(), ..Record::default() };
                self.keep(&machine.name, &record).await?;
                lock(&self.known).entry(machine.name.clone()).or_insert_with(|| Known::new(record));
                tracing::info!(node = machine.name, "a node has come");
            }
            self.attach(machine);
        }
        let joined: Vec<Machine> =
            lock(&self.known).iter().filter_map(|(name, known)| known.record.machine(name)).collect();
        joined.into_iter().for_each(|machine| self.attach(machine));
        for (name, known) in lock(&self.known).iter_mut() {
            let runs = running.contains(name) || known.record.joined.is_some();
            if !runs && known.machine.take().is_some() {
                tracing::warn!(node = name, "the machine of a node is gone");
                known.detach();
            }
        }
        Ok(count)
    }

    /// Notes which machines have come and gone.
    pub async fn keep_books(&self) {
        let noted = async {
            let machines = self.provider.list().await?;
            self.book.update(&machines, &self.provider.flavors()).await
        };
        // It is done again before long.
        if let Err(error) = noted.await {
            tracing::warn!(%error, "what nodes cost is not written down yet");
        }
    }

    /// What the nodes have cost since then, or since the first of them was started.
    pub fn bill(&self, since_ms: Option<u64>) -> Bill {
        self.book.bill(since_ms, now_ms())
    }

    /// Since when it is known how the nodes are.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// For how long each node that has a machine has not answered; since this controller's start, if
    /// it never has.
    pub fn silent_for(&self) -> Vec<(String, Duration)> {
        let all = lock(&self.known);
        let with_machine = all.iter().filter(|(_, known)| known.machine.is_some());
        with_machine
            .map(|(name, known)| (name.clone(), known.live.answered.unwrap_or(self.started).elapsed()))
            .collect()
    }

    /// The state of each capsule of all nodes, from what these said last.
    pub fn capsule_states(&self) -> Vec<State> {
        let all = lock(&self.known);
        // While a capsule is handed over, both nodes may have listed it.
        let capsules = all.values().flat_map(|known| &known.live.capsules);
        let states: HashMap<&str, State> = capsules.map(|it| (it.id.as_str(), it.state)).collect();
        states.into_values().collect()
    }

    /// How often what is done.
    pub fn rhythm(&self) -> &Rhythm {
        &self.rhythm
    }

    /// Begins to speak to a machine, unless that is done already.
    fn attach(self: &Arc<Self>, machine: Machine) {
        let mut all = lock(&self.known);
        let Some(known) = all.get_mut(&machine.name) else { return };
        if known.machine.as_ref() == Some(&machine) {
            return;
        }
        known.detach();
        // A machine without TLS is one that does not leave this computer.
        let client = if machine.url.starts_with("https://") {
            self.members.client(&machine.name, &machine.url)
        } else {
            let address = machine.url.parse();
            let client = address.and_then(|address| Client::new(address, Some(&machine.token), false));
            client.map_err(Error::from_node(&machine.name))
        };
        match client {
            Ok(client) => {
                let name = machine.name.clone();
                let task = tokio::spawn(self.clone().attend(name, client.clone(), known.look.clone()));
                known.task = Some(task.abort_handle());
                known.client = Some(client);
            }
            Err(error) => known.live.error = Some(error.to_string()),
        }
        known.machine = Some(machine);
    }

    async fn keep(&self, name: &str, record: &Record) -> Result<()> {
        let write = Write::json(format!("{PREFIX}{name}"), record);
        self.store.commit(Transaction::of(vec![write])).await?;
        Ok(())
    }

    /// Changes what is kept of a node.
    async fn change(&self, name: &str, change: impl FnOnce(&mut Record)) -> Result<ClusterNode> {
        let mut record = {
            let all = lock(&self.known);
            all.get(name).ok_or_else(|| Error::NoSuchNode(name.to_owned()))?.record.clone()
        };
        change(&mut record);
        self.keep(name, &record).await?;
        if let Some(known) = lock(&self.known).get_mut(name) {
            known.record = record;
        }
        self.get(name)
    }

    /// Lets nothing new come to a node, or lets it again.
    ///
    /// # Errors
    /// When there is no such node, or the store fails.
    pub async fn cordon(&self, name: &str, cordoned: bool) -> Result<ClusterNode> {
        self.change(name, |record| record.cordoned = cordoned).await
    }

    /// Gives a node labels, or takes them away where there is no value.
    ///
    /// # Errors
    /// When there is no such node, or the store fails.
    pub async fn label(&self, name: &str, labels: BTreeMap<String, Option<String>>) -> Result<ClusterNode> {
        let change = |record: &mut Record| {
            for (key, value) in labels {
                match value {
                    Some(value) => record.labels.insert(key, value),
                    None => record.labels.remove(&key),
                };
            }
        };
        self.change(name, change).await
    }

    /// Takes in a machine that has a token. Twice the same one is once.
    ///
    /// # Errors
    /// When it may not join, another node has the name, or the store fails: nothing has changed
    /// then.
    pub async fn join(
        self: &Arc<Self>,
        from: IpAddr,
        join: &fcap_api::cluster::Join,
        audit: impl FnOnce(&str, &str) -> Write,
    ) -> Result<fcap_api::cluster::Joined> {
        let admitted = self.members.admit(&*self.store, from, join).await?;
        let (name, key) = (admitted.name.clone(), format!("{PREFIX}{}", admitted.name));
        let there = self.store.get(&key).await?;
        let mut record = match &there {
            None => Record { joined_ms: now_ms(), ..Record::default() },
            Some(entry) => serde_json::from_slice(&entry.value)
                .map_err(|error| Error::Corrupt(entry.key.clone(), error.to_string()))?,
        };
        let joined = Joined { url: admitted.url.clone(), key: admitted.key.to_string() };
        let is_same = record.joined.as_ref().is_some_and(|before| before.key == joined.key);
        if there.is_some() && !is_same {
            return Err(Error::NameTaken(format!(
                "there is a node {name} already, which is another machine: give this one another name, or \
                 `fcap node rm {name}` first"
            )));
        }
        record.joined = Some(joined);
        // Signed first: what cannot be signed has not joined.
        let answer = self.members.sign(&admitted)?;
        let unchanged =
            there.map_or(Compare::Absent(key.clone()), |it| Compare::Modified(key.clone(), it.modified));
        let writes = vec![admitted.then, Write::json(key, &record), audit(&name, &admitted.url)];
        let outcome = self.store.commit(Transaction { when: vec![admitted.when, unchanged], then: writes });
        if !outcome.await?.succeeded {
            return Err(Error::WrongState(format!("another machine joins as node {name}: try again")));
        }
        let machine = record.machine(&name);
        lock(&self.known).entry(name.clone()).or_insert_with(|| Known::new(Record::default())).record =
            record;
        tracing::info!(node = name, "a node has joined");
        machine.into_iter().for_each(|machine| self.attach(machine));
        Ok(answer)
    }

    /// Whether a node has joined by itself: no provider has its machine.
    pub fn has_joined(&self, name: &str) -> bool {
        lock(&self.known).get(name).is_some_and(|known| known.record.joined.is_some())
    }

    /// Knows of a node before its machine is there. Nothing may come to it before that is said.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn expect(&self, name: &str, flavor: &str, labels: BTreeMap<String, String>) -> Result<()> {
        let flavor = Some(flavor.to_owned());
        let record = Record { flavor, labels, cordoned: true, joined_ms: now_ms(), ..Record::default() };
        self.keep(name, &record).await?;
        lock(&self.known).entry(name.to_owned()).or_insert_with(|| Known::new(record));
        Ok(())
    }

    /// Notes that a node is about to be destroyed.
    ///
    /// # Errors
    /// When there is no such node, or the store fails.
    pub async fn stopping(&self, name: &str) -> Result<()> {
        self.change(name, |record| record.stopping = true).await.map(drop)
    }

    /// Forgets a node whose machine is gone.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn forget(&self, name: &str) -> Result<()> {
        let delete = Write::Delete(format!("{PREFIX}{name}"));
        self.store.commit(Transaction::of(vec![delete])).await?;
        if let Some(mut known) = lock(&self.known).remove(name) {
            known.detach();
        }
        Ok(())
    }

    /// A name that no node has, for a new one of an operation: the lowest number that is free.
    pub fn claim_free_name(&self, operation: &str) -> String {
        let (all, mut claims) = (lock(&self.known), lock(&self.claims));
        let mut names = (1..).map(|number| format!("node{number}"));
        let free = names.find(|name| !all.contains_key(name) && !claims.contains_key(name));
        let name = free.expect("there are more numbers than nodes");
        claims.insert(name.clone(), operation.to_owned());
        name
    }

    /// Gives a node to an operation alone.
    ///
    /// # Errors
    /// When another one has it.
    pub fn claim(&self, node: &str, operation: &str) -> Result<()> {
        let mut claims = lock(&self.claims);
        match claims.get(node) {
            Some(other) if other != operation => Err(Error::WrongState(format!(
                "operation {other} has node {node}; wait for its end, or `fcap operation cancel {other}`"
            ))),
            _ => {
                claims.insert(node.to_owned(), operation.to_owned());
                Ok(())
            }
        }
    }

    /// Gives back all nodes that an operation has.
    pub fn release(&self, operation: &str) {
        lock(&self.claims).retain(|_, other| other != operation);
    }

    /// All nodes, by name.
    pub fn list(&self) -> Vec<ClusterNode> {
        let mut nodes: Vec<ClusterNode> = {
            let (all, claims) = (lock(&self.known), lock(&self.claims));
            all.iter().map(|(name, known)| self.show(name, known, &claims)).collect()
        };
        nodes.sort_by_key(|node| (node.name.len(), node.name.clone()));
        nodes
    }

    /// One node.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn get(&self, name: &str) -> Result<ClusterNode> {
        let (all, claims) = (lock(&self.known), lock(&self.claims));
        let known = all.get(name).ok_or_else(|| Error::NoSuchNode(name.to_owned()))?;
        Ok(self.show(name, known, &claims))
    }

    fn show(&self, name: &str, known: &Known, claims: &BTreeMap<String, String>) -> ClusterNode {
        let (state, message) = self.state(known);
        let node = known.live.node.as_ref();
        let flavor = known.record.flavor.clone();
        let price = self.flavor(flavor.as_deref()).map(|flavor| flavor.price_micros);
        let usage = lock(&self.usage);
        let used = known.live.capsules.iter().filter_map(|capsule| usage.get(&capsule.id));
        ClusterNode {
            name: name.to_owned(),
            state,
            message,
            cordoned: known.record.cordoned,
            labels: known.record.labels.clone(),
            price_micros: price,
            flavor,
            url: known.machine.as_ref().map(|machine| machine.url.clone()).unwrap_or_default(),
            provided: known.record.joined.is_none(),
            started_ms: known.machine.as_ref().map_or(known.record.joined_ms, |machine| machine.started_ms),
            seen_ms: known.live.seen_ms,
            hypervisor: node.map(|node| node.hypervisor.clone()),
            cpus: node.map_or(0, |node| node.cpus),
            memory_kib: node.map_or(0, |node| node.memory_kib),
            free_memory_kib: node.map_or(0, |node| node.free_memory_kib),
            capsules: node.map_or(0, |node| node.capsules),
            used: usage::sum(used.map(History::windows)),
            operation: claims.get(name).cloned(),
        }
    }

    /// Whether a node can be relied on, and why not.
    fn state(&self, known: &Known) -> (NodeState, Option<String>) {
        if known.record.stopping {
            return (NodeState::Stopping, Some("it is being destroyed".into()));
        }
        let error = known.live.error.clone();
        if known.machine.is_none() {
            return match known.live.seen_ms {
                // Nobody has seen it since the controller's start: perhaps it is still to come.
                None if now_ms() < known.record.joined_ms + 120_000 => (NodeState::Starting, None),
                _ => (NodeState::Lost, Some("its machine is gone; `fcap node rm` forgets it".into())),
            };
        }
        // A controller that has just started has not had the time to ask.
        let silent = known.live.answered.unwrap_or(self.started).elapsed();
        match (known.live.answered, known.live.misses) {
            (None, misses) if misses < MISSES => (NodeState::Starting, error),
            (Some(_), misses) if misses < MISSES => (NodeState::Ready, None),
            _ if silent < self.rhythm.lost => (NodeState::Suspect, error),
            _ => (NodeState::Lost, error),
        }
    }

    fn flavor(&self, name: Option<&str>) -> Option<Flavor> {
        let name = name?;
        self.provider.flavors().into_iter().find(|flavor| flavor.name == name)
    }

    /// Speaks to a node.
    ///
    /// # Errors
    /// When there is none of this name, or its machine is gone.
    pub fn client(&self, name: &str) -> Result<Client> {
        let all = lock(&self.known);
        let known = all.get(name).ok_or_else(|| Error::NoSuchNode(name.to_owned()))?;
        known.client.clone().ok_or_else(|| Error::NodeUnreachable {
            node: name.to_owned(),
            reason: "its machine is gone".into(),
        })
    }

    /// Those that answer, with their names.
    pub fn ready(&self) -> Vec<(String, Client)> {
        let all = lock(&self.known);
        let answer = all
            .iter()
            .filter(|(_, known)| !matches!(self.state(known).0, NodeState::Lost | NodeState::Suspect));
        answer.filter_map(|(name, known)| Some((name.clone(), known.client.clone()?))).collect()
    }

    /// Whether a node answers.
    pub fn answers(&self, name: &str) -> bool {
        lock(&self.known).get(name).is_some_and(|known| self.state(known).0 == NodeState::Ready)
    }

    /// Asks all nodes that answer; what those said last that do not is `stale`'s to tell.
    pub async fn ask<T, F>(
        &self,
        question: impl Fn(Client) -> F,
        stale: impl Fn(&[Capsule]) -> T,
    ) -> Vec<(String, std::result::Result<T, ClientError>)>
    where
        F: Future<Output = std::result::Result<T, ClientError>>,
    {
        let ready = self.ready();
        let silent: Vec<(String, T)> = {
            let all = lock(&self.known);
            all.iter()
                .filter(|(name, _)| !ready.iter().any(|(other, _)| other == *name))
                .map(|(name, known)| (name.clone(), stale(&known.live.capsules)))
                .collect()
        };
        let patience = self.rhythm.patience;
        let answers = ready.into_iter().map(|(name, client)| {
            let address = client.address().to_string();
            let answer = question(client);
            async move {
                let answer = tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| {
                    Err(ClientError::Unreachable { address, reason: "it took too long".into() })
                });
                (name, answer)
            }
        });
        let mut answers = join_all(answers).await;
        answers.extend(silent.into_iter().map(|(name, value)| (name, Ok(value))));
        answers
    }

    /// Where a capsule was when its node last listed its own.
    pub fn whereabouts(&self, id_or_name: &str) -> Option<String> {
        let all = lock(&self.known);
        let has = |known: &Known| {
            known.live.capsules.iter().any(|capsule| capsule.id == id_or_name || capsule.name == id_or_name)
        };
        all.iter().find(|(_, known)| has(known)).map(|(name, _)| name.clone())
    }

    /// What happens on all nodes, from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Notes that a capsule has moved, and looks at both nodes anew.
    pub fn moved(&self, capsule: &str, nodes: [&str; 2]) {
        lock(&self.moved).insert(capsule.to_owned(), now_ms());
        let all = lock(&self.known);
        nodes.iter().filter_map(|name| all.get(*name)).for_each(|known| known.look.notify_one());
    }

    /// Notes that a capsule was moved, some time ago.
    pub fn has_moved(&self, capsule: &str, time_ms: u64) {
        let mut moved = lock(&self.moved);
        let last = moved.entry(capsule.to_owned()).or_default();
        *last = time_ms.max(*last);
    }

    /// Waits until a node has listed a capsule that it is known to have.
    pub async fn until_listed(&self, node: &str, capsule: &str) {
        let is_listed = |nodes: &Self| {
            let all = lock(&nodes.known);
            all.get(node)?.live.capsules.iter().any(|it| it.id == capsule).then_some(())
        };
        if is_listed(self).is_none() {
            self.look(node);
            // Who asks is told what is known then.
            let _ = tokio::time::timeout(self.rhythm.patience, self.until(is_listed)).await;
        }
    }

    /// Waits until there is such a thing: it is looked for now, and whenever a node was heard of.
    pub async fn until<T>(&self, found: impl Fn(&Self) -> Option<T>) -> T {
        let mut heard = self.heard.subscribe();
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            // It ends with these nodes alone.
            let _ = heard.changed().await;
        }
    }

    /// Looks at a node anew.
    pub fn look(&self, name: &str) {
        if let Some(known) = lock(&self.known).get(name) {
            known.look.notify_one();
        }
    }

    /// The cluster as placement and policies see it, from what nodes said last.
    pub fn view(&self) -> View {
        let (all, usage, moved) = (lock(&self.known), lock(&self.usage), lock(&self.moved));
        let mut view = View {
            time_ms: now_ms(),
            watched_since_ms: self.started_ms,
            utc_offset_minutes: jiff::Zoned::now().offset().seconds() / 60,
            flavors: self.provider.flavors(),
            ..View::default()
        };
        for (name, known) in all.iter() {
            let mut held_kib = 0;
            let mut used = Vec::new();
            for capsule in known.live.capsules.iter().filter(|capsule| counts(capsule)) {
                let windows = usage.get(&capsule.id).map(History::windows).unwrap_or_default();
                if capsule.domid.is_some() {
                    held_kib += capsule.memory_kib;
                }
                used.push(windows);
                view.capsules.push(CapsuleView {
                    id: capsule.id.clone(),
                    name: capsule.name.clone(),
                    node: name.clone(),
                    state: capsule.state,
                    affinity: affinity(&capsule.labels).unwrap_or_default(),
                    labels: capsule.labels.clone(),
                    memory_kib: capsule.memory_kib,
                    // Nodes of an earlier version do not say.
                    max_memory_kib: capsule.max_memory_kib.max(capsule.memory_kib),
                    vcpus: capsule.vcpus,
                    cpu_cap: capsule.cpu_cap,
                    weight: capsule.weight,
                    used: windows,
                    moved_ms: moved.get(&capsule.id).copied(),
                });
            }
            let node = known.live.node.as_ref();
            let free = node.map_or(0, |node| node.free_memory_kib);
            let flavor = self.flavor(known.record.flavor.as_deref());
            view.nodes.push(NodeView {
                name: name.clone(),
                flavor: known.record.flavor.clone(),
                state: self.state(known).0,
                cordoned: known.record.cordoned,
                labels: known.record.labels.clone(),
                price_micros: flavor.as_ref().map(|flavor| flavor.price_micros),
                started_ms: known
                    .machine
                    .as_ref()
                    .map_or(known.record.joined_ms, |machine| machine.started_ms),
                capacity: Capacity {
                    cpu_milli: node.map_or(0, |node| u64::from(node.cpus) * 1000),
                    memory_kib: free + held_kib,
                },
                free_memory_kib: free,
                used: usage::sum(used.into_iter()),
            });
        }
        // While a capsule is handed over, both nodes may have listed it.
        let mut seen: HashSet<String> = HashSet::new();
        view.capsules.retain(|capsule| seen.insert(capsule.id.clone()));
        view
    }

    /// Asks a node how it is, again and again.
    async fn attend(self: Arc<Self>, name: String, client: Client, look: Arc<Notify>) {
        let listener = tokio::spawn(self.clone().listen(client.clone(), look.clone()));
        let _listener = AbortOnDrop(listener.abort_handle());
        let mut listed: Option<Instant> = None;
        let mut changed = true;
        // Of its certificate.
        let mut renewal = SystemTime::now();
        loop {
            let due = changed || listed.is_none_or(|at| at.elapsed() >= self.rhythm.sample);
            let asked = tokio::time::timeout(self.rhythm.patience, question(&client, due)).await;
            let answer = asked.unwrap_or_else(|_| {
                let (address, reason) = (client.address().to_string(), "it took too long".to_owned());
                Err(ClientError::Unreachable { address, reason })
            });
            if due && answer.is_ok() {
                listed = Some(Instant::now());
            }
            let has_answered = answer.is_ok();
            self.heard(&name, answer);
            if has_answered && renewal <= SystemTime::now() && is_secured(&client) {
                renewal = self.members.renew(&name, &client).await.unwrap_or_else(|error| {
                    tracing::warn!(node = name, %error, "the certificate of a node cannot be renewed");
                    SystemTime::now() + self.rhythm.sample
                });
            }
            changed = tokio::time::timeout(self.rhythm.ask, look.notified()).await.is_ok();
        }
    }

    /// Listens to what happens on a node, and has it looked at.
    async fn listen(self: Arc<Self>, client: Client, look: Arc<Notify>) {
        // Where the connection broke off: what has happened since is not lost.
        let mut since = None;
        loop {
            if let Ok(mut events) = client.events(since, true).await {
                look.notify_one();
                while let Ok(Some(event)) = events.next().await {
                    look.notify_one();
                    since = Some(event.time_ms + 1);
                    // Perhaps nobody listens.
                    let _ = self.events.send(event);
                }
            }
            tokio::time::sleep(self.rhythm.ask).await;
        }
    }

    fn heard(&self, name: &str, answer: std::result::Result<Answer, ClientError>) {
        let mut all = lock(&self.known);
        let Some(known) = all.get_mut(name) else { return };
        match answer {
            Err(error) => {
                known.live.misses += 1;
                known.live.error = Some(error.to_string());
                if known.live.misses == MISSES {
                    tracing::warn!(node = name, %error, "a node does not answer");
                }
            }
            Ok(answer) => {
                if known.live.misses >= MISSES || known.live.answered.is_none() {
                    tracing::info!(node = name, "a node answers");
                }
                known.live.misses = 0;
                known.live.error = None;
                known.live.answered = Some(Instant::now());
                known.live.seen_ms = Some(now_ms());
                known.live.node = Some(answer.node);
                if let Some((capsules, stats)) = answer.lists {
                    known.live.capsules = capsules;
                    self.sampled(&stats);
                }
            }
        }
        drop(all);
        self.heard.send_replace(());
    }

    fn sampled(&self, stats: &[Stats]) {
        let now = self.uptime_ms();
        let mut usage = lock(&self.usage);
        for stats in stats {
            usage.entry(stats.id.clone()).or_default().add(now, stats);
        }
    }

    /// Forgets what capsules used that are long gone. There are too many to look at all of them
    /// with every node's answer.
    fn forget_old_usage(&self) {
        let now = self.uptime_ms();
        lock(&self.usage).retain(|_, history| history.last_ms() + 3_600_000 > now);
    }

    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Known {
    fn new(record: Record) -> Self {
        Self { record, machine: None, client: None, live: Live::default(), look: Arc::default(), task: None }
    }

    fn detach(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.client = None;
        self.live.answered = None;
        self.live.misses = 0;
    }
}

/// Whether a node is known by its certificate.
fn is_secured(client: &Client) -> bool {
    client.address().to_string().starts_with("https://")
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether a node would take it with it.
fn counts(capsule: &Capsule) -> bool {
    capsule.domid.is_some() || capsule.state != State::Exited
}

struct Answer {
    node: Node,
    lists: Option<(Vec<Capsule>, Vec<Stats>)>,
}

async fn question(client: &Client, lists: bool) -> std::result::Result<Answer, ClientError> {
    let node = client.node().await?;
    let lists = if lists { Some((client.capsules(true).await?, client.stats().await?)) } else { None };
    Ok(Answer { node, lists })
}
