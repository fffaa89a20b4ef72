//! The checks.

use crate::net::{datagrams_and_names_arrive, ends_of_streams_are_told_apart, streams_carry_bytes_both_ways};
use alloc::{rc::Rc, sync::Arc};
use core::{
    cell::{Cell, RefCell},
    future::{pending, poll_fn},
    hint::black_box,
    sync::atomic::{AtomicU32, Ordering},
    task::Poll,
};
use libos::{
    DomId, Page,
    evtchn::Port,
    gnttab::{Access, Grant},
    io::{self, Write},
    prelude::*,
    process, random, spawn, task,
    time::{self, Duration, Instant, SystemTime},
    xenstore::{self, Error, Refusal, Transaction},
};

macro_rules! run {
    ($($name:ident)*) => {
        $(
            $name().await;
            println!("ok {}", stringify!($name));
        )*
    };
}

/// Runs all checks; the first that fails panics.
pub(crate) async fn all() {
    run! {
        memory_functions_agree_with_simple_ones
        the_heap_gives_and_takes
        floating_point_works
        tasks_give_their_results
        dropped_handles_leave_tasks_alone
        aborted_tasks_are_dropped
        a_thousand_tasks_take_turns
        sleeping_takes_as_long_as_said
        timers_fire_in_order
        a_timeout_drops_what_it_waits_for
        intervals_keep_their_rhythm
        the_wall_clock_is_in_this_century
        random_numbers_differ
        streams_write_everything
        event_channels_wake_who_waits
        grants_come_and_go
        xenstore_reads_and_writes
        xenstore_transactions_are_all_or_nothing
        xenstore_watches_tell_of_changes
        streams_carry_bytes_both_ways
        ends_of_streams_are_told_apart
        datagrams_and_names_arrive
    }
}

async fn memory_functions_agree_with_simple_ones() {
    let original: Vec<u8> = (0..=255).collect();
    for len in (0..40).chain([63, 64, 65, 127]) {
        for from in [0, 1, 7, 8, 60] {
            for to in [0, 1, 3, 8, 59, 61, 100] {
                let mut bytes = original.clone();
                bytes.copy_within(from..from + len, to);
                for (at, &byte) in bytes.iter().enumerate() {
                    let expected = if (to..to + len).contains(&at) { from + at - to } else { at };
                    assert_eq!(usize::from(byte), expected, "copy of {len} from {from} to {to}");
                }
                bytes[to..to + len].fill(black_box(0xa5));
                assert!(bytes[to..to + len].iter().all(|&byte| byte == 0xa5));
                assert_eq!(bytes[to + len..].first().copied(), original[to + len..].first().copied());
            }
        }
        let a = &black_box(&original)[..len];
        for differs in 0..len {
            let mut b = a.to_vec();
            assert_eq!(a, b);
            b[differs] = b[differs].wrapping_add(100);
            assert_eq!(a.cmp(&b), a[differs].cmp(&b[differs]));
        }
    }
}

async fn the_heap_gives_and_takes() {
    for round in 0..3 {
        let mut kept = Vec::new();
        for size in 1..200 {
            let piece = vec![size as u8; size * 7 % 3000 + 1];
            if (size + round) % 3 != 0 {
                kept.push(piece);
            }
        }
        assert!(kept.iter().all(|piece| piece.iter().all(|&byte| byte == piece[0])));
    }
    let aligned = Page::new();
    assert_eq!(aligned.u64(4088).load(Ordering::Relaxed), 0);
    assert!(Vec::<u8>::new().try_reserve(1 << 45).is_err());
}

async fn floating_point_works() {
    let x = black_box(2.0f64);
    assert_eq!(format!("{:.3} {:e}", x / 3.0, x * 1e30), "0.667 2e30");
}

async fn tasks_give_their_results() {
    let name = "borrowed by nobody".to_string();
    let handle = spawn(async move {
        task::yield_now().await;
        name.len()
    });
    assert!(!handle.is_finished());
    assert_eq!(handle.await, 18);
}

async fn dropped_handles_leave_tasks_alone() {
    let done = Rc::new(Cell::new(false));
    let their = done.clone();
    drop(spawn(async move { their.set(true) }));
    task::yield_now().await;
    task::yield_now().await;
    assert!(done.get());
}

async fn aborted_tasks_are_dropped() {
    let shared = Rc::new(());
    let their = shared.clone();
    let handle = spawn(async move {
        let _their = their;
        pending::<()>().await;
    });
    task::yield_now().await;
    assert_eq!(Rc::strong_count(&shared), 2);
    handle.abort();
    task::yield_now().await;
    task::yield_now().await;
    assert_eq!(Rc::strong_count(&shared), 1);
}

async fn a_thousand_tasks_take_turns() {
    let turns = Arc::new(AtomicU32::new(0));
    let handles: Vec<_> = (0..1000)
        .map(|_| {
            let turns = turns.clone();
            spawn(async move {
                for _ in 0..3 {
                    turns.fetch_add(1, Ordering::Relaxed);
                    task::yield_now().await;
                }
            })
        })
        .collect();
    for handle in handles {
        handle.await;
    }
    assert_eq!(turns.load(Ordering::Relaxed), 3000);
}

async fn sleeping_takes_as_long_as_said() {
    let start = Instant::now();
    time::sleep(Duration::from_millis(30)).await;
    assert!(start.elapsed() >= Duration::from_millis(30));
    time::sleep(Duration::ZERO).await;
}

async fn timers_fire_in_order() {
    let order = Rc::new(RefCell::new(Vec::new()));
    let handles: Vec<_> = [40u64, 10, 30, 20, 20]
        .map(|ms| {
            let order = order.clone();
            spawn(async move {
                time::sleep(Duration::from_millis(ms)).await;
                order.borrow_mut().push(ms);
            })
        })
        .into();
    for handle in handles {
        handle.await;
    }
    assert_eq!(*order.borrow(), [10, 20, 20, 30, 40]);
}

async fn a_timeout_drops_what_it_waits_for() {
    let shared = Rc::new(());
    let their = shared.clone();
    let slow = async move {
        let _their = their;
        time::sleep(Duration::from_secs(3600)).await;
    };
    assert_eq!(time::timeout(Duration::from_millis(5), slow).await, Err(time::Elapsed));
    assert_eq!(Rc::strong_count(&shared), 1);
    assert_eq!(time::timeout(Duration::from_secs(3600), async { 5 }).await, Ok(5));
}

async fn intervals_keep_their_rhythm() {
    let period = Duration::from_millis(20);
    let mut interval = time::interval(period);
    let first = interval.tick().await;
    assert_eq!(interval.tick().await - first, period);
    // Late by more than a period: that tick is due at once, those after it are left out.
    time::sleep(period * 3).await;
    let late = interval.tick().await - first;
    let next = interval.tick().await - first;
    assert_eq!(late, period * 2);
    assert!(next >= period * 5 && next.as_nanos().is_multiple_of(period.as_nanos()), "{next:?}");
}

async fn the_wall_clock_is_in_this_century() {
    let days = SystemTime::now().since_epoch().as_secs() / 86_400;
    assert!((365 * 55..365 * 130).contains(&days), "{days} days since 1970");
}

async fn random_numbers_differ() {
    assert_ne!(random::u64(), random::u64());
    let mut bytes = [0; 64];
    getrandom::fill(&mut bytes).expect("the generator does not fail");
    assert_ne!(bytes, [0; 64]);
}

async fn streams_write_everything() {
    // More than the ring holds.
    let line = format!("{}\n", "x".repeat(119));
    for _ in 0..50 {
        io::stdout().write_all(line.as_bytes()).await;
    }
    let mut stdout = io::stdout();
    Write::write_all(&mut stdout, b"through the trait\n").await.expect("output does not fail");
}

async fn event_channels_wake_who_waits() {
    let here = Port::alloc_unbound(DomId::SELF).expect("a port is free");
    let there = Port::bind(DomId::SELF, here.number()).expect("the port is for us");
    // Connecting is an event of its own.
    there.wait().await;
    let waiting = spawn(async move {
        here.wait().await;
        here
    });
    task::yield_now().await;
    assert!(!waiting.is_finished());
    there.notify();
    let here = waiting.await;
    // One that came before the wait counts.
    there.notify();
    time::sleep(Duration::from_millis(1)).await;
    here.wait().await;
    assert!(time::timeout(Duration::from_millis(10), here.wait()).await.is_err());
    assert!(Port::bind(DomId::SELF, here.number()).is_err());
}

async fn grants_come_and_go() {
    let page = Page::new();
    page.u32(0).store(0x1234, Ordering::Relaxed);
    let first = Grant::new(page, DomId::DOM0, Access::ReadOnly).expect("an entry is free");
    assert_eq!(first.u32(0).load(Ordering::Relaxed), 0x1234);
    let reference = first.reference();
    drop(first);
    let again = Grant::new(Page::new(), DomId::DOM0, Access::ReadWrite).expect("an entry is free");
    assert_eq!(again.reference(), reference);
    // More than one frame of the table has.
    let many: Vec<_> = (0..600)
        .map(|_| Grant::new(Page::new(), DomId::DOM0, Access::ReadWrite).expect("the table grows"))
        .collect();
    assert!(many.iter().all(|grant| grant.reference() != reference));
}

/// Where the capsule may write: toolstacks differ in what they give to a guest.
async fn home() -> String {
    for parent in ["data", "control/shutdown"] {
        let home = format!("{parent}/selftest");
        if xenstore::write(&home, b"").await.is_ok() {
            return home;
        }
    }
    panic!("nothing in xenstore is ours to write")
}

async fn xenstore_reads_and_writes() {
    let home = home().await;
    let key = format!("{home}/key");
    xenstore::write(&key, b"value \0 with zero").await.expect("home is ours to write");
    assert_eq!(xenstore::read(&key).await.as_deref(), Ok(&b"value \0 with zero"[..]));
    assert_eq!(xenstore::directory(&home).await, Ok(vec!["key".to_string()]));
    let long = vec![b'x'; 1900];
    xenstore::write(&key, &long).await.expect("a long value is taken");
    assert_eq!(xenstore::read(&key).await, Ok(long));
    let not_found = Err(Error::Refused(Refusal::NotFound));
    assert_eq!(xenstore::read(&format!("{home}/none")).await, not_found);
    assert!(matches!(xenstore::read("a\0b").await, Err(Error::Request(_))));
    xenstore::rm(&home).await.expect("what we wrote can be removed");
    assert_eq!(xenstore::read(&key).await, not_found);
    // Many at once, more than the ring holds.
    let readers: Vec<_> = (0..40)
        .map(|_| spawn(async { xenstore::read("domid").await.expect("every domain has an id") }))
        .collect();
    for reader in readers {
        assert!(!reader.await.is_empty());
    }
    // One that is given up, in between.
    let mut given_up = Box::pin(xenstore::read("domid"));
    poll_fn(|cx| {
        assert!(given_up.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    drop(given_up);
    assert!(xenstore::read("domid").await.is_ok());
}

async fn xenstore_transactions_are_all_or_nothing() {
    let home = home().await;
    let keys = [format!("{home}/a"), format!("{home}/b")];
    let transaction = Transaction::start().await.expect("a transaction is begun");
    for key in &keys {
        transaction.write(key, b"1").await.expect("home is ours to write");
    }
    assert!(xenstore::read(&keys[0]).await.is_err());
    assert_eq!(transaction.directory(&home).await.map(|names| names.len()), Ok(2));
    transaction.commit().await.expect("nobody else writes here");
    assert_eq!(xenstore::read(&keys[1]).await.as_deref(), Ok(&b"1"[..]));

    let taken_back = Transaction::start().await.expect("a transaction is begun");
    taken_back.rm(&home).await.expect("what we wrote can be removed");
    assert!(taken_back.read(&keys[0]).await.is_err());
    drop(taken_back);
    assert_eq!(xenstore::read(&keys[0]).await.as_deref(), Ok(&b"1"[..]));

    let loses = Transaction::start().await.expect("a transaction is begun");
    let value = loses.read(&keys[0]).await.expect("it is there");
    xenstore::write(&keys[0], b"2").await.expect("home is ours to write");
    loses.write(&keys[1], &value).await.expect("home is ours to write");
    assert_eq!(loses.commit().await, Err(Error::Refused(Refusal::Again)));
    xenstore::rm(&home).await.expect("what we wrote can be removed");
}

async fn xenstore_watches_tell_of_changes() {
    let home = home().await;
    let mut watch = xenstore::watch(&home).await.expect("a watch is taken");
    assert_eq!(watch.next().await, home);
    let key = format!("{home}/watched");
    let changed = key.clone();
    let writer = spawn(async move { xenstore::write(&changed, b"").await });
    while watch.next().await != key {}
    writer.await.expect("home is ours to write");
    drop(watch);
    // Watches are dropped in xenstored as well: there is a limit of about a hundred.
    for _ in 0..300 {
        let mut watch = xenstore::watch(&home).await.unwrap_or_else(|error| {
            println!("watch: {error}");
            process::exit(1)
        });
        watch.next().await;
    }
    xenstore::rm(&home).await.expect("what we wrote can be removed");
}
