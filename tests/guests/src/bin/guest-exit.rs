//! Exits with the code that its argument names.
#![no_std]
#![no_main]

use libos::{env, process};

#[libos::main]
async fn main() {
    process::exit(env::args().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0));
}
