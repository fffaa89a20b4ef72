//! Ticks once a second, and counts.
#![no_std]
#![no_main]

use libos::{
    println,
    time::{Duration, interval},
};

#[libos::main]
async fn main() {
    let mut seconds = interval(Duration::from_secs(1));
    for tick in 0u64.. {
        seconds.tick().await;
        println!("tick {tick}");
    }
}
