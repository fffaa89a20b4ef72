//! Pages of a stream into the domain.
//!
//! ```text
//! stream ─▶ whole records, checked ─▶ channel ─▶ workers: unpack, translate, write
//!                  ▲                                      │
//!                  └───────────── empty buffers ◀─────────┘
//! ```
//! Pages of one round may be written in any order, because none comes twice; before the next round
//! all of them must be in place.
//!
//! With one worker there is no thread: where there is one processor, nothing is gained by handing
//! records over.

use std::{collections::VecDeque, thread};

use crossbeam_channel::{Receiver as Results, Sender as Jobs, bounded};
use xen_proto::frame::Pfn;

use crate::{
    compress::Unpacker,
    destination::at_destination,
    domain::{DestinationDomain, Page, PfnRange},
    error::{MigrateError, Side},
    page::{self, Level, PageType},
    wire::{Breach, Encoding, Pages, RecordType, parse_linear_tables},
};

/// Page tables that are made of their records at a time: there are few, and new memory is not free.
const TABLES: usize = 32;

/// A record on its way to a worker.
struct Job {
    record_type: RecordType,
    body: Vec<u8>,
    len: usize,
}

/// Where records go.
pub(crate) struct Receiver<'a, D> {
    domain: &'a D,
    workers: Workers,
    buffers: VecDeque<Vec<u8>>,
    under_way: usize,
}

/// A buffer that comes back, and what became of what was in it.
type Written = (Vec<u8>, Result<(), MigrateError>);

/// Who writes pages.
enum Workers {
    /// The thread that reads the stream.
    Own(Worker),
    Threads {
        jobs: Jobs<Job>,
        results: Results<Written>,
    },
}

impl Workers {
    /// What has been written meanwhile.
    fn done(&self) -> Option<Written> {
        match self {
            Self::Own(_) => None,
            Self::Threads { results, .. } => results.try_recv().ok(),
        }
    }
}

/// Runs `receive` with so many workers (0: as many as there are processors, at most 4).
pub(crate) fn receive_pages<D: DestinationDomain, T>(
    domain: &D,
    workers: usize,
    receive: impl FnOnce(&mut Receiver<'_, D>) -> Result<T, MigrateError>,
) -> Result<T, MigrateError> {
    let workers = match workers {
        0 => thread::available_parallelism().map_or(1, |count| count.get().min(4)),
        given => given,
    };
    if workers == 1 {
        let (workers, buffers) = (Workers::Own(Worker::default()), VecDeque::from([Vec::new()]));
        return receive(&mut Receiver { domain, workers, buffers, under_way: 0 });
    }
    let depth = workers + 1;
    thread::scope(|scope| {
        let (jobs, queue) = bounded::<Job>(depth);
        let (done, results) = bounded(depth);
        for _ in 0..workers {
            let (queue, done) = (queue.clone(), done.clone());
            scope.spawn(move || {
                let mut worker = Worker::default();
                for Job { record_type, mut body, len } in queue {
                    let written = worker.write(domain, record_type, &mut body[..len]);
                    // Nobody listens any more after an error.
                    if done.send((body, written)).is_err() {
                        return;
                    }
                }
            });
        }
        drop((queue, done));
        let buffers = (0..depth).map(|_| Vec::new()).collect();
        receive(&mut Receiver { domain, workers: Workers::Threads { jobs, results }, buffers, under_way: 0 })
    })
}

impl<D: DestinationDomain> Receiver<'_, D> {
    pub(crate) fn domain(&self) -> &D {
        self.domain
    }

    /// A buffer for the next record; waits until one is free.
    pub(crate) fn buffer(&mut self) -> Result<Vec<u8>, MigrateError> {
        while let Some(result) = self.workers.done() {
            self.account(result)?;
        }
        if self.buffers.is_empty() && self.under_way > 0 {
            self.wait_for_one()?;
        }
        Ok(self.buffers.pop_front().unwrap_or_default())
    }

    /// Takes a buffer back.
    pub(crate) fn keep(&mut self, buffer: Vec<u8>) {
        self.buffers.push_back(buffer);
    }

    /// Has the pages of a record written.
    pub(crate) fn write(
        &mut self,
        record_type: RecordType,
        mut body: Vec<u8>,
        len: usize,
    ) -> Result<(), MigrateError> {
        self.under_way += 1;
        match &mut self.workers {
            Workers::Own(worker) => {
                let written = worker.write(self.domain, record_type, &mut body[..len]);
                self.account((body, written))
            }
            Workers::Threads { jobs, .. } => {
                // The channel has room for all buffers; workers end only by a panic, which the scope shows.
                let _ = jobs.send(Job { record_type, body, len });
                Ok(())
            }
        }
    }

    /// Makes pages zero.
    pub(crate) fn clear(&self, mut ranges: impl Iterator<Item = PfnRange>) -> Result<(), MigrateError> {
        ranges.try_for_each(|range| self.domain.clear_pages(range)).map_err(at_destination)
    }

    /// Waits until everything is written.
    pub(crate) fn wait(&mut self) -> Result<(), MigrateError> {
        while self.under_way > 0 {
            self.wait_for_one()?;
        }
        Ok(())
    }

    fn wait_for_one(&mut self) -> Result<(), MigrateError> {
        match &self.workers {
            Workers::Own(_) => unreachable!("what it writes is written when it returns"),
            Workers::Threads { results, .. } => match results.recv() {
                Ok(result) => self.account(result),
                // All workers ended by a panic, which the scope shows.
                Err(_) => Err(MigrateError::Cancelled),
            },
        }
    }

    fn account(&mut self, (buffer, result): Written) -> Result<(), MigrateError> {
        self.under_way -= 1;
        self.buffers.push_back(buffer);
        result
    }
}

/// Buffers of one thread.
struct Worker {
    unpacker: Unpacker,
    pfns: Vec<Pfn>,
    types: Vec<PageType>,
}

impl Default for Worker {
    fn default() -> Self {
        Self { unpacker: Unpacker::new(), pfns: Vec::new(), types: Vec::new() }
    }
}

fn broken(source: Breach) -> MigrateError {
    MigrateError::Stream { side: Side::Source, source }
}

impl Worker {
    fn write<D: DestinationDomain>(
        &mut self,
        domain: &D,
        record_type: RecordType,
        body: &mut [u8],
    ) -> Result<(), MigrateError> {
        match record_type {
            RecordType::LinearTables => self.write_linear_tables(domain, body),
            _ => self.write_pages(domain, body),
        }
    }

    fn write_pages<D: DestinationDomain>(&mut self, domain: &D, body: &mut [u8]) -> Result<(), MigrateError> {
        // Parsed before by the reader of the stream, so limits are the body's own.
        let record = Pages::parse(body, u64::MAX).map_err(broken)?;
        let count = record.count();
        self.pfns.clear();
        self.types.clear();
        for (pfn, page_type) in record.pages() {
            self.pfns.push(pfn);
            self.types.push(page_type);
        }
        let content = body.len() - record.content.len();
        let pages = match record.encoding {
            // Worked on where it is.
            Encoding::Raw => body[content..].as_chunks_mut().0,
            packed => self.unpacker.unpack(packed, &body[content..], count).map_err(broken)?,
        };
        localise(domain, &self.pfns, &self.types, pages)?;
        domain.write_pages(&self.pfns, &self.types, pages).map_err(at_destination)
    }

    fn write_linear_tables<D: DestinationDomain>(
        &mut self,
        domain: &D,
        body: &[u8],
    ) -> Result<(), MigrateError> {
        let mut tables = parse_linear_tables(body, u64::MAX).map_err(broken)?.peekable();
        while tables.peek().is_some() {
            self.pfns.clear();
            self.types.clear();
            let pages = self.unpacker.blank(TABLES);
            for (table, page) in tables.by_ref().take(TABLES).zip(&mut *pages) {
                let wrong =
                    Breach::Field { record_type: RecordType::LinearTables as u32, field: "first entry" };
                page::expand_linear(table.first, page).ok_or_else(|| broken(wrong))?;
                self.pfns.push(table.pfn);
                self.types.push(PageType::Table { level: Level::L1, pinned: table.pinned });
            }
            let pages = &mut pages[..self.pfns.len()];
            localise(domain, &self.pfns, &self.types, pages)?;
            domain.write_pages(&self.pfns, &self.types, pages).map_err(at_destination)?;
        }
        Ok(())
    }
}

/// Replaces page numbers by machine frames in what is a page table.
fn localise<D: DestinationDomain>(
    domain: &D,
    pfns: &[Pfn],
    types: &[PageType],
    pages: &mut [Page],
) -> Result<(), MigrateError> {
    for ((pfn, page_type), page) in pfns.iter().zip(types).zip(pages) {
        if let Some(level) = page_type.level() {
            page::localise(page, level, |pfn| domain.mfn_of(pfn))
                .map_err(|entry| broken(Breach::Table { pfn: pfn.0, entry }))?;
        }
    }
    Ok(())
}
