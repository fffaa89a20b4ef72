//! Any answer to a question.
#![no_main]

use fcap_libos_net::dns::{Kind, answer, question};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], bool)| {
    let (bytes, behind_question) = input;
    let question = question(1, "db.example", Kind::A).expect("the name is one");
    let mut message = Vec::new();
    if behind_question {
        message.extend_from_slice(&question);
        message[2] |= 0x80;
        message[7] = 20;
    }
    message.extend_from_slice(bytes);
    let _ = answer(&question, &message);
});
