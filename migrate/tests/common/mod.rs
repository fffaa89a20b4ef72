//! A connection in memory that fails on demand, and claims that are kept beside the "daemons".
#![allow(dead_code, reason = "each test program uses its own part")]

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fcap_migrate::{
    destination::{self, Arrival, DestinationFailure, Incoming},
    handover::Claim,
    progress::MigrateStats,
    sim::{SimDomain, SimHost, SimSource},
    source::{self, SourceFailure},
    wire::Reason,
};

pub(crate) const ID: [u8; 16] = *b"one of many ids.";

/// What a socket holds before the writer waits.
const CAPACITY: usize = 128 << 10;
/// How long a reader or writer waits before it looks up.
const LOOK_UP: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection ends.
    Cut,
    /// A bit changes.
    Flip,
    /// Nothing gets through any more.
    Stall,
}

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    passed: u64,
    closed: bool,
    fault: Option<(u64, Fault)>,
}

/// One end of one direction.
#[derive(Clone)]
struct Shared(Arc<(Mutex<Pipe>, Condvar)>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pipe> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, pipe: MutexGuard<'a, Pipe>) -> (MutexGuard<'a, Pipe>, bool) {
        let (pipe, timeout) = self.0.1.wait_timeout(pipe, LOOK_UP).unwrap_or_else(PoisonError::into_inner);
        (pipe, timeout.timed_out())
    }

    fn close(&self) {
        self.lock().closed = true;
        self.0.1.notify_all();
    }
}

pub(crate) struct Writer(Shared);
pub(crate) struct Reader(Shared);

/// A direction with a fault at a byte.
pub(crate) fn pipe(fault: Option<(u64, Fault)>) -> (Writer, Reader) {
    let shared = Shared(Arc::new((Mutex::new(Pipe { fault, ..Pipe::default() }), Condvar::new())));
    (Writer(shared.clone()), Reader(shared))
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.lock();
        loop {
            if pipe.closed {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let mut room = CAPACITY - pipe.bytes.len();
            let mut flip = None;
            if let Some((at, fault)) = pipe.fault {
                let before = at.saturating_sub(pipe.passed) as usize;
                match fault {
                    Fault::Cut if before == 0 => {
                        pipe.closed = true;
                        self.0.0.1.notify_all();
                        continue;
                    }
                    Fault::Flip if before < bytes.len().min(room) => flip = Some(before),
                    Fault::Flip => {}
                    Fault::Cut | Fault::Stall => room = room.min(before),
                }
            }
            let len = bytes.len().min(room);
            if len > 0 {
                pipe.bytes.extend(&bytes[..len]);
                if let Some(at) = flip {
                    let at = pipe.bytes.len() - len + at;
                    pipe.bytes[at] ^= 0x10;
                    pipe.fault = None;
                }
                pipe.passed += len as u64;
                self.0.0.1.notify_all();
                return Ok(len);
            }
            let timed_out;
            (pipe, timed_out) = self.0.wait(pipe);
            if timed_out {
                return Err(ErrorKind::WouldBlock.into());
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.lock();
        loop {
            let len = buffer.len().min(pipe.bytes.len());
            if len > 0 {
                for (to, from) in buffer.iter_mut().zip(pipe.bytes.drain(..len)) {
                    *to = from;
                }
                self.0.0.1.notify_all();
                return Ok(len);
            }
            if pipe.closed {
                return Ok(0);
            }
            let timed_out;
            (pipe, timed_out) = self.0.wait(pipe);
            if timed_out {
                return Err(ErrorKind::TimedOut.into());
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A disk with room for one claim.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    claim: Arc<AtomicBool>,
    full: Arc<AtomicBool>,
}

impl Disk {
    pub(crate) fn full() -> Self {
        Self { full: Arc::new(AtomicBool::new(true)), ..Self::default() }
    }

    pub(crate) fn has_claim(&self) -> bool {
        self.claim.load(Ordering::SeqCst)
    }
}

impl Claim for Disk {
    fn write(&mut self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(ErrorKind::StorageFull.into());
        }
        self.claim.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        self.claim.store(false, Ordering::SeqCst);
        Ok(())
    }
}

pub(crate) type Sides = (Result<MigrateStats, SourceFailure>, Result<Arrival<SimDomain>, DestinationFailure>);

/// Faults of the two directions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) forward: Option<(u64, Fault)>,
    pub(crate) back: Option<(u64, Fault)>,
}

/// Moves a domain from one simulated machine to another.
pub(crate) fn migrate(
    domain: &mut SimSource,
    host: &mut SimHost,
    options: &source::Options,
    reason: Reason,
    disks: (&mut Disk, &mut Disk),
    faults: Faults,
) -> Sides {
    let (to_destination, from_source) = pipe(faults.forward);
    let (to_source, from_destination) = pipe(faults.back);
    std::thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let dropped = |error| DestinationFailure {
                error,
                state: fcap_migrate::handover::DestinationState::Dropped,
            };
            Incoming::connection(from_source, to_source, destination::Options::default())
                .map_err(dropped)?
                .receive(host, disks.1)
        });
        let connection = (from_destination, to_destination);
        let source = source::migrate(domain, disks.0, connection, ID, reason, options, &mut |_| {});
        (source, destination.join().expect("the destination does not panic"))
    })
}
