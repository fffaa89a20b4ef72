//! Has Xen record a crash, without a word to anybody.
#![no_std]
#![no_main]

#[libos::main]
async fn main() {
    let reason: u32 = 3;
    // SAFETY: SCHEDOP_shutdown with reason "crash", which does not return.
    unsafe {
        core::arch::asm!(
            "syscall",
            in("rax") 29,
            in("rdi") 2,
            in("rsi") &raw const reason,
            out("rcx") _,
            out("r11") _,
        );
    }
}
