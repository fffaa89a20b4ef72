//! Says hello.
#![no_std]
#![no_main]

use libos::println;

#[libos::main]
async fn main() {
    println!("Hello from a capsule");
}
