//! Moves during which a daemon is killed or the link fails, at random points: afterwards, once the
//! daemons have started again and talked, exactly one side runs the domain.

mod common;

use std::{
    io::{self, ErrorKind, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use common::{Disk, Fault, ID};
use fcap_migrate::{
    Patience, destination,
    destination::Incoming,
    domain::{
        Description, DestinationDomain, DestinationHost, DirtySource, DomainError, DomainResult, FinalState,
        Page, PfnRange, SourceDomain, State, Table,
    },
    handover::{
        Claim, DestinationEvent, DestinationParts, DestinationState, FoundCopy, FoundDomain, Message,
        SourceEvent, SourceParts, SourceState, drive_destination, drive_source, recover_destination,
        recover_source,
    },
    page::PageType,
    sim::{Script, SimDomain, SimHost, SimSource, World},
    source,
    wire::Reason,
};
use proptest::prelude::*;
use xen_proto::frame::{Mfn, Pfn};

/// A daemon's life: it can do so many things before it is killed, and nothing after that.
#[derive(Clone)]
struct Life(Arc<AtomicI64>);

impl Life {
    fn of(actions: Option<i64>) -> Self {
        Self(Arc::new(AtomicI64::new(actions.unwrap_or(i64::MAX))))
    }

    /// One thing less.
    fn spend(&self) -> io::Result<()> {
        if self.0.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        self.0.store(0, Ordering::SeqCst);
        Err(io::Error::new(ErrorKind::BrokenPipe, "killed"))
    }

    fn act(&self) -> DomainResult<()> {
        self.spend().map_err(|error| DomainError::Failed { call: "anything".into(), source: error.into() })
    }

    fn is_over(&self) -> bool {
        self.0.load(Ordering::SeqCst) <= 0
    }
}

/// Anything, in the hands of a daemon that may be killed.
struct Mortal<T>(T, Life);

impl<T: Read> Read for Mortal<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1.spend()?;
        self.0.read(buffer)
    }
}

impl<T: Write> Write for Mortal<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.spend()?;
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.spend()?;
        self.0.flush()
    }
}

impl Claim for Mortal<Disk> {
    fn write(&mut self) -> io::Result<()> {
        self.1.spend()?;
        self.0.write()?;
        // Killed after the fact, before anybody knows.
        self.1.spend()
    }

    fn remove(&mut self) -> io::Result<()> {
        self.1.spend()?;
        self.0.remove()
    }
}

impl DirtySource for Mortal<SimSource> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn begin(&mut self) -> DomainResult<()> {
        self.1.act()?;
        self.0.begin()
    }

    fn take(&mut self, dirty: &mut fcap_migrate::bitmap::PageBitmap) -> DomainResult<()> {
        self.1.act()?;
        self.0.take(dirty)
    }

    fn take_last(&mut self, dirty: &mut fcap_migrate::bitmap::PageBitmap) -> DomainResult<()> {
        self.1.act()?;
        self.0.take_last(dirty)
    }

    fn end(&mut self) {
        if self.1.act().is_ok() {
            self.0.end();
        }
    }
}

impl SourceDomain for Mortal<SimSource> {
    fn describe(&mut self) -> DomainResult<Description> {
        self.1.act()?;
        self.0.describe()
    }

    fn dirty_source(&mut self) -> &mut dyn DirtySource {
        self
    }

    fn void_pages(&mut self, void: &mut fcap_migrate::bitmap::PageBitmap) -> DomainResult<()> {
        self.1.act()?;
        self.0.void_pages(void)
    }

    fn read_pages(&self, pfns: &[Pfn], types: &mut [PageType], pages: &mut [Page]) -> DomainResult<()> {
        self.1.act()?;
        self.0.read_pages(pfns, types, pages)
    }

    fn pfn_of(&self, mfn: Mfn) -> Option<Pfn> {
        self.0.pfn_of(mfn)
    }

    fn suspend(&mut self, reason: Reason) -> DomainResult<()> {
        self.1.act()?;
        self.0.suspend(reason)?;
        self.1.act()
    }

    fn state(&mut self) -> DomainResult<Vec<State>> {
        self.1.act()?;
        self.0.state()
    }

    fn resume(&mut self) -> DomainResult<()> {
        self.1.act()?;
        self.0.resume()
    }

    fn destroy(&mut self) -> DomainResult<()> {
        self.1.act()?;
        self.0.destroy()
    }
}

impl DestinationHost for Mortal<SimHost> {
    type Domain = Mortal<SimDomain>;

    fn create(&mut self, description: &Description, reason: Reason) -> DomainResult<Self::Domain> {
        self.1.act()?;
        let domain = self.0.create(description, reason)?;
        Ok(Mortal(domain, self.1.clone()))
    }
}

impl DestinationDomain for Mortal<SimDomain> {
    fn mfn_of(&self, pfn: Pfn) -> Option<Mfn> {
        self.0.mfn_of(pfn)
    }

    fn write_pages(&self, pfns: &[Pfn], types: &[PageType], pages: &[Page]) -> DomainResult<()> {
        self.1.act()?;
        self.0.write_pages(pfns, types, pages)
    }

    fn clear_pages(&self, pages: PfnRange) -> DomainResult<()> {
        self.1.act()?;
        self.0.clear_pages(pages)
    }

    fn prepare(&self, tables: &[Table]) -> DomainResult<()> {
        self.1.act()?;
        self.0.prepare(tables)
    }

    fn finish(&mut self, state: FinalState) -> DomainResult<()> {
        self.1.act()?;
        self.0.finish(state)
    }

    fn activate(&mut self) -> DomainResult<()> {
        self.1.act()?;
        self.0.activate()
    }

    fn destroy(&mut self) {
        if self.1.act().is_ok() {
            self.0.destroy();
        }
    }
}

/// A daemon that has started again, with what it found.
struct Again<'a, D> {
    domain: D,
    disk: &'a mut Disk,
    outbox: Vec<Message>,
}

impl SourceParts for Again<'_, SimSource> {
    fn claim(&mut self) -> &mut dyn Claim {
        self.disk
    }

    fn resume(&mut self) -> Result<(), DomainError> {
        self.domain.resume()
    }

    fn destroy(&mut self) -> Result<(), DomainError> {
        self.domain.destroy()
    }

    fn send(&mut self, message: Message) {
        self.outbox.push(message);
    }
}

impl DestinationParts for Again<'_, Option<SimDomain>> {
    fn claim(&mut self) -> &mut dyn Claim {
        self.disk
    }

    fn activate(&mut self) -> Result<(), DomainError> {
        self.domain.as_mut().expect("there is a domain to run").activate()
    }

    fn destroy(&mut self) {
        self.domain.as_mut().expect("there is a domain to destroy").destroy();
    }

    fn send(&mut self, message: Message) {
        self.outbox.push(message);
    }
}

/// Both daemons are there again and talk until nothing is left to say.
fn settle(domain: &SimSource, source_disk: &mut Disk, host: &SimHost, destination_disk: &mut Disk) {
    let found = match () {
        () if domain.is_running() => FoundDomain::Running,
        () if domain.is_gone() => FoundDomain::Gone,
        () => FoundDomain::Suspended,
    };
    let claim = source_disk.has_claim();
    let mut source = Again { domain: domain.found(), disk: source_disk, outbox: Vec::new() };
    let mut source_state = recover_source(claim, found, &mut source).unwrap();

    let found = match host.found() {
        None => FoundCopy::Gone,
        Some(domain) if domain.is_running() => FoundCopy::Taken,
        Some(_) => FoundCopy::Incoming,
    };
    let claim = destination_disk.has_claim();
    let mut destination = Again { domain: host.found(), disk: destination_disk, outbox: Vec::new() };
    let mut destination_state = recover_destination(claim, found, &mut destination).unwrap();

    while !(source.outbox.is_empty() && destination.outbox.is_empty()) {
        for message in std::mem::take(&mut source.outbox) {
            let event = DestinationEvent::Message(message);
            drive_destination(&mut destination_state, event, &mut destination).unwrap();
        }
        for message in std::mem::take(&mut destination.outbox) {
            drive_source(&mut source_state, SourceEvent::Message(message), &mut source).unwrap();
        }
    }
    assert!(matches!(source_state, SourceState::Kept | SourceState::Released));
    assert!(matches!(destination_state, DestinationState::Dropped | DestinationState::Done));
}

#[derive(Clone, Debug)]
enum Mishap {
    KillSource(i64),
    KillDestination(i64),
    KillBoth(i64, i64),
    Forward(u64, Fault),
    Back(u64, Fault),
}

/// Moves a domain while `mishap` happens, and checks what is left.
fn check(seed: u64, mishap: &Mishap) {
    let world = World::default();
    let script = Script {
        seed,
        nr_pages: 100,
        used_pages: 30,
        hot_pages: 20,
        compressible: false,
        ..Script::default()
    };
    let domain = SimSource::new(script, &world);
    let host = SimHost::new(&world);
    let (mut source_disk, mut destination_disk) = (Disk::default(), Disk::default());

    let (mut source_life, mut destination_life) = (None, None);
    let (mut forward, mut back) = (None, None);
    match *mishap {
        Mishap::KillSource(actions) => source_life = Some(actions),
        Mishap::KillDestination(actions) => destination_life = Some(actions),
        Mishap::KillBoth(source, destination) => {
            (source_life, destination_life) = (Some(source), Some(destination));
        }
        Mishap::Forward(at, fault) => forward = Some((at, fault)),
        Mishap::Back(at, fault) => back = Some((at, fault)),
    }
    let (source_life, destination_life) = (Life::of(source_life), Life::of(destination_life));
    let (to_destination, from_source) = common::pipe(forward);
    let (to_source, from_destination) = common::pipe(back);
    let patience = Patience { stall: Duration::from_millis(40), answer: Duration::from_millis(120) };
    let (source, destination) = std::thread::scope(|scope| {
        let destination = scope.spawn(|| {
            let life = destination_life.clone();
            let (input, output) = (Mortal(from_source, life.clone()), Mortal(to_source, life.clone()));
            let options = destination::Options { patience, ..Default::default() };
            let incoming = Incoming::connection(input, output, options).ok()?;
            let mut claim = Mortal(destination_disk.clone(), life.clone());
            incoming.receive(&mut Mortal(host.clone(), life), &mut claim).ok()
        });
        let life = source_life.clone();
        let connection = (Mortal(from_destination, life.clone()), Mortal(to_destination, life.clone()));
        let options = source::Options { patience, ..Default::default() };
        let mut claim = Mortal(source_disk.clone(), life.clone());
        let mut domain = Mortal(domain.found(), life);
        let source =
            source::migrate(&mut domain, &mut claim, connection, ID, Reason::Migrate, &options, &mut |_| {});
        (source, destination.join().expect("the destination does not panic"))
    });
    // Who was not killed knows where it stands, before anybody starts again.
    if !source_life.is_over() {
        match &source {
            Ok(_) => assert!(domain.is_gone() && !source_disk.has_claim()),
            Err(failure) if failure.state == SourceState::Kept => {
                assert!(domain.is_running() && !source_disk.has_claim() && !domain.is_tracking());
            }
            Err(_) => assert!(!domain.is_running() && source_disk.has_claim()),
        }
    }
    if !destination_life.is_over() {
        let arrived = destination.as_ref().is_some_and(|arrival| arrival.domain.0.is_running());
        assert_eq!(arrived, host.found().is_some());
    }

    settle(&domain, &mut source_disk, &host, &mut destination_disk);
    assert_eq!(world.runnable(), 1);
    assert!(!source_disk.has_claim() && !destination_disk.has_claim());
    match host.found() {
        Some(copy) => {
            assert!(copy.is_running() && domain.is_gone());
            domain.assert_same(&copy);
        }
        None => {
            // And the next try works.
            assert!(domain.is_running());
            let mut domain = domain.found();
            let mut host = SimHost::new(&world);
            let disks = (&mut source_disk, &mut destination_disk);
            let options = source::Options::default();
            let faults = common::Faults::default();
            let (stats, arrival) =
                common::migrate(&mut domain, &mut host, &options, Reason::Migrate, disks, faults);
            assert!(stats.is_ok());
            domain.assert_same(&arrival.unwrap().domain);
        }
    }
}

fn faults() -> impl Strategy<Value = Fault> {
    prop_oneof![Just(Fault::Cut), Just(Fault::Flip), Just(Fault::Stall)]
}

// A move of this domain is some 60 actions at each side, 190 KB one way and 500 bytes back.
proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn one_side_runs_it_after_the_source_was_killed(seed: u64, at in 1i64..80) {
        check(seed, &Mishap::KillSource(at));
    }

    #[test]
    fn one_side_runs_it_after_the_destination_was_killed(seed: u64, at in 1i64..80) {
        check(seed, &Mishap::KillDestination(at));
    }

    #[test]
    fn one_side_runs_it_after_both_were_killed(seed: u64, source in 1i64..80, destination in 1i64..80) {
        check(seed, &Mishap::KillBoth(source, destination));
    }

    #[test]
    fn one_side_runs_it_after_the_link_failed(seed: u64, at in 0u64..200_000, fault in faults()) {
        check(seed, &Mishap::Forward(at, fault));
    }

    #[test]
    fn one_side_runs_it_after_the_way_back_failed(seed: u64, at in 0u64..500, fault in faults()) {
        check(seed, &Mishap::Back(at, fault));
    }
}
