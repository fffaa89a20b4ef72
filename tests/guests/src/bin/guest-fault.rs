//! Reads where there is nothing.
#![no_std]
#![no_main]

#[libos::main]
async fn main() {
    // SAFETY: none: the page is not mapped, and that is what this program is for. The
    // exception ends the capsule.
    unsafe { core::ptr::read_volatile(0x1000 as *const u8) };
}
