//! Any bytes as a boot module and as a command line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xen_proto::{boot::Records, cmdline};

fuzz_target!(|bytes: &[u8]| {
    let records: usize = Records::new(bytes).map(|(_, body)| body.len()).sum();
    assert!(records <= bytes.len());
    let (mut rest, mut len) = (bytes, 0);
    while let Some(after) = cmdline::word(rest, |_| len += 1) {
        assert!(after.len() < rest.len());
        rest = after;
    }
    assert!(len <= bytes.len());
});
