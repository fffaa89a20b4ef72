//! A capsule: its states, and what may be done in each.
//!
//! ```text
//!            start                       stop
//!  Created ---------> Running ---------------------> Stopping
//!                    ^   |  ^ \                       |
//!            start / |   |  |  \ pause                | it ends, or is killed
//!            policy  |   |   \  v                     | when its time is up
//!                    |   |    Paused                  |
//!                    |   |      | kill                |
//!                    |   v      v                     v
//!                    |  it ends, or is killed: end is recorded, domain destroyed
//!                    |            |                |
//!                    |            v policy         v otherwise
//!                    +------ Restarting         Exited ---start--> Running
//!                               | stop, kill       |
//!                               +-----> Exited     +---remove--> (gone)
//! ```
//!
//! Created, Restarting and Exited capsules have no domain, the others have one. Removing is
//! possible wherever there is no domain, and elsewhere by force, which kills first. A capsule
//! with `remove` goes as soon as it has ended.
//!
//! One task changes the state of a capsule, its [`driver`]: requests come to it one after the
//! other and are never abandoned half-way, whatever becomes of the client. What the capsule
//! writes and reads does not pass through it; that is [`console`]'s. Everybody may look at the
//! [`Record`].

pub mod config;
pub mod console;
pub mod driver;
pub mod end;

use std::sync::{Arc, Mutex};

use fcap_api::{End, State, Step, UpdateCapsule};
use fcap_migrate::Cancel;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Error, Result};
use crate::id::CapsuleId;
use crate::log::Log;
use crate::migration::leave::{Leaving, Outcome};
use crate::store::{Progress, Saved};
use config::{Config, Port};
use console::Console;

/// A capsule, as everybody may hold it.
pub struct Capsule {
    /// Its identity.
    pub id: CapsuleId,
    /// What it wrote.
    pub log: Arc<Log>,
    record: Mutex<Record>,
    phase: watch::Sender<Phase>,
    commands: mpsc::UnboundedSender<Command>,
}

/// What is known of a capsule.
#[derive(Clone)]
pub struct Record {
    /// What it was made with.
    pub config: Config,
    /// What is wanted of it.
    pub progress: Progress,
    /// What it does.
    pub state: State,
    /// Its present run.
    pub run: Option<Run>,
    /// How its last run ended.
    pub end: Option<End>,
    /// Where the time of its last start went.
    pub steps: Vec<Step>,
}

/// A run that goes on.
#[derive(Clone)]
pub struct Run {
    /// The hypervisor's number for its domain.
    pub domid: u32,
    /// Its console.
    pub console: Arc<Console>,
}

/// As much of a capsule's state as others wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has not been started.
    Created,
    /// It runs, or is going to again by its policy.
    Alive,
    /// It has ended.
    Ended(End),
    /// It was removed, and had ended like this.
    Gone(Option<End>),
}

/// A request to a capsule's driver.
pub enum Command {
    /// Start it.
    Start(Reply),
    /// Ask it to stop, and kill it when it has not after so many seconds.
    Stop(u64, Reply),
    /// End it now.
    Kill(Reply),
    /// Hold it.
    Pause(Reply),
    /// Let it go on.
    Unpause(Reply),
    /// Change settings.
    Update(UpdateCapsule, Reply),
    /// Remove it, by force if need be.
    Remove(bool, Reply),
    /// Its domain has shut down, or is not there any more.
    Look(crate::toolstack::DomainInfo),
    /// Its domain is not there any more.
    Vanished(u32),
    /// Give its domain away for a move, which the token ends.
    Leave(Cancel, oneshot::Sender<Result<Leaving>>),
    /// The move is over.
    Left(Outcome),
}

impl Command {
    /// Answers with an error, if somebody waits for an answer.
    pub fn refuse(self, error: Error) {
        match self {
            Self::Start(reply)
            | Self::Stop(_, reply)
            | Self::Kill(reply)
            | Self::Pause(reply)
            | Self::Unpause(reply)
            | Self::Update(_, reply)
            | Self::Remove(_, reply) => drop(reply.send(Err(error))),
            Self::Leave(_, reply) => drop(reply.send(Err(error))),
            Self::Look(_) | Self::Vanished(_) | Self::Left(_) => {}
        }
    }
}

/// Where the answer to a command goes.
pub type Reply = oneshot::Sender<Result<()>>;

impl Capsule {
    /// A capsule and the receiver for its driver.
    pub fn new(
        config: Config,
        progress: Progress,
        end: Option<End>,
        log: Arc<Log>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Command>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (state, phase) = match &end {
            Some(end) => (State::Exited, Phase::Ended(end.clone())),
            None => (State::Created, Phase::Created),
        };
        let id = config.id;
        let record = Record { config, progress, state, run: None, end, steps: Vec::new() };
        let capsule =
            Self { id, log, record: Mutex::new(record), phase: watch::Sender::new(phase), commands };
        (Arc::new(capsule), receiver)
    }

    /// What is known of it now.
    pub fn record(&self) -> Record {
        self.look(Record::clone)
    }

    /// Looks at what is known of it.
    pub fn look<T>(&self, f: impl FnOnce(&Record) -> T) -> T {
        f(&self.record.lock().unwrap())
    }

    fn change<T>(&self, f: impl FnOnce(&mut Record) -> T) -> T {
        f(&mut self.record.lock().unwrap())
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.look(|record| record.config.name.clone())
    }

    /// What others wait for.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Has something done by the driver, and waits until it is.
    ///
    /// # Errors
    /// As the command's; or that it is gone.
    pub async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply));
        // Without an answer the driver is gone, as the capsule was removed meanwhile.
        answer.await.unwrap_or_else(|_| Err(Error::NoSuchCapsule(self.id.to_string())))
    }

    /// Sends a command that needs no answer.
    pub fn tell(&self, command: Command) {
        // Fails for a capsule that was removed: then it is of no interest any more.
        let _ = self.commands.send(command);
    }

    /// Waits until it has ended for good.
    ///
    /// # Errors
    /// When it is removed without ever having ended.
    pub async fn wait(&self) -> Result<End> {
        let mut phase = self.phase();
        let done = phase.wait_for(|phase| matches!(phase, Phase::Ended(_) | Phase::Gone(_))).await;
        match done.as_deref() {
            Ok(Phase::Ended(end) | Phase::Gone(Some(end))) => Ok(end.clone()),
            _ => Err(Error::NoSuchCapsule(self.id.to_string())),
        }
    }
}

impl Record {
    /// As it is kept.
    pub fn saved(&self) -> Saved {
        Saved { config: self.config.clone(), progress: self.progress.clone() }
    }

    /// Where the time of its last start went, up to its first output as soon as there is any.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = self.steps.clone();
        if let Some(ns) = self.run.as_ref().and_then(|run| run.console.first_output_ns()) {
            steps.push(Step { name: "first output".into(), ns });
        }
        steps
    }

    /// As the API shows it in lists, but for its addresses, which its networks know. `cpu_time_ns`
    /// is of its domain, if it has one.
    pub fn api(&self, node: &str, cpu_time_ns: u64) -> fcap_api::Capsule {
        let config = self.config.clone();
        let max_memory_kib = config.max_memory_kib();
        fcap_api::Capsule {
            id: config.id.to_string(),
            name: config.name,
            node: node.to_owned(),
            image: config.image,
            image_name: config.image_name,
            args: config.args,
            env: config.env,
            labels: config.labels,
            state: self.state,
            domid: self.run.as_ref().map(|run| run.domid),
            created_ms: config.created_ms,
            started_ms: self.progress.started_ms,
            memory_kib: config.memory_kib,
            max_memory_kib,
            vcpus: config.vcpus,
            cpu_cap: config.cpu_cap,
            weight: config.weight,
            cpu_time_ns,
            restart: config.restart,
            restarts: self.progress.restarts,
            remove: config.remove,
            stdin: config.stdin,
            networks: Vec::new(),
            ports: config.ports.iter().filter_map(Port::api).collect(),
            net_rate_kbit: config.net_rate_kbit,
            net: None,
            end: self.end.clone(),
            steps: Vec::new(),
        }
    }
}

/// What an operator can ask for that depends on the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To start it.
    Start,
    /// To stop it.
    Stop,
    /// To kill it.
    Kill,
    /// To hold it.
    Pause,
    /// To let it go on.
    Unpause,
    /// To remove it without force.
    Remove,
}

/// Whether a wish can be fulfilled in a state; otherwise why not, and what would help.
///
/// # Errors
/// [`Error::WrongState`].
pub fn check(name: &str, state: State, wish: Wish) -> Result<()> {
    let why = match (wish, state) {
        (Wish::Start, State::Created | State::Exited | State::Restarting) => return Ok(()),
        (Wish::Start, _) => "has been started already",
        (Wish::Stop, _) => return Ok(()),
        (Wish::Kill, State::Created | State::Exited) => "is not running",
        (Wish::Kill, _) => return Ok(()),
        (Wish::Pause, State::Running) => return Ok(()),
        (Wish::Pause, State::Paused) => "is paused already",
        (Wish::Pause, State::Stopping) => "is being stopped",
        (Wish::Pause, _) => "is not running",
        (Wish::Unpause, State::Paused) => return Ok(()),
        (Wish::Unpause, _) => "is not paused",
        (Wish::Remove, State::Created | State::Exited | State::Restarting) => return Ok(()),
        (Wish::Remove, _) => "is running; stop it first, or use force",
    };
    Err(Error::WrongState(format!("capsule {name} {why}")))
}
