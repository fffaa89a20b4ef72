//! The console of one run: from the ring to the log, and from clients to the ring.
//!
//! [`Console::pump`] moves what can be moved and never waits. The toolstack's own thread calls
//! it when the capsule has written or read something, so that no other thread has to be woken
//! for it. What is read goes to the log and from there to whoever is attached; while one of
//! those is slow, nothing is taken from the ring, it fills, and the capsule waits.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use axum::body::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::clock::now_ns;
use crate::log::{Log, WINDOW};
use crate::toolstack::{self, Domain};

/// Most bytes to move in one go, so that a capsule that floods its console keeps nobody else
/// from being served.
const BURST: usize = 16 << 10;

/// The console of one run.
pub struct Console {
    domain: Arc<dyn Domain>,
    log: Arc<Log>,
    runtime: Handle,
    started: OnceLock<Instant>,
    first_output_ns: OnceLock<u64>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Bytes at the start of the ring that the log has already.
    skip: usize,
    input: VecDeque<Input>,
    /// No more input is taken from clients.
    closed: bool,
    /// The domain is on its way elsewhere: what is in the rings goes with it.
    held: bool,
    /// The run is over.
    finished: bool,
    /// A task is going to pump.
    scheduled: bool,
}

enum Input {
    Bytes(Bytes, oneshot::Sender<()>),
    Close,
}

/// Input that cannot be given to a capsule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its input has been closed.
    Closed,
    /// It has ended.
    Ended,
}

impl Console {
    /// The console of a domain that was just built or adopted. Until it is closed, it takes
    /// input if `stdin`.
    ///
    /// # Errors
    /// When the domain is gone.
    pub fn new(
        domain: Arc<dyn Domain>,
        log: Arc<Log>,
        stdin: bool,
        runtime: Handle,
    ) -> toolstack::Result<Arc<Self>> {
        let position = domain.output_position()?;
        let skip = log.already_kept(position);
        if skip == 0 {
            log.set_ring(position);
        }
        let inner = Inner {
            skip,
            input: VecDeque::new(),
            closed: !stdin,
            held: false,
            finished: false,
            scheduled: false,
        };
        Ok(Arc::new(Self {
            domain,
            log,
            runtime,
            started: OnceLock::new(),
            first_output_ns: OnceLock::new(),
            inner: Mutex::new(inner),
        }))
    }

    /// Says that the domain begins to run now.
    pub fn set_started(&self) {
        let _ = self.started.set(Instant::now());
    }

    /// Time from the domain's first instruction to its first output, if both were seen.
    pub fn first_output_ns(&self) -> Option<u64> {
        self.first_output_ns.get().copied()
    }

    /// Moves what can be moved in both directions.
    pub fn pump(self: &Arc<Self>) {
        let mut inner = self.inner.lock().unwrap();
        if !inner.finished && !inner.held {
            self.pump_input(&mut inner);
            self.pump_output(inner);
        }
    }

    /// Moves nothing from now on.
    pub fn hold(&self) {
        self.inner.lock().unwrap().held = true;
    }

    /// Moves again what can be moved.
    pub fn release(self: &Arc<Self>) {
        self.inner.lock().unwrap().held = false;
        self.pump();
    }

    fn pump_output(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>) {
        let mut moved = 0;
        while moved < BURST && self.log.lag() < WINDOW {
            match self.take(&mut inner) {
                Ok(0) => return,
                Ok(count) => moved += count,
                Err(error) => {
                    tracing::debug!(domid = self.domain.domid(), %error, "output cannot be read");
                    return;
                }
            }
        }
        // There may be more to move later, and the capsule, which may be waiting for room
        // already, would not tell again.
        if std::mem::replace(&mut inner.scheduled, true) {
            return;
        }
        let console = self.clone();
        let mut room = self.log.room();
        self.runtime.spawn(async move {
            tokio::task::yield_now().await;
            while console.log.lag() >= WINDOW {
                // The sender lives in the log.
                let _ = room.changed().await;
            }
            console.inner.lock().unwrap().scheduled = false;
            console.pump();
        });
    }

    fn take(&self, inner: &mut Inner) -> toolstack::Result<usize> {
        self.domain.read_output(BURST, &mut |bytes| {
            let skip = inner.skip.min(bytes.len());
            inner.skip -= skip;
            if skip < bytes.len() {
                if let Some(started) = self.started.get() {
                    self.first_output_ns.get_or_init(|| started.elapsed().as_nanos() as u64);
                }
                self.log.append(now_ns(), &bytes[skip..]);
            }
            true
        })
    }

    fn pump_input(&self, inner: &mut Inner) {
        if inner.held {
            return;
        }
        while let Some(front) = inner.input.front_mut() {
            let moved = match front {
                Input::Close => self.domain.close_input(),
                Input::Bytes(bytes, _) => match self.domain.write_input(bytes) {
                    Ok(0) if !bytes.is_empty() => return,
                    Ok(count) => {
                        let _ = bytes.split_to(count.min(bytes.len()));
                        if !bytes.is_empty() {
                            continue;
                        }
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = moved {
                tracing::debug!(domid = self.domain.domid(), %error, "input cannot be given");
                inner.input.clear();
                return;
            }
            if let Some(Input::Bytes(_, reply)) = inner.input.pop_front() {
                let _ = reply.send(());
            }
        }
    }

    /// Gives the capsule input, and waits until it is in its ring.
    ///
    /// # Errors
    /// When it can take no more.
    pub async fn write(self: &Arc<Self>, bytes: Bytes) -> Result<(), Refused> {
        let written = {
            let mut inner = self.open()?;
            let (reply, written) = oneshot::channel();
            inner.input.push_back(Input::Bytes(bytes, reply));
            self.pump_input(&mut inner);
            written
        };
        written.await.map_err(|_| Refused::Ended)
    }

    /// Says that no more input will come after what was given before.
    ///
    /// # Errors
    /// When that was said already.
    pub fn close(&self) -> Result<(), Refused> {
        let mut inner = self.open()?;
        inner.closed = true;
        inner.input.push_back(Input::Close);
        self.pump_input(&mut inner);
        Ok(())
    }

    /// Whether it takes input.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_open(&self) -> Result<(), Refused> {
        self.open().map(drop)
    }

    fn open(&self) -> Result<MutexGuard<'_, Inner>, Refused> {
        let inner = self.inner.lock().unwrap();
        match (inner.finished, inner.closed) {
            (true, _) => Err(Refused::Ended),
            (_, true) => Err(Refused::Closed),
            _ => Ok(inner),
        }
    }

    /// The domain has shut down, or is about to be destroyed: takes what is left in the ring,
    /// whoever has to wait, and refuses input from now on.
    pub fn finish(&self) {
        let mut inner = self.inner.lock().unwrap();
        inner.finished = true;
        inner.input.clear();
        let mut moved = 0;
        // One that still runs could go on for ever.
        while moved < BURST {
            match self.take(&mut inner) {
                Ok(count) if count > 0 => moved += count,
                _ => break,
            }
        }
    }
}
