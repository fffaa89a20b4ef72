//! Burns processor time: for as many seconds as the argument says, or for ever.
//!
//! Says once a second how much it got done.
#![no_std]
#![no_main]

use core::hint::black_box;
use libos::{
    env, println, task,
    time::{Duration, Instant},
};

#[libos::main]
async fn main() -> Result<(), &'static str> {
    let limit = match env::args().nth(1) {
        Some(seconds) => Some(Duration::from_secs(seconds.parse().map_err(|_| "usage: burn [SECONDS]")?)),
        None => None,
    };
    let start = Instant::now();
    let (mut rounds, mut said) = (0u64, Duration::ZERO);
    while limit.is_none_or(|limit| start.elapsed() < limit) {
        let mut x = black_box(rounds | 1);
        for _ in 0..100_000 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        black_box(x);
        rounds += 1;
        if start.elapsed() >= said + Duration::from_secs(1) {
            said += Duration::from_secs(1);
            println!("{} s: {rounds} rounds", said.as_secs());
        }
        // So that a request to stop is heard.
        task::yield_now().await;
    }
    Ok(())
}
