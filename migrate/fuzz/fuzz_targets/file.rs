//! Any bytes as a stream file: first as they are, then with numbers and checksums put right, so
//! that what lies behind these is reached as well. Whatever the engine takes, the verifier takes.
#![no_main]

#[path = "../repair.rs"]
mod repair;

use fcap_migrate::{
    destination::{Incoming, Options},
    domain::{Description, DestinationDomain, DestinationHost, DomainResult, FinalState, Page, PfnRange},
    page::PageType,
    verify::verify,
    wire::Reason,
};
use libfuzzer_sys::fuzz_target;
use xen_proto::frame::{Mfn, Pfn};

/// A machine and a domain that forget everything.
struct Nowhere(u64);

impl DestinationHost for Nowhere {
    type Domain = Nowhere;

    fn create(&mut self, description: &Description, _reason: Reason) -> DomainResult<Nowhere> {
        Ok(Nowhere(description.nr_pages))
    }
}

impl DestinationDomain for Nowhere {
    fn mfn_of(&self, pfn: Pfn) -> Option<Mfn> {
        (pfn.0 < self.0).then_some(Mfn(pfn.0 + 7))
    }

    fn write_pages(&self, pfns: &[Pfn], types: &[PageType], pages: &[Page]) -> DomainResult<()> {
        assert!(pfns.len() == types.len() && pfns.len() == pages.len());
        assert!(pfns.iter().all(|pfn| pfn.0 < self.0));
        Ok(())
    }

    fn clear_pages(&self, pages: PfnRange) -> DomainResult<()> {
        assert!(pages.end().is_some_and(|end| end <= self.0));
        Ok(())
    }

    fn finish(&mut self, state: FinalState) -> DomainResult<()> {
        assert!(state.tables.iter().all(|table| table.pfn.0 < self.0));
        Ok(())
    }

    fn activate(&mut self) -> DomainResult<()> {
        Ok(())
    }

    fn destroy(&mut self) {}
}

fn check(stream: &[u8]) {
    let options = Options { workers: 1, ..Options::default() };
    let taken = Incoming::file(stream, options).and_then(|file| file.restore(&mut Nowhere(0)).map(drop));
    let verified = verify(stream);
    // The verifier also knows what the engine leaves to the hypervisor.
    if verified.is_ok() {
        taken.expect("the engine refuses what the verifier takes");
    }
}

fuzz_target!(|stream: &[u8]| {
    check(stream);
    let mut stream = stream.to_vec();
    repair::repair(&mut stream);
    check(&stream);
});
