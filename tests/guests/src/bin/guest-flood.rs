//! Writes to its console for ever.
#![no_std]
#![no_main]

use libos::println;

#[libos::main]
async fn main() {
    for line in 0u64.. {
        println!("{line}: nobody wants to read this, and there is no end of it");
    }
}
