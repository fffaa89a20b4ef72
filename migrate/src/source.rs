//! The source: from a running domain to a stream, and to the hand-over.
//!
//! ```text
//! offer            what the domain is; the destination checks it and makes room
//! pre-copy         rounds of pages while the domain runs, until the policy ends them
//! suspend          the domain stops
//! stop-and-copy    the last pages, and the state
//! hand over        STREAM.md, section 8
//! ```
//!
//! Whatever fails before the hand-over, the domain goes on here.

use std::{
    io::{ErrorKind, Read, Write},
    time::{Duration, Instant},
};

use xen_proto::frame::PAGE_SIZE;

use crate::{
    bitmap::PageBitmap,
    compress::Compression,
    domain::{Description, DomainError, PfnRange, SourceDomain},
    error::{MigrateError, Side},
    handover::{Claim, Message, SourceEvent, SourceParts, SourceState, drive_source},
    link::{Cancel, LinkReader, LinkWriter, Patience},
    negotiate,
    policy::{Decision, PrecopyPolicy, PrecopyStats},
    progress::{MigrateStats, Progress, RoundStats, Step},
    rate::TokenBucket,
    sender::{Sender, Sent},
    stream::{OnEnd, StreamReader, StreamWriter},
    wire::{
        Breach, ImageHeader, MAX_RANGES, MigrationId, Reason, RecordType, Round, emit_domain, emit_range,
        emit_state, emit_text, parse_refusal, parse_text,
    },
};

/// How to move a domain.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// When to stop the domain.
    pub policy: PrecopyPolicy,
    /// Whether to pack pages.
    pub compression: Compression,
    /// Bytes per second on the link while the domain runs; below 64 KiB that.
    pub rate_limit: Option<u64>,
    /// How long the link and the other side are waited for.
    pub patience: Patience,
    /// Threads that read and pack pages; 0 for as many as there are processors.
    pub workers: usize,
    /// Ends the move before the hand-over.
    pub cancel: Cancel,
}

/// Told of progress.
pub type Observer<'a> = &'a mut dyn FnMut(Progress);

/// A move that failed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SourceFailure {
    /// Why.
    #[source]
    pub error: MigrateError,
    /// Where that leaves the domain: [`SourceState::Kept`], or [`SourceState::HandedOver`] when
    /// the destination must be asked.
    pub state: SourceState,
}

/// Moves a domain ([`Reason::Migrate`]), or makes a second one of it ([`Reason::Clone`]), over a
/// connection to a destination. When it returns, the domain is destroyed (or, cloned, runs on).
///
/// # Errors
/// With [`SourceState::Kept`] the domain is here; it runs, unless it ended by itself or the
/// hypervisor could not resume it. With [`SourceState::HandedOver`] the claim stays, and the
/// destination must be asked (`handover`).
pub fn migrate<D: SourceDomain, R: Read, W: Write + Send>(
    domain: &mut D,
    claim: &mut dyn Claim,
    (input, output): (R, W),
    id: MigrationId,
    reason: Reason,
    options: &Options,
    observer: Observer<'_>,
) -> Result<MigrateStats, SourceFailure> {
    let header = ImageHeader { reason, ..negotiate::offer(id, reason) };
    let link = LinkReader::new(input, Side::Source, options.patience, options.cancel.clone());
    let answers =
        Answers { reader: StreamReader::new(link, Side::Destination, OnEnd::LinkLost), body: Vec::new() };
    let mut source = Source::new(domain, output, Some(answers), header, options, observer);
    match source.send_image() {
        Ok(()) if reason == Reason::Clone => source.leave_clone(),
        Ok(()) => source.hand_over(claim),
        Err(error) => Err(source.give_up(error)),
    }
}

/// Writes a domain to a file or pipe. With [`Reason::Checkpoint`] it then goes on; with
/// [`Reason::Save`] it stays suspended, to be destroyed once the file is safe, or resumed.
///
/// # Errors
/// Then the domain goes on.
pub fn save<D: SourceDomain, W: Write + Send>(
    domain: &mut D,
    output: W,
    id: MigrationId,
    reason: Reason,
    options: &Options,
    observer: Observer<'_>,
) -> Result<MigrateStats, MigrateError> {
    let header = negotiate::image(id, reason);
    let mut source = Source::new(domain, output, None::<Answers<std::io::Empty>>, header, options, observer);
    let sent = source.send_image().and_then(|()| match reason {
        Reason::Save => Ok(()),
        _ => source.resume(),
    });
    match sent {
        Ok(()) => Ok(source.finish()),
        Err(error) => Err(source.give_up(error).error),
    }
}

/// What the destination says.
struct Answers<R> {
    reader: StreamReader<R>,
    body: Vec<u8>,
}

impl<R: Read> Answers<R> {
    /// The next record's type and the length of its body, unless the destination says that it
    /// will not or cannot.
    fn next(&mut self, patience: Duration) -> Result<(RecordType, usize), MigrateError> {
        let (record_type, len) = self.reader.next(&mut self.body, patience)?;
        let body = &self.body[..len];
        match record_type {
            RecordType::Refuse => {
                let refusal = parse_refusal(body).map_err(|breach| self.reader.broken(breach))?;
                Err(MigrateError::Refused(refusal))
            }
            RecordType::Failed => {
                Err(MigrateError::Remote { side: Side::Destination, message: parse_text(body) })
            }
            _ => Ok((record_type, len)),
        }
    }

    fn expect(&mut self, expected: RecordType, patience: Duration) -> Result<&[u8], MigrateError> {
        match self.next(patience)? {
            (found, len) if found == expected => Ok(&self.body[..len]),
            (found, _) => Err(self.reader.broken(Breach::Unexpected(found as u32))),
        }
    }
}

struct Source<'a, D, R, W> {
    domain: &'a mut D,
    header: ImageHeader,
    sender: Sender<W>,
    answers: Option<Answers<R>>,
    options: &'a Options,
    observer: Observer<'a>,
    tracking: bool,
    suspended: Option<Instant>,
    began: Instant,
    /// When the last step ended.
    stepped: Instant,
    stats: MigrateStats,
}

impl<'a, D: SourceDomain, R: Read, W: Write + Send> Source<'a, D, R, W> {
    fn new(
        domain: &'a mut D,
        output: W,
        answers: Option<Answers<R>>,
        header: ImageHeader,
        options: &'a Options,
        observer: Observer<'a>,
    ) -> Self {
        let link = LinkWriter::new(output, Side::Source, options.patience, options.cancel.clone());
        let sender = Sender::new(StreamWriter::new(link), options.compression, options.workers);
        let stats = MigrateStats { dirty_source: "none", ..MigrateStats::default() };
        let now = Instant::now();
        Self {
            domain,
            header,
            sender,
            answers,
            options,
            observer,
            tracking: false,
            suspended: None,
            began: now,
            stepped: now,
            stats,
        }
    }

    /// Notes where the time since the last step went.
    fn step(&mut self, name: &'static str) {
        let now = Instant::now();
        let suspended = self.suspended.is_some();
        self.stats.steps.push(Step { name, time: now - self.stepped, suspended });
        self.stepped = now;
    }

    /// Everything up to END.
    fn send_image(&mut self) -> Result<(), MigrateError> {
        let description = self.offer()?;
        let mut pages = Pages::new(&description);
        let why = if self.options.policy.stop_and_copy {
            "as wished"
        } else {
            self.begin_tracking()?;
            let why = self.precopy(&mut pages)?;
            self.step("rounds");
            why
        };
        self.suspend(why)?;
        self.stop_and_copy(&mut pages)?;
        self.send_state()
    }

    /// Describes the domain, and waits for a live destination to make room.
    fn offer(&mut self) -> Result<Description, MigrateError> {
        let description = self.domain.describe().map_err(at_source)?;
        self.step("describe");
        let writer = self.sender.writer();
        writer.header(&self.header)?;
        let mut body = Vec::new();
        emit_domain(&description, &mut body);
        writer.record(RecordType::Domain, &body)?;
        writer.record(RecordType::Config, &description.config)?;
        write_ranges(writer, RecordType::P2m, description.p2m.iter().copied())?;
        write_ranges(writer, RecordType::Memory, description.memory.iter().copied())?;
        writer.record(RecordType::OfferEnd, &[])?;
        writer.flush()?;
        if let Some(answers) = &mut self.answers {
            let patience = self.options.patience.answer;
            let answer = answers.reader.header(patience)?;
            negotiate::check_answer(&self.header, &answer).map_err(|breach| answers.reader.broken(breach))?;
            answers.expect(RecordType::Accept, patience)?;
            if !(self.header.oldest..=self.header.version).contains(&answer.version) {
                return Err(answers.reader.broken(Breach::Version(answer.version)));
            }
            self.header = answer;
            (self.observer)(Progress::Accepted);
            self.step("room at the destination");
        }
        self.sender.set_features(self.header.features);
        Ok(description)
    }

    fn begin_tracking(&mut self) -> Result<(), MigrateError> {
        let dirty_source = self.domain.dirty_source();
        self.stats.dirty_source = dirty_source.name();
        dirty_source.begin().map_err(at_source)?;
        self.tracking = true;
        self.step("begin of tracking");
        Ok(())
    }

    /// Sends rounds of pages until the policy ends them; says why it did.
    fn precopy(&mut self, pages: &mut Pages) -> Result<&'static str, MigrateError> {
        let limit = self.options.rate_limit.map(TokenBucket::new);
        self.sender.writer().link().set_limit(limit);
        let mut bytes_per_second = None;
        let mut stuck_rounds = 0;
        loop {
            let mut round = self.send_round(pages, false)?;
            self.domain.dirty_source().take(&mut pages.dirty).map_err(at_source)?;
            pages.dirty.retain_all(&pages.movable);

            // A few pages tell nothing about the link.
            if round.pages > 64 || bytes_per_second.is_none() {
                let bytes = (round.pages * PAGE_SIZE as u64) as f64;
                bytes_per_second = Some((bytes / round.time.as_secs_f64().max(1e-6)) as u64);
            }
            let mut stats = PrecopyStats {
                rounds: round.round + 1,
                sent_pages: round.pages + round.zero_pages,
                dirty_pages: pages.dirty.count(),
                round_time: round.time,
                bytes_per_second,
                stuck_rounds: 0,
            };
            stuck_rounds = if stats.is_stuck() { stuck_rounds + 1 } else { 0 };
            stats.stuck_rounds = stuck_rounds;
            round.dirty_pages = stats.dirty_pages;
            round.dirty_rate = stats.dirty_rate();
            round.expected_downtime = stats.expected_downtime();
            self.stats.rounds.push(round);
            (self.observer)(Progress::RoundDone(round));
            match self.options.policy.decide(&stats) {
                Decision::Continue => {}
                Decision::StopAndCopy(why) => return Ok(why),
                Decision::Abort(why) => return Err(MigrateError::NotConverging(why)),
            }
        }
    }

    fn suspend(&mut self, why: &'static str) -> Result<(), MigrateError> {
        if self.options.cancel.is_cancelled() {
            return Err(MigrateError::Cancelled);
        }
        (self.observer)(Progress::Suspending { why });
        let asked = Instant::now();
        self.domain.suspend(self.header.reason).map_err(at_source)?;
        self.step("suspend");
        self.suspended = Some(Instant::now());
        self.stats.suspend_time = asked.elapsed();
        (self.observer)(Progress::Suspended);
        // What the limit protects suffers less than a domain that stands still.
        self.sender.writer().link().set_limit(None);
        Ok(())
    }

    /// Sends what was written since the last round, now that nothing more is.
    fn stop_and_copy(&mut self, pages: &mut Pages) -> Result<(), MigrateError> {
        if self.tracking {
            self.domain.dirty_source().take_last(&mut pages.dirty).map_err(at_source)?;
            pages.dirty.retain_all(&pages.movable);
            self.step("last dirty pages");
        }
        let round = self.send_round(pages, true)?;
        self.stats.rounds.push(round);
        write_ranges(self.sender.writer(), RecordType::Absent, pages.absent.ranges())?;
        self.step("last round");
        Ok(())
    }

    /// Sends the pages that are dirty and needed, and waits until a live destination has them.
    fn send_round(&mut self, pages: &mut Pages, last: bool) -> Result<RoundStats, MigrateError> {
        let began = Instant::now();
        let number = self.stats.rounds.len() as u32;
        let bytes_before = self.sender.writer().bytes();

        pages.void.clear();
        self.domain.void_pages(&mut pages.void).map_err(at_source)?;
        let dirty = pages.dirty.count();
        // A page that travelled as a page table must lose that type, also if it is free now.
        pages.void.remove_all(&pages.sent_tables);
        pages.dirty.remove_all(&pages.void);
        let void_pages = dirty - pages.dirty.count();
        // What the domain may use has memory, whatever it had before.
        pages.absent.remove_all(&pages.void);
        let of = pages.dirty.count();
        let observer = &mut self.observer;
        let mut told = Instant::now();
        let sent = self.sender.send(&*self.domain, &pages.dirty, last, &mut |sent, bytes| {
            if told.elapsed() > Duration::from_millis(100) {
                told = Instant::now();
                observer(Progress::Sending { round: number, pages: sent, of, bytes });
            }
        });
        let sent = sent.map_err(|error| self.explain(error))?;
        pages.settle(&sent);

        let round = Round { round: number, last, pages: sent.pages, zero_pages: sent.zero_pages };
        let mut body = Vec::new();
        round.emit(&mut body);
        let writer = self.sender.writer();
        writer.record(RecordType::Round, &body)?;
        if !last && let Some(answers) = &mut self.answers {
            writer.flush()?;
            let done = answers.expect(RecordType::RoundDone, self.options.patience.answer)?;
            if done != number.to_le_bytes() {
                return Err(answers.reader.broken(Breach::Counts(number)));
            }
        }
        Ok(RoundStats {
            round: number,
            pages: round.pages,
            zero_pages: round.zero_pages,
            void_pages,
            bytes: self.sender.writer().bytes() - bytes_before,
            time: began.elapsed(),
            ..RoundStats::default()
        })
    }

    fn send_state(&mut self) -> Result<(), MigrateError> {
        let states = self.domain.state().map_err(at_source)?;
        let writer = self.sender.writer();
        let mut body = Vec::new();
        for state in &states {
            body.clear();
            emit_state(state, &mut body);
            writer.record(RecordType::State, &body)?;
        }
        writer.record(RecordType::End, &[])?;
        writer.flush()?;
        self.step("state");
        // Not earlier: with the domain suspended, there are better things to do.
        self.end_tracking();
        (self.observer)(Progress::HandingOver);
        Ok(())
    }

    /// Gives the domain to the destination.
    fn hand_over(mut self, claim: &mut dyn Claim) -> Result<MigrateStats, SourceFailure> {
        if let Err(error) = self.expect_ready() {
            return Err(self.give_up(error));
        }
        self.step("completion at the destination");
        let mut state = SourceState::Sending;
        loop {
            let event = match state {
                SourceState::Sending => SourceEvent::Message(Message::Ready),
                SourceState::HandedOver => match self.outcome() {
                    Ok(message) => SourceEvent::Message(message),
                    Err(error) => return Err(SourceFailure { error, state }),
                },
                SourceState::Released => return Ok(self.finish()),
                SourceState::Kept => {
                    let message = "it gave the capsule up at the last moment".into();
                    let error = MigrateError::Remote { side: Side::Destination, message };
                    return Err(SourceFailure { error, state });
                }
            };
            if event == SourceEvent::Message(Message::Taken) {
                self.stop_clock();
                self.step("start at the destination");
                self.suspended = None;
            }
            let driven = drive_source(&mut state, event, &mut Live { source: &mut self, claim });
            if let Err(error) = driven {
                return Err(SourceFailure { error, state });
            }
            self.step(if state == SourceState::HandedOver { "claim" } else { "end of the copy here" });
        }
    }

    fn expect_ready(&mut self) -> Result<(), MigrateError> {
        let patience = self.options.patience.answer;
        if let Some(answers) = &mut self.answers {
            answers.expect(RecordType::Ready, patience)?;
            answers.reader.link().ignore_cancel();
        }
        if self.options.cancel.is_cancelled() {
            return Err(MigrateError::Cancelled);
        }
        self.sender.writer().link().ignore_cancel();
        Ok(())
    }

    /// TAKEN or GONE.
    fn outcome(&mut self) -> Result<Message, MigrateError> {
        let patience = self.options.patience.answer;
        let Some(answers) = &mut self.answers else { unreachable!("files are not handed over") };
        match answers.next(patience)?.0 {
            RecordType::Taken => Ok(Message::Taken),
            RecordType::Gone => Ok(Message::Gone),
            other => Err(answers.reader.broken(Breach::Unexpected(other as u32))),
        }
    }

    /// Goes on here, and lets the copy run as well.
    fn leave_clone(mut self) -> Result<MigrateStats, SourceFailure> {
        let done = self.resume().and_then(|()| self.expect_ready()).and_then(|()| {
            self.tell(Message::Commit)?;
            match self.outcome()? {
                Message::Taken => self.tell(Message::Released),
                _ => {
                    let message = "it gave the clone up".into();
                    Err(MigrateError::Remote { side: Side::Destination, message })
                }
            }
        });
        match done {
            Ok(()) => Ok(self.finish()),
            Err(error) => Err(self.give_up(error)),
        }
    }

    fn tell(&mut self, message: Message) -> Result<(), MigrateError> {
        let writer = self.sender.writer();
        writer.record(message.record_type(), &[])?;
        writer.flush()
    }

    fn resume(&mut self) -> Result<(), MigrateError> {
        if self.suspended.is_some() {
            self.domain.resume().map_err(at_source)?;
            self.stop_clock();
            self.suspended = None;
        }
        Ok(())
    }

    fn stop_clock(&mut self) {
        if let Some(suspended) = self.suspended {
            self.stats.downtime = suspended.elapsed();
            self.stats.total_time = self.began.elapsed();
        }
    }

    fn finish(mut self) -> MigrateStats {
        if self.stats.total_time.is_zero() {
            self.stop_clock();
        }
        self.stats.bytes = self.sender.writer().bytes();
        self.stats
    }

    /// Ends the move before the hand-over: the domain goes on here.
    fn give_up(mut self, error: MigrateError) -> SourceFailure {
        self.end_tracking();
        let error = self.explain(error);
        if self.answers.is_some() {
            // The destination finds out anyway: this only tells it sooner and why.
            let mut body = Vec::new();
            emit_text(&error.to_string(), &mut body);
            let writer = self.sender.writer();
            writer.link().ignore_cancel();
            let _ = writer.record(RecordType::Abort, &body).and_then(|()| writer.flush());
        }
        // That it cannot go on is the graver news.
        let error = self.resume().err().unwrap_or(error);
        SourceFailure { error, state: SourceState::Kept }
    }

    fn end_tracking(&mut self) {
        if std::mem::take(&mut self.tracking) {
            self.domain.dirty_source().end();
        }
    }

    /// If the destination closed the link, it may have said why.
    fn explain(&mut self, error: MigrateError) -> MigrateError {
        let MigrateError::Link { source, .. } = &error else { return error };
        if !matches!(source.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) {
            return error;
        }
        loop {
            match self.answers.as_mut().map(|answers| answers.next(Duration::ZERO)) {
                Some(Err(said @ (MigrateError::Refused(_) | MigrateError::Remote { .. }))) => return said,
                Some(Ok(_)) => {}
                _ => return error,
            }
        }
    }
}

/// A live source as the hand-over sees it.
struct Live<'s, 'a, D, R, W> {
    source: &'s mut Source<'a, D, R, W>,
    claim: &'s mut dyn Claim,
}

impl<D: SourceDomain, R: Read, W: Write + Send> SourceParts for Live<'_, '_, D, R, W> {
    fn claim(&mut self) -> &mut dyn Claim {
        self.claim
    }

    fn resume(&mut self) -> Result<(), DomainError> {
        self.source.domain.resume()
    }

    fn destroy(&mut self) -> Result<(), DomainError> {
        self.source.domain.destroy()
    }

    fn send(&mut self, message: Message) {
        let _ = self.source.tell(message);
    }
}

/// Which pages still have to go.
struct Pages {
    /// Pages that can be named at all: those with memory, without the p2m list.
    movable: PageBitmap,
    /// Pages that the next round has to name.
    dirty: PageBitmap,
    /// Pages whose content does not matter now.
    void: PageBitmap,
    /// Pages whose last word was that they are page tables.
    sent_tables: PageBitmap,
    /// Pages that had no memory when they were last looked at.
    absent: PageBitmap,
}

impl Pages {
    fn new(description: &Description) -> Self {
        let none = PageBitmap::new(description.nr_pages);
        let mut movable = none.clone();
        description.memory.iter().for_each(|range| movable.insert_range(*range));
        description.p2m.iter().for_each(|range| movable.remove_range(*range));
        Self { dirty: movable.clone(), movable, void: none.clone(), sent_tables: none.clone(), absent: none }
    }

    /// Notes what became of the dirty pages.
    fn settle(&mut self, sent: &Sent) {
        self.absent.remove_all(&self.dirty);
        self.sent_tables.remove_all(&self.dirty);
        sent.absent.iter().for_each(|pfn| self.absent.insert(*pfn));
        sent.tables.iter().for_each(|pfn| self.sent_tables.insert(*pfn));
        self.dirty.clear();
        sent.deferred.iter().for_each(|pfn| self.dirty.insert(*pfn));
    }
}

fn write_ranges<W: Write>(
    writer: &mut StreamWriter<W>,
    record_type: RecordType,
    ranges: impl Iterator<Item = PfnRange>,
) -> Result<(), MigrateError> {
    let mut body = Vec::new();
    for range in ranges {
        emit_range(range, &mut body);
        if body.len() == MAX_RANGES * 16 {
            writer.record(record_type, &body)?;
            body.clear();
        }
    }
    if !body.is_empty() {
        writer.record(record_type, &body)?;
    }
    Ok(())
}

pub(crate) fn at_source(source: DomainError) -> MigrateError {
    MigrateError::Domain { side: Side::Source, source }
}
