//! Sends each line of standard input back.
#![no_std]
#![no_main]

use libos::{io, println};

#[libos::main]
async fn main() -> Result<(), io::NotUtf8> {
    let mut lines = io::stdin().lines();
    while let Some(line) = lines.next_line().await? {
        println!("{line}");
    }
    Ok(())
}
