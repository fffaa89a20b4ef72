//! The one task that changes a capsule's state.
//!
//! Nothing that it does is lost when the daemon is killed in the midst of it: see
//! [`crate::store`] for the order of writes, and [`crate::daemon`] for what a new daemon makes
//! of what it finds.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use fcap_api::{Action, End, EndReason, ImageKind, State, Step, UpdateCapsule};
use fcap_migrate::Cancel;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use xen_proto::boot;

use super::config::{Config, check_weight, mib};
use super::console::Console;
use super::end::{self, judge, without_epitaph};
use super::{Capsule, Command, Phase, Reply, Run, Wish, check};
use crate::clock::{now_ms, now_ns};
use crate::daemon::{Daemon, blocking};
use crate::error::{Error, Result};
use crate::id::CapsuleId;
use crate::migration::leave::{Leaving, Outcome};
use crate::store::{Progress, SavedEnd};
use crate::toolstack::{Domain, DomainInfo, DomainSpec, Error as ToolstackError, Shutdown, Vif};

/// How long a capsule whose stop was asked for by a daemon that was killed has from then on.
const RESUMED_STOP: Duration = Duration::from_secs(10);

/// Capsules of up to so much memory are built right here: that takes so little that handing it
/// to another thread would cost a part of it, and on a node with one processor nothing else
/// could be done meanwhile anyway.
const QUICK_KIB: u64 = 64 << 10;

/// With what a driver begins.
pub enum Begin {
    /// There is nothing to do.
    Idle,
    /// It runs already, in this domain.
    Running(Arc<dyn Domain>, DomainInfo),
    /// It was handed over to another node, which is still to be asked what became of it.
    Leaving(Arc<dyn Domain>, oneshot::Sender<Leaving>),
    /// It has ended, and what follows from that is still to be done.
    Ended,
}

/// The one that changes a capsule's state.
pub struct Driver {
    daemon: Arc<Daemon>,
    capsule: Arc<Capsule>,
    domain: Option<Arc<dyn Domain>>,
    /// When the present run began.
    started: Instant,
    due: Option<(Instant, Due)>,
    /// Those who wait for the end that they asked for.
    stopping: Vec<Reply>,
    /// Its domain is given away for a move.
    moving: Option<Moving>,
    gone: bool,
}

/// A move of which the end is awaited.
struct Moving {
    cancel: Cancel,
    /// What is to be done with the capsule if it stays.
    afterwards: Vec<Command>,
}

#[derive(Clone, Copy)]
enum Due {
    /// It was asked to stop and has not.
    Kill,
    /// Its policy restarts it.
    Restart,
}

impl Driver {
    /// Takes up `capsule` as it was found; its state is right once this is done.
    pub async fn new(daemon: Arc<Daemon>, capsule: Arc<Capsule>, begin: Begin) -> Self {
        let mut driver = Self {
            daemon,
            capsule,
            domain: None,
            started: Instant::now(),
            due: None,
            stopping: Vec::new(),
            moving: None,
            gone: false,
        };
        match begin {
            Begin::Idle => {}
            Begin::Running(domain, info) => driver.resume(domain, info).await,
            Begin::Leaving(domain, leaving) => driver.resume_leaving(domain, leaving),
            Begin::Ended => driver.after_end(),
        }
        driver
    }

    /// Drives the capsule until it is removed.
    pub async fn drive(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        while !self.gone {
            let due = self.due;
            let at = due.map_or_else(Instant::now, |(at, _)| at);
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.handle(command).await,
                    None => return,
                },
                () = tokio::time::sleep_until(at), if due.is_some() => {
                    self.due = None;
                    self.on_due(due.map(|(_, what)| what)).await;
                }
            }
        }
        // Requests that came too late get no answer, which says that the capsule is gone.
    }

    async fn handle(&mut self, command: Command) {
        let command = match &mut self.moving {
            None => command,
            Some(moving) => match command {
                Command::Left(_) => command,
                // Looked at again when the move is over.
                Command::Look(_) | Command::Vanished(_) => return,
                Command::Stop(..) | Command::Kill(_) | Command::Remove(true, _) => {
                    moving.cancel.cancel();
                    return moving.afterwards.push(command);
                }
                _ => {
                    let name = self.capsule.name();
                    return command.refuse(Error::WrongState(format!("capsule {name} is moving")));
                }
            },
        };
        match command {
            Command::Start(reply) => {
                let result = self.start(false).await;
                let _ = reply.send(result);
            }
            Command::Stop(seconds, reply) => match self.stop(seconds).await {
                Ok(true) => self.stopping.push(reply),
                Ok(false) => drop(reply.send(Ok(()))),
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Kill(reply) => {
                let result = self.kill().await;
                let _ = reply.send(result);
            }
            Command::Pause(reply) => drop(reply.send(self.pause())),
            Command::Unpause(reply) => drop(reply.send(self.unpause())),
            Command::Update(update, reply) => {
                let result = self.update(update).await;
                let _ = reply.send(result);
            }
            Command::Remove(force, reply) => {
                let result = self.remove(force).await;
                let _ = reply.send(result);
            }
            Command::Leave(cancel, reply) => {
                let leaving = self.leave(cancel);
                if let Err(Ok(_)) = reply.send(leaving) {
                    self.left(Outcome::Kept);
                }
            }
            Command::Left(outcome) => self.left(outcome),
            Command::Look(info) => self.look(&info).await,
            Command::Vanished(domid) => {
                if self.domain.as_ref().is_some_and(|domain| domain.domid() == domid) {
                    self.ended(|_, asked| judge(None, None, asked, now_ms())).await;
                }
            }
        }
    }

    async fn on_due(&mut self, due: Option<Due>) {
        match due {
            Some(Due::Kill) => {
                let _ = self.kill().await;
            }
            Some(Due::Restart) => {
                if let Err(error) = self.start(true).await {
                    self.restart_failed(&error);
                }
            }
            None => {}
        }
    }

    fn state(&self) -> State {
        self.capsule.look(|record| record.state)
    }

    fn check(&self, wish: Wish) -> Result<()> {
        self.capsule.look(|record| check(&record.config.name, record.state, wish))
    }

    fn event(&self, action: Action, end: Option<End>) {
        self.daemon.event(&self.capsule, action, end);
    }

    /// Changes what is wanted, on disk first.
    fn save(&self, change: impl FnOnce(&mut Progress)) -> Result<()> {
        let mut saved = self.capsule.look(|record| record.saved());
        change(&mut saved.progress);
        self.daemon.store.save(&saved)?;
        self.capsule.change(|record| record.progress = saved.progress);
        Ok(())
    }

    async fn start(&mut self, by_policy: bool) -> Result<()> {
        self.check(Wish::Start)?;
        let mut steps = Steps::new();
        let before = self.capsule.look(|record| record.progress.clone());
        let published = self.publish();
        let kept = self.save(|progress| {
            progress.run += 1;
            progress.started_ms = Some(now_ms());
            (progress.stopped, progress.paused) = (false, false);
            if by_policy {
                (progress.restarts, progress.streak) = (progress.restarts + 1, progress.streak + 1);
            } else {
                progress.streak = 0;
            }
        });
        if let Err(error) = kept {
            self.daemon.networks.unpublish(self.capsule.id);
            return Err(error);
        }
        steps.took("record");
        let config = self.capsule.look(|record| record.config.clone());
        let built = match published {
            Ok(()) => self.build(&config, &mut steps).await,
            Err(error) => Err(error),
        };
        let result = match built {
            Ok(domain) => self.launch(domain, &config, steps, by_policy).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.daemon.networks.unpublish(self.capsule.id);
            self.daemon.networks.detach(&config);
        }
        match result {
            Ok(()) => self.due = None,
            // For one that the policy starts, the attempt counts.
            Err(_) if by_policy => {}
            Err(_) => {
                if let Err(error) = self.save(|progress| *progress = before) {
                    tracing::warn!(capsule = %self.capsule.id, %error, "the spec still says that it was started");
                }
            }
        }
        result
    }

    /// Lets the node's ports lead to it. What the node chooses is kept with what is kept next.
    fn publish(&self) -> Result<()> {
        let config = self.capsule.look(|record| record.config.clone());
        let owner = |id: CapsuleId| self.daemon.find(&id.to_string()).ok().map(|owner| owner.name());
        let ports = self.daemon.networks.publish(&config, owner)?;
        self.capsule.change(|record| record.config.ports = ports);
        Ok(())
    }

    async fn build(&self, config: &Config, steps: &mut Steps) -> Result<Arc<dyn Domain>> {
        let image = self.daemon.images.open(&config.image).await?;
        let interfaces = self.daemon.networks.boot_records(&config.networks)?;
        let (module, command_line) = match config.kind {
            ImageKind::Capsule => {
                let mut seed = [0; 32];
                getrandom::fill(&mut seed).expect("the kernel gives randomness");
                (Some(config.boot_module(&seed, &interfaces).into()), String::new())
            }
            _ => {
                let initrd = match &config.initrd {
                    Some(digest) => Some(self.daemon.images.bytes(digest)?),
                    None => None,
                };
                (initrd, config.command_line(&interfaces))
            }
        };
        let rate_kbit = config.net_rate_kbit;
        let vif = |(handle, net): (u32, &boot::Net)| Vif { handle, mac: net.mac, rate_kbit };
        let spec = DomainSpec {
            uuid: config.id.0,
            name: config.name.clone(),
            image,
            module,
            command_line,
            memory_kib: config.memory_kib,
            max_memory_kib: config.max_memory_kib(),
            vcpus: config.vcpus,
            cpu_cap: config.cpu_cap,
            weight: config.weight,
            stdin: config.stdin,
            vifs: (0..).zip(&interfaces).map(vif).collect(),
        };
        steps.took("prepare");
        if !interfaces.is_empty() {
            self.daemon.networks.attach(config)?;
            steps.took("network");
        }
        let toolstack = self.daemon.toolstack.clone();
        let domain = if config.memory_kib <= QUICK_KIB && config.kind == ImageKind::Capsule {
            toolstack.create(&spec)?
        } else {
            blocking(move || toolstack.create(&spec)).await??
        };
        steps.nested(domain.build_steps());
        Ok(domain)
    }

    async fn launch(
        &mut self,
        domain: Arc<dyn Domain>,
        config: &Config,
        mut steps: Steps,
        by_policy: bool,
    ) -> Result<()> {
        self.capsule.log.begin_run(now_ns());
        let placed = self.daemon.networks.place(config, domain.domid());
        let launched = placed.and_then(|()| self.connect(&domain, config.stdin)).and_then(|console| {
            self.capsule.change(|record| {
                record.state = State::Running;
                record.steps = Vec::new();
                record.run = Some(Run { domid: domain.domid(), console: console.clone() });
            });
            self.capsule.phase.send_replace(Phase::Alive);
            steps.took("connect");
            console.set_started();
            domain.unpause()?;
            steps.took("unpause");
            self.capsule.change(|record| record.steps = steps.list);
            Ok(())
        });
        if let Err(error) = launched {
            self.disconnect(domain.domid());
            self.capsule.change(|record| {
                record.run = None;
                record.state = if record.end.is_some() { State::Exited } else { State::Created };
            });
            if let Err(error) = blocking(move || domain.destroy()).await {
                tracing::error!(%error, "a domain that did not start cannot be destroyed");
            }
            return Err(error);
        }
        self.domain = Some(domain);
        self.started = Instant::now();
        self.event(if by_policy { Action::Restart } else { Action::Start }, None);
        Ok(())
    }

    fn connect(&self, domain: &Arc<dyn Domain>, stdin: bool) -> Result<Arc<Console>> {
        let runtime = tokio::runtime::Handle::current();
        let console = Console::new(domain.clone(), self.capsule.log.clone(), stdin, runtime)?;
        self.daemon.signals.connect(domain.domid(), console.clone());
        Ok(console)
    }

    fn disconnect(&self, domid: u32) {
        self.daemon.signals.disconnect(domid);
    }

    /// Takes up a run that an earlier daemon began.
    async fn resume(&mut self, domain: Arc<dyn Domain>, info: DomainInfo) {
        let (stdin, progress) = self.capsule.look(|record| (record.config.stdin, record.progress.clone()));
        let console = match self.connect(&domain, stdin) {
            Ok(console) => console,
            Err(error) => {
                tracing::warn!(capsule = %self.capsule.id, %error, "a running capsule cannot be taken back");
                self.domain = Some(domain);
                return self.ended(|_, asked| judge(None, None, asked, now_ms())).await;
            }
        };
        let state = match (info.paused && progress.paused, progress.stopped) {
            (true, _) => State::Paused,
            (_, true) => State::Stopping,
            _ => State::Running,
        };
        self.capsule.change(|record| {
            record.state = state;
            record.run = Some(Run { domid: domain.domid(), console: console.clone() });
            if record.config.kind == ImageKind::Capsule {
                // Its daemon may have been killed while it changed that.
                record.config.note_memory(info.memory_kib);
            }
        });
        self.capsule.phase.send_replace(Phase::Alive);
        self.domain = Some(domain.clone());
        self.resume_network(domain.domid()).await;
        if info.shutdown == Some(Shutdown::Suspend) && !info.dying {
            // Its daemon was killed while it was being saved or moved, and nobody else has it.
            let suspended = domain.clone();
            if let Err(error) = blocking(move || suspended.resume()).await.unwrap_or(Ok(())) {
                tracing::error!(capsule = %self.capsule.id, %error, "a suspended capsule does not go on");
            }
        } else if info.shutdown.is_some() || info.dying {
            return self.look(&info).await;
        }
        if info.paused && !progress.paused {
            // Its daemon was killed between building it and letting it run, or as the operator
            // let it go on.
            if let Err(error) = domain.unpause() {
                tracing::warn!(capsule = %self.capsule.id, %error, "a capsule cannot be let go on");
            }
        }
        if state == State::Stopping {
            let asked = domain.clone();
            let _ = blocking(move || asked.request_stop()).await;
            self.due = Some((Instant::now() + RESUMED_STOP, Due::Kill));
        }
        console.pump();
    }

    async fn resume_network(&self, domid: u32) {
        let config = self.capsule.look(|record| record.config.clone());
        let daemon = self.daemon.clone();
        // Fails only when the daemon is about to end.
        let _ = blocking(move || daemon.networks.resume(&config, domid)).await;
    }

    /// Asks it to stop; whether its end is to be waited for.
    async fn stop(&mut self, seconds: u64) -> Result<bool> {
        match self.state() {
            State::Created | State::Exited => return Ok(false),
            State::Restarting => {
                self.stay_ended()?;
                return Ok(false);
            }
            State::Running | State::Paused | State::Stopping => {}
        }
        self.save(|progress| (progress.stopped, progress.paused) = (true, false))?;
        if seconds == 0 {
            self.kill().await?;
            return Ok(false);
        }
        let Some(domain) = self.domain.clone() else { return Ok(false) };
        if self.state() == State::Paused {
            domain.unpause()?;
        }
        if self.state() != State::Stopping {
            let asked = domain.clone();
            blocking(move || asked.request_stop()).await??;
            self.capsule.change(|record| record.state = State::Stopping);
            self.event(Action::Stop, None);
        }
        let at = Instant::now() + Duration::from_secs(seconds);
        if !matches!(self.due, Some((sooner, Due::Kill)) if sooner <= at) {
            self.due = Some((at, Due::Kill));
        }
        Ok(true)
    }

    async fn kill(&mut self) -> Result<()> {
        self.check(Wish::Kill)?;
        if self.state() == State::Restarting {
            return self.stay_ended();
        }
        // A full disk does not keep it alive.
        if let Err(error) = self.save(|progress| progress.stopped = true) {
            tracing::warn!(capsule = %self.capsule.id, %error, "that it is to stay ended is not kept");
            self.capsule.change(|record| record.progress.stopped = true);
        }
        self.event(Action::Kill, None);
        self.ended(|domain, asked| match domain.epitaph() {
            // It was faster.
            Some(epitaph) => {
                judge(Some(crate::toolstack::Shutdown::Poweroff), Some(epitaph), asked, now_ms())
            }
            None => without_epitaph(137, EndReason::Killed, None, now_ms()),
        })
        .await;
        Ok(())
    }

    /// Keeps the policy from restarting it.
    fn stay_ended(&mut self) -> Result<()> {
        self.save(|progress| progress.stopped = true)?;
        self.due = None;
        self.event(Action::Stop, None);
        self.after_end();
        Ok(())
    }

    fn pause(&self) -> Result<()> {
        self.check(Wish::Pause)?;
        self.save(|progress| progress.paused = true)?;
        self.domain()?.pause()?;
        self.capsule.change(|record| record.state = State::Paused);
        self.event(Action::Pause, None);
        Ok(())
    }

    fn unpause(&self) -> Result<()> {
        self.check(Wish::Unpause)?;
        self.save(|progress| progress.paused = false)?;
        self.domain()?.unpause()?;
        self.capsule.change(|record| record.state = State::Running);
        self.event(Action::Unpause, None);
        Ok(())
    }

    fn domain(&self) -> Result<&Arc<dyn Domain>> {
        self.domain.as_ref().ok_or(crate::toolstack::Error::Gone.into())
    }

    /// Gives the domain away for a move.
    fn leave(&mut self, cancel: Cancel) -> Result<Leaving> {
        let (name, state, run) =
            self.capsule.look(|record| (record.config.name.clone(), record.state, record.run.clone()));
        let (State::Running, Some(run)) = (state, run) else {
            return Err(Error::WrongState(format!("capsule {name} is not running, so it cannot move")));
        };
        let domain = self.domain()?.clone();
        self.moving = Some(Moving { cancel, afterwards: Vec::new() });
        let saved = self.capsule.look(|record| record.saved());
        Ok(Leaving { domain, console: run.console, log: self.capsule.log.clone(), saved })
    }

    /// The move is over.
    fn left(&mut self, outcome: Outcome) {
        let Some(moving) = self.moving.take() else { return };
        match outcome {
            Outcome::Kept => {
                moving.afterwards.into_iter().for_each(|command| self.capsule.tell(command));
                // For what happened to it meanwhile.
                self.daemon.look_at_domains();
            }
            Outcome::Moved(node) => {
                self.give_up(Some(&node));
                let error = || Error::WrongState(format!("the capsule has moved to node {node} meanwhile"));
                moving.afterwards.into_iter().for_each(|command| command.refuse(error()));
            }
            Outcome::Saved => {
                if let Some(domain) = self.domain.clone()
                    && let Err(error) = domain.destroy()
                {
                    tracing::error!(capsule = %self.capsule.id, %error, "the domain of a saved capsule is left behind");
                }
                self.give_up(None);
                let error = || Error::WrongState("the capsule was saved meanwhile".into());
                moving.afterwards.into_iter().for_each(|command| command.refuse(error()));
            }
        }
    }

    /// Forgets a capsule that is elsewhere now: on a node, or in an image.
    fn give_up(&mut self, node: Option<&str>) {
        if let Some(domain) = self.domain.take() {
            self.disconnect(domain.domid());
        }
        let (config, run) = self.capsule.look(|record| (record.config.clone(), record.run.clone()));
        if let Some(run) = run {
            // Nobody takes any more what clients still want to write.
            run.console.finish();
        }
        match node {
            Some(node) => self.daemon.networks.depart(&self.daemon.store, &config, node),
            None => {
                self.daemon.networks.unpublish(config.id);
                self.daemon.networks.detach(&config);
                self.daemon.networks.forget(&config);
            }
        }
        if let Err(error) = self.daemon.store.remove(self.capsule.id) {
            tracing::error!(capsule = %self.capsule.id, error = ?error.body().message, "its files are left behind");
        }
        if let Err(error) = self.capsule.log.remove() {
            tracing::warn!(capsule = %self.capsule.id, %error, "the log of a capsule that left stays behind");
        }
        self.daemon.leave(&self.capsule);
        self.event(if node.is_some() { Action::Leave } else { Action::Remove }, None);
        self.gone = true;
        self.capsule.phase.send_replace(Phase::Gone(None));
    }

    /// Takes up a move that an earlier daemon has not seen the end of.
    fn resume_leaving(&mut self, domain: Arc<dyn Domain>, reply: oneshot::Sender<Leaving>) {
        let stdin = self.capsule.look(|record| record.config.stdin);
        let console = match self.connect(&domain, stdin) {
            Ok(console) => console,
            Err(error) => {
                tracing::error!(capsule = %self.capsule.id, ?error, "a capsule that moves cannot be taken back");
                return;
            }
        };
        console.hold();
        self.capsule.change(|record| {
            record.state = State::Running;
            record.run = Some(Run { domid: domain.domid(), console: console.clone() });
        });
        self.capsule.phase.send_replace(Phase::Alive);
        self.domain = Some(domain.clone());
        self.moving = Some(Moving { cancel: Cancel::default(), afterwards: Vec::new() });
        let saved = self.capsule.look(|record| record.saved());
        let _ = reply.send(Leaving { domain, console, log: self.capsule.log.clone(), saved });
    }

    async fn update(&self, update: UpdateCapsule) -> Result<()> {
        let old = self.capsule.look(|record| record.saved());
        let mut new = old.clone();
        if let Some(weight) = update.weight {
            check_weight(weight)?;
            new.config.weight = weight;
        }
        if let Some(memory_kib) = update.memory_kib {
            self.check_memory(&mut new.config, memory_kib).await?;
        }
        new.config.cpu_cap = update.cpu_cap.unwrap_or(new.config.cpu_cap);
        new.config.restart = update.restart.unwrap_or(new.config.restart);
        if new.config.remove && new.config.restart != fcap_api::RestartPolicy::No {
            return Err(Error::BadRequest(
                "the capsule is removed when it ends, so it cannot have a restart policy".into(),
            ));
        }
        let renamed = update.name.filter(|name| *name != old.config.name);
        if let Some(name) = &renamed {
            self.daemon.reserve_name(name, self.capsule.id)?;
            new.config.name.clone_from(name);
        }
        let scheduling = (new.config.cpu_cap, new.config.weight) != (old.config.cpu_cap, old.config.weight);
        let memory = new.config.memory_kib != old.config.memory_kib;
        let mut applied = self.apply(&new.config, scheduling, renamed.is_some()).await;
        let mut lacking = Ok(());
        if memory && applied.is_ok() {
            match self.resize(&old.config, new.config.memory_kib).await {
                Ok((held_kib, outcome)) => {
                    // That is what it has, whatever is kept.
                    new.config.note_memory(held_kib);
                    self.capsule.change(|record| record.config.note_memory(held_kib));
                    lacking = outcome;
                }
                Err(error) => applied = Err(error),
            }
        }
        if let Err(error) = applied.and_then(|()| self.daemon.store.save(&new)) {
            renamed.inspect(|name| self.daemon.release_name(name));
            if scheduling {
                // Best effort: what the operator sees stays what it was.
                let _ = self
                    .domain
                    .as_ref()
                    .map(|domain| domain.set_scheduling(old.config.cpu_cap, old.config.weight));
            }
            return Err(error);
        }
        self.capsule.change(|record| record.config = new.config);
        if renamed.is_some() {
            self.daemon.release_name(&old.config.name);
            self.capsule.look(|record| self.daemon.networks.enter(&record.config));
            self.event(Action::Rename, None);
        }
        if scheduling || memory || update.restart.is_some() {
            self.event(Action::Update, None);
        }
        lacking
    }

    /// Has it hold other memory; says how much that is then, and, with an error, if that is not
    /// what was wanted.
    async fn resize(&self, config: &Config, memory_kib: u64) -> Result<(u64, Result<()>)> {
        let Some(domain) = self.domain.clone() else { return Ok((memory_kib, Ok(()))) };
        let toolstack = self.daemon.toolstack.clone();
        let resized = blocking(move || match domain.resize(memory_kib) {
            // What is held ready is there for speed alone.
            Err(ToolstackError::NoRoom(_)) if toolstack.release_ready() => domain.resize(memory_kib),
            other => other,
        });
        let (name, before_kib) = (&config.name, config.memory_kib);
        let held_kib = resized.await?.map_err(|error| match error {
            ToolstackError::NoBalloon | ToolstackError::NoAnswer { .. } => {
                Error::WrongState(format!("capsule {name}: {error}"))
            }
            other => other.into(),
        })?;
        let (got, asked) = (mib(held_kib.abs_diff(before_kib)), mib(memory_kib.abs_diff(before_kib)));
        let outcome = match held_kib.cmp(&memory_kib) {
            Ordering::Equal => Ok(()),
            Ordering::Greater => Err(Error::WrongState(format!(
                "capsule {name} gave back {got} of {asked}: the rest is in use"
            ))),
            Ordering::Less => Err(Error::NoRoom(format!(
                "capsule {name} got {got} of {asked}: the node has no more memory"
            ))),
        };
        Ok((held_kib, outcome))
    }

    /// Puts other memory into a configuration, if the capsule can have it in its state.
    async fn check_memory(&self, config: &mut Config, memory_kib: u64) -> Result<()> {
        let live = self.domain.is_some();
        let why = match self.state() {
            State::Paused => Some("is paused; unpause it first"),
            State::Stopping => Some("is being stopped"),
            _ => None,
        };
        if let Some(why) = why {
            return Err(Error::WrongState(format!("capsule {} {why}", config.name)));
        }
        if live && config.kind != ImageKind::Capsule {
            return Err(Error::WrongState(format!("capsule {}: {}", config.name, ToolstackError::NoBalloon)));
        }
        config.set_memory(memory_kib, live)?;
        // Less would do for now, but not for its next start. Of one that has just come, the image
        // may not be here yet.
        if let Ok(image) = self.daemon.images.open(&config.image).await
            && memory_kib < image.min_memory_kib()
        {
            let needed_kib = image.min_memory_kib();
            return Err(ToolstackError::NotEnoughMemory { needed_kib, given_kib: memory_kib }.into());
        }
        Ok(())
    }

    async fn apply(&self, config: &Config, scheduling: bool, name: bool) -> Result<()> {
        let Some(domain) = self.domain.clone() else { return Ok(()) };
        if scheduling {
            domain.set_scheduling(config.cpu_cap, config.weight)?;
        }
        if name {
            let name = config.name.clone();
            blocking(move || domain.rename(&name)).await??;
        }
        Ok(())
    }

    async fn look(&mut self, info: &DomainInfo) {
        if self.domain.as_ref().is_none_or(|domain| domain.domid() != info.domid) {
            return;
        }
        let shutdown = info.shutdown;
        self.ended(|domain, asked| {
            let epitaph = if shutdown.is_some() { domain.epitaph() } else { None };
            judge(shutdown, epitaph, asked, now_ms())
        })
        .await;
    }

    /// Ends the run: records how, then destroys the domain.
    async fn ended(&mut self, judge: impl FnOnce(&dyn Domain, bool) -> End) {
        let Some(domain) = self.domain.take() else { return };
        self.due = None;
        let run = self.capsule.look(|record| record.run.clone());
        run.inspect(|run| run.console.finish());
        self.disconnect(domain.domid());
        let asked = self.capsule.look(|record| record.progress.stopped);
        let end = judge(&*domain, asked);
        self.save_end(&end);
        let (daemon, config) = (self.daemon.clone(), self.capsule.look(|record| record.config.clone()));
        let destroyed = blocking(move || {
            daemon.networks.unpublish(config.id);
            let destroyed = domain.destroy();
            daemon.networks.detach(&config);
            destroyed
        });
        if let Err(error) = destroyed.await.unwrap_or(Ok(())) {
            tracing::error!(capsule = %self.capsule.id, %error, "the domain of an ended capsule is left behind");
        }
        if self.started.elapsed() >= end::LONG_RUN {
            self.capsule.change(|record| record.progress.streak = 0);
        }
        self.capsule.change(|record| {
            record.steps = record.steps();
            (record.run, record.end) = (None, Some(end.clone()));
        });
        self.event(Action::Die, Some(end));
        self.after_end();
    }

    fn save_end(&self, end: &End) {
        let run = self.capsule.look(|record| record.progress.run);
        if let Err(error) = self.daemon.store.save_end(self.capsule.id, &SavedEnd { run, end: end.clone() }) {
            tracing::warn!(capsule = %self.capsule.id, %error, "a run's end is not kept");
        }
    }

    /// What follows from an end that is recorded: another run, removal, or nothing.
    fn after_end(&mut self) {
        let (config, progress, end) =
            self.capsule.look(|record| (record.config.clone(), record.progress.clone(), record.end.clone()));
        let Some(end) = end else { return };
        if !progress.stopped
            && let Some(delay) = end::restart(config.restart, &end, progress.streak)
        {
            self.capsule.change(|record| record.state = State::Restarting);
            self.capsule.phase.send_replace(Phase::Alive);
            self.due = Some((Instant::now() + delay, Due::Restart));
            return;
        }
        self.capsule.change(|record| record.state = State::Exited);
        if config.remove
            && let Err(error) = self.forget()
        {
            tracing::error!(capsule = %self.capsule.id, %error, "an ended capsule cannot be removed");
        }
        if !self.gone {
            self.capsule.phase.send_replace(Phase::Ended(end));
        }
        self.stopping.drain(..).for_each(|reply| drop(reply.send(Ok(()))));
    }

    fn restart_failed(&mut self, error: &Error) {
        let message = format!("it could not be restarted: {}", error.body().message);
        let end = without_epitaph(125, EndReason::Lost, Some(message), now_ms());
        self.save_end(&end);
        self.capsule.change(|record| record.end = Some(end.clone()));
        self.event(Action::Die, Some(end));
        self.after_end();
    }

    async fn remove(&mut self, force: bool) -> Result<()> {
        if force && self.domain.is_some() {
            self.kill().await?;
        }
        if self.gone {
            return Ok(());
        }
        self.check(Wish::Remove)?;
        self.due = None;
        self.forget()
    }

    /// Removes every trace of it; it has no domain.
    fn forget(&mut self) -> Result<()> {
        self.daemon.store.remove(self.capsule.id)?;
        if let Err(error) = self.capsule.log.remove() {
            tracing::warn!(capsule = %self.capsule.id, %error, "the log of a removed capsule is left behind");
        }
        self.daemon.forget(&self.capsule);
        self.event(Action::Remove, None);
        self.gone = true;
        let end = self.capsule.look(|record| record.end.clone());
        self.capsule.phase.send_replace(Phase::Gone(end));
        Ok(())
    }
}

/// Measures where the time goes.
struct Steps {
    last: std::time::Instant,
    list: Vec<Step>,
}

impl Steps {
    fn new() -> Self {
        Self { last: std::time::Instant::now(), list: Vec::new() }
    }

    fn took(&mut self, name: &str) {
        let now = std::time::Instant::now();
        let ns = now.duration_since(self.last).as_nanos() as u64;
        self.list.push(Step { name: name.into(), ns });
        self.last = now;
    }

    /// Somebody else measured what was done since the last step; the rest is the way there.
    fn nested(&mut self, steps: Vec<(&'static str, u64)>) {
        let inner: u64 = steps.iter().map(|(_, ns)| ns).sum();
        self.list.extend(steps.into_iter().map(|(name, ns)| Step { name: format!("build: {name}"), ns }));
        self.took("build: hand-over");
        if let Some(last) = self.list.last_mut() {
            last.ns = last.ns.saturating_sub(inner);
        }
    }
}
