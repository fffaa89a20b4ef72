//! Pages of one round from the domain to the stream.
//!
//! ```text
//!  bitmap ─▶ batches of pfns ─▶ channel ─▶ workers: read, translate, sort, pack, sum ─▶ link
//!                   ▲                                                         │ one at a time
//!                   └──────────────── counts, empty lists ◀───────────────────┘
//! ```
//! While one worker is on the link, the others make the next batches ready. Buffers stay with the
//! workers from round to round. A round of one batch, as the last one is when all went well, is
//! sent by the calling thread: that takes no thread to be started while the domain stands still.
//! So is everything where there is one processor: what waits in the socket keeps the link busy.

use std::{
    io::Write,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use crossbeam_channel as channel;
use xen_proto::frame::{PAGE_SIZE, Pfn};

use crate::{
    bitmap::PageBitmap,
    compress::{Chooser, Compression, Packer},
    domain::{Page, PfnRange, SourceDomain},
    error::MigrateError,
    page::{self, Level, PageType},
    source::at_source,
    stream::StreamWriter,
    wire::{
        Encoding, LinearTable, RecordType, emit_linear_table, emit_pages_head, emit_range, feature,
        split_body_checksum,
    },
};

/// Pages of a batch: 256 KiB. One hypercall maps them, and little is done before something is on its
/// way.
const BATCH: usize = 64;
/// So small a write tells nothing about the link.
const TELLING_BYTES: usize = 64 << 10;

/// What became of pages.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Pages sent with content.
    pub(crate) pages: u64,
    /// Pages sent as zero.
    pub(crate) zero_pages: u64,
    /// Page tables with an entry that cannot be sent while the domain runs.
    pub(crate) deferred: Vec<Pfn>,
    /// Pages without memory.
    pub(crate) absent: Vec<Pfn>,
    /// Pages sent as page tables.
    pub(crate) tables: Vec<Pfn>,
}

impl Sent {
    fn add(&mut self, other: Self) {
        self.pages += other.pages;
        self.zero_pages += other.zero_pages;
        self.deferred.extend(other.deferred);
        self.absent.extend(other.absent);
        self.tables.extend(other.tables);
    }
}

/// Sends rounds.
pub(crate) struct Sender<W> {
    out: Out<W>,
    workers: Vec<Worker>,
}

/// What the workers share.
struct Out<W> {
    writer: Mutex<StreamWriter<W>>,
    chooser: Mutex<Chooser>,
    features: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panics takes the whole move along: nobody reads what it left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Write + Send> Sender<W> {
    /// A sender with so many workers; 0 for one more than there are processors, so that they are
    /// busy while the link is waited for, and for one on a single processor.
    pub(crate) fn new(writer: StreamWriter<W>, compression: Compression, workers: usize) -> Self {
        let workers = match workers {
            0 => match thread::available_parallelism().map_or(1, usize::from) {
                1 => 1,
                count => count.min(4) + 1,
            },
            given => given,
        };
        let chooser = Mutex::new(Chooser::new(compression));
        Self {
            out: Out { writer: Mutex::new(writer), chooser, features: 0 },
            workers: (0..workers).map(|_| Worker::new()).collect(),
        }
    }

    /// What the destination can read.
    pub(crate) fn set_features(&mut self, features: u32) {
        self.out.features = features;
        lock(&self.out.chooser).restrict(features);
    }

    /// The stream, between rounds.
    pub(crate) fn writer(&mut self) -> &mut StreamWriter<W> {
        self.out.writer.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends pages. `progress` is told how many are done, and the bytes on the wire.
    pub(crate) fn send<D: SourceDomain>(
        &mut self,
        domain: &D,
        pages: &PageBitmap,
        suspended: bool,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Sent, MigrateError> {
        let mut pfns = pages.iter();
        let mut fill = |batch: &mut Vec<Pfn>| {
            batch.clear();
            batch.extend(pfns.by_ref().take(BATCH));
            !batch.is_empty()
        };
        let (mut first, mut second) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        let out = &self.out;
        let mut sent = Sent::default();
        let mut pages_done = 0;
        let mut account = |batch: &[Pfn], result: Result<Sent, MigrateError>| {
            sent.add(result?);
            pages_done += batch.len() as u64;
            progress(pages_done, lock(&out.writer).bytes());
            Ok::<_, MigrateError>(())
        };
        if let [worker] = &mut self.workers[..] {
            while fill(&mut first) {
                account(&first, worker.send(&first, domain, suspended, out))?;
            }
            return Ok(sent);
        }
        match (fill(&mut first), fill(&mut second)) {
            (false, _) => return Ok(sent),
            (true, false) => return self.workers[0].send(&first, domain, suspended, out),
            (true, true) => {}
        }

        let depth = 2 * self.workers.len();
        let (jobs, queue) = channel::bounded::<Vec<Pfn>>(depth);
        let (done, results) = channel::bounded(depth);
        thread::scope(|scope| {
            for worker in &mut self.workers {
                let (queue, done) = (queue.clone(), done.clone());
                scope.spawn(move || {
                    for batch in queue {
                        let sent = worker.send(&batch, domain, suspended, out);
                        // Nobody listens any more after an error.
                        if done.send((batch, sent)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop((queue, done));

            let mut waiting = vec![second, first];
            let mut under_way = 0;
            loop {
                // Lists come back to be filled again. There are never more than the channels hold.
                let batch = match waiting.pop() {
                    Some(batch) => batch,
                    None => {
                        let mut batch = Vec::new();
                        if under_way == depth {
                            // Only a panic ends all workers; it goes on when the scope ends.
                            let Ok((list, result)) = results.recv() else { break };
                            account(&list, result)?;
                            under_way -= 1;
                            batch = list;
                        }
                        if !fill(&mut batch) {
                            break;
                        }
                        batch
                    }
                };
                if jobs.send(batch).is_err() {
                    break;
                }
                under_way += 1;
            }
            drop(jobs);
            results.into_iter().try_for_each(|(list, result)| account(&list, result))
        })?;
        Ok(sent)
    }
}

/// Buffers of one thread.
struct Worker {
    packer: Packer,
    pages: Vec<Page>,
    types: Vec<PageType>,
    /// Pages to be sent with content; it is in the first of `pages`.
    kept: Vec<(Pfn, PageType)>,
    zero: Vec<Pfn>,
    linear: Vec<LinearTable>,
    head: Vec<u8>,
    body: Vec<u8>,
}

impl Worker {
    fn new() -> Self {
        Self {
            packer: Packer::new(),
            pages: Vec::new(),
            types: Vec::new(),
            kept: Vec::new(),
            zero: Vec::new(),
            linear: Vec::new(),
            head: Vec::new(),
            body: Vec::new(),
        }
    }

    fn send<D: SourceDomain, W: Write>(
        &mut self,
        pfns: &[Pfn],
        domain: &D,
        suspended: bool,
        out: &Out<W>,
    ) -> Result<Sent, MigrateError> {
        self.pages.resize(pfns.len().max(self.pages.len()), [0; PAGE_SIZE]);
        self.types.resize(pfns.len(), PageType::Data);
        domain.read_pages(pfns, &mut self.types, &mut self.pages[..pfns.len()]).map_err(at_source)?;
        let sent = self.sort(pfns, domain, suspended, out.features & feature::LINEAR_TABLES != 0)?;
        self.emit(out)?;
        Ok(sent)
    }

    /// Translates page tables, and moves what has to be sent with content to the front.
    fn sort<D: SourceDomain>(
        &mut self,
        pfns: &[Pfn],
        domain: &D,
        suspended: bool,
        linear_tables: bool,
    ) -> Result<Sent, MigrateError> {
        self.kept.clear();
        self.zero.clear();
        self.linear.clear();
        let mut sent = Sent::default();
        for (index, (&pfn, &page_type)) in pfns.iter().zip(&self.types).enumerate() {
            let content = &mut self.pages[index];
            match page_type {
                PageType::Absent => {
                    sent.absent.push(pfn);
                    continue;
                }
                PageType::Data if page::is_zero(content) => {
                    self.zero.push(pfn);
                    continue;
                }
                PageType::Data => {}
                PageType::Table { level, pinned } => {
                    if let Err(entry) = page::canonicalise(content, level, |mfn| domain.pfn_of(mfn)) {
                        if suspended {
                            return Err(MigrateError::Table { pfn: pfn.0, entry });
                        }
                        // It may be half changed, or map what will be unmapped before suspension.
                        sent.deferred.push(pfn);
                        continue;
                    }
                    sent.tables.push(pfn);
                    if linear_tables
                        && level == Level::L1
                        && let Some(first) = page::linear(content)
                    {
                        self.linear.push(LinearTable { pfn, pinned, first });
                        continue;
                    }
                }
            }
            if self.kept.len() < index {
                self.pages.copy_within(index..=index, self.kept.len());
            }
            self.kept.push((pfn, page_type));
        }
        sent.pages = (self.kept.len() + self.linear.len()) as u64;
        sent.zero_pages = self.zero.len() as u64;
        Ok(sent)
    }

    fn emit<W: Write>(&mut self, out: &Out<W>) -> Result<(), MigrateError> {
        if !self.kept.is_empty() {
            let pages = &self.pages[..self.kept.len()];
            let raw = pages.as_flattened();
            let mut encoding = lock(&out.chooser).choose();
            let mut content = raw;
            if encoding != Encoding::Raw {
                let (tried, began) = (encoding, Instant::now());
                match self.packer.pack(encoding, pages) {
                    Some(packed) => content = packed,
                    None => encoding = Encoding::Raw,
                }
                lock(&out.chooser).packed(tried, raw.len(), content.len(), began.elapsed());
            }
            self.head.clear();
            emit_pages_head(encoding, self.kept.iter().copied(), &mut self.head);
            let checksum = split_body_checksum(RecordType::Pages as u32, &self.head, content);

            let mut writer = lock(&out.writer);
            let began = Instant::now();
            writer.emit(RecordType::Pages, checksum, &self.head, content)?;
            let took = began.elapsed();
            drop(writer);
            if content.len() >= TELLING_BYTES {
                lock(&out.chooser).sent(content.len(), took);
            }
        }
        if !self.linear.is_empty() {
            self.body.clear();
            self.linear.iter().for_each(|table| emit_linear_table(*table, &mut self.body));
            lock(&out.writer).record(RecordType::LinearTables, &self.body)?;
        }
        if !self.zero.is_empty() {
            self.body.clear();
            for run in self.zero.chunk_by(|one, next| one.0 + 1 == next.0) {
                emit_range(PfnRange { first: run[0], count: run.len() as u64 }, &mut self.body);
            }
            lock(&out.writer).record(RecordType::Zero, &self.body)?;
        }
        Ok(())
    }
}
