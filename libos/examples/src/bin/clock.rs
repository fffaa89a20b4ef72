//! Ticks once a second, or as often as its argument says in milliseconds, and counts.
#![no_std]
#![no_main]

use libos::{
    env, println,
    time::{Duration, interval},
};

#[libos::main]
async fn main() {
    let period = env::args().nth(1).and_then(|argument| argument.parse().ok()).unwrap_or(1000);
    let mut ticks = interval(Duration::from_millis(period));
    for tick in 0u64.. {
        ticks.tick().await;
        println!("tick {tick}");
    }
}
