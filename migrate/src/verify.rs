//! Checks a stream file against STREAM.md and reports the first breach, with its place.
//!
//! Written from the specification, and sharing no code with the engine's reader but the numbers:
//! what one of them misses, the other may find.

use std::{
    collections::HashSet,
    fmt,
    hash::Hasher,
    io::{self, Read},
};

use twox_hash::XxHash64;

use crate::wire::{
    MAGIC, MAX_ALL_RANGES, MAX_ALL_STATE, MAX_BATCH_PAGES, MAX_BODY, MAX_CONFIG, MAX_FEATURE_WORDS,
    MAX_LINEAR_TABLES, MAX_PAGES, MAX_RANGES, MAX_STATE, MAX_STATES, MAX_TEXT, MAX_VCPUS, RecordType,
    VERSION, feature,
};

const PAGE: usize = 4096;

/// What a good file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Version of the format.
    pub version: u16,
    /// "save", "checkpoint" or "clone".
    pub reason: &'static str,
    /// Who wrote it, if it says so.
    pub creator: Option<String>,
    /// Virtual processors.
    pub vcpus: u32,
    /// Pages of the domain.
    pub nr_pages: u64,
    /// Rounds.
    pub rounds: u32,
    /// Records.
    pub records: u64,
    /// Pages with content.
    pub pages: u64,
    /// Page tables told by one entry.
    pub linear_tables: u64,
    /// Pages told to be zero.
    pub zero_pages: u64,
    /// Pieces of state.
    pub states: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What is wrong with a file.
#[derive(Debug)]
pub struct Finding {
    /// Where the record (or header) begins that is wrong.
    pub offset: u64,
    /// The section of STREAM.md that is broken.
    pub section: &'static str,
    /// How.
    pub problem: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {} (STREAM.md, {})", self.offset, self.problem, self.section)
    }
}

impl std::error::Error for Finding {}

/// Why a file could not be called good.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It is not.
    #[error("the stream is broken")]
    Broken(#[source] Finding),
    /// It could not be read.
    #[error("the stream cannot be read")]
    Io(#[from] io::Error),
}

/// Checks a whole file.
///
/// # Errors
/// With the first breach, or if reading fails.
pub fn verify(input: impl Read) -> Result<Report, VerifyError> {
    let mut verifier = Verifier { input, offset: 0, start: 0, section: "2", report: Report::default() };
    let features = verifier.header()?;
    let domain = verifier.description(features)?;
    verifier.memory(&domain)?;
    let next = verifier.absent(&domain)?;
    verifier.state(next)?;
    verifier.nothing_more()?;
    verifier.report.bytes = verifier.offset;
    Ok(verifier.report)
}

struct Verifier<R> {
    input: R,
    offset: u64,
    /// Where the present record begins.
    start: u64,
    section: &'static str,
    report: Report,
}

/// What the description says.
struct Domain {
    features: u32,
    nr_pages: u64,
    /// Pages that may be named, by their bits.
    movable: Bits,
    memory: Bits,
}

type Record = (RecordType, Vec<u8>);

struct Bits(Vec<u8>);

impl Bits {
    fn new(count: u64) -> Self {
        Self(vec![0; count.div_ceil(8) as usize])
    }

    fn has(&self, at: u64) -> bool {
        self.0.get((at / 8) as usize).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
    }

    fn set(&mut self, at: u64, value: bool) {
        let mask = 1 << (at % 8);
        let byte = &mut self.0[(at / 8) as usize];
        *byte = if value { *byte | mask } else { *byte & !mask };
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn sum(bytes: &[u8], seed: u64) -> u64 {
    let mut hasher = XxHash64::with_seed(seed);
    hasher.write(bytes);
    hasher.finish()
}

impl<R: Read> Verifier<R> {
    fn breach<T>(&self, problem: impl Into<String>) -> Result<T, VerifyError> {
        let (offset, section) = (self.start, self.section);
        Err(VerifyError::Broken(Finding { offset, section, problem: problem.into() }))
    }

    fn require(&self, holds: bool, problem: &str) -> Result<(), VerifyError> {
        if holds { Ok(()) } else { self.breach(problem) }
    }

    fn bytes(&mut self, len: usize, what: &str) -> Result<Vec<u8>, VerifyError> {
        let mut bytes = Vec::new();
        let read = (&mut self.input).take(len as u64).read_to_end(&mut bytes)?;
        self.offset += read as u64;
        self.require(read == len, &format!("the file ends within {what}"))?;
        Ok(bytes)
    }

    /// Returns the features in use.
    fn header(&mut self) -> Result<u32, VerifyError> {
        let header = self.bytes(48, "the header")?;
        self.require(header[..8] == MAGIC, "this is no fcap stream")?;
        self.require(sum(&header[..40], 0) == number::<8>(&header, 40), "the header's checksum is wrong")?;
        let version = number::<2>(&header, 8) as u16;
        self.require(version == number::<2>(&header, 10) as u16, "version and oldest version differ")?;
        self.require((1..=VERSION).contains(&version), &format!("version {version} is not known"))?;
        let reasons = [(2, "save"), (3, "checkpoint"), (4, "clone")];
        let Some((_, reason)) = reasons.into_iter().find(|(byte, _)| *byte == header[12]) else {
            return self.breach(format!("reason {} is none of a file", header[12]));
        };
        self.require(header[13] == 0, "this is half of a conversation, not an image")?;
        self.require(header[14..16] == [0; 2] && header[20..24] == [0; 4], "a reserved byte is not 0")?;
        let features = number::<4>(&header, 16) as u32;
        self.require(features & !feature::ALL == 0, &format!("features {features:#x} are not known"))?;
        self.report = Report { version, reason, ..Report::default() };
        Ok(features)
    }

    /// The next record that matters.
    fn record(&mut self) -> Result<Record, VerifyError> {
        loop {
            (self.start, self.section) = (self.offset, "3");
            let header = self.bytes(24, "the header of a record")?;
            let (kind, length) = (number::<4>(&header, 0) as u32, number::<4>(&header, 4) as usize);
            self.require(length <= MAX_BODY, &format!("a record of {length} bytes is too long"))?;
            let expected = self.report.records;
            let sequence = number::<8>(&header, 8);
            self.require(sequence == expected, &format!("record {sequence} comes instead of {expected}"))?;
            self.report.records += 1;
            let body = self.bytes(length, "a record")?;
            let seed = u64::from(kind) + ((length as u64) << 32);
            self.require(sum(&body, seed) == number::<8>(&header, 16), "the checksum of a record is wrong")?;
            if kind == RecordType::Creator as u32 {
                self.require(length <= MAX_TEXT, "CREATOR is too long")?;
                self.report.creator = Some(String::from_utf8_lossy(&body).into_owned());
            } else if let Some(known) = RecordType::from_number(kind) {
                return Ok((known, body));
            } else {
                self.require(kind >> 31 == 1, &format!("records of type {kind:#x} are not known"))?;
            }
        }
    }

    fn description(&mut self, features: u32) -> Result<Domain, VerifyError> {
        let (kind, body) = self.record()?;
        self.section = "4";
        self.require(kind == RecordType::Domain, &format!("{kind:?} comes instead of DOMAIN"))?;
        self.require(body.len() >= 32, "DOMAIN is too short")?;
        let words = number::<4>(&body, 12) as usize;
        self.require(
            words <= MAX_FEATURE_WORDS && body.len() == 32 + 4 * words,
            "DOMAIN has a wrong length",
        )?;
        self.require(number::<2>(&body, 0) == 1, "the architecture is not x86-64 PV")?;
        self.require(body[6] == 12 && body[7] == 0, "pages are not of 4,096 bytes")?;
        self.report.vcpus = number::<4>(&body, 8) as u32;
        self.require((1..=MAX_VCPUS).contains(&self.report.vcpus), "the number of vCPUs makes no sense")?;
        let nr_pages = number::<8>(&body, 16);
        self.require((1..=MAX_PAGES).contains(&nr_pages), "the number of pages makes no sense")?;
        self.require(number::<8>(&body, 24) <= MAX_PAGES, "the most pages make no sense")?;
        self.report.nr_pages = nr_pages;

        let (kind, body) = self.record()?;
        self.section = "4";
        self.require(kind == RecordType::Config, &format!("{kind:?} comes instead of CONFIG"))?;
        self.require(body.len() <= MAX_CONFIG, "CONFIG is too long")?;

        let (mut p2m, mut memory) = (Vec::new(), Vec::new());
        loop {
            let (kind, body) = self.record()?;
            self.section = "4";
            let list = match kind {
                RecordType::P2m if memory.is_empty() => &mut p2m,
                RecordType::Memory => &mut memory,
                RecordType::OfferEnd if !memory.is_empty() => {
                    self.require(body.is_empty(), "OFFER_END is not empty")?;
                    break;
                }
                other => return self.breach(format!("{other:?} cannot be part of the description here")),
            };
            list.extend(self.ranges(&body, nr_pages, kind != RecordType::P2m)?);
            self.require(list.len() <= MAX_ALL_RANGES, "there are too many ranges")?;
            let ascends = kind == RecordType::P2m || list.is_sorted_by(|one, next| one.1 <= next.0);
            self.require(ascends, "ranges of MEMORY overlap or do not ascend")?;
        }
        let mut bits = Bits::new(nr_pages);
        memory.iter().for_each(|(first, end)| (*first..*end).for_each(|pfn| bits.set(pfn, true)));
        let mut movable = Bits(bits.0.clone());
        let pages: u64 = p2m.iter().map(|(first, end)| end - first).sum();
        self.require(pages <= nr_pages.div_ceil(512), "the p2m list is too long")?;
        for pfn in p2m.iter().flat_map(|(first, end)| *first..*end) {
            self.require(bits.has(pfn), &format!("page {pfn:#x} of the p2m list has no memory"))?;
            movable.set(pfn, false);
        }
        Ok(Domain { features, nr_pages, movable, memory: bits })
    }

    /// First page of each range, and the one behind it.
    fn ranges(&self, body: &[u8], nr_pages: u64, ascending: bool) -> Result<Vec<(u64, u64)>, VerifyError> {
        let fits = body.len().is_multiple_of(16) && (1..=MAX_RANGES).contains(&(body.len() / 16));
        self.require(fits, "a list of ranges has a wrong length")?;
        let mut ranges = Vec::new();
        for range in body.chunks(16) {
            let (first, count) = (number::<8>(range, 0), number::<8>(range, 8));
            self.require(count > 0, "a range is empty")?;
            self.require(first < nr_pages && count <= nr_pages - first, "a range leads outside the domain")?;
            let behind = ranges.last().is_none_or(|(_, end)| *end <= first);
            self.require(behind || !ascending, "ranges overlap or do not ascend")?;
            ranges.push((first, first + count));
        }
        Ok(ranges)
    }

    /// All rounds.
    fn memory(&mut self, domain: &Domain) -> Result<(), VerifyError> {
        let (mut pages, mut zero_pages) = (0, 0);
        // In this round.
        let mut named = Bits::new(domain.nr_pages);
        loop {
            let (kind, body) = self.record()?;
            self.section = "5";
            match kind {
                RecordType::Pages => pages += self.pages(&body, domain, &mut named)?,
                RecordType::LinearTables => {
                    self.require(
                        domain.features & feature::LINEAR_TABLES != 0,
                        "LINEAR_TABLES without its feature",
                    )?;
                    pages += self.linear_tables(&body, domain, &mut named)?;
                }
                RecordType::Zero => {
                    for (first, end) in self.ranges(&body, domain.nr_pages, true)? {
                        (first..end).try_for_each(|pfn| self.name(pfn, domain, &mut named))?;
                        zero_pages += end - first;
                    }
                }
                RecordType::Round => {
                    self.section = "5.4";
                    self.require(body.len() == 24, "ROUND has a wrong length")?;
                    let round = number::<4>(&body, 0);
                    self.require(
                        round == u64::from(self.report.rounds),
                        &format!("round {round} is out of turn"),
                    )?;
                    let last = number::<4>(&body, 4);
                    self.require(last <= 1, "ROUND has unknown flags")?;
                    let counted = number::<8>(&body, 8) == pages && number::<8>(&body, 16) == zero_pages;
                    self.require(
                        counted,
                        &format!("round {round} had {pages} pages and {zero_pages} zero ones"),
                    )?;
                    self.report.rounds += 1;
                    self.report.zero_pages += zero_pages;
                    (pages, zero_pages) = (0, 0);
                    named.0.fill(0);
                    if last == 1 {
                        return Ok(());
                    }
                }
                other => return self.breach(format!("{other:?} cannot come among memory")),
            }
        }
    }

    fn name(&self, pfn: u64, domain: &Domain, named: &mut Bits) -> Result<(), VerifyError> {
        self.require(
            pfn < domain.nr_pages && domain.movable.has(pfn),
            &format!("page {pfn:#x} cannot be named"),
        )?;
        self.require(!named.has(pfn), &format!("page {pfn:#x} is named twice in a round"))?;
        named.set(pfn, true);
        Ok(())
    }

    fn pages(&mut self, body: &[u8], domain: &Domain, named: &mut Bits) -> Result<u64, VerifyError> {
        self.section = "5.1";
        self.require(body.len() >= 8, "PAGES is too short")?;
        let count = number::<4>(body, 0) as usize;
        self.require((1..=MAX_BATCH_PAGES).contains(&count), &format!("PAGES has {count} pages"))?;
        self.require(body.len() > 8 + 8 * count, "PAGES is too short for its list")?;
        let (list, packed) = body[8..].split_at(8 * count);
        let mut content = vec![0; count * PAGE];
        let smaller = packed.len() < content.len();
        let unpacked = match number::<4>(body, 4) {
            0 => {
                packed.len() == content.len() && {
                    content.copy_from_slice(packed);
                    true
                }
            }
            1 => {
                self.require(domain.features & feature::LZ4 != 0, "LZ4 without its feature")?;
                let len = content.len() as i32;
                let unpacked = lz4::block::decompress_to_buffer(packed, Some(len), &mut content);
                smaller && unpacked.ok() == Some(count * PAGE)
            }
            2 => {
                self.require(domain.features & feature::ZSTD != 0, "Zstandard without its feature")?;
                smaller
                    && zstd::bulk::decompress_to_buffer(packed, &mut content[..]).ok() == Some(count * PAGE)
            }
            other => return self.breach(format!("encoding {other} is not known")),
        };
        self.require(unpacked, "the content cannot be unpacked to the right size")?;
        let mut before = None;
        for (entry, page) in list.chunks(8).zip(content.chunks(PAGE)) {
            let (pfn, kind) = (number::<8>(entry, 0) & ((1 << 60) - 1), entry[7] >> 4);
            self.require(before.is_none_or(|before| before < pfn), "pages do not ascend")?;
            before = Some(pfn);
            self.name(pfn, domain, named)?;
            match kind {
                0 => {}
                1..=4 | 9..=12 => self.table(pfn, kind & 7, page, domain)?,
                other => return self.breach(format!("page {pfn:#x} has the unknown type {other}")),
            }
        }
        self.report.pages += count as u64;
        Ok(count as u64)
    }

    fn table(&self, pfn: u64, level: u8, page: &[u8], domain: &Domain) -> Result<(), VerifyError> {
        for (index, entry) in page.chunks(8).map(|entry| number::<8>(entry, 0)).enumerate() {
            let own = level < 4 || !(256..=271).contains(&index) || entry == 0;
            self.require(own, &format!("entry {index} of table {pfn:#x} is Xen's"))?;
            if entry & 1 == 1 {
                let leads_to = entry >> 12 & ((1 << 40) - 1);
                let inside = leads_to < domain.nr_pages && domain.memory.has(leads_to);
                self.require(
                    inside,
                    &format!("entry {index} of table {pfn:#x} leads to page {leads_to:#x}"),
                )?;
                let large = level > 1 && entry >> 7 & 1 == 1;
                self.require(!large, &format!("entry {index} of table {pfn:#x} maps a large page"))?;
            }
        }
        Ok(())
    }

    fn linear_tables(&mut self, body: &[u8], domain: &Domain, named: &mut Bits) -> Result<u64, VerifyError> {
        self.section = "5.2";
        let fits = body.len().is_multiple_of(16) && (1..=MAX_LINEAR_TABLES).contains(&(body.len() / 16));
        self.require(fits, "LINEAR_TABLES has a wrong length")?;
        let mut before = None;
        for table in body.chunks(16) {
            let (pfn, entry) = (number::<8>(table, 0) & !(1 << 63), number::<8>(table, 8));
            self.require(before.is_none_or(|before| before < pfn), "tables do not ascend")?;
            before = Some(pfn);
            self.name(pfn, domain, named)?;
            self.require(
                entry & 0x61 == 0x61,
                &format!("the first entry of table {pfn:#x} has wrong flags"),
            )?;
            let first = entry >> 12 & ((1 << 40) - 1);
            let inside = (first..first + 512).all(|page| page < domain.nr_pages && domain.memory.has(page));
            self.require(inside, &format!("table {pfn:#x} leads outside the domain"))?;
        }
        self.report.linear_tables += body.len() as u64 / 16;
        Ok(body.len() as u64 / 16)
    }

    /// Returns the record that follows.
    fn absent(&mut self, domain: &Domain) -> Result<Record, VerifyError> {
        let mut end = 0;
        loop {
            let (kind, body) = self.record()?;
            if kind != RecordType::Absent {
                return Ok((kind, body));
            }
            self.section = "5.5";
            let ranges = self.ranges(&body, domain.nr_pages, true)?;
            self.require(ranges[0].0 >= end, "ranges of ABSENT do not ascend")?;
            end = ranges[ranges.len() - 1].1;
            for pfn in ranges.into_iter().flat_map(|(first, end)| first..end) {
                self.require(domain.memory.has(pfn), &format!("page {pfn:#x} never had memory"))?;
            }
        }
    }

    fn state(&mut self, mut next: Record) -> Result<(), VerifyError> {
        let (mut seen, mut bytes) = (HashSet::new(), 0);
        loop {
            let (kind, body) = next;
            self.section = "6";
            match kind {
                RecordType::State => {
                    self.require((8..=8 + MAX_STATE).contains(&body.len()), "STATE has a wrong length")?;
                    self.require(body[4..8] == [0; 4], "a reserved byte of STATE is not 0")?;
                    let (kind, index) = (number::<2>(&body, 0), number::<2>(&body, 2));
                    self.require(
                        seen.insert((kind, index)),
                        &format!("state {kind:#x}/{index} comes twice"),
                    )?;
                    bytes += body.len() - 8;
                    self.require(
                        seen.len() <= MAX_STATES && bytes <= MAX_ALL_STATE,
                        "there is too much state",
                    )?;
                    self.report.states += 1;
                }
                RecordType::End => return self.require(body.is_empty(), "END is not empty"),
                other => return self.breach(format!("{other:?} cannot come among state")),
            }
            next = self.record()?;
        }
    }

    fn nothing_more(&mut self) -> Result<(), VerifyError> {
        (self.start, self.section) = (self.offset, "6");
        let mut rest = Vec::new();
        let read = (&mut self.input).take(1).read_to_end(&mut rest)?;
        self.require(read == 0, "something follows END")
    }
}
