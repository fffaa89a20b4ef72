//! Whole moves between simulated machines, and what is refused.

mod common;

use std::time::Duration;

use common::{Disk, Faults, ID, Sides, migrate};
use fcap_migrate::{
    Cancel, Compression, MigrateError, Side,
    destination::{self, Incoming},
    domain::{DomainError, RefusalCause},
    handover::{DestinationState, SourceState},
    policy::PrecopyPolicy,
    progress::Progress,
    sim::{Script, SimHost, SimSource, World},
    source,
    verify::verify,
    wire::Reason,
};
use proptest::prelude::*;

fn move_it(domain: &mut SimSource, host: &mut SimHost, options: &source::Options) -> Sides {
    let disks = (&mut Disk::default(), &mut Disk::default());
    migrate(domain, host, options, Reason::Migrate, disks, Faults::default())
}

/// The error of a move that left the domain at the source.
fn kept((source, destination): Sides, domain: &SimSource) -> MigrateError {
    let failure = source.unwrap_err();
    assert_eq!(failure.state, SourceState::Kept);
    assert!(destination.is_err());
    assert!(domain.is_running() && !domain.is_tracking());
    failure.error
}

#[test]
fn a_domain_arrives_as_it_left() {
    let world = World::default();
    let mut domain = SimSource::new(Script::default(), &world);
    let mut host = SimHost::new(&world);
    let (mut source_disk, mut destination_disk) = (Disk::default(), Disk::default());
    let (stats, arrival) = migrate(
        &mut domain,
        &mut host,
        &source::Options::default(),
        Reason::Migrate,
        (&mut source_disk, &mut destination_disk),
        Faults::default(),
    );
    let (stats, arrival) = (stats.unwrap(), arrival.unwrap());
    assert_eq!(arrival.state, DestinationState::Done);
    assert!(arrival.domain.is_running() && domain.is_gone());
    assert!(!source_disk.has_claim() && !destination_disk.has_claim());
    assert_eq!(arrival.description.config, b"simulated");
    assert!(stats.rounds.len() >= 2 && stats.rounds.iter().all(|round| round.bytes > 0));
    assert_eq!(stats.dirty_source, "simulated");
    assert!(stats.downtime <= stats.total_time);
    domain.assert_same(&arrival.domain);
}

#[test]
fn an_idle_domain_costs_what_it_uses_and_not_what_it_has() {
    for nr_pages in [2_000, 60_000] {
        let world = World::default();
        let script = Script {
            nr_pages,
            compressible: false,
            used_pages: 1_500,
            writes_per_read: 0,
            ..Script::default()
        };
        let mut domain = SimSource::new(script, &world);
        let used = domain.used_pages() * 4096;
        let (stats, arrival) = move_it(&mut domain, &mut SimHost::new(&world), &source::Options::default());
        domain.assert_same(&arrival.unwrap().domain);
        let stats = stats.unwrap();
        assert!(stats.bytes * 10 <= used * 11, "{} bytes for {used} at {nr_pages} pages", stats.bytes);
    }
}

#[test]
fn packing_is_used_where_it_is_wished() {
    let sent = |compression| {
        let world = World::default();
        let mut domain = SimSource::new(Script::default(), &world);
        let options = source::Options { compression, ..source::Options::default() };
        let (stats, arrival) = move_it(&mut domain, &mut SimHost::new(&world), &options);
        domain.assert_same(&arrival.unwrap().domain);
        stats.unwrap().bytes
    };
    let raw = sent(Compression::None);
    assert!(sent(Compression::Lz4) * 4 < raw);
    assert!(sent(Compression::Zstd) * 4 < raw);
}

#[test]
fn a_domain_that_writes_too_fast_is_stopped_or_stays_as_wished() {
    let script = Script { writes_per_read: 400, hot_pages: 1_500, used_pages: 1_700, ..Script::default() };
    let options = |strict| {
        let policy = PrecopyPolicy { max_downtime: Duration::from_nanos(1), strict, ..Default::default() };
        source::Options { policy, ..source::Options::default() }
    };
    let world = World::default();
    let mut domain = SimSource::new(script, &world);
    let sides = move_it(&mut domain, &mut SimHost::new(&world), &options(true));
    let error = kept(sides, &domain);
    assert!(matches!(error, MigrateError::NotConverging(_)), "{error}");

    let (stats, arrival) = move_it(&mut domain, &mut SimHost::new(&world), &options(false));
    domain.assert_same(&arrival.unwrap().domain);
    assert!(stats.unwrap().rounds.len() <= 21);
}

#[test]
fn a_domain_can_be_stopped_at_once() {
    let world = World::default();
    let mut domain = SimSource::new(Script::default(), &world);
    let policy = PrecopyPolicy { stop_and_copy: true, ..Default::default() };
    let options = source::Options { policy, ..source::Options::default() };
    let (stats, arrival) = move_it(&mut domain, &mut SimHost::new(&world), &options);
    let stats = stats.unwrap();
    assert_eq!((stats.rounds.len(), stats.dirty_source), (1, "none"));
    domain.assert_same(&arrival.unwrap().domain);
}

#[test]
fn a_limited_rate_is_kept_while_the_domain_runs() {
    let world = World::default();
    let script = Script { compressible: false, writes_per_read: 0, ..Script::default() };
    let mut domain = SimSource::new(script, &world);
    let options = source::Options { rate_limit: Some(10_000_000), ..source::Options::default() };
    let (stats, arrival) = move_it(&mut domain, &mut SimHost::new(&world), &options);
    arrival.unwrap();
    let first = stats.unwrap().rounds[0];
    // All but what fits into the burst and the last chunk.
    let least = (first.bytes as f64 - 500_000.0) / 10e6;
    assert!(first.time.as_secs_f64() >= least, "{} bytes in {:?}", first.bytes, first.time);
}

#[test]
fn a_destination_says_no_before_memory_moves() {
    for (free_pages, features, cause) in
        [(100, u32::MAX, RefusalCause::Memory), (1 << 20, 0b0011, RefusalCause::Cpu)]
    {
        let world = World::default();
        let mut domain = SimSource::new(Script::default(), &world);
        let mut host = SimHost::new(&world);
        (host.free_pages, host.cpu_features) = (free_pages, vec![features]);
        let error = kept(move_it(&mut domain, &mut host, &source::Options::default()), &domain);
        let MigrateError::Refused(refusal) = error else { panic!("{error}") };
        assert_eq!(refusal.cause, cause);
        assert!(host.found().is_none());
    }
}

#[test]
fn a_destination_that_fails_says_why() {
    let world = World::default();
    let mut domain = SimSource::new(Script::default(), &world);
    let mut host = SimHost::new(&world);
    host.fails_after_pages = Some(200);
    let error = kept(move_it(&mut domain, &mut host, &source::Options::default()), &domain);
    let MigrateError::Remote { side: Side::Destination, message } = error else { panic!("{error}") };
    assert!(message.contains("writing of pages failed: as the script says"), "{message}");
    assert!(host.found().is_none());
}

#[test]
fn a_domain_that_never_suspends_runs_on() {
    let world = World::default();
    let mut domain = SimSource::new(Script { suspends: false, ..Script::default() }, &world);
    let error = kept(move_it(&mut domain, &mut SimHost::new(&world), &source::Options::default()), &domain);
    assert!(matches!(
        error,
        MigrateError::Domain { side: Side::Source, source: DomainError::NoAnswer { .. } }
    ));
}

#[test]
fn a_domain_that_ends_on_the_way_leaves_nothing() {
    let world = World::default();
    let mut domain = SimSource::new(Script::default(), &world);
    let other = domain.found();
    let mut host = SimHost::new(&world);
    let (to_destination, from_source) = common::pipe(None);
    let (to_source, from_destination) = common::pipe(None);
    let source = std::thread::scope(|scope| {
        scope.spawn(|| {
            let incoming =
                Incoming::connection(from_source, to_source, destination::Options::default()).unwrap();
            assert!(incoming.receive(&mut host, &mut Disk::default()).is_err());
        });
        source::migrate(
            &mut domain,
            &mut Disk::default(),
            (from_destination, to_destination),
            ID,
            Reason::Migrate,
            &source::Options::default(),
            &mut |progress| {
                if matches!(progress, Progress::RoundDone(_)) {
                    other.kill();
                }
            },
        )
    });
    let failure = source.unwrap_err();
    let ended = MigrateError::Domain { side: Side::Source, source: DomainError::Ended };
    assert_eq!(failure.error.to_string(), ended.to_string());
    assert!(host.found().is_none());
    assert_eq!(world.runnable(), 0);
}

#[test]
fn a_wish_to_stop_leaves_the_domain_where_it_is() {
    let world = World::default();
    let mut domain = SimSource::new(Script { compressible: false, ..Script::default() }, &world);
    let cancel = Cancel::default();
    // So slow that it would take a minute.
    let options =
        source::Options { rate_limit: Some(32 << 10), cancel: cancel.clone(), ..source::Options::default() };
    let sides = std::thread::scope(|scope| {
        let (to_destination, from_source) = common::pipe(None);
        let (to_source, from_destination) = common::pipe(None);
        let world = &world;
        let destination = scope.spawn(move || {
            let mut host = SimHost::new(world);
            let options = destination::Options::default();
            Incoming::connection(from_source, to_source, options)
                .unwrap()
                .receive(&mut host, &mut Disk::default())
        });
        let mut observer = |progress| {
            if progress == Progress::Accepted {
                cancel.cancel();
            }
        };
        let connection = (from_destination, to_destination);
        let disk = &mut Disk::default();
        let source =
            source::migrate(&mut domain, disk, connection, ID, Reason::Migrate, &options, &mut observer);
        (source, destination.join().unwrap())
    });
    assert!(matches!(kept(sides, &domain), MigrateError::Cancelled));
}

#[test]
fn a_source_that_cannot_write_its_claim_keeps_the_domain() {
    let world = World::default();
    let mut domain = SimSource::new(Script::default(), &world);
    let disks = (&mut Disk::full(), &mut Disk::default());
    let mut host = SimHost::new(&world);
    let sides = migrate(
        &mut domain,
        &mut host,
        &source::Options::default(),
        Reason::Migrate,
        disks,
        Faults::default(),
    );
    assert!(matches!(kept(sides, &domain), MigrateError::Claim { side: Side::Source, .. }));
    assert!(host.found().is_none());
}

#[test]
fn a_destination_that_cannot_write_its_claim_gives_the_domain_back() {
    let world = World::default();
    let mut domain = SimSource::new(Script::default(), &world);
    let mut source_disk = Disk::default();
    let disks = (&mut source_disk, &mut Disk::full());
    let mut host = SimHost::new(&world);
    let sides = migrate(
        &mut domain,
        &mut host,
        &source::Options::default(),
        Reason::Migrate,
        disks,
        Faults::default(),
    );
    kept(sides, &domain);
    assert!(host.found().is_none() && !source_disk.has_claim());
}

#[test]
fn a_clone_runs_beside_the_domain() {
    let (world, other_world) = (World::default(), World::default());
    let mut domain = SimSource::new(Script { writes_per_read: 0, ..Script::default() }, &world);
    let mut host = SimHost::new(&other_world);
    let disks = (&mut Disk::default(), &mut Disk::default());
    let (stats, arrival) =
        migrate(&mut domain, &mut host, &source::Options::default(), Reason::Clone, disks, Faults::default());
    stats.unwrap();
    assert!(domain.is_running() && arrival.unwrap().domain.is_running());
}

fn save(domain: &mut SimSource, reason: Reason, options: &source::Options) -> Vec<u8> {
    let mut file = Vec::new();
    source::save(domain, &mut file, ID, reason, options, &mut |_| {}).unwrap();
    file
}

#[test]
fn a_file_gives_the_domain_back() {
    let world = World::default();
    let mut domain = SimSource::new(Script::default(), &world);
    let options = source::Options { compression: Compression::Zstd, ..source::Options::default() };
    let file = save(&mut domain, Reason::Save, &options);
    assert_eq!(world.runnable(), 0);
    let mut host = SimHost::new(&world);
    let incoming = Incoming::file(&file[..], destination::Options::default()).unwrap();
    assert_eq!(incoming.header().reason, Reason::Save);
    let arrival = incoming.restore(&mut host).unwrap();
    assert!(!arrival.domain.is_running());
    domain.assert_same(&arrival.domain);
    let report = verify(&file[..]).unwrap();
    assert_eq!((report.reason, report.nr_pages, report.bytes), ("save", 2048, file.len() as u64));
}

#[test]
fn a_checkpoint_leaves_the_domain_running() {
    let world = World::default();
    let mut domain = SimSource::new(Script::default(), &world);
    let file = save(&mut domain, Reason::Checkpoint, &source::Options::default());
    assert!(domain.is_running() && !domain.is_tracking());
    let report = verify(&file[..]).unwrap();
    assert!(report.rounds >= 2 && report.linear_tables > 0);
}

#[test]
fn a_full_disk_leaves_the_domain_running() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let world = World::default();
    let mut domain = SimSource::new(Script { compressible: false, ..Script::default() }, &world);
    let saved =
        source::save(&mut domain, Full(1 << 20), ID, Reason::Save, &source::Options::default(), &mut |_| {});
    let error = saved.unwrap_err();
    assert!(matches!(&error, MigrateError::Link { side: Side::Source, .. }), "{error}");
    assert!(domain.is_running());
}

/// A small file with every kind of record.
fn small_file() -> Vec<u8> {
    let world = World::default();
    let script = Script { nr_pages: 64, used_pages: 20, hot_pages: 10, ..Script::default() };
    save(&mut SimSource::new(script, &world), Reason::Checkpoint, &source::Options::default())
}

fn restore(file: &[u8]) -> Result<(), MigrateError> {
    let world = World::default();
    Incoming::file(file, destination::Options::default())?.restore(&mut SimHost::new(&world)).map(drop)
}

/// Both readers refuse it, and the engine's error names the source.
fn check_refused(file: &[u8]) {
    let error = restore(file).expect_err("the engine takes it");
    assert!(matches!(error, MigrateError::Stream { side: Side::Source, .. }), "{error}");
    verify(file).expect_err("the verifier takes it");
}

/// Where the records of a file begin, and where the last one ends.
fn borders(file: &[u8]) -> Vec<usize> {
    let mut borders = vec![48];
    while let Some(header) = file.get(borders[borders.len() - 1]..).filter(|rest| !rest.is_empty()) {
        let length = u32::from_le_bytes(header[4..8].try_into().unwrap());
        borders.push(borders[borders.len() - 1] + 24 + length as usize);
    }
    borders
}

#[test]
fn a_file_cut_at_or_beside_a_border_of_records_is_refused() {
    let file = small_file();
    for border in borders(&file) {
        for len in [border - 1, border, border + 1, border + 24] {
            if len < file.len() {
                check_refused(&file[..len]);
            }
        }
    }
    check_refused(&[&file[..], b"x"].concat());
}

#[test]
fn records_that_are_lost_or_swapped_are_noticed_by_both_readers() {
    let file = small_file();
    let borders = borders(&file);
    for window in borders.windows(3) {
        let [first, second, end] = window else { unreachable!() };
        let (before, after) = (&file[..*first], &file[*end..]);
        check_refused(&[before, &file[*second..]].concat());
        check_refused(&[before, &file[*second..*end], &file[*first..*second], after].concat());
        check_refused(&[&file[..*second], &file[*first..]].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_domain_arrives_as_it_left_whatever_it_does(
        seed: u64,
        used_pages in 1u64..900,
        writes_per_read in 0u64..60,
        hot_pages in 1u64..1_000,
        compressible: bool,
        workers in 1usize..4,
    ) {
        let world = World::default();
        let script = Script {
            seed, nr_pages: 1_100, used_pages, compressible, writes_per_read, hot_pages, ..Script::default()
        };
        let mut domain = SimSource::new(script, &world);
        let options = source::Options { workers, ..source::Options::default() };
        let (stats, arrival) = move_it(&mut domain, &mut SimHost::new(&world), &options);
        stats.unwrap();
        domain.assert_same(&arrival.unwrap().domain);
        prop_assert_eq!(world.runnable(), 1);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused(at: prop::sample::Index) {
        let file = small_file();
        check_refused(&file[..at.index(file.len())]);
    }

    #[test]
    fn a_flipped_bit_is_noticed_by_both_readers(at: prop::sample::Index, bit in 0u32..8) {
        let mut file = small_file();
        let at = at.index(file.len());
        file[at] ^= 1 << bit;
        check_refused(&file);
    }
}
