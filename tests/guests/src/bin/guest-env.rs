//! Prints its arguments and then its environment, a line each.
#![no_std]
#![no_main]

use libos::{env, println};

#[libos::main]
async fn main() {
    for argument in env::args() {
        println!("{argument}");
    }
    for (name, value) in env::vars() {
        println!("{name}={value}");
    }
}
