//! Ends of all kinds.

use core::{fmt, hint::black_box};
use libos::{prelude::*, process, signal, time};

/// Ends in the way that `how` names.
pub(crate) async fn end(how: &str, argument: Option<&String>) -> Result<(), String> {
    match how {
        "exit" => {
            let code = argument.and_then(|code| code.parse().ok()).ok_or("usage: exit CODE")?;
            process::exit(code)
        }
        "error" => return Err("no luck".to_string()),
        "abort" => process::abort(),
        "panic" => panic!("asked to"),
        "panic-twice" => panic!("{}", PanicsWhenShown),
        "read-fault" => drop(black_box(read(8))),
        "write-fault" => write(8),
        "text-fault" => drop(black_box(read(0xffff_8080_0000_0000))),
        "invalid-instruction" => invalid_instruction(),
        "stack-overflow" => drop(black_box(recurse(0))),
        "out-of-memory" => {
            let len = argument.and_then(|len| len.parse().ok()).unwrap_or(1 << 40);
            drop(black_box(Vec::<u8>::with_capacity(len)));
        }
        "stop" => {
            println!("waiting");
            signal::shutdown().await;
            println!("stopping");
            process::exit(7)
        }
        "wait" => {
            println!("waiting");
            time::sleep(time::Duration::MAX).await;
        }
        "spin" => {
            println!("spinning");
            loop {
                core::hint::spin_loop();
            }
        }
        "flood" => loop {
            println!("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
        },
        _ => return Err(format!("no such end: {how}")),
    }
    Ok(())
}

struct PanicsWhenShown;

impl fmt::Display for PanicsWhenShown {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("once more")
    }
}

fn read(address: usize) -> u64 {
    // SAFETY: none; this is meant to fault.
    unsafe { core::ptr::with_exposed_provenance::<u64>(black_box(address)).read_volatile() }
}

fn write(address: usize) {
    // SAFETY: none; this is meant to fault.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(black_box(address)).write_volatile(1) }
}

fn invalid_instruction() {
    // SAFETY: none; this is meant to fault.
    unsafe { core::arch::asm!("ud2") }
}

#[expect(unconditional_recursion, reason = "the stack is to overflow")]
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    recurse(depth + 1) + frame[black_box(3)]
}
