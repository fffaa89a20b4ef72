//! Never listens again: what it is asked for, to stop or to suspend itself, it does not hear.
#![no_std]
#![no_main]

use libos::println;

#[libos::main]
async fn main() {
    println!("deaf from now on");
    loop {
        core::hint::spin_loop();
    }
}
