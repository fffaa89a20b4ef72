//! Any bytes as what a destination answers, with numbers and checksums put right, and behind a good
//! header: the source keeps its domain, or has lost it, or says that it does not know.
#![no_main]

#[path = "../repair.rs"]
mod repair;

use std::io;

use fcap_migrate::{
    handover::{Claim, SourceState},
    negotiate,
    sim::{Script, SimSource, World},
    source::{self, Options},
    wire::Reason,
};
use libfuzzer_sys::fuzz_target;

/// The fuzzer does not guess random numbers: this one it may know.
const ID: [u8; 16] = [1; 16];

struct NoDisk;

impl Claim for NoDisk {
    fn write(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|answers: &[u8]| {
    let world = World::default();
    let script = Script { nr_pages: 64, used_pages: 4, hot_pages: 4, ..Script::default() };
    let mut domain = SimSource::new(script, &world);
    let options = Options { workers: 1, ..Options::default() };
    let header = negotiate::answer(&negotiate::offer(ID, Reason::Migrate)).expect("one version").emit();
    let mut answers = [&header, answers].concat();
    repair::repair(&mut answers);
    let connection = (&answers[..], io::sink());
    let moved =
        source::migrate(&mut domain, &mut NoDisk, connection, ID, Reason::Migrate, &options, &mut |_| {});
    match moved {
        Ok(_) => assert!(domain.is_gone()),
        Err(failure) => assert_eq!(domain.is_running(), failure.state == SourceState::Kept),
    }
});
