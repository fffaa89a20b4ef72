//! Panics.
#![no_std]
#![no_main]

use libos::env;

#[libos::main]
async fn main() {
    let reason = env::args().nth(1);
    panic!("{}", reason.as_deref().unwrap_or("this is what I do"));
}
