//! Any bytes as a stream file: first as they are, then with numbers and checksums put right, so
//! that what lies behind these is reached as well. Whatever the engine takes, the verifier takes.
#![no_main]

use fcap_migrate::{
    destination::{Incoming, Options},
    domain::{Description, DestinationDomain, DestinationHost, DomainResult, FinalState, Page, PfnRange},
    page::PageType,
    verify::verify,
    wire::Reason,
};
use libfuzzer_sys::fuzz_target;
use twox_hash::XxHash64;
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

/// Makes numbers and checksums right, as far as there are records.
fn repair(stream: &mut [u8]) {
    let Some((header, mut rest)) = stream.split_at_mut_checked(48) else { return };
    header[..8].copy_from_slice(b"\x89fcap\r\n\x1a");
    let sum = XxHash64::oneshot(0, &header[..40]);
    header[40..].copy_from_slice(&sum.to_le_bytes());
    for sequence in 0u64.. {
        let Some((header, behind)) = rest.split_at_mut_checked(24) else { return };
        let length = u32::from_le_bytes(header[4..8].try_into().expect("four bytes"));
        let Some((body, behind)) = behind.split_at_mut_checked(length as usize) else { return };
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        let seed = u64::from_le_bytes(header[..8].try_into().expect("eight bytes"));
        header[16..].copy_from_slice(&XxHash64::oneshot(seed, body).to_le_bytes());
        rest = behind;
    }
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
    repair(&mut stream);
    check(&stream);
});
