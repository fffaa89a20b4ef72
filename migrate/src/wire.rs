//! Headers and record bodies of the stream: parse and emit, nothing else.
//!
//! STREAM.md is the specification; the sections are named here. All numbers are little endian.
//! Whatever can be built can be emitted, and whatever is parsed has been checked against every
//! limit that does not depend on what came before it.

use std::hash::Hasher;

use twox_hash::XxHash64;
use xen_proto::frame::{PAGE_SHIFT, PAGE_SIZE, Pfn};

use crate::{
    domain::{Description, PfnRange, Refusal, RefusalCause, State},
    page::PageType,
};

/// First bytes of every stream. The first one is no text, and a transfer that takes line ends for
/// text spoils the others.
pub const MAGIC: [u8; 8] = *b"\x89fcap\r\n\x1a";
/// Newest version that this engine writes and reads.
pub const VERSION: u16 = 1;
/// Oldest version that it reads.
pub const OLDEST_VERSION: u16 = 1;

/// Bytes of an image header.
pub const HEADER_LEN: usize = 48;
/// Bytes of a record header.
pub const RECORD_HEADER_LEN: usize = 24;
/// Pages in one PAGES record.
pub const MAX_BATCH_PAGES: usize = 1024;
/// Bytes of a record's body.
pub const MAX_BODY: usize = 0x41_0000;
/// Ranges in one record.
pub const MAX_RANGES: usize = 65_536;
/// Ranges in all P2M or all MEMORY records.
pub const MAX_ALL_RANGES: usize = 1 << 20;
/// Pages of a domain.
pub const MAX_PAGES: u64 = 1 << 28;
/// Virtual processors.
pub const MAX_VCPUS: u32 = 128;
/// Words of processor features.
pub const MAX_FEATURE_WORDS: usize = 64;
/// Bytes of a CONFIG record.
pub const MAX_CONFIG: usize = 1 << 20;
/// Bytes of one piece of state.
pub const MAX_STATE: usize = 1 << 20;
/// Pieces of state.
pub const MAX_STATES: usize = 4096;
/// Bytes of all pieces of state.
pub const MAX_ALL_STATE: usize = 16 << 20;
/// Tables in one LINEAR_TABLES record.
pub const MAX_LINEAR_TABLES: usize = 65_536;
/// Bytes of a message for people.
pub const MAX_TEXT: usize = 4096;

/// Bits of [`ImageHeader::features`].
pub mod feature {
    /// PAGES may be compressed with LZ4.
    pub const LZ4: u32 = 1 << 0;
    /// PAGES may be compressed with Zstandard.
    pub const ZSTD: u32 = 1 << 1;
    /// LINEAR_TABLES may occur.
    pub const LINEAR_TABLES: u32 = 1 << 2;
    /// All that this engine knows.
    pub const ALL: u32 = LZ4 | ZSTD | LINEAR_TABLES;
}

/// How a stream breaks its format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Breach {
    /// Not one of our streams.
    #[error("this is no fcap stream")]
    Magic,
    /// The header is damaged.
    #[error("the header's checksum is wrong")]
    HeaderChecksum,
    /// A field of the header has a value that it cannot have.
    #[error("the header's field {0} makes no sense")]
    HeaderField(&'static str),
    /// Another version.
    #[error(
        "the stream is of version {0}; this fcap reads {OLDEST_VERSION} to {VERSION}: use the same release on both sides"
    )]
    Version(u16),
    /// Features that are not known.
    #[error("the stream uses unknown features ({0:#x}): use the same release on both sides")]
    Features(u32),
    /// The stream ends too early.
    #[error("the stream ends within {0}")]
    Truncated(&'static str),
    /// There is something behind the end.
    #[error("the stream goes on behind its end")]
    TrailingBytes,
    /// A record is damaged.
    #[error("the checksum of record {sequence} ({name}) is wrong", name = name_of(*.record_type))]
    Checksum {
        /// The record's number.
        sequence: u64,
        /// Its type.
        record_type: u32,
    },
    /// Records were lost, repeated or swapped.
    #[error("record {expected} should follow, but it is number {found}")]
    Sequence {
        /// The number that comes next.
        expected: u64,
        /// The number in the record.
        found: u64,
    },
    /// A mandatory record that is not known.
    #[error("records of type {0:#x} are not known: use the same release on both sides")]
    UnknownRecord(u32),
    /// A record that cannot come at this point.
    #[error("record {name} cannot come here", name = name_of(*.0))]
    Unexpected(u32),
    /// A record's length is not possible for its type.
    #[error("record {name} cannot be {length} bytes long", name = name_of(*.record_type))]
    Length {
        /// Its type.
        record_type: u32,
        /// Its length.
        length: u64,
    },
    /// A field of a record has a value that it cannot have.
    #[error("field {field} of record {name} makes no sense", name = name_of(*.record_type))]
    Field {
        /// The record's type.
        record_type: u32,
        /// The field.
        field: &'static str,
    },
    /// A page that the domain has not got.
    #[error("page {0:#x} is not the domain's")]
    PageOutside(u64),
    /// The compressed pages cannot be unpacked to the right size.
    #[error("compressed pages cannot be unpacked")]
    Compression,
    /// A page table that cannot be one.
    #[error("page table {pfn:#x} is wrong: {entry}")]
    Table {
        /// Its page.
        pfn: u64,
        /// What is wrong.
        entry: crate::page::BadEntry,
    },
    /// Some count differs from what was received.
    #[error("the counts at the end of round {0} do not fit what came")]
    Counts(u32),
}

/// Why a stream exists (STREAM.md, "Image header").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// The domain moves: the destination runs it, the source does not.
    Migrate = 1,
    /// It is put away in a file and ends.
    Save = 2,
    /// It is copied to a file and goes on.
    Checkpoint = 3,
    /// It becomes two; the new one must take another identity.
    Clone = 4,
}

impl Reason {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Migrate, Self::Save, Self::Checkpoint, Self::Clone]
            .into_iter()
            .find(|reason| *reason as u8 == byte)
    }
}

/// What an image header begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HeaderKind {
    /// A whole image, in a file or pipe.
    Image = 0,
    /// What the source offers.
    Offer = 1,
    /// What the destination chooses.
    Answer = 2,
}

/// Names one attempt to move one domain.
pub type MigrationId = [u8; 16];

/// The first bytes in each direction (STREAM.md, "Image header").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    /// What it begins.
    pub kind: HeaderKind,
    /// Version of what follows; in an offer the newest possible one.
    pub version: u16,
    /// In an offer the oldest possible version, otherwise equal to `version`.
    pub oldest: u16,
    /// Why the stream exists.
    pub reason: Reason,
    /// Features that may be used ([`feature`]); in an offer those that could be.
    pub features: u32,
    /// Names the attempt.
    pub id: MigrationId,
}

impl ImageHeader {
    /// As bytes.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.oldest.to_le_bytes());
        bytes[12] = self.reason as u8;
        bytes[13] = self.kind as u8;
        bytes[16..20].copy_from_slice(&self.features.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.id);
        let checksum = checksum(&bytes[..40], 0);
        bytes[40..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// From bytes. Whether version and features are known is not its business.
    ///
    /// # Errors
    /// If it is no header, or damaged.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, Breach> {
        if bytes[..8] != MAGIC {
            return Err(Breach::Magic);
        }
        if u64_at(bytes, 40) != checksum(&bytes[..40], 0) {
            return Err(Breach::HeaderChecksum);
        }
        if bytes[14..16] != [0; 2] || bytes[20..24] != [0; 4] {
            return Err(Breach::HeaderField("reserved"));
        }
        let kind = match bytes[13] {
            0 => HeaderKind::Image,
            1 => HeaderKind::Offer,
            2 => HeaderKind::Answer,
            _ => return Err(Breach::HeaderField("kind")),
        };
        let (version, oldest) = (u16_at(bytes, 8), u16_at(bytes, 10));
        if oldest > version || oldest == 0 || (kind != HeaderKind::Offer && oldest != version) {
            return Err(Breach::HeaderField("oldest version"));
        }
        Ok(Self {
            kind,
            version,
            oldest,
            reason: Reason::from_byte(bytes[12]).ok_or(Breach::HeaderField("reason"))?,
            features: u32_at(bytes, 16),
            id: field(bytes, 24),
        })
    }
}

/// Types of records (STREAM.md, "Records").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RecordType {
    /// What the domain is.
    Domain = 1,
    /// The manager's part of the description.
    Config = 2,
    /// Pages of the p2m list.
    P2m = 3,
    /// Pages that have memory.
    Memory = 4,
    /// The description is complete.
    OfferEnd = 5,
    /// Pages with content.
    Pages = 6,
    /// Page tables that map consecutive pages.
    LinearTables = 7,
    /// Pages that are zero.
    Zero = 8,
    /// A round is complete.
    Round = 9,
    /// Pages that the domain gave back.
    Absent = 10,
    /// A piece of state.
    State = 11,
    /// The image is complete.
    End = 12,
    /// The domain is the destination's.
    Commit = 0x20,
    /// The source has removed its copy.
    Released = 0x21,
    /// The source keeps the domain.
    Abort = 0x22,
    /// The destination has made the domain and waits for its memory.
    Accept = 0x30,
    /// The destination does not take it.
    Refuse = 0x31,
    /// A round has arrived.
    RoundDone = 0x32,
    /// The domain is complete.
    Ready = 0x33,
    /// The destination runs it.
    Taken = 0x34,
    /// The destination has not got it, and never will have it from this attempt.
    Gone = 0x35,
    /// The destination cannot go on.
    Failed = 0x36,
    /// Who wrote the stream, for people.
    Creator = Self::OPTIONAL | 1,
}

impl RecordType {
    /// Set in types that a reader may skip.
    pub const OPTIONAL: u32 = 1 << 31;

    const ALL: [Self; 23] = [
        Self::Domain,
        Self::Config,
        Self::P2m,
        Self::Memory,
        Self::OfferEnd,
        Self::Pages,
        Self::LinearTables,
        Self::Zero,
        Self::Round,
        Self::Absent,
        Self::State,
        Self::End,
        Self::Commit,
        Self::Released,
        Self::Abort,
        Self::Accept,
        Self::Refuse,
        Self::RoundDone,
        Self::Ready,
        Self::Taken,
        Self::Gone,
        Self::Failed,
        Self::Creator,
    ];

    /// The type with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u32 == number)
    }

    /// Lengths that a body of this type can have.
    pub fn lengths(self) -> std::ops::RangeInclusive<usize> {
        const RANGE: usize = 16;
        match self {
            Self::Domain => 32..=32 + 4 * MAX_FEATURE_WORDS,
            Self::Config => 0..=MAX_CONFIG,
            Self::P2m | Self::Memory | Self::Zero | Self::Absent => RANGE..=RANGE * MAX_RANGES,
            Self::Pages => PAGES_HEADER_LEN + 8 + 1..=MAX_BODY,
            Self::LinearTables => 16..=16 * MAX_LINEAR_TABLES,
            Self::Round => 24..=24,
            Self::State => 8..=8 + MAX_STATE,
            Self::RoundDone => 4..=4,
            Self::Refuse => 4..=4 + MAX_TEXT,
            Self::Abort | Self::Failed | Self::Creator => 0..=MAX_TEXT,
            Self::OfferEnd
            | Self::End
            | Self::Commit
            | Self::Released
            | Self::Accept
            | Self::Ready
            | Self::Taken
            | Self::Gone => 0..=0,
        }
    }
}

/// A type's name for messages.
fn name_of(number: u32) -> String {
    match RecordType::from_number(number) {
        Some(known) => format!("{known:?}"),
        None => format!("of type {number:#x}"),
    }
}

/// What precedes each body (STREAM.md, "Records").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The type as a number: it may be one that is not known.
    pub record_type: u32,
    /// Bytes of the body.
    pub length: u32,
    /// Number of the record in its direction, from 0.
    pub sequence: u64,
    /// See [`body_checksum`].
    pub checksum: u64,
}

impl RecordHeader {
    /// As bytes.
    pub fn emit(&self) -> [u8; RECORD_HEADER_LEN] {
        let mut bytes = [0; RECORD_HEADER_LEN];
        bytes[..4].copy_from_slice(&self.record_type.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// From bytes, with the length checked against the type's limits.
    ///
    /// # Errors
    /// If the length is not possible, or the type is mandatory and not known.
    pub fn parse(bytes: &[u8; RECORD_HEADER_LEN]) -> Result<Self, Breach> {
        let header = Self {
            record_type: u32_at(bytes, 0),
            length: u32_at(bytes, 4),
            sequence: u64_at(bytes, 8),
            checksum: u64_at(bytes, 16),
        };
        let lengths = match header.known() {
            Some(known) => known.lengths(),
            None if header.record_type & RecordType::OPTIONAL != 0 => 0..=MAX_BODY,
            None => return Err(Breach::UnknownRecord(header.record_type)),
        };
        if !lengths.contains(&(header.length as usize)) {
            let Self { record_type, length, .. } = header;
            return Err(Breach::Length { record_type, length: length.into() });
        }
        Ok(header)
    }

    /// The type, if it is known.
    pub fn known(&self) -> Option<RecordType> {
        RecordType::from_number(self.record_type)
    }
}

/// XXH64.
fn checksum(bytes: &[u8], seed: u64) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

/// Checksum of a body: XXH64 whose seed is made of type and length, so that these are covered too.
pub fn body_checksum(record_type: u32, body: &[u8]) -> u64 {
    checksum(body, seed(record_type, body.len()))
}

/// As [`body_checksum`], for a body in two pieces.
pub fn split_body_checksum(record_type: u32, head: &[u8], rest: &[u8]) -> u64 {
    let mut hasher = XxHash64::with_seed(seed(record_type, head.len() + rest.len()));
    hasher.write(head);
    hasher.write(rest);
    hasher.finish()
}

fn seed(record_type: u32, length: usize) -> u64 {
    u64::from(record_type) | (length as u64) << 32
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(field(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

fn length_error(record_type: RecordType, body: &[u8]) -> Breach {
    Breach::Length { record_type: record_type as u32, length: body.len() as u64 }
}

fn field_error(record_type: RecordType, field: &'static str) -> Breach {
    Breach::Field { record_type: record_type as u32, field }
}

const DOMAIN_LEN: usize = 32;
/// `arch` of a DOMAIN record: x86-64, paravirtualized.
const ARCH_X86_64_PV: u16 = 1;

/// Body of a DOMAIN record: the fields of `description` that are not in other records.
pub fn emit_domain(description: &Description, body: &mut Vec<u8>) {
    body.extend(ARCH_X86_64_PV.to_le_bytes());
    body.extend(description.hypervisor.0.to_le_bytes());
    body.extend(description.hypervisor.1.to_le_bytes());
    body.extend([PAGE_SHIFT as u8, 0]);
    body.extend(description.vcpus.to_le_bytes());
    body.extend((description.cpu_features.len() as u32).to_le_bytes());
    body.extend(description.nr_pages.to_le_bytes());
    body.extend(description.max_pages.to_le_bytes());
    for word in &description.cpu_features {
        body.extend(word.to_le_bytes());
    }
}

/// Reads a DOMAIN record.
///
/// # Errors
/// If a field is beyond its limit.
pub fn parse_domain(body: &[u8]) -> Result<Description, Breach> {
    let wrong = |field| Err(field_error(RecordType::Domain, field));
    if body.len() < DOMAIN_LEN {
        return Err(length_error(RecordType::Domain, body));
    }
    if u16_at(body, 0) != ARCH_X86_64_PV {
        return wrong("arch");
    }
    if body[6..8] != [PAGE_SHIFT as u8, 0] {
        return wrong("page shift");
    }
    let vcpus = u32_at(body, 8);
    if !(1..=MAX_VCPUS).contains(&vcpus) {
        return wrong("vcpus");
    }
    let words = u32_at(body, 12) as usize;
    if words > MAX_FEATURE_WORDS || body.len() != DOMAIN_LEN + 4 * words {
        return wrong("feature words");
    }
    let (nr_pages, max_pages) = (u64_at(body, 16), u64_at(body, 24));
    if !(1..=MAX_PAGES).contains(&nr_pages) {
        return wrong("pages");
    }
    if max_pages > MAX_PAGES {
        return wrong("most pages");
    }
    let cpu_features = body[DOMAIN_LEN..].as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
    Ok(Description {
        hypervisor: (u16_at(body, 2), u16_at(body, 4)),
        vcpus,
        nr_pages,
        max_pages,
        cpu_features: cpu_features.collect(),
        ..Description::default()
    })
}

/// Adds one range to the body of a P2M, MEMORY, ZERO or ABSENT record.
pub fn emit_range(range: PfnRange, body: &mut Vec<u8>) {
    body.extend(range.first.0.to_le_bytes());
    body.extend(range.count.to_le_bytes());
}

/// Reads the ranges of such a record: each lies below `nr_pages`, and but for P2M they ascend.
///
/// # Errors
/// If they do not.
pub fn parse_ranges(
    record_type: RecordType,
    body: &[u8],
    nr_pages: u64,
) -> Result<impl Iterator<Item = PfnRange> + Clone + '_, Breach> {
    let (ranges, rest) = body.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(length_error(record_type, body));
    }
    let ranges =
        ranges.iter().map(|range| PfnRange { first: Pfn(u64_at(range, 0)), count: u64_at(range, 8) });
    let mut least = 0;
    for range in ranges.clone() {
        if range.count == 0 {
            return Err(field_error(record_type, "count"));
        }
        let end = range.end().filter(|end| *end <= nr_pages);
        let end = end.ok_or(Breach::PageOutside(range.first.0.max(nr_pages)))?;
        if record_type != RecordType::P2m {
            if range.first.0 < least {
                return Err(field_error(record_type, "order of ranges"));
            }
            least = end;
        }
    }
    Ok(ranges)
}

/// How the content of PAGES is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Encoding {
    /// As it is.
    Raw = 0,
    /// One LZ4 block.
    Lz4 = 1,
    /// One Zstandard frame.
    Zstd = 2,
}

/// Bytes before the list of pages.
pub const PAGES_HEADER_LEN: usize = 8;
const PFN_BITS: u32 = 60;

/// Head of a PAGES record's body: what precedes the content. Pages are ascending and at most
/// [`MAX_BATCH_PAGES`].
///
/// # Panics
/// If a page is [`PageType::Absent`].
pub fn emit_pages_head(
    encoding: Encoding,
    pages: impl ExactSizeIterator<Item = (Pfn, PageType)>,
    body: &mut Vec<u8>,
) {
    body.extend((pages.len() as u32).to_le_bytes());
    body.extend((encoding as u32).to_le_bytes());
    for (pfn, page_type) in pages {
        let bits = page_type.to_bits().expect("absent pages have no content");
        body.extend((pfn.0 | u64::from(bits) << PFN_BITS).to_le_bytes());
    }
}

/// A PAGES record.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// How `content` is packed.
    pub encoding: Encoding,
    list: &'a [[u8; 8]],
    /// The content of all pages, packed.
    pub content: &'a [u8],
}

impl<'a> Pages<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// If a page is not below `nr_pages`, they do not ascend, or a field makes no sense.
    pub fn parse(body: &'a [u8], nr_pages: u64) -> Result<Self, Breach> {
        let wrong = |field| Err(field_error(RecordType::Pages, field));
        let Some((head, rest)) = body.split_at_checked(PAGES_HEADER_LEN) else {
            return Err(length_error(RecordType::Pages, body));
        };
        let count = u32_at(head, 0) as usize;
        if !(1..=MAX_BATCH_PAGES).contains(&count) {
            return wrong("count");
        }
        let encoding = match u32_at(head, 4) {
            0 => Encoding::Raw,
            1 => Encoding::Lz4,
            2 => Encoding::Zstd,
            _ => return wrong("encoding"),
        };
        let Some((list, content)) = rest.split_at_checked(count * 8) else {
            return Err(length_error(RecordType::Pages, body));
        };
        let fits = match encoding {
            Encoding::Raw => content.len() == count * PAGE_SIZE,
            Encoding::Lz4 | Encoding::Zstd => !content.is_empty() && content.len() < count * PAGE_SIZE,
        };
        if !fits {
            return Err(length_error(RecordType::Pages, body));
        }
        let pages = Self { encoding, list: list.as_chunks().0, content };
        let mut least = 0;
        for entry in pages.list.iter().map(|entry| u64::from_le_bytes(*entry)) {
            let pfn = entry & !(u64::MAX << PFN_BITS);
            if pfn >= nr_pages {
                return Err(Breach::PageOutside(pfn));
            }
            if pfn < least {
                return wrong("order of pages");
            }
            if PageType::from_bits((entry >> PFN_BITS) as u8).is_none() {
                return wrong("page type");
            }
            least = pfn + 1;
        }
        Ok(pages)
    }

    /// How many pages it has.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// Its pages, ascending.
    pub fn pages(&self) -> impl Iterator<Item = (Pfn, PageType)> + '_ {
        self.list.iter().filter_map(|entry| {
            let entry = u64::from_le_bytes(*entry);
            let page_type = PageType::from_bits((entry >> PFN_BITS) as u8)?;
            Some((Pfn(entry & !(u64::MAX << PFN_BITS)), page_type))
        })
    }
}

/// One table of a LINEAR_TABLES record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearTable {
    /// The page that is the table; of level 1.
    pub pfn: Pfn,
    /// Whether it is pinned.
    pub pinned: bool,
    /// Its first entry; see [`crate::page::linear`].
    pub first: u64,
}

/// Adds one table to the body of a LINEAR_TABLES record.
pub fn emit_linear_table(table: LinearTable, body: &mut Vec<u8>) {
    let pinned = u64::from(table.pinned) << 63;
    body.extend((table.pfn.0 | pinned).to_le_bytes());
    body.extend(table.first.to_le_bytes());
}

/// Reads the tables of a LINEAR_TABLES record, whose pages ascend.
///
/// # Errors
/// If a page is not below `nr_pages`, or they do not ascend.
pub fn parse_linear_tables(
    body: &[u8],
    nr_pages: u64,
) -> Result<impl Iterator<Item = LinearTable> + Clone + '_, Breach> {
    let (tables, rest) = body.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(length_error(RecordType::LinearTables, body));
    }
    let tables = tables.iter().map(|table| LinearTable {
        pfn: Pfn(u64_at(table, 0) & !(1 << 63)),
        pinned: u64_at(table, 0) >> 63 != 0,
        first: u64_at(table, 8),
    });
    let mut least = 0;
    for table in tables.clone() {
        if table.pfn.0 >= nr_pages {
            return Err(Breach::PageOutside(table.pfn.0));
        }
        if table.pfn.0 < least {
            return Err(field_error(RecordType::LinearTables, "order of pages"));
        }
        least = table.pfn.0 + 1;
    }
    Ok(tables)
}

/// A ROUND record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// Number of the round, from 0.
    pub round: u32,
    /// Whether the domain was suspended: nothing follows but state.
    pub last: bool,
    /// Pages with content in this round, those of LINEAR_TABLES included.
    pub pages: u64,
    /// Pages in ZERO records of this round.
    pub zero_pages: u64,
}

impl Round {
    /// As a body.
    pub fn emit(&self, body: &mut Vec<u8>) {
        body.extend(self.round.to_le_bytes());
        body.extend(u32::from(self.last).to_le_bytes());
        body.extend(self.pages.to_le_bytes());
        body.extend(self.zero_pages.to_le_bytes());
    }

    /// Reads one.
    ///
    /// # Errors
    /// If the length is wrong, or a flag is unknown.
    pub fn parse(body: &[u8]) -> Result<Self, Breach> {
        if body.len() != 24 {
            return Err(length_error(RecordType::Round, body));
        }
        let last = match u32_at(body, 4) {
            0 => false,
            1 => true,
            _ => return Err(field_error(RecordType::Round, "flags")),
        };
        Ok(Self { round: u32_at(body, 0), last, pages: u64_at(body, 8), zero_pages: u64_at(body, 16) })
    }
}

/// Body of a STATE record.
pub fn emit_state(state: &State, body: &mut Vec<u8>) {
    body.extend(state.kind.to_le_bytes());
    body.extend(state.index.to_le_bytes());
    body.extend([0; 4]);
    body.extend(&state.bytes);
}

/// Reads a STATE record.
///
/// # Errors
/// If a field makes no sense.
pub fn parse_state(body: &[u8]) -> Result<State, Breach> {
    let Some((head, bytes)) = body.split_at_checked(8) else {
        return Err(length_error(RecordType::State, body));
    };
    if head[4..] != [0; 4] {
        return Err(field_error(RecordType::State, "reserved"));
    }
    Ok(State { kind: u16_at(head, 0), index: u16_at(head, 2), bytes: bytes.to_vec() })
}

/// Body of a REFUSE record.
pub fn emit_refusal(refusal: &Refusal, body: &mut Vec<u8>) {
    let cause: u32 = match refusal.cause {
        RefusalCause::Other => 0,
        RefusalCause::Version => 1,
        RefusalCause::Cpu => 2,
        RefusalCause::Hypervisor => 3,
        RefusalCause::Memory => 4,
        RefusalCause::Name => 5,
    };
    body.extend(cause.to_le_bytes());
    emit_text(&refusal.message, body);
}

/// Reads a REFUSE record.
///
/// # Errors
/// If it is too short.
pub fn parse_refusal(body: &[u8]) -> Result<Refusal, Breach> {
    let Some((cause, text)) = body.split_at_checked(4) else {
        return Err(length_error(RecordType::Refuse, body));
    };
    let cause = match u32_at(cause, 0) {
        1 => RefusalCause::Version,
        2 => RefusalCause::Cpu,
        3 => RefusalCause::Hypervisor,
        4 => RefusalCause::Memory,
        5 => RefusalCause::Name,
        // Newer destinations may have more reasons; the message tells them.
        _ => RefusalCause::Other,
    };
    Ok(Refusal { cause, message: parse_text(text) })
}

/// Adds a text, cut to [`MAX_TEXT`] bytes.
pub fn emit_text(text: &str, body: &mut Vec<u8>) {
    body.extend(&text.as_bytes()[..text.floor_char_boundary(MAX_TEXT)]);
}

/// Reads a text from the other side: what is no text or could act on a terminal is replaced.
pub fn parse_text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
