//! What capsules wrote: kept on disk, bounded, and the one place from which everybody reads it.
//!
//! A log is a sequence of records in up to two *segments*, files named by the position of
//! their first byte; when the newer one is full, the older one goes. Positions count the bytes
//! that the capsule wrote, over all its runs. A record is
//!
//! ```text
//! { u64 time_ns, u32 len, u32 ring, len bytes }     little endian
//! ```
//!
//! where `ring` is the console ring's consumer index once the bytes are taken from it. A
//! record of no bytes with `ring` 0 marks the start of a run. So after a `kill -9` between
//! keeping bytes and taking them from the ring, the next daemon knows how many of the bytes in
//! the ring it has already ([`Log::already_kept`]): nothing is lost and nothing comes twice.
//! A torn record at the end is cut off.
//!
//! Readers are [`Cursor`]s. One that *holds* is attached to the capsule: the writer waits for
//! it ([`Log::lag`]). Others that fall behind are told how much they have lost.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

/// Bytes of a record before its body.
const HEAD: usize = 16;
/// Longest body of a record.
const MAX_RECORD: usize = 64 << 10;
/// A holding reader may be so far behind before the capsule has to wait. Less than a segment,
/// so that what it has yet to read is never rotated away.
pub const WINDOW: u64 = 32 << 10;
/// Least bound of a log's size.
pub const MIN_BYTES: u64 = 4 * WINDOW;

/// The log of one capsule.
pub struct Log {
    base: PathBuf,
    segment_bytes: u64,
    inner: Mutex<Inner>,
    /// Position of the end, for those who wait for more.
    end: watch::Sender<u64>,
    /// Changes when a holding reader has moved on or gone.
    room: watch::Sender<()>,
}

struct Inner {
    segments: VecDeque<Arc<Segment>>,
    /// Position of the end.
    end: u64,
    /// `ring` of the last record.
    ring: u32,
    /// Set when the newest segment cannot be appended to: its end is not the log's.
    sealed: bool,
    holders: HashMap<u64, u64>,
    next_holder: u64,
}

struct Segment {
    path: PathBuf,
    file: File,
    /// Position of its first byte of output.
    start: u64,
    /// Valid bytes of the file.
    len: AtomicU64,
}

struct Head {
    time_ns: u64,
    len: usize,
    ring: u32,
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (time_ns, rest) = bytes.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (ring, _) = rest.split_first_chunk()?;
        let head = Self {
            time_ns: u64::from_le_bytes(*time_ns),
            len: u32::from_le_bytes(*len) as usize,
            ring: u32::from_le_bytes(*ring),
        };
        // Zeros are what some file systems leave of a record that did not make it to the disk.
        (head.len <= MAX_RECORD && head.time_ns != 0).then_some(head)
    }

    fn emit(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..8].copy_from_slice(&self.time_ns.to_le_bytes());
        bytes[8..12].copy_from_slice(&(self.len as u32).to_le_bytes());
        bytes[12..].copy_from_slice(&self.ring.to_le_bytes());
        bytes
    }
}

/// The whole records at the start of `bytes`: offset, head and body of each.
fn records(bytes: &[u8]) -> impl Iterator<Item = (usize, Head, &[u8])> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let head = Head::parse(&bytes[offset..])?;
        let at = offset;
        let body = bytes.get(at + HEAD..at + HEAD + head.len)?;
        offset = at + HEAD + head.len;
        Some((at, head, body))
    })
}

/// Bytes of output in these records.
fn output_len(bytes: &[u8]) -> u64 {
    records(bytes).map(|(_, _, body)| body.len() as u64).sum()
}

impl Segment {
    fn path(base: &Path, start: u64) -> PathBuf {
        base.with_extension(format!("log-{start:016x}"))
    }

    fn create(base: &Path, start: u64) -> io::Result<Arc<Self>> {
        let path = Self::path(base, start);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        Ok(Arc::new(Self { path, file, start, len: AtomicU64::new(0) }))
    }

    fn append(&self, record: &[u8]) -> io::Result<()> {
        let at = self.len.load(Ordering::Relaxed);
        self.file.write_all_at(record, at)?;
        self.len.store(at + record.len() as u64, Ordering::Release);
        Ok(())
    }

    /// The valid bytes from `offset` on, at most `max`.
    fn read(&self, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let rest = self.len.load(Ordering::Acquire).saturating_sub(offset);
        let mut bytes = vec![0; usize::try_from(rest).unwrap_or(max).min(max)];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn read_all(&self) -> io::Result<Vec<u8>> {
        self.read(0, usize::MAX)
    }
}

impl Log {
    /// The start of the segment in a file with this extension, if it is one.
    pub fn segment_start(extension: &str) -> Option<u64> {
        u64::from_str_radix(extension.strip_prefix("log-")?, 16).ok()
    }

    /// Opens the log whose segments are `base` with extensions, or begins one there. It takes
    /// at most about `max_bytes`.
    ///
    /// # Errors
    /// When files cannot be read. A log that has been damaged is read as far as possible.
    pub fn open(base: PathBuf, mut starts: Vec<u64>, max_bytes: u64) -> io::Result<Arc<Self>> {
        starts.sort_unstable();
        let mut segments = VecDeque::new();
        let (mut end, mut ring) = (0, 0);
        for start in starts {
            let path = Segment::path(&base, start);
            let file = File::options().read(true).write(true).open(&path)?;
            let segment = Segment { path, start, len: AtomicU64::new(file.metadata()?.len()), file };
            let (mut len, mut output) = (0, 0);
            for (at, head, body) in records(&segment.read_all()?) {
                len = at + HEAD + body.len();
                output += body.len() as u64;
                ring = head.ring;
            }
            segment.file.set_len(len as u64)?;
            segment.len.store(len as u64, Ordering::Release);
            end = start + output;
            segments.push_back(Arc::new(segment));
        }
        Ok(Arc::new(Self {
            base,
            segment_bytes: max_bytes.max(MIN_BYTES) / 2,
            inner: Mutex::new(Inner {
                segments,
                end,
                ring,
                sealed: false,
                holders: HashMap::new(),
                next_holder: 0,
            }),
            end: watch::Sender::new(end),
            room: watch::Sender::new(()),
        }))
    }

    /// Goes on from where the log of the same capsule on another node has ended. Nothing may have
    /// been written yet.
    pub fn go_on_from(&self, end: u64) {
        let mut inner = self.inner.lock().unwrap();
        inner.end = end;
        self.end.send_replace(end);
    }

    /// What there is of it, the oldest first: the position of the first byte of each segment, and
    /// the segment. Small ones that follow each other come as one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn segments(&self) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let segments = self.inner.lock().unwrap().segments.clone();
        let mut all: Vec<(u64, Vec<u8>)> = Vec::new();
        for segment in segments {
            let bytes = segment.read_all()?;
            match all.last_mut() {
                // One that has no output yet starts where the next one will.
                _ if output_len(&bytes) == 0 => {}
                Some((start, before))
                    if *start + output_len(before) == segment.start
                        && (before.len() + bytes.len()) as u64 <= self.segment_bytes =>
                {
                    before.extend_from_slice(&bytes);
                }
                _ => all.push((segment.start, bytes)),
            }
        }
        Ok(all)
    }

    /// Puts what another node had of it before its beginning.
    ///
    /// # Errors
    /// When that is not what came before, or cannot be written; nothing of it is left then.
    pub fn put_before(&self, segments: &[(u64, Vec<u8>)]) -> io::Result<()> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "this is not what came before");
        let mut inner = self.inner.lock().unwrap();
        let end = inner.segments.front().map_or(inner.end, |first| first.start);
        for (at, (start, bytes)) in segments.iter().enumerate() {
            let len = output_len(bytes);
            let whole =
                records(bytes).last().map_or(0, |(at, _, body)| at + HEAD + body.len()) == bytes.len();
            let next = segments.get(at + 1).map_or(end, |(next, _)| *next);
            if !whole || len == 0 || start.checked_add(len) != Some(next) {
                return Err(bad());
            }
        }
        let mut written = VecDeque::new();
        for (start, bytes) in segments {
            let segment = Segment::create(&self.base, *start);
            let appended = segment.and_then(|segment| {
                written.push_back(segment.clone());
                segment.append(bytes)
            });
            if let Err(error) = appended {
                written.iter().for_each(|segment: &Arc<Segment>| drop(fs::remove_file(&segment.path)));
                return Err(error);
            }
        }
        written.append(&mut inner.segments);
        inner.segments = written;
        Ok(())
    }

    /// Marks the start of a run: the console ring counts from 0 again.
    pub fn begin_run(&self, time_ns: u64) {
        let mut inner = self.inner.lock().unwrap();
        inner.ring = 0;
        if !inner.segments.is_empty() {
            self.put(&mut inner, time_ns, &[]);
        }
    }

    /// Appends what was read from the console ring. When the disk is full, the bytes are lost,
    /// and readers will be told so.
    pub fn append(&self, time_ns: u64, bytes: &[u8]) {
        let mut inner = self.inner.lock().unwrap();
        for chunk in bytes.chunks(MAX_RECORD) {
            inner.ring = inner.ring.wrapping_add(chunk.len() as u32);
            self.put(&mut inner, time_ns, chunk);
            inner.end += chunk.len() as u64;
        }
        self.end.send_replace(inner.end);
    }

    fn put(&self, inner: &mut Inner, time_ns: u64, body: &[u8]) {
        if let Err(error) = self.try_put(inner, time_ns, body) {
            if !inner.sealed {
                tracing::warn!(log = %self.base.display(), %error, "output is lost, as its log cannot be written");
            }
            inner.sealed = true;
        }
    }

    fn try_put(&self, inner: &mut Inner, time_ns: u64, body: &[u8]) -> io::Result<()> {
        let head = Head { time_ns: time_ns.max(1), len: body.len(), ring: inner.ring };
        let record = [&head.emit(), body].concat();
        let full = |segment: &Arc<Segment>| segment.len.load(Ordering::Relaxed) >= self.segment_bytes;
        if !inner.sealed
            && let Some(segment) = inner.segments.back().filter(|segment| !full(segment))
        {
            return segment.append(&record);
        }
        // Before the new one is made, as the disk may be full of it.
        while inner.segments.len() > 1 {
            let _ = inner.segments.pop_front().map(|old| fs::remove_file(&old.path));
        }
        let segment = Segment::create(&self.base, inner.end)?;
        if let Err(error) = segment.append(&record) {
            let _ = fs::remove_file(&segment.path);
            return Err(error);
        }
        // Of two segments with one start, the former holds no output.
        inner.segments.retain(|old| old.start != segment.start);
        inner.segments.push_back(segment);
        inner.sealed = false;
        Ok(())
    }

    /// Removes its files. Readers go on reading what is left.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove(&self) -> io::Result<()> {
        let inner = self.inner.lock().unwrap();
        inner.segments.iter().try_for_each(|segment| fs::remove_file(&segment.path))
    }

    /// How many of the bytes that are in a ring with consumer index `ring` are in the log
    /// already; at most the ring's length.
    pub fn already_kept(&self, ring: u32) -> usize {
        let ahead = self.inner.lock().unwrap().ring.wrapping_sub(ring) as usize;
        if ahead <= xen_proto::console::OUT_LEN { ahead } else { 0 }
    }

    /// Tells the log where the ring is, after [`Self::already_kept`] was acted upon.
    pub fn set_ring(&self, ring: u32) {
        self.inner.lock().unwrap().ring = ring;
    }

    /// Bytes written over the capsule's whole life.
    pub fn end(&self) -> u64 {
        self.inner.lock().unwrap().end
    }

    /// How far the slowest holding reader is behind.
    pub fn lag(&self) -> u64 {
        let inner = self.inner.lock().unwrap();
        inner.holders.values().min().map_or(0, |position| inner.end.saturating_sub(*position))
    }

    /// Changes whenever [`Self::lag`] may have become less.
    pub fn room(&self) -> watch::Receiver<()> {
        self.room.subscribe()
    }

    /// Position of the oldest byte that is left.
    fn start(&self) -> u64 {
        self.inner.lock().unwrap().segments.front().map_or(0, |segment| segment.start)
    }

    /// Position where the last `lines` lines begin.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn tail(&self, lines: u64) -> io::Result<u64> {
        let segments = self.inner.lock().unwrap().segments.clone();
        let mut position = self.end();
        if lines == 0 {
            return Ok(position);
        }
        // The last line counts whether or not it is ended.
        let (mut left, mut last) = (lines, true);
        for segment in segments.iter().rev() {
            let bytes = segment.read_all()?;
            let bodies: Vec<&[u8]> = records(&bytes).map(|(_, _, body)| body).collect();
            position = segment.start + bodies.iter().map(|body| body.len() as u64).sum::<u64>();
            for byte in bodies.into_iter().rev().flat_map(|body| body.iter().rev()) {
                if *byte == b'\n' && !last {
                    left -= 1;
                    if left == 0 {
                        return Ok(position);
                    }
                }
                last = false;
                position -= 1;
            }
        }
        Ok(position)
    }

    /// Position of the first output at or after a time.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn since(&self, time_ns: u64) -> io::Result<u64> {
        let segments = self.inner.lock().unwrap().segments.clone();
        for segment in &segments {
            let mut position = segment.start;
            for (_, head, body) in records(&segment.read_all()?) {
                if head.time_ns >= time_ns {
                    return Ok(position);
                }
                position += body.len() as u64;
            }
        }
        Ok(self.end())
    }

    /// A reader from `position` on (or the oldest byte that is left). The capsule waits for one
    /// that holds.
    pub fn cursor(self: &Arc<Self>, position: u64, hold: bool) -> Cursor {
        let position = position.max(self.start());
        let holder = hold.then(|| {
            let mut inner = self.inner.lock().unwrap();
            inner.next_holder += 1;
            let holder = inner.next_holder;
            inner.holders.insert(holder, position);
            holder
        });
        Cursor { log: self.clone(), position, place: None, holder, end: self.end.subscribe() }
    }
}

/// Something read from a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Output, and when it came.
    Output {
        /// Nanoseconds since the Unix epoch.
        time_ns: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// So many bytes are missing here.
    Lost(u64),
}

/// A reader's place in a log.
pub struct Cursor {
    log: Arc<Log>,
    /// Position of the next byte to be given.
    position: u64,
    /// Where to go on reading; looked up when there is none.
    place: Option<Place>,
    holder: Option<u64>,
    end: watch::Receiver<u64>,
}

struct Place {
    segment: Arc<Segment>,
    /// Of the next record in the file.
    offset: u64,
    /// Position of that record.
    position: u64,
}

impl Cursor {
    /// What has come since the last call, some 64 KiB at most. Empty when there is nothing.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn read(&mut self) -> io::Result<Vec<Item>> {
        self.end.mark_unchanged();
        let mut items = Vec::new();
        while items.is_empty() {
            let Some(mut place) = self.place.take().or_else(|| self.log.look_up(self.position)) else {
                break;
            };
            if place.offset == 0 {
                self.skip_to(place.position, &mut items);
            }
            // Asked before reading: nothing is appended to a segment that has a successor.
            let next = self.log.successor(&place.segment);
            let bytes = place.segment.read(place.offset, HEAD + MAX_RECORD)?;
            let before = place.offset;
            for (_, head, body) in records(&bytes) {
                let end = place.position + body.len() as u64;
                if end > self.position {
                    let skip = usize::try_from(self.position.saturating_sub(place.position)).unwrap_or(0);
                    items.push(Item::Output { time_ns: head.time_ns, bytes: body[skip..].to_vec() });
                    self.position = end;
                }
                place.offset += (HEAD + body.len()) as u64;
                place.position = end;
            }
            let at_end = place.offset == before;
            self.place = Some(place);
            match next {
                Next::Segment(segment) if at_end => {
                    self.place = Some(Place { offset: 0, position: segment.start, segment });
                }
                Next::Lost(end) if at_end => {
                    self.skip_to(end, &mut items);
                    break;
                }
                Next::Nothing if at_end => break,
                _ => {}
            }
        }
        if let Some(holder) = self.holder.filter(|_| !items.is_empty()) {
            self.log.inner.lock().unwrap().holders.insert(holder, self.position);
            self.log.room.send_replace(());
        }
        Ok(items)
    }

    /// Waits until there may be more.
    pub async fn wait(&mut self) {
        // The sender lives in `self.log`, so this cannot fail.
        let _ = self.end.changed().await;
    }

    fn skip_to(&mut self, position: u64, items: &mut Vec<Item>) {
        if position > self.position {
            items.push(Item::Lost(position - self.position));
            self.position = position;
        }
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        if let Some(holder) = self.holder {
            self.log.inner.lock().unwrap().holders.remove(&holder);
            self.log.room.send_replace(());
        }
    }
}

/// What follows a segment.
enum Next {
    Segment(Arc<Segment>),
    /// Nothing yet; but output up to this position could not be written.
    Lost(u64),
    Nothing,
}

impl Log {
    fn look_up(&self, position: u64) -> Option<Place> {
        let inner = self.inner.lock().unwrap();
        let holds = |segment: &&Arc<Segment>| segment.start <= position;
        let segment = inner.segments.iter().rev().find(holds).or(inner.segments.front())?;
        Some(Place { segment: segment.clone(), offset: 0, position: segment.start })
    }

    fn successor(&self, segment: &Segment) -> Next {
        let inner = self.inner.lock().unwrap();
        match inner.segments.iter().find(|other| other.start > segment.start) {
            Some(next) => Next::Segment(next.clone()),
            None if inner.sealed => Next::Lost(inner.end),
            None => Next::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(cursor: &mut Cursor) -> (Vec<u8>, u64) {
        let (mut out, mut lost) = (Vec::new(), 0);
        loop {
            let items = cursor.read().unwrap();
            if items.is_empty() {
                return (out, lost);
            }
            for item in items {
                match item {
                    Item::Output { bytes, .. } => out.extend(bytes),
                    Item::Lost(count) => lost += count,
                }
            }
        }
    }

    fn pattern(range: std::ops::Range<u64>) -> Vec<u8> {
        range.map(|i| (i % 251) as u8).collect()
    }

    fn open(dir: &Path) -> Arc<Log> {
        let starts = fs::read_dir(dir)
            .unwrap()
            .filter_map(|file| Log::segment_start(file.unwrap().path().extension()?.to_str()?));
        Log::open(dir.join("x"), starts.collect(), MIN_BYTES).unwrap()
    }

    fn segment_files(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn a_log_is_bounded_and_says_what_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        let mut follower = log.cursor(0, false);
        let mut written = 0;
        for _ in 0..300 {
            log.append(1, &pattern(written..written + 1000));
            written += 1000;
        }
        assert!(segment_files(dir.path()) <= 2);
        let (bytes, lost) = read_all(&mut follower);
        assert_eq!(lost + bytes.len() as u64, written);
        assert!(lost > 0 && bytes.len() as u64 >= MIN_BYTES / 2 - 1000);
        assert_eq!(bytes, pattern(lost..written));
        let (new, _) = read_all(&mut log.cursor(0, false));
        assert_eq!(new, bytes, "one that starts now gets what is left, and that is no loss");
    }

    #[test]
    fn a_log_goes_on_from_what_another_node_had_of_it() {
        for written in [0, 1000, 200_000] {
            let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (before, after) = (open(there.path()), open(here.path()));
            pattern(0..written).chunks(1000).for_each(|bytes| before.append(1, bytes));
            after.go_on_from(before.end());
            after.append(2, &pattern(written..written + 500));
            let mut follower = after.cursor(0, false);
            let segments = before.segments().unwrap();
            after.put_before(&segments).unwrap();
            assert_eq!(read_all(&mut follower).0, pattern(written..written + 500));
            let whole = open(here.path());
            for log in [&after, &whole] {
                let (bytes, _) = read_all(&mut log.cursor(0, false));
                let start = written + 500 - bytes.len() as u64;
                assert!(start == 0 || bytes.len() as u64 > MIN_BYTES / 2, "{start}");
                assert_eq!(bytes, pattern(start..written + 500));
            }
        }
    }

    #[test]
    fn what_does_not_fit_before_a_log_is_refused() {
        let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (before, after) = (open(there.path()), open(here.path()));
        before.append(1, b"before");
        let [(start, bytes)] = &before.segments().unwrap()[..] else { panic!("one segment") };
        after.go_on_from(6);
        let torn = bytes[..bytes.len() - 1].to_vec();
        for bad in [(1, bytes.clone()), (u64::MAX, bytes.clone()), (0, torn), (6, Vec::new())] {
            assert!(after.put_before(&[bad]).is_err());
        }
        assert!(after.put_before(&[(*start, bytes.clone()), (*start, bytes.clone())]).is_err());
        assert_eq!(segment_files(here.path()), 0);
        after.put_before(&[(*start, bytes.clone())]).unwrap();
        assert_eq!(read_all(&mut after.cursor(0, false)).0, b"before");
    }

    #[test]
    fn a_follower_within_bounds_loses_nothing_over_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        let mut follower = log.cursor(0, false);
        let (mut out, mut written) = (Vec::new(), 0);
        for step in (1..3000).step_by(13) {
            log.append(1, &pattern(written..written + step));
            written += step;
            if step % 5 == 0 {
                let (bytes, lost) = read_all(&mut follower);
                assert_eq!(lost, 0);
                out.extend(bytes);
            }
        }
        out.extend(read_all(&mut follower).0);
        assert!(written > 2 * MIN_BYTES);
        assert_eq!(out, pattern(0..written));
    }

    #[test]
    fn a_holding_reader_is_waited_for_until_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        let mut cursor = log.cursor(log.end(), true);
        log.append(1, &[7; 5000]);
        assert_eq!(log.lag(), 5000);
        assert_eq!(read_all(&mut cursor).0.len(), 5000);
        assert_eq!(log.lag(), 0);
        log.append(1, &[7; 500]);
        drop(cursor);
        assert_eq!(log.lag(), 0);
    }

    #[test]
    fn a_torn_end_is_cut_off_and_the_log_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        log.begin_run(1);
        log.append(5, b"one\n");
        log.append(6, b"two\n");
        let path = Segment::path(&dir.path().join("x"), 0);
        let whole = fs::read(&path).unwrap();
        for torn in 0..whole.len() {
            fs::write(&path, &whole[..torn]).unwrap();
            let log = open(dir.path());
            let kept: &[u8] = if torn >= HEAD + 4 { b"one\n" } else { b"" };
            log.append(7, b"three\n");
            assert_eq!(read_all(&mut log.cursor(0, false)).0, [kept, b"three\n"].concat());
        }
    }

    #[test]
    fn what_was_kept_but_not_taken_is_known_after_a_kill() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        log.append(1, &[1; 700]);
        log.begin_run(2);
        log.append(3, &[1; 100]);
        let log = open(dir.path());
        assert_eq!((log.already_kept(100), log.already_kept(40), log.already_kept(0)), (0, 60, 100));
        assert_eq!(log.already_kept(101), 0, "behind the ring: a record was lost, nothing to skip");
    }

    #[test]
    fn tail_and_since_find_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path());
        for (time, text) in [(10, "a\nb"), (20, "b\n"), (30, "c\nd")] {
            log.append(time, text.as_bytes());
        }
        let from = |position| String::from_utf8(read_all(&mut log.cursor(position, false)).0).unwrap();
        for (lines, text) in
            [(0, ""), (1, "d"), (2, "c\nd"), (3, "bb\nc\nd"), (4, "a\nbb\nc\nd"), (9, "a\nbb\nc\nd")]
        {
            assert_eq!(from(log.tail(lines).unwrap()), text, "{lines}");
        }
        for (time, text) in [(0, "a\nbb\nc\nd"), (11, "b\nc\nd"), (20, "b\nc\nd"), (30, "c\nd"), (31, "")] {
            assert_eq!(from(log.since(time).unwrap()), text, "{time}");
        }
        log.append(40, b"\n");
        assert_eq!(from(log.tail(1).unwrap()), "d\n");
    }

    #[test]
    fn output_that_cannot_be_written_is_reported_lost() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("gone");
        fs::create_dir(&sub).unwrap();
        let log = open(&sub);
        log.append(1, b"kept");
        let mut cursor = log.cursor(0, false);
        fs::remove_dir_all(&sub).unwrap();
        log.inner.lock().unwrap().sealed = true;
        log.append(2, b"lost");
        assert_eq!(read_all(&mut cursor), (b"kept".to_vec(), 4));
        fs::create_dir(&sub).unwrap();
        log.append(3, b"more");
        assert_eq!(read_all(&mut cursor), (b"more".to_vec(), 0));
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_panic(bytes: Vec<u8>) {
            let dir = tempfile::tempdir().unwrap();
            fs::write(Segment::path(&dir.path().join("x"), 0), &bytes).unwrap();
            let log = open(dir.path());
            read_all(&mut log.cursor(0, false));
            log.tail(3).unwrap();
        }

        #[test]
        fn a_cursor_can_start_anywhere(lens in proptest::collection::vec(0u64..300, 1..40), at in 0u64..5000) {
            let dir = tempfile::tempdir().unwrap();
            let log = open(dir.path());
            let mut written = 0;
            for len in lens {
                log.append(1, &pattern(written..written + len));
                written += len;
            }
            let at = at.min(written);
            prop_assert_eq!(read_all(&mut log.cursor(at, false)).0, pattern(at..written));
        }
    }
}
