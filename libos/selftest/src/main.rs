//! The library OS checks itself, on a real hypervisor.
//!
//! Without arguments it runs all checks and prints one line each; the last line is
//! `SUCCESS`. With an argument it ends in the way that this names, for tests of what
//! is reported then.
#![no_std]
#![no_main]

extern crate alloc;

mod check;
mod end;
mod net;

use libos::{env, prelude::*};

#[libos::main]
async fn main() -> Result<(), String> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first() {
        Some(how) => end::end(how, arguments.get(1)).await,
        None => {
            check::all().await;
            println!("SUCCESS");
            Ok(())
        }
    }
}
