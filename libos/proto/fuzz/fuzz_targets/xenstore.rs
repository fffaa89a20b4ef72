//! Any bytes from xenstored, in pieces of any size.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xen_proto::xenstore::Parser;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, mut stream) = input;
    let mut parser = Parser::new();
    while !stream.is_empty() {
        let wanted = parser.wanted();
        let len = wanted.len().min(usize::from(piece) + 1).min(stream.len());
        wanted[..len].copy_from_slice(&stream[..len]);
        stream = &stream[len..];
        match parser.advance(len) {
            Ok(Some(packet)) => {
                assert_eq!(packet.payload.len(), packet.header.len as usize);
                let _ = (packet.reply(), packet.watch_event(), packet.tx_id(), packet.strings().count());
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
});
