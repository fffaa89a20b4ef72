//! Any indexes of a backend, between requests of ours.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xen_proto::ring::Front;

const ENTRIES: u32 = 16;

fuzz_target!(|steps: Vec<(u8, u32)>| {
    let mut ring = Front::new(ENTRIES);
    for (requests, rsp_prod) in steps {
        for _ in 0..u32::from(requests).min(ring.free()) {
            ring.produce();
        }
        ring.publish();
        let open = ENTRIES - ring.free();
        if let Ok(available) = ring.available(rsp_prod) {
            assert!(available <= open);
            for _ in 0..available {
                ring.consume();
            }
        }
    }
});
