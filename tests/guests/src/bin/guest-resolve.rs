//! Looks names up and prints an address a line; fails with those that nobody has.
#![no_std]
#![no_main]

use libos::env;
use libos::net::lookup_host;
use libos::prelude::*;

#[libos::main]
async fn main() -> Result<(), String> {
    for name in env::args().skip(1) {
        let found = lookup_host((name.as_str(), 0)).await.map_err(|error| format!("{name}: {error}"))?;
        for address in found {
            println!("{name} {}", address.ip());
        }
    }
    Ok(())
}
