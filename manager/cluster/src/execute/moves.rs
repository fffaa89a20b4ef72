//! One capsule from node to node, and where capsules are.

use std::time::{Duration, Instant};

use fcap_api::migrate::{Invitation, Migrate, Precopy, Progress, Round};
use fcap_api::{Capsule, ErrorCode, State};
use fcap_client::{ClientError, Reference};

use super::Executor;
use super::run::{Move, Result, Run, Stop};
use crate::error::Error;

/// How often a move is tried that broke off.
const TRIES: u32 = 5;
/// How long after one another.
const AGAIN: Duration = Duration::from_secs(1);
/// How often nodes are asked that do not agree.
const LOOK: Duration = Duration::from_millis(200);
/// A capsule that neither node has is gone when they say so so many times.
const GONE: u32 = 3;

/// Where a capsule is.
enum Place {
    Source(Box<Capsule>),
    Destination(Box<Capsule>),
    /// It has been removed.
    Gone,
}

/// Why a move did not happen.
enum Broken {
    /// It was tried, and may be tried again.
    Off(String),
    /// There is no point in trying again.
    Refused(String),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self::Off(error.to_string())
    }
}

impl Run {
    /// Moves a capsule; what is returned is worth saying. It has the capsule be on exactly one of
    /// the two nodes, whatever an earlier controller has begun.
    pub(super) async fn migrate(&self, step: usize, this: &Move, may_stop: bool) -> Result<Option<String>> {
        let Ok(_place) = self.executor.moves.acquire().await else { return Err(Stop::Cancelled) };
        let mut told = None;
        let mut failure = String::new();
        for tried in 0..TRIES {
            let found = if tried == 0 { self.at_source(this).await } else { None };
            let place = match found {
                Some(capsule) => Place::Source(Box::new(capsule)),
                None => self.locate(this).await?,
            };
            let capsule = match place {
                Place::Destination(capsule) => {
                    self.arrived(this, &capsule).await?;
                    return Ok(told);
                }
                Place::Source(capsule) if capsule.state == State::Exited => {
                    return Ok(Some("it has ended meanwhile".into()));
                }
                Place::Gone => return Ok(Some("it is gone".into())),
                Place::Source(capsule) => capsule,
            };
            if may_stop {
                self.go_on()?;
            }
            if tried > 0 {
                self.note(step, format!("again: {failure}"));
                tokio::time::sleep(AGAIN).await;
            }
            let mut cancel = self.cancel.clone();
            let stop = async {
                if !may_stop || cancel.wait_for(|cancel| *cancel).await.map(drop).is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let tried = tokio::select! {
                // Nobody reads the progress any more then, which ends the attempt, or comes too late.
                () = stop => Ok(None),
                tried = self.attempt(step, this, &capsule) => tried,
            };
            match tried {
                // A port that a node has chosen may be another one there.
                Ok(Some(note)) if capsule.ports.is_empty() => {
                    return self.arrived(this, &capsule).await.map(|()| Some(note));
                }
                Ok(note) => told = note,
                Err(Broken::Refused(why)) => return Err(Stop::Failed(why)),
                Err(Broken::Off(why)) => failure = why,
            }
        }
        match self.locate(this).await? {
            Place::Destination(capsule) => self.arrived(this, &capsule).await.map(|()| told),
            _ => Err(Stop::Failed(failure)),
        }
    }

    /// Tries it once; what is worth saying if it has arrived, nothing if that has to be found out.
    async fn attempt(
        &self,
        step: usize,
        this: &Move,
        capsule: &Capsule,
    ) -> std::result::Result<Option<String>, Broken> {
        let nodes = &self.executor.nodes;
        let (source, destination) = (nodes.client(&this.from)?, nodes.client(&this.to)?);
        let identity = source.migration_identity().await.map_err(Error::from_node(&this.from))?;
        let invitation = Invitation::from(identity);
        let ticket = destination.invite(&invitation).await.map_err(Error::from_node(&this.to))?;
        let order = Migrate { ticket, how: Precopy::default() };
        let mut moving = source.migrate(&capsule.id, &order).await.map_err(|error| refused(&error))?;
        while let Some(progress) = moving.next().await.map_err(|error| Broken::Off(error.to_string()))? {
            match progress {
                Progress::Round(Round { round, dirty, .. }) => {
                    self.note(step, format!("round {round}: {dirty} pages to go"));
                }
                // The nodes have to agree on it.
                Progress::Done(moved) if moved.unsettled => return Ok(None),
                Progress::Done(moved) => {
                    return Ok(Some(format!(
                        "{:.0} ms in all, {:.1} ms of downtime",
                        moved.total_ms, moved.downtime_ms
                    )));
                }
                Progress::Failed { error } => return Err(refused(&ClientError::Refused(error))),
                Progress::Started { .. } | Progress::Suspending { .. } | Progress::Possible => {}
            }
        }
        Err(Broken::Off(format!("node {} did not say what became of it", this.from)))
    }

    /// The capsule, if it runs at the source. Who is wrong about that, because an earlier controller
    /// has begun to move it, is refused by the source.
    async fn at_source(&self, this: &Move) -> Option<Capsule> {
        let found = self.executor.ask_for(&this.from, &this.capsule).await.ok().flatten();
        found.filter(|capsule| capsule.state == State::Running)
    }

    /// Asks both nodes until they agree on where the capsule is.
    async fn locate(&self, this: &Move) -> Result<Place> {
        let begun = Instant::now();
        let mut gone = 0;
        loop {
            let source = self.executor.ask_for(&this.from, &this.capsule);
            let destination = self.executor.ask_for(&this.to, &this.capsule);
            let why = match tokio::join!(source, destination) {
                (Ok(Some(capsule)), Ok(None)) => return Ok(Place::Source(Box::new(capsule))),
                (Ok(None), Ok(Some(capsule))) => return Ok(Place::Destination(Box::new(capsule))),
                (Ok(None), Ok(None)) if gone + 1 == GONE => return Ok(Place::Gone),
                (Ok(None), Ok(None)) => {
                    gone += 1;
                    String::new()
                }
                (Ok(Some(_)), Ok(Some(_))) => {
                    format!("nodes {} and {} have not agreed on who has it", this.from, this.to)
                }
                (Err(error), _) | (_, Err(error)) => error.to_string(),
            };
            if begun.elapsed() > self.executor.limits.settle {
                return Err(Stop::Failed(why));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn arrived(&self, this: &Move, capsule: &Capsule) -> Result<()> {
        let executor = &self.executor;
        if !capsule.ports.is_empty() {
            let moved = executor.provider.move_ports(capsule.ports.clone(), &this.from, &this.to).await;
            moved.map_err(Error::from)?;
        }
        executor.nodes.moved(&this.capsule, [&this.from, &this.to]);
        executor.counts.moved(&self.now().by, "done");
        Ok(())
    }
}

/// What a node says may be worth another try, when it is about the moment.
fn refused(error: &ClientError) -> Broken {
    match error.code() {
        None | Some(ErrorCode::WrongState | ErrorCode::Internal) => Broken::Off(error.to_string()),
        Some(_) => Broken::Refused(error.to_string()),
    }
}

impl Executor {
    /// A capsule on a node, if it is there.
    async fn ask_for(&self, node: &str, id: &str) -> std::result::Result<Option<Capsule>, Error> {
        let reference: Reference = id.parse().map_err(Error::BadRequest)?;
        match self.nodes.client(node)?.capsule(&reference).await {
            Ok(capsule) => Ok(Some(capsule)),
            Err(error) if error.code() == Some(ErrorCode::NoSuchCapsule) => Ok(None),
            Err(error) => Err(Error::from_node(node)(error)),
        }
    }

    /// Whether a node has a capsule that runs.
    pub(super) async fn has(&self, node: &str, id: &str) -> Result<bool> {
        let found = self.ask_for(node, id).await?;
        Ok(found.is_some_and(|capsule| capsule.state == State::Running))
    }

    /// The capsules of a node that would be lost with it.
    pub(super) async fn live_on(&self, node: &str) -> Result<Vec<Capsule>> {
        let capsules = self.nodes.client(node)?.capsules(true).await.map_err(Error::from_node(node))?;
        Ok(capsules.into_iter().filter(|capsule| capsule.state != State::Exited).collect())
    }

    /// Where a capsule is, by its id or name; nothing if all nodes that answer have not got it.
    pub(super) async fn find(&self, id_or_name: &str) -> Result<Option<(String, Capsule)>> {
        for (node, _) in self.nodes.ready() {
            if let Some(capsule) = self.ask_for(&node, id_or_name).await?
                && (capsule.id == id_or_name || capsule.name == id_or_name)
            {
                return Ok(Some((node, capsule)));
            }
        }
        Ok(None)
    }
}
