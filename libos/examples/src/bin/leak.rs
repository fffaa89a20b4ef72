//! Allocates memory and keeps it, until there is none left.
#![no_std]
#![no_main]

use libos::prelude::*;

const PIECE: usize = 64 * 1024;

#[libos::main]
async fn main() {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    loop {
        // Filled with something, so that every page is really used.
        kept.push(vec![0xa5; PIECE]);
        let kib = kept.len() * PIECE / 1024;
        if kib.is_multiple_of(1024) {
            println!("{kib} KiB");
        }
    }
}
