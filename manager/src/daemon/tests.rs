//! The daemon is killed at every step of what it does, and must come back in order.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fcap_api::{
    CreateCapsule, DEFAULT_NETWORK, EndReason, Protocol, PublishPort, RestartPolicy, State, UpdateCapsule,
};
use fcap_migrate::domain::{Description, DomainResult};
use futures_util::{FutureExt, stream};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::*;
use crate::log::Item;
use crate::net::sim::Sim;
use crate::net::{self, Attachment, Counters, Network, Overlay, Publish, Remote, Wanted};
use crate::toolstack::sim::World;
use crate::toolstack::{
    Arrival, Domain, DomainSpec, Epitaph, Host, Image, Incoming, Outgoing, Result as ToolstackResult,
    Tracking, Uuid,
};

/// A step at which the daemon can be stopped: once its time has come, neither it nor any
/// later one is done.
#[derive(Clone)]
pub(crate) struct Failpoint(Arc<AtomicI64>);

impl Default for Failpoint {
    fn default() -> Self {
        Self::after(i64::MAX)
    }
}

impl Failpoint {
    fn after(steps: i64) -> Self {
        Self(Arc::new(AtomicI64::new(steps)))
    }

    /// Panics, which ends the task that wants to do the step, when the steps are used up.
    pub(crate) fn hit(&self) {
        assert!(self.0.fetch_sub(1, Ordering::Relaxed) > 0, "killed here");
    }

    fn was_reached(&self) -> bool {
        self.0.load(Ordering::Relaxed) < 0
    }
}

/// A toolstack whose calls are steps.
struct Fragile<T> {
    inner: T,
    failpoint: Failpoint,
    shared: Arc<Shared>,
}

/// Values of [`Shared::kill_in_read`]: the next time that output has been kept, the daemon is
/// killed before it is taken.
const NEXT_TIME: u8 = 1;
/// That has happened.
const KILLED: u8 = 2;

/// What outlives the daemon.
#[derive(Default)]
struct Shared {
    half_built: Mutex<BTreeSet<Uuid>>,
    kill_in_read: AtomicU8,
}

impl<T> Fragile<T> {
    fn wrap<U>(&self, inner: U) -> Fragile<U> {
        Fragile { inner, failpoint: self.failpoint.clone(), shared: self.shared.clone() }
    }
}

impl<T: Toolstack> Toolstack for Fragile<T> {
    fn host(&self) -> ToolstackResult<Host> {
        self.inner.host()
    }
    fn parse_image(&self, bytes: Bytes) -> ToolstackResult<Arc<dyn Image>> {
        self.inner.parse_image(bytes)
    }
    fn create(&self, spec: &DomainSpec) -> ToolstackResult<Arc<dyn Domain>> {
        self.failpoint.hit();
        let domain = self.inner.create(spec)?;
        self.shared.half_built.lock().unwrap().insert(spec.uuid);
        self.failpoint.hit();
        self.shared.half_built.lock().unwrap().remove(&spec.uuid);
        Ok(Arc::new(self.wrap(domain)))
    }
    fn domains(&self) -> ToolstackResult<Vec<DomainInfo>> {
        self.inner.domains()
    }
    fn adopt(&self, domid: u32) -> ToolstackResult<Arc<dyn Domain>> {
        let info = self.inner.domains()?.into_iter().find(|info| info.domid == domid);
        if info.is_some_and(|info| self.shared.half_built.lock().unwrap().contains(&info.uuid)) {
            return Err(toolstack::Error::BadSetting("half built".into()));
        }
        Ok(Arc::new(self.wrap(self.inner.adopt(domid)?)))
    }
    fn activate(&self, domid: u32) -> ToolstackResult<()> {
        self.failpoint.hit();
        self.inner.activate(domid)
    }
    fn destroy(&self, domid: u32) -> ToolstackResult<()> {
        self.failpoint.hit();
        self.shared.half_built.lock().unwrap().clear();
        self.inner.destroy(domid)
    }
    fn incoming(&self, arrival: Arrival, description: &Description) -> DomainResult<Box<dyn Incoming>> {
        self.inner.incoming(arrival, description)
    }
    fn set_pool(&self, size: u32) -> ToolstackResult<()> {
        self.inner.set_pool(size)
    }
    fn pool_ready(&self) -> u32 {
        self.inner.pool_ready()
    }
    fn release_ready(&self) -> bool {
        self.inner.release_ready()
    }
}

impl Domain for Fragile<Arc<dyn Domain>> {
    fn domid(&self) -> u32 {
        self.inner.domid()
    }
    fn build_steps(&self) -> Vec<(&'static str, u64)> {
        self.inner.build_steps()
    }
    fn unpause(&self) -> ToolstackResult<()> {
        self.failpoint.hit();
        self.inner.unpause()
    }
    fn pause(&self) -> ToolstackResult<()> {
        self.failpoint.hit();
        self.inner.pause()
    }
    fn request_stop(&self) -> ToolstackResult<()> {
        self.failpoint.hit();
        self.inner.request_stop()
    }
    fn set_scheduling(&self, cpu_cap: u16, weight: u16) -> ToolstackResult<()> {
        self.failpoint.hit();
        self.inner.set_scheduling(cpu_cap, weight)
    }
    fn resize(&self, memory_kib: u64) -> ToolstackResult<u64> {
        self.failpoint.hit();
        self.inner.resize(memory_kib)
    }
    fn rename(&self, name: &str) -> ToolstackResult<()> {
        self.failpoint.hit();
        self.inner.rename(name)
    }
    fn outgoing(&self, tracking: Tracking) -> DomainResult<Box<dyn Outgoing>> {
        self.inner.outgoing(tracking)
    }
    fn resume(&self) -> ToolstackResult<()> {
        self.inner.resume()
    }
    fn destroy(&self) -> ToolstackResult<()> {
        self.failpoint.hit();
        self.inner.destroy()
    }
    fn read_output(&self, max: usize, keep: &mut dyn FnMut(&[u8]) -> bool) -> ToolstackResult<usize> {
        let kill = &self.shared.kill_in_read;
        if kill.load(Ordering::Relaxed) == KILLED {
            return Ok(0);
        }
        self.inner.read_output(max, &mut |bytes| {
            keep(bytes)
                && kill.compare_exchange(NEXT_TIME, KILLED, Ordering::Relaxed, Ordering::Relaxed).is_err()
        })
    }
    fn output_position(&self) -> ToolstackResult<u32> {
        self.inner.output_position()
    }
    fn write_input(&self, bytes: &[u8]) -> ToolstackResult<usize> {
        self.inner.write_input(bytes)
    }
    fn close_input(&self) -> ToolstackResult<()> {
        self.inner.close_input()
    }
    fn epitaph(&self) -> Option<Epitaph> {
        self.inner.epitaph()
    }
}

/// A network whose changes are steps.
struct FragileFabric {
    inner: Arc<Sim>,
    failpoint: Failpoint,
}

impl Fabric for FragileFabric {
    fn ensure(&self, network: &Network) -> net::Result<()> {
        self.inner.ensure(network)
    }
    fn remove(&self, network: &str) -> net::Result<()> {
        self.inner.remove(network)
    }
    fn attach(&self, attachment: &Attachment) -> net::Result<()> {
        self.failpoint.hit();
        self.inner.attach(attachment)
    }
    fn place(&self, capsule: Uuid, domid: u32) -> net::Result<()> {
        self.failpoint.hit();
        self.inner.place(capsule, domid)
    }
    fn detach(&self, capsule: Uuid) -> net::Result<()> {
        self.failpoint.hit();
        self.inner.detach(capsule)
    }
    fn publish(&self, publish: &Publish) -> net::Result<()> {
        self.failpoint.hit();
        self.inner.publish(publish)
    }
    fn unpublish(&self, publish: &Publish) -> net::Result<()> {
        self.failpoint.hit();
        self.inner.unpublish(publish)
    }
    fn connection(&self, capsule: Uuid, handle: u32) -> Option<watch::Receiver<bool>> {
        self.inner.connection(capsule, handle)
    }
    fn counters(&self, capsule: Uuid, handle: u32) -> net::Result<Option<Counters>> {
        self.inner.counters(capsule, handle)
    }
    fn set_overlay(&self, overlay: &Overlay) -> net::Result<u16> {
        self.inner.set_overlay(overlay)
    }
    fn set_remotes(&self, remotes: &[Remote]) -> net::Result<()> {
        self.inner.set_remotes(remotes)
    }
    fn announce(&self, capsule: Uuid) -> net::Result<()> {
        self.inner.announce(capsule)
    }
    fn retain(&self, wanted: &Wanted) -> net::Result<()> {
        self.inner.retain(wanted)
    }
}

/// A machine whose daemon can be killed and started again.
struct Machine {
    world: Arc<World>,
    fabric: Arc<Sim>,
    directory: tempfile::TempDir,
    shared: Arc<Shared>,
}

impl Machine {
    fn new() -> Self {
        Self {
            world: World::new(2, 1 << 20),
            fabric: Arc::default(),
            directory: tempfile::tempdir().unwrap(),
            shared: Arc::default(),
        }
    }

    /// Runs a daemon until `script` is done or has failed, then kills it.
    fn run<T>(&self, failpoint: &Failpoint, script: impl AsyncFnOnce(Arc<Daemon>) -> T) -> Option<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let alive = Arc::new(Mutex::new(true));
        let work = async {
            let signals = Arc::<Signals>::default();
            let (sink, alive) = (signals.sink(), alive.clone());
            let toolstack = Fragile {
                inner: self.world.toolstack(Arc::new(move |event| {
                    let alive = alive.lock().unwrap();
                    if *alive {
                        sink(event);
                    }
                })),
                failpoint: failpoint.clone(),
                shared: self.shared.clone(),
            };
            let mut store = Store::open(self.directory.path()).unwrap();
            store.failpoint = failpoint.clone();
            let identity = Identity::load(&store, None, false).unwrap();
            let options = Options { log_bytes: 1 << 20, image_bytes: 1 << 20, pool: 0 };
            let fabric = FragileFabric { inner: self.fabric.clone(), failpoint: failpoint.clone() };
            let daemon =
                Daemon::start(Arc::new(toolstack), Arc::new(fabric), signals, store, identity, options);
            let daemon = daemon.await.unwrap();
            script(daemon).await
        };
        let result = runtime.block_on(AssertUnwindSafe(work).catch_unwind());
        // What the world is telling it just now comes to its end, and nothing comes any more: a
        // process that is killed does nothing beside its successor.
        *alive.lock().unwrap() = false;
        self.world.toolstack(Arc::new(|_| {}));
        result.ok()
    }

    fn run_on<T>(&self, script: impl AsyncFnOnce(Arc<Daemon>) -> T) -> T {
        self.run(&Failpoint::default(), script).expect("nothing is in its way")
    }

    fn capsule_files(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("capsules")).unwrap().count()
    }
}

async fn put_image(daemon: &Daemon, program: &str) -> String {
    let digest = Sha256::digest(program).iter().fold("sha256:".to_owned(), |s, b| format!("{s}{b:02x}"));
    let body = stream::iter([Ok::<_, std::io::Error>(Bytes::from(program.to_owned()))]);
    daemon.images.put(&digest, None, body, |_| false).await.unwrap();
    digest
}

fn request(image: &str, name: &str) -> CreateCapsule {
    CreateCapsule { name: Some(name.into()), image: image.into(), ..CreateCapsule::default() }
}

/// What a script knows of its capsule: names that it may have now, none for "does not exist".
type Known = Arc<Mutex<Vec<Option<&'static str>>>>;

/// A whole life; before each step `known` says what may be true from now on, after it what is.
async fn life(daemon: Arc<Daemon>, known: Known, policy: RestartPolicy) -> Result<()> {
    let know = |names: &[Option<&'static str>]| *known.lock().unwrap() = names.to_vec();
    let image = put_image(&daemon, "SIM:tick 1").await;
    know(&[None, Some("first")]);
    let ports =
        [Some(8080), None].map(|host_port| PublishPort { host_port, port: 80, protocol: Protocol::Tcp });
    let networks = Some(vec![DEFAULT_NETWORK.into()]);
    let request =
        CreateCapsule { restart: policy, networks, ports: ports.into(), ..request(&image, "first") };
    let (capsule, _) = daemon.clone().create(request).await?;
    know(&[Some("first")]);
    capsule.ask(Command::Pause).await?;
    capsule.ask(Command::Unpause).await?;
    know(&[Some("first"), Some("second")]);
    let update = UpdateCapsule { name: Some("second".into()), weight: Some(7), ..UpdateCapsule::default() };
    capsule.ask(|reply| Command::Update(update, reply)).await?;
    know(&[Some("second")]);
    capsule.ask(|reply| Command::Stop(5, reply)).await?;
    capsule.ask(Command::Start).await?;
    capsule.ask(Command::Kill).await?;
    capsule.ask(Command::Start).await?;
    capsule.ask(Command::Pause).await?;
    know(&[Some("second"), None]);
    capsule.ask(|reply| Command::Remove(true, reply)).await?;
    know(&[None]);
    Ok(())
}

/// The world and the daemon agree, and everything can be brought to an end.
async fn check(daemon: Arc<Daemon>, known: &Known, fabric: &Sim) {
    let capsules = daemon.list();
    let names: Vec<_> = capsules.iter().map(|capsule| capsule.name()).collect();
    let allowed = known.lock().unwrap().clone();
    assert!(allowed.iter().any(|name| name.iter().eq(names.iter())), "{names:?} of {allowed:?}");
    let until = Instant::now() + Duration::from_secs(20);
    for capsule in &capsules {
        // What is under way (a restart, a stop) comes to rest.
        while matches!(capsule.look(|record| record.state), State::Restarting | State::Stopping) {
            assert!(Instant::now() < until, "it does not come to rest");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        capsule.ask(|reply| Command::Update(UpdateCapsule::default(), reply)).await.unwrap();
        let running = capsule.look(|record| record.run.is_some());
        let domains = daemon.domains().unwrap();
        assert_eq!(domains.contains_key(&capsule.id.0), running);
        if let Some(info) = domains.get(&capsule.id.0) {
            let paused = capsule.look(|record| record.state) == State::Paused;
            assert_eq!(info.paused, paused);
        }
    }
    assert!(daemon.toolstack.domains().unwrap().len() <= capsules.len());
    let running = daemon.toolstack.domains().unwrap();
    let (placed, published) = fabric.with(|state| (state.placed.clone(), state.published.len()));
    let expected = running.iter().map(|info| (info.uuid, info.domid)).collect();
    assert_eq!((placed, published), (expected, 2 * running.len()));
    for capsule in capsules {
        capsule.ask(|reply| Command::Remove(true, reply)).await.unwrap();
    }
    assert_eq!(daemon.toolstack.domains().unwrap(), []);
    fabric.with(|state| {
        assert!(state.attachments.is_empty() && state.published.is_empty(), "{state:?}");
    });
    assert_eq!(daemon.networks.get(DEFAULT_NETWORK).unwrap().capsules, 0);
}

#[test]
fn killed_at_any_step_it_comes_back_in_order() {
    for policy in [RestartPolicy::No, RestartPolicy::Always] {
        let mut steps = 0;
        loop {
            let machine = Machine::new();
            let known = Known::new(Mutex::new(vec![None]));
            let failpoint = Failpoint::after(steps);
            let done = machine.run(&failpoint, async |daemon| life(daemon, known.clone(), policy).await);
            // A second kill, while it comes back.
            machine.run(&Failpoint::after(steps % 3), async |_| tokio::task::yield_now().await);
            machine.run_on(async |daemon| check(daemon, &known, &machine.fabric).await);
            assert_eq!(machine.capsule_files(), 0, "after {steps} steps");
            assert_eq!(machine.world.domids(), [0; 0]);
            if !failpoint.was_reached() {
                assert!(matches!(done, Some(Ok(()))), "{done:?}");
                break;
            }
            steps += 1;
        }
        assert!(steps > 30, "only {steps} steps");
    }
}

/// All that a log holds.
fn text(capsule: &Capsule) -> String {
    let mut cursor = capsule.log.cursor(0, false);
    let mut out = Vec::new();
    loop {
        let items = cursor.read().unwrap();
        if items.is_empty() {
            return String::from_utf8(out).unwrap();
        }
        for item in items {
            match item {
                Item::Output { bytes, .. } => out.extend(bytes),
                Item::Lost(count) => panic!("{count} bytes are lost"),
            }
        }
    }
}

async fn wait_for_lines(capsule: &Capsule, count: usize) {
    let mut cursor = capsule.log.cursor(0, false);
    loop {
        // Before looking, so that nothing that comes afterwards is overlooked.
        cursor.read().unwrap();
        if text(capsule).lines().count() >= count {
            return;
        }
        cursor.wait().await;
    }
}

#[test]
fn a_running_capsule_does_not_notice_and_no_output_is_lost_or_doubled() {
    let machine = Machine::new();
    machine.run_on(async |daemon| {
        let image = put_image(&daemon, "SIM:tick 1").await;
        daemon.create(request(&image, "clock")).await.unwrap();
    });
    for round in 0..10 {
        machine.run_on(async |daemon| {
            let clock = daemon.find("clock").unwrap();
            assert_eq!(clock.look(|record| (record.state, record.progress.run)), (State::Running, 1));
            let seen = text(&clock).lines().count();
            wait_for_lines(&clock, seen + 5).await;
            // Every other time it is killed between keeping and taking.
            if round % 2 == 1 {
                machine.shared.kill_in_read.store(NEXT_TIME, Ordering::Relaxed);
                while machine.shared.kill_in_read.load(Ordering::Relaxed) != KILLED {
                    tokio::task::yield_now().await;
                }
            }
        });
        machine.shared.kill_in_read.store(0, Ordering::Relaxed);
    }
    machine.run_on(async |daemon| {
        let clock = daemon.find("clock").unwrap();
        let text = text(&clock);
        let expected: String = (1..=text.lines().count()).map(|n| format!("tick {n}\n")).collect();
        assert_eq!(text, expected);
    });
}

#[test]
fn what_ended_meanwhile_is_recorded_and_what_vanished_is_lost() {
    let machine = Machine::new();
    machine.run_on(async |daemon| {
        let image = put_image(&daemon, "SIM:sleep 30").await;
        for (name, restart) in [("ends", RestartPolicy::No), ("again", RestartPolicy::Always)] {
            let request = CreateCapsule { restart, ..request(&image, name) };
            daemon.clone().create(request).await.unwrap();
        }
        let image = put_image(&daemon, "SIM:spin").await;
        let (capsule, _) = daemon.create(request(&image, "vanishes")).await.unwrap();
        let domid = capsule.look(|record| record.run.as_ref().unwrap().domid);
        machine.world.toolstack(Arc::new(|_| {}));
        machine.world.destroy(domid);
    });
    std::thread::sleep(Duration::from_millis(60));
    machine.run_on(async |daemon| {
        let end = async |name| {
            let end = daemon.find(name).unwrap().wait().await.unwrap();
            (end.exit_code, end.reason)
        };
        assert_eq!(end("ends").await, (0, EndReason::Exited));
        assert_eq!(end("vanishes").await, (137, EndReason::Lost));
        let again = daemon.find("again").unwrap();
        assert!(again.look(|record| record.run.is_some() || record.state == State::Restarting));
    });
}

#[test]
fn a_start_waits_for_a_capsule_that_connects_and_for_no_other() {
    let machine = Machine::new();
    machine.fabric.with(|state| state.slow = true);
    machine.run_on(async |daemon| {
        let serve = put_image(&daemon, "SIM:serve").await;
        for ends in [false, true] {
            let name = if ends { "ends" } else { "connects" };
            let (capsule, _) = daemon.clone().create(request(&serve, name)).await.unwrap();
            let config = capsule.look(|record| record.config.clone());
            let mut connected = std::pin::pin!(daemon.networks.connected(&config));
            assert!(connected.as_mut().now_or_never().is_none());
            match ends {
                true => capsule.ask(Command::Kill).await.unwrap(),
                false => machine.fabric.connect(capsule.id.0),
            }
            connected.await;
        }
        // One that does not use its network is not waited for.
        let spin = put_image(&daemon, "SIM:spin").await;
        let networks = Some(vec![DEFAULT_NETWORK.into()]);
        let (capsule, _) =
            daemon.clone().create(CreateCapsule { networks, ..request(&spin, "spins") }).await.unwrap();
        assert!(daemon.until_reachable(&capsule).now_or_never().is_some());
    });
}

#[test]
fn domains_of_others_are_left_alone() {
    let machine = Machine::new();
    let foreign = |toolstack: &dyn Toolstack| {
        let image = toolstack.parse_image(Bytes::from_static(b"SIM:spin")).unwrap();
        let spec = DomainSpec {
            uuid: [9; 16],
            name: "theirs".into(),
            image,
            module: None,
            command_line: String::new(),
            memory_kib: 4096,
            max_memory_kib: 4096,
            vcpus: 1,
            cpu_cap: 0,
            weight: 256,
            stdin: false,
            vifs: Vec::new(),
        };
        toolstack.create(&spec).unwrap().domid()
    };
    let domid = machine.run_on(async |daemon| foreign(&*daemon.toolstack));
    machine.run_on(async |daemon| {
        assert!(daemon.list().is_empty());
        assert_eq!(machine.world.domids(), [domid]);
    });
}
