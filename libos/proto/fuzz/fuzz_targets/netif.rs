//! Any responses of a backend about what was received.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xen_proto::{
    frame::PAGE_SIZE,
    netif::{Assembler, FRAME_MAX, SLOTS_MAX},
};

fuzz_target!(|entries: Vec<(u32, u32)>| {
    let mut assembler = Assembler::default();
    for (index, (low, high)) in entries.into_iter().enumerate() {
        // The number is mostly right, or nothing would get beyond it.
        let words = [low & !0xffff | index as u32 & 0xffff, high];
        match assembler.push(index as u32, index as u16, words) {
            Ok(Some(packet)) => {
                assert!(packet.len <= FRAME_MAX && (packet.rest_count as usize) < SLOTS_MAX);
                assert!(usize::from(packet.first.offset) + usize::from(packet.first.len) <= PAGE_SIZE);
                assert!(packet.rest_count == 0 || packet.rest > packet.first.index);
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
});
