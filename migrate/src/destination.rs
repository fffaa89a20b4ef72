//! The destination: from a stream to a domain, and to the hand-over.
//!
//! ```text
//! offer        what the domain is: shown to the manager
//! create       an empty domain with all its memory, or a refusal
//! receive      rounds of pages, then the state; the domain is completed, paused
//! hand over    STREAM.md, section 8
//! ```
//!
//! Whatever fails before the domain is let run, nothing of it is left here.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
};

use xen_proto::frame::Pfn;

use crate::{
    bitmap::PageBitmap,
    domain::{
        Description, DestinationDomain, DestinationHost, DomainError, FinalState, PfnRange, Refusal,
        RefusalCause, State, Table,
    },
    error::{MigrateError, Side},
    handover::{Claim, DestinationEvent, DestinationParts, DestinationState, Message, drive_destination},
    link::{Cancel, LinkReader, LinkWriter, Patience},
    negotiate,
    page::{Level, PageType},
    receiver::{Receiver, receive_pages},
    stream::{OnEnd, StreamReader, StreamWriter},
    wire::{
        Breach, Encoding, HeaderKind, ImageHeader, MAX_ALL_RANGES, MAX_ALL_STATE, MAX_STATES, Pages, Reason,
        RecordType, Round, emit_refusal, emit_text, feature, parse_domain, parse_linear_tables, parse_ranges,
        parse_state, parse_text,
    },
};

/// How to receive a domain.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How long the link and the other side are waited for.
    pub patience: Patience,
    /// Threads that unpack and write pages; 0 for as many as there are processors.
    pub workers: usize,
    /// Ends it before the hand-over.
    pub cancel: Cancel,
}

/// A domain that came.
#[derive(Debug)]
pub struct Arrival<T> {
    /// The domain. It runs if it came over a connection, and is paused if it came from a file.
    pub domain: T,
    /// What the source said of it.
    pub description: Description,
    /// [`DestinationState::Done`]; or [`DestinationState::Taken`] as long as the source does not
    /// know, and has to be told (`handover`). From a file always done.
    pub state: DestinationState,
}

/// A domain that did not come.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct DestinationFailure {
    /// Why.
    #[source]
    pub error: MigrateError,
    /// [`DestinationState::Dropped`]; or [`DestinationState::Taken`] if the claim could be neither
    /// written nor removed: then go on as after a crash (`handover::recover_destination`).
    pub state: DestinationState,
}

/// What a source offers, or a file holds.
pub struct Incoming<R, W> {
    reader: StreamReader<R>,
    writer: Option<StreamWriter<W>>,
    header: ImageHeader,
    description: Description,
    options: Options,
    body: Vec<u8>,
}

impl<R: Read, W: Write> Incoming<R, W> {
    /// Reads what a source offers over a connection.
    ///
    /// # Errors
    /// If the stream is broken, or there is no version in common (the source is told).
    pub fn connection(input: R, output: W, options: Options) -> Result<Self, MigrateError> {
        let link = LinkWriter::new(output, Side::Destination, options.patience, options.cancel.clone());
        let mut incoming = Self::read(input, Some(StreamWriter::new(link)), OnEnd::LinkLost, options)?;
        if incoming.header.kind != HeaderKind::Offer || incoming.header.reason == Reason::Save {
            return Err(incoming.reader.broken(Breach::HeaderField("kind")));
        }
        incoming.read_description()?;
        match negotiate::answer(&incoming.header) {
            Ok(answer) => {
                incoming.header = answer;
                incoming.write(|writer| writer.header(&answer))?;
                Ok(incoming)
            }
            Err((answer, refusal)) => {
                incoming.write(|writer| writer.header(&answer))?;
                incoming.refuse(&refusal);
                Err(MigrateError::Refused(refusal))
            }
        }
    }

    fn read(
        input: R,
        writer: Option<StreamWriter<W>>,
        on_end: OnEnd,
        options: Options,
    ) -> Result<Self, MigrateError> {
        let link = LinkReader::new(input, Side::Destination, options.patience, options.cancel.clone());
        let mut reader = StreamReader::new(link, Side::Source, on_end);
        let header = reader.header(options.patience.answer)?;
        Ok(Self { reader, writer, header, description: Description::default(), options, body: Vec::new() })
    }

    /// The header: reason, id, and the version and features in use.
    pub fn header(&self) -> &ImageHeader {
        &self.header
    }

    /// What the domain is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Everything up to OFFER_END.
    fn read_description(&mut self) -> Result<(), MigrateError> {
        let patience = self.options.patience.stall;
        let mut expected = RecordType::Domain;
        loop {
            let (record_type, len) = self.reader.next(&mut self.body, patience)?;
            let body = &self.body[..len];
            let read = match (expected, record_type) {
                (RecordType::Domain, RecordType::Domain) => {
                    expected = RecordType::Config;
                    parse_domain(body).map(|description| self.description = description)
                }
                (RecordType::Config, RecordType::Config) => {
                    expected = RecordType::P2m;
                    self.description.config = body.to_vec();
                    Ok(())
                }
                (RecordType::P2m, RecordType::P2m) => {
                    add_ranges(&mut self.description.p2m, RecordType::P2m, body, self.description.nr_pages)
                }
                (RecordType::P2m | RecordType::Memory, RecordType::Memory) => {
                    expected = RecordType::Memory;
                    let Description { memory, nr_pages, .. } = &mut self.description;
                    add_ranges(memory, RecordType::Memory, body, *nr_pages)
                }
                (RecordType::Memory, RecordType::OfferEnd) => break,
                (_, RecordType::Abort) => {
                    let message = parse_text(body);
                    return Err(MigrateError::Remote { side: Side::Source, message });
                }
                _ => Err(Breach::Unexpected(record_type as u32)),
            };
            read.map_err(|breach| self.reader.broken(breach))?;
        }
        check_p2m(&self.description).map_err(|breach| self.reader.broken(breach))
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut StreamWriter<W>) -> Result<(), MigrateError>,
    ) -> Result<(), MigrateError> {
        self.writer.as_mut().map_or(Ok(()), |writer| write(writer).and_then(|()| writer.flush()))
    }

    /// Says no.
    pub fn refuse(&mut self, refusal: &Refusal) {
        let mut body = Vec::new();
        emit_refusal(refusal, &mut body);
        // Who does not hear it sees the connection end.
        let _ = self.write(|writer| writer.record(RecordType::Refuse, &body));
    }

    /// Makes the domain, fills it, and takes it over from the source (or, of a clone, lets it run
    /// as well). `claim` is that of the header's id.
    ///
    /// # Errors
    /// Then nothing of the domain is left here, but see [`DestinationFailure::state`].
    pub fn receive<H: DestinationHost>(
        mut self,
        host: &mut H,
        claim: &mut dyn Claim,
    ) -> Result<Arrival<H::Domain>, DestinationFailure> {
        let dropped = |error| DestinationFailure { error, state: DestinationState::Dropped };
        let mut domain = self.create(host).map_err(dropped)?;
        let filled =
            self.write(|writer| writer.record(RecordType::Accept, &[])).and_then(|()| self.fill(&mut domain));
        if let Err(error) = filled {
            domain.destroy();
            self.fail(&error);
            return Err(dropped(error));
        }
        match self.header.reason {
            Reason::Migrate => self.take_over(domain, claim),
            _ => self.take_over(domain, &mut NoClaim),
        }
    }

    fn create<H: DestinationHost>(&mut self, host: &mut H) -> Result<H::Domain, MigrateError> {
        host.create(&self.description, self.header.reason).map_err(|error| match error {
            DomainError::Refused(refusal) => {
                self.refuse(&refusal);
                MigrateError::Refused(refusal)
            }
            error => {
                let message = describe_error(&error);
                self.refuse(&Refusal { cause: RefusalCause::Other, message });
                at_destination(error)
            }
        })
    }

    /// Memory and state; the domain is complete then.
    fn fill<D: DestinationDomain>(&mut self, domain: &mut D) -> Result<(), MigrateError> {
        let state = receive_pages(&*domain, self.options.workers, |receiver| self.receive_image(receiver))?;
        domain.finish(state).map_err(at_destination)
    }

    /// Reads records from the first round to END.
    fn receive_image<D: DestinationDomain>(
        &mut self,
        pages: &mut Receiver<'_, D>,
    ) -> Result<FinalState, MigrateError> {
        let mut image = Image::new(&self.description);
        loop {
            let mut body = pages.buffer()?;
            let (record_type, len) = self.reader.next(&mut body, self.options.patience.answer)?;
            let features = self.header.features;
            match image.take(record_type, &body[..len], features) {
                Ok(Taken::Nothing) => pages.keep(body),
                Ok(Taken::Pages) => pages.write(record_type, body, len)?,
                Ok(Taken::Zero) => {
                    let ranges = parse_ranges(record_type, &body[..len], self.description.nr_pages);
                    let ranges = ranges.map_err(|breach| self.reader.broken(breach))?;
                    pages.clear(ranges)?;
                    pages.keep(body);
                }
                Ok(Taken::Round(round)) => {
                    pages.keep(body);
                    pages.wait()?;
                    if !round.last {
                        pages.domain().prepare(&image.tables()).map_err(at_destination)?;
                        let number = round.round.to_le_bytes();
                        self.write(|writer| writer.record(RecordType::RoundDone, &number))?;
                    }
                }
                Ok(Taken::End) => return Ok(image.into_state()),
                Ok(Taken::Abort) => {
                    let message = parse_text(&body[..len]);
                    return Err(MigrateError::Remote { side: Side::Source, message });
                }
                Err(breach) => return Err(self.reader.broken(breach)),
            }
        }
    }

    /// Tells the source what went wrong, and reads on until it has listened: it looks for an
    /// answer only at the end of a round.
    fn fail(&mut self, error: &MigrateError) {
        if matches!(error, MigrateError::Link { .. } | MigrateError::Stalled { .. }) {
            return;
        }
        let mut text = Vec::new();
        emit_text(&describe_error(error), &mut text);
        self.reader.link().ignore_cancel();
        let told = self.write(|writer| {
            writer.link().ignore_cancel();
            writer.record(RecordType::Failed, &text)
        });
        if told.is_ok() && self.writer.is_some() {
            self.body.resize(256 << 10, 0);
            self.reader.link().drain(&mut self.body, self.options.patience.answer);
        }
    }

    /// Says that the domain is complete, and waits for the source's word.
    fn take_over<D: DestinationDomain>(
        mut self,
        mut domain: D,
        claim: &mut dyn Claim,
    ) -> Result<Arrival<D>, DestinationFailure> {
        self.reader.link().ignore_cancel();
        if let Some(writer) = &mut self.writer {
            writer.link().ignore_cancel();
        }
        let mut state = DestinationState::Receiving;
        let mut event = DestinationEvent::Complete;
        let mut failure = None;
        loop {
            let mut live = Live { incoming: &mut self, domain: &mut domain, claim };
            if let Err(error) = drive_destination(&mut state, event, &mut live) {
                // A domain that runs stays, whatever is wrong with its claim.
                if state != DestinationState::Taken || event != DestinationEvent::Message(Message::Released) {
                    return Err(DestinationFailure { error, state });
                }
                break;
            }
            match state {
                DestinationState::Done => break,
                DestinationState::Dropped => {
                    let error = failure.unwrap_or(MigrateError::Cancelled);
                    return Err(DestinationFailure { error, state });
                }
                _ => {}
            }
            event = match self.next_word() {
                Ok(message) => DestinationEvent::Message(message),
                // It runs here: the manager tells the source later.
                Err(_) if state == DestinationState::Taken => break,
                Err(error) => {
                    failure = Some(error);
                    DestinationEvent::Failure
                }
            };
        }
        Ok(Arrival { domain, description: self.description, state })
    }

    fn next_word(&mut self) -> Result<Message, MigrateError> {
        let (record_type, len) = self.reader.next(&mut self.body, self.options.patience.answer)?;
        match record_type {
            RecordType::Commit => Ok(Message::Commit),
            RecordType::Released => Ok(Message::Released),
            RecordType::Abort => {
                Err(MigrateError::Remote { side: Side::Source, message: parse_text(&self.body[..len]) })
            }
            other => Err(self.reader.broken(Breach::Unexpected(other as u32))),
        }
    }
}

impl<R: Read> Incoming<R, io::Empty> {
    /// Reads what a file or pipe holds.
    ///
    /// # Errors
    /// If it is broken, or of another version.
    pub fn file(input: R, options: Options) -> Result<Self, MigrateError> {
        let mut incoming = Self::read(input, None, OnEnd::Truncated, options)?;
        negotiate::check_image(&incoming.header).map_err(|breach| incoming.reader.broken(breach))?;
        incoming.read_description()?;
        Ok(incoming)
    }

    /// Makes the domain of a file. It stays paused.
    ///
    /// # Errors
    /// Then nothing of the domain is left.
    pub fn restore<H: DestinationHost>(mut self, host: &mut H) -> Result<Arrival<H::Domain>, MigrateError> {
        let mut domain = self.create(host)?;
        match self.fill(&mut domain).and_then(|()| self.reader.end()) {
            Ok(()) => Ok(Arrival { domain, description: self.description, state: DestinationState::Done }),
            Err(error) => {
                domain.destroy();
                Err(error)
            }
        }
    }
}

/// A clone is nobody else's.
struct NoClaim;

impl Claim for NoClaim {
    fn write(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A live destination as the hand-over sees it.
struct Live<'a, R, W, D> {
    incoming: &'a mut Incoming<R, W>,
    domain: &'a mut D,
    claim: &'a mut dyn Claim,
}

impl<R: Read, W: Write, D: DestinationDomain> DestinationParts for Live<'_, R, W, D> {
    fn claim(&mut self) -> &mut dyn Claim {
        self.claim
    }

    fn activate(&mut self) -> Result<(), DomainError> {
        self.domain.activate()
    }

    fn destroy(&mut self) {
        self.domain.destroy();
    }

    fn send(&mut self, message: Message) {
        let _ = self.incoming.write(|writer| writer.record(message.record_type(), &[]));
    }
}

/// What has come so far, checked against what may come: STREAM.md, "Order".
struct Image {
    nr_pages: u64,
    /// Pages that may be named: those with memory, without the p2m list.
    movable: PageBitmap,
    memory: Vec<PfnRange>,
    tables: BTreeMap<u64, PageType>,
    round: u32,
    pages: u64,
    zero_pages: u64,
    last_round_done: bool,
    states: Vec<State>,
    kinds: BTreeSet<(u16, u16)>,
    state_bytes: usize,
    absent: Vec<PfnRange>,
}

/// What is to be done with a record.
enum Taken {
    /// Nothing: it is noted.
    Nothing,
    /// Its pages are to be written.
    Pages,
    /// Its pages are to be cleared.
    Zero,
    /// All pages of the round must be in place.
    Round(Round),
    /// The image is complete.
    End,
    /// The source gave up.
    Abort,
}

impl Image {
    fn new(description: &Description) -> Self {
        let mut movable = PageBitmap::new(description.nr_pages);
        description.memory.iter().for_each(|range| movable.insert_range(*range));
        description.p2m.iter().for_each(|range| movable.remove_range(*range));
        Self {
            nr_pages: description.nr_pages,
            movable,
            memory: description.memory.clone(),
            tables: BTreeMap::new(),
            round: 0,
            pages: 0,
            zero_pages: 0,
            last_round_done: false,
            states: Vec::new(),
            kinds: BTreeSet::new(),
            state_bytes: 0,
            absent: Vec::new(),
        }
    }

    fn take(&mut self, record_type: RecordType, body: &[u8], features: u32) -> Result<Taken, Breach> {
        match (self.last_round_done, record_type) {
            (false, RecordType::Pages) => self.take_pages(body, features),
            (false, RecordType::LinearTables) if features & feature::LINEAR_TABLES != 0 => {
                self.take_linear_tables(body)
            }
            (false, RecordType::Zero) => self.take_zero(body),
            (false, RecordType::Round) => self.take_round(body),
            (true, RecordType::Absent) if self.states.is_empty() => {
                add_ranges(&mut self.absent, RecordType::Absent, body, self.nr_pages)?;
                Ok(Taken::Nothing)
            }
            (true, RecordType::State) => self.take_state(body),
            (true, RecordType::End) => Ok(Taken::End),
            (_, RecordType::Abort) => Ok(Taken::Abort),
            _ => Err(Breach::Unexpected(record_type as u32)),
        }
    }

    fn take_pages(&mut self, body: &[u8], features: u32) -> Result<Taken, Breach> {
        let pages = Pages::parse(body, self.nr_pages)?;
        let needed = match pages.encoding {
            Encoding::Raw => 0,
            Encoding::Lz4 => feature::LZ4,
            Encoding::Zstd => feature::ZSTD,
        };
        if features & needed != needed {
            return Err(Breach::Features(needed));
        }
        for (pfn, page_type) in pages.pages() {
            self.check(pfn)?;
            if page_type == PageType::Data {
                self.tables.remove(&pfn.0);
            } else {
                self.tables.insert(pfn.0, page_type);
            }
        }
        self.pages += pages.count() as u64;
        Ok(Taken::Pages)
    }

    fn take_linear_tables(&mut self, body: &[u8]) -> Result<Taken, Breach> {
        for table in parse_linear_tables(body, self.nr_pages)? {
            self.check(table.pfn)?;
            let page_type = PageType::Table { level: Level::L1, pinned: table.pinned };
            self.tables.insert(table.pfn.0, page_type);
            self.pages += 1;
        }
        Ok(Taken::Pages)
    }

    fn take_zero(&mut self, body: &[u8]) -> Result<Taken, Breach> {
        for range in parse_ranges(RecordType::Zero, body, self.nr_pages)? {
            if !self.movable.contains_range(range) {
                return Err(Breach::PageOutside(range.first.0));
            }
            let zero = range.first.0..range.first.0 + range.count;
            self.tables.extract_if(zero, |_, _| true).for_each(drop);
            self.zero_pages += range.count;
        }
        Ok(Taken::Zero)
    }

    fn take_round(&mut self, body: &[u8]) -> Result<Taken, Breach> {
        let round = Round::parse(body)?;
        let counted =
            Round { round: self.round, last: round.last, pages: self.pages, zero_pages: self.zero_pages };
        if round != counted {
            return Err(Breach::Counts(round.round));
        }
        self.round = self.round.checked_add(1).ok_or(Breach::Counts(round.round))?;
        (self.pages, self.zero_pages) = (0, 0);
        self.last_round_done = round.last;
        Ok(Taken::Round(round))
    }

    fn take_state(&mut self, body: &[u8]) -> Result<Taken, Breach> {
        let state = parse_state(body)?;
        self.state_bytes += state.bytes.len();
        let fits = self.states.len() < MAX_STATES && self.state_bytes <= MAX_ALL_STATE;
        if !fits || !self.kinds.insert((state.kind, state.index)) {
            let field = if fits { "kind and index" } else { "number" };
            return Err(Breach::Field { record_type: RecordType::State as u32, field });
        }
        self.states.push(state);
        Ok(Taken::Nothing)
    }

    fn check(&self, pfn: Pfn) -> Result<(), Breach> {
        if self.movable.contains(pfn) { Ok(()) } else { Err(Breach::PageOutside(pfn.0)) }
    }

    fn tables(&self) -> Vec<Table> {
        let table = |(pfn, page_type): (&u64, &PageType)| Table { pfn: Pfn(*pfn), page_type: *page_type };
        self.tables.iter().map(table).collect()
    }

    fn into_state(self) -> FinalState {
        // Pages without memory at the source, but only those that got some here.
        let mut absent = PageBitmap::new(self.nr_pages);
        let mut memory = absent.clone();
        self.absent.iter().for_each(|range| absent.insert_range(*range));
        self.memory.iter().for_each(|range| memory.insert_range(*range));
        absent.retain_all(&memory);
        let mut tables = self.tables();
        tables.retain(|table| !absent.contains(table.pfn));
        FinalState { tables, absent: absent.ranges().collect(), states: self.states }
    }
}

/// Adds the ranges of a record to those before it.
fn add_ranges(
    ranges: &mut Vec<PfnRange>,
    record_type: RecordType,
    body: &[u8],
    nr_pages: u64,
) -> Result<(), Breach> {
    let more = parse_ranges(record_type, body, nr_pages)?;
    let field = |field| Breach::Field { record_type: record_type as u32, field };
    if ranges.len() + more.clone().count() > MAX_ALL_RANGES {
        return Err(field("number of ranges"));
    }
    let continues = match (ranges.last(), more.clone().next()) {
        (Some(last), Some(next)) => last.end().is_some_and(|end| end <= next.first.0),
        _ => true,
    };
    if !continues && record_type != RecordType::P2m {
        return Err(field("order of ranges"));
    }
    ranges.extend(more);
    Ok(())
}

/// The p2m list lies in memory, and is no longer than it can be.
fn check_p2m(description: &Description) -> Result<(), Breach> {
    let mut memory = PageBitmap::new(description.nr_pages);
    description.memory.iter().for_each(|range| memory.insert_range(*range));
    let mut pages = 0u64;
    for range in &description.p2m {
        pages = pages.saturating_add(range.count);
        if pages > description.nr_pages.div_ceil(512) {
            return Err(Breach::Field { record_type: RecordType::P2m as u32, field: "number of pages" });
        }
        if !memory.contains_range(*range) {
            return Err(Breach::PageOutside(range.first.0));
        }
    }
    Ok(())
}

/// An error with its causes, for the other side.
fn describe_error(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

pub(crate) fn at_destination(source: DomainError) -> MigrateError {
    MigrateError::Domain { side: Side::Destination, source }
}
