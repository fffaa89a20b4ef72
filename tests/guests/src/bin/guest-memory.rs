//! Holds as much memory as it is told to, and verifies all of it.
//!
//! Each line of standard input is a number of MiB. The answer is "holds N", or, where there is less
//! memory, "holds N of M".
#![no_std]
#![no_main]

use libos::{io, prelude::*};

/// Words of a MiB.
const MIB: usize = (1 << 20) / 8;

/// What the word `at` of piece `index` holds.
fn word(index: usize, at: usize) -> u64 {
    ((index * MIB + at) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A piece of one MiB, if there is memory for it.
fn piece(index: usize) -> Option<Vec<u64>> {
    let mut words = Vec::new();
    words.try_reserve_exact(MIB).ok()?;
    words.extend((0..MIB).map(|at| word(index, at)));
    Some(words)
}

#[libos::main]
async fn main() -> Result<(), String> {
    let mut held: Vec<Vec<u64>> = Vec::with_capacity(256);
    println!("ready");
    let mut lines = io::stdin().lines();
    while let Some(line) = lines.next_line().await.map_err(|_| "this is no text")? {
        let wanted: usize = line.trim().parse().map_err(|_| format!("{line:?} is no number"))?;
        held.truncate(wanted);
        while held.len() < wanted
            && let Some(piece) = piece(held.len())
        {
            held.push(piece);
        }
        for (index, words) in held.iter().enumerate() {
            let wrong = words.iter().enumerate().position(|(at, &found)| found != word(index, at));
            assert!(wrong.is_none(), "MiB {index} is damaged at word {wrong:?}");
        }
        match held.len() {
            all if all == wanted => println!("holds {all}"),
            some => println!("holds {some} of {wanted}"),
        }
    }
    Ok(())
}
