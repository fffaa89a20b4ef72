//! Reading and writing with an eye on the clock, and on the wish to stop.
//!
//! The transport is anything that reads or writes. If it returns now and then when nothing moves
//! (a socket with a time-out of a second, say), the engine notices a stall and a cancellation
//! within that time; if it never does, both wait for the transport.

use std::{
    io::{self, ErrorKind, Read, Write},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    error::{MigrateError, Side},
    rate::TokenBucket,
};

/// The least that a link must carry to count as alive.
const LEAST_BYTES_PER_SECOND: u64 = 16 << 10;
/// Written at once, so that a stall is seen early.
const CHUNK: usize = 256 << 10;
/// Of a limited rate so much of a second is written at once: pauses stay short.
const CHUNKS_PER_SECOND: u64 = 20;

/// A wish to stop, from another thread.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    shared: Arc<(AtomicBool, Mutex<()>, Condvar)>,
}

impl Cancel {
    /// Wishes it.
    pub fn cancel(&self) {
        let (cancelled, lock, wake) = &*self.shared;
        let _guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        cancelled.store(true, Ordering::Relaxed);
        wake.notify_all();
    }

    /// Whether it was wished.
    pub fn is_cancelled(&self) -> bool {
        self.shared.0.load(Ordering::Relaxed)
    }

    /// Waits for a time, or until it is wished.
    fn wait(&self, time: Duration) {
        let (_, lock, wake) = &*self.shared;
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = wake.wait_timeout_while(guard, time, |()| !self.is_cancelled());
    }
}

/// How long a link is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Nothing, or next to nothing, moves within a record.
    pub stall: Duration,
    /// The other side has something to do before it speaks.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { stall: Duration::from_secs(10), answer: Duration::from_secs(60) }
    }
}

/// A transfer under way, looked at in spans of time: in each something must move.
struct Watch {
    side: Side,
    since: Instant,
    span: Duration,
    bytes: u64,
}

impl Watch {
    fn start(side: Side, span: Duration) -> Self {
        Self { side, since: Instant::now(), span, bytes: 0 }
    }

    fn moved(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    fn check(&mut self) -> Result<(), MigrateError> {
        let elapsed = self.since.elapsed();
        if elapsed <= self.span {
            return Ok(());
        }
        if self.bytes < (LEAST_BYTES_PER_SECOND as f64 * elapsed.as_secs_f64()) as u64 {
            return Err(MigrateError::Stalled {
                side: self.side,
                bytes: self.bytes,
                seconds: elapsed.as_secs(),
            });
        }
        *self = Self::start(self.side, self.span);
        Ok(())
    }
}

/// Nothing moved, but may yet.
fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Writes everything.
pub(crate) struct LinkWriter<W> {
    output: W,
    side: Side,
    stall: Duration,
    cancel: Cancel,
    limit: Option<TokenBucket>,
    epoch: Instant,
}

impl<W: Write> LinkWriter<W> {
    pub(crate) fn new(output: W, side: Side, patience: Patience, cancel: Cancel) -> Self {
        Self { output, side, stall: patience.stall, cancel, limit: None, epoch: Instant::now() }
    }

    /// Limits the rate from now on, or not.
    pub(crate) fn set_limit(&mut self, limit: Option<TokenBucket>) {
        (self.limit, self.epoch) = (limit, Instant::now());
    }

    /// From now on nobody's wish counts.
    pub(crate) fn ignore_cancel(&mut self) {
        self.cancel = Cancel::default();
    }

    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> Result<(), MigrateError> {
        let per_chunk = self.limit.map_or(u64::MAX, |limit| limit.bytes_per_second() / CHUNKS_PER_SECOND);
        bytes.chunks((per_chunk as usize).clamp(1, CHUNK)).try_for_each(|chunk| {
            if let Some(limit) = &mut self.limit {
                self.cancel.wait(limit.take(chunk.len() as u64, self.epoch.elapsed()));
            }
            self.write_chunk(chunk)
        })
    }

    fn write_chunk(&mut self, mut chunk: &[u8]) -> Result<(), MigrateError> {
        let mut watch = Watch::start(self.side, self.stall);
        while !chunk.is_empty() {
            if self.cancel.is_cancelled() {
                return Err(MigrateError::Cancelled);
            }
            match self.output.write(chunk) {
                Ok(0) => return Err(self.lost(ErrorKind::WriteZero.into())),
                Ok(len) => {
                    watch.moved(len);
                    chunk = &chunk[len..];
                }
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(self.lost(error)),
            }
            if !chunk.is_empty() {
                watch.check()?;
            }
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self) -> Result<(), MigrateError> {
        let mut watch = Watch::start(self.side, self.stall);
        loop {
            match self.output.flush() {
                Ok(()) => return Ok(()),
                Err(error) if is_pause(&error) => watch.check()?,
                Err(error) => return Err(self.lost(error)),
            }
        }
    }

    fn lost(&self, source: io::Error) -> MigrateError {
        MigrateError::Link { side: self.side, source }
    }
}

/// Reads everything.
pub(crate) struct LinkReader<R> {
    input: R,
    side: Side,
    stall: Duration,
    cancel: Cancel,
}

impl<R: Read> LinkReader<R> {
    pub(crate) fn new(input: R, side: Side, patience: Patience, cancel: Cancel) -> Self {
        Self { input, side, stall: patience.stall, cancel }
    }

    /// From now on nobody's wish counts.
    pub(crate) fn ignore_cancel(&mut self) {
        self.cancel = Cancel::default();
    }

    /// Fills `buffer`. The first byte may take `patience` longer. Returns how many bytes there
    /// were before the stream ended: fewer than wanted, but no error.
    pub(crate) fn fill(&mut self, buffer: &mut [u8], patience: Duration) -> Result<usize, MigrateError> {
        let mut watch = Watch::start(self.side, self.stall + patience);
        let mut len = 0;
        while len < buffer.len() {
            if self.cancel.is_cancelled() {
                return Err(MigrateError::Cancelled);
            }
            match self.input.read(&mut buffer[len..]) {
                Ok(0) => break,
                Ok(read) => {
                    if len == 0 {
                        watch = Watch::start(self.side, self.stall);
                    }
                    len += read;
                    watch.moved(read);
                }
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(MigrateError::Link { side: self.side, source: error }),
            }
            if len < buffer.len() {
                watch.check()?;
            }
        }
        Ok(len)
    }

    /// Reads until the stream ends or fails, or for at most `time`, and looks at nothing.
    pub(crate) fn drain(&mut self, buffer: &mut [u8], time: Duration) {
        let since = Instant::now();
        while since.elapsed() < time && !self.cancel.is_cancelled() {
            match self.input.read(buffer) {
                Ok(0) => return,
                Err(error) if !is_pause(&error) => return,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives or takes so many bytes each time, after a pause.
    struct Slow {
        bytes: usize,
        pause: Duration,
    }

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            Cancel::default().wait(self.pause);
            if self.bytes == 0 { Err(ErrorKind::TimedOut.into()) } else { Ok(buffer.len().min(self.bytes)) }
        }
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Cancel::default().wait(self.pause);
            if self.bytes == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(bytes.len().min(self.bytes)) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn transfer(bytes: usize, pause_ms: u64, len: usize) -> [Result<(), MigrateError>; 2] {
        let slow = || Slow { bytes, pause: Duration::from_millis(pause_ms) };
        let patience = Patience { stall: Duration::from_millis(50), answer: Duration::ZERO };
        let mut buffer = vec![0; len];
        let mut reader = LinkReader::new(slow(), Side::Source, patience, Cancel::default());
        let mut writer = LinkWriter::new(slow(), Side::Source, patience, Cancel::default());
        [reader.fill(&mut buffer, Duration::ZERO).map(drop), writer.write_all(&buffer)]
    }

    #[test]
    fn a_link_that_carries_nothing_or_single_bytes_is_stalled() {
        for (bytes, pause_ms) in [(0, 1), (1, 1), (10, 20)] {
            for result in transfer(bytes, pause_ms, 100_000) {
                assert!(matches!(result, Err(MigrateError::Stalled { .. })), "{result:?}");
            }
        }
    }

    #[test]
    fn a_slow_link_is_not_stalled() {
        for result in transfer(50_000, 10, 1_000_000) {
            assert!(result.is_ok(), "{result:?}");
        }
    }

    #[test]
    fn a_wish_to_stop_ends_a_wait() {
        let cancel = Cancel::default();
        cancel.cancel();
        let slow = Slow { bytes: 0, pause: Duration::from_millis(1) };
        let mut reader = LinkReader::new(slow, Side::Source, Patience::default(), cancel);
        assert!(matches!(reader.fill(&mut [0], Duration::ZERO), Err(MigrateError::Cancelled)));
    }
}
