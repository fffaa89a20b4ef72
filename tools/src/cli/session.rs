//! Being attached to a capsule: its output, its input, Ctrl-C, and its exit code.

use super::stop::DEFAULT_TIMEOUT_S;
use super::{BROKEN_PIPE, INTERRUPTED};
use crate::client::{Client, ClientError, Frames, LogQuery, Verb};
use crate::forwards::Forwards;
use crate::stdio::{Output, stdin_body};
use crate::terminal::one_line;
use anyhow::Context as _;
use fcap_api::stream::Frame;
use fcap_api::{End, EndReason, ErrorCode};
use futures_util::future::{Either, LocalBoxFuture, select};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use std::pin::pin;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// How often, and how long after one another, a node is asked again that broke off.
const RETRIES: u32 = 50;
const RETRY: Duration = Duration::from_millis(200);

/// What becomes of a capsule when nobody reads its output any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// It is ended, as SIGPIPE would end a process.
    Kill,
    /// It goes on.
    Leave,
}

/// A capsule that we are attached to.
#[derive(Debug)]
pub(super) struct Session<'a> {
    pub(super) node: &'a Client,
    /// Its id; none when the frames will tell it first.
    pub(super) id: Option<String>,
    /// Whether it gets our standard input.
    pub(super) stdin: bool,
    /// Whether signals stop it.
    pub(super) sig_proxy: bool,
    pub(super) when_closed: Closed,
    pub(super) colours: bool,
    /// For a capsule that the frames will tell of.
    pub(super) forwards: Option<&'a Forwards>,
}

/// Why the output is over.
enum Over {
    Ended(End),
    Closed,
}

/// A request beside the output.
type Beside<'a> = FuturesUnordered<LocalBoxFuture<'a, Result<(), ClientError>>>;

impl Session<'_> {
    /// Passes everything through until the capsule's end, and gives its exit code.
    pub(super) async fn follow(&self, frames: Frames) -> anyhow::Result<u8> {
        let mut signals = Signals::new()?;
        let mut output = Output::stdout(self.colours);
        let (tell_id, id_told) = oneshot::channel();
        let mut pump = Pump { session: self, tell_id: Some(tell_id), id: None, last_ns: 0 };
        if let Some(id) = &self.id {
            pump.learn(id.clone());
        }
        let over = {
            let mut passing = pin!(pump.pass(frames, &mut output));
            let mut id_told = pin!(id_told);
            let mut id: Option<String> = None;
            let mut beside: Beside<'_> = FuturesUnordered::new();
            let mut asked = 0;
            loop {
                tokio::select! {
                    biased;
                    () = signals.next() => {
                        asked += 1;
                        if !self.sig_proxy || asked > 2 {
                            return Ok(INTERRUPTED);
                        }
                        if let Some(id) = &id {
                            beside.push(self.ask_to_end(id.clone(), asked));
                        }
                    }
                    told = &mut id_told, if id.is_none() => {
                        let Ok(told) = told else { break passing.await? };
                        if self.stdin {
                            beside.push(self.feed(told.clone()));
                        }
                        if asked > 0 {
                            beside.push(self.ask_to_end(told.clone(), asked));
                        }
                        id = Some(told);
                    }
                    Some(done) = beside.next(), if !beside.is_empty() => {
                        if let Err(error) = done {
                            eprintln!("fcap: {}", one_line(&error.to_string()));
                        }
                    }
                    over = &mut passing => break over?,
                }
            }
        };
        let written = match select(pin!(output.finish()), pin!(signals.next())).await {
            Either::Left((written, _)) => written,
            Either::Right(_) => return Ok(INTERRUPTED),
        };
        match over {
            Over::Ended(end) => {
                written.context("standard output")?;
                say_how(&end);
                Ok(u8::try_from(end.exit_code & 0xff).unwrap_or(u8::MAX))
            }
            Over::Closed => {
                if let (Closed::Kill, Some(id)) = (self.when_closed, &pump.id) {
                    // It may just have ended by itself.
                    let _ = self.node.act(id, Verb::Kill).await;
                }
                written.context("standard output")?;
                Ok(BROKEN_PIPE)
            }
        }
    }

    /// The first time politely, then by force.
    fn ask_to_end(&self, id: String, time: u32) -> LocalBoxFuture<'_, Result<(), ClientError>> {
        Box::pin(async move {
            let asked = match time {
                1 => self.node.stop(&id, DEFAULT_TIMEOUT_S).await,
                _ => self.node.act(&id, Verb::Kill).await,
            };
            unless_over(asked.map(drop))
        })
    }

    fn feed(&self, id: String) -> LocalBoxFuture<'_, Result<(), ClientError>> {
        Box::pin(async move { unless_over(self.node.stdin(&id, stdin_body()).await) })
    }
}

/// A capsule that has ended is nothing to complain about: its end is on its way to us.
fn unless_over(done: Result<(), ClientError>) -> Result<(), ClientError> {
    match done {
        Err(error) if matches!(error.code(), Some(ErrorCode::WrongState | ErrorCode::NoSuchCapsule)) => {
            Ok(())
        }
        // A server that has heard the capsule's end need not read on.
        Err(ClientError::Unreachable { .. }) => Ok(()),
        done => done,
    }
}

/// Brings output from the node to standard output.
struct Pump<'a> {
    session: &'a Session<'a>,
    tell_id: Option<oneshot::Sender<String>>,
    id: Option<String>,
    /// When the last output came that has been passed on.
    last_ns: u64,
}

impl Pump<'_> {
    fn learn(&mut self, id: String) {
        if let Some(tell) = self.tell_id.take() {
            // Nobody listens once the session is over.
            let _ = tell.send(id.clone());
        }
        self.id = Some(id);
    }

    async fn pass(&mut self, mut frames: Frames, output: &mut Output) -> anyhow::Result<Over> {
        // After a break, output up to then comes once more.
        let mut known_ns = 0;
        loop {
            match frames.next().await {
                Ok(Some(Frame::Capsule(capsule))) => {
                    if let Some(forwards) = self.session.forwards {
                        forwards.add_or_remove(self.session.node, &capsule).await?;
                    }
                    self.learn(capsule.id);
                }
                Ok(Some(Frame::Output { time_ns, .. })) if time_ns <= known_ns => {}
                Ok(Some(Frame::Output { time_ns, bytes })) => {
                    self.last_ns = time_ns;
                    if !output.write(bytes).await {
                        return Ok(Over::Closed);
                    }
                }
                Ok(Some(Frame::Lost(bytes))) => eprintln!("fcap: {bytes} bytes of output were lost here"),
                Ok(Some(Frame::End(end))) => return Ok(Over::Ended(end)),
                Ok(None) => return self.wait().await,
                Err(error @ ClientError::Unreachable { .. }) => {
                    frames = self.resume(error).await?;
                    known_ns = self.last_ns;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The end, from a server that closed its stream without one.
    async fn wait(&self) -> anyhow::Result<Over> {
        let id = self.id.as_deref().context("the node ended the connection before there was a capsule")?;
        Ok(Over::Ended(self.session.node.wait(id).await?))
    }

    /// The daemon may have been restarted: capsules do not notice, so neither do we. Output since
    /// the break is in the log.
    async fn resume(&self, error: ClientError) -> anyhow::Result<Frames> {
        let Some(id) = self.id.as_deref() else { return Err(error.into()) };
        let query = LogQuery { follow: true, tail: None, since_ms: Some(self.last_ns / 1_000_000) };
        for _ in 0..RETRIES {
            tokio::time::sleep(RETRY).await;
            match self.session.node.logs(id, &query).await {
                Ok(frames) => {
                    if self.session.stdin {
                        eprintln!("fcap: the node's daemon was restarted; standard input ended there");
                    }
                    return Ok(frames);
                }
                Err(ClientError::Unreachable { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(error.into())
    }
}

/// The word for ends that the application's own output does not explain.
fn say_how(end: &End) {
    let what = match end.reason {
        EndReason::OutOfMemory => "out of memory",
        EndReason::Crashed => "crashed",
        EndReason::Lost => "lost: its node was restarted",
        EndReason::Exited | EndReason::Panicked | EndReason::Stopped | EndReason::Killed => return,
    };
    let message =
        end.message.as_deref().map(|message| format!(": {}", one_line(message))).unwrap_or_default();
    eprintln!("fcap: {what}{message}");
}

/// What people and systems send to make a program end.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("signals");
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
