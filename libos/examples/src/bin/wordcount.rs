//! Counts lines, words and bytes of standard input, as `wc` does.
#![no_std]
#![no_main]

use libos::{io, println};

#[libos::main]
async fn main() {
    let (mut lines, mut words, mut bytes) = (0u64, 0u64, 0u64);
    let mut in_word = false;
    let mut stdin = io::stdin();
    let mut piece = [0; 1024];
    loop {
        let count = stdin.read(&mut piece).await;
        if count == 0 {
            break;
        }
        bytes += count as u64;
        for &byte in &piece[..count] {
            lines += u64::from(byte == b'\n');
            // White space as C has it: `is_ascii_whitespace` leaves out vertical tab.
            let is_space = matches!(byte, b' ' | b'\t'..=b'\r');
            words += u64::from(in_word && is_space);
            in_word = !is_space;
        }
    }
    words += u64::from(in_word);
    println!("{lines} {words} {bytes}");
}
