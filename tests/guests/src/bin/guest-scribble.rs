//! Writes random bytes, again and again, over a page that it shares with dom0: its argument is
//! `console`, `xenstore` or `start-info`.
#![no_std]
#![no_main]

use libos::{env, random, time};

/// Where fcap's builder maps all of a capsule's memory, one page after the other.
const VIRT_BASE: usize = 0xffff_ffff_8000_0000;
/// Xen's table from machine frames to the domain's own.
const M2P: *const u64 = 0xffff_8000_0000_0000 as *const u64;
const PAGE: usize = 4096;

#[libos::main]
async fn main() {
    let start_info = start_info();
    // SAFETY: offsets of struct start_info (xen/include/public/xen.h); the page is mapped.
    let mfn = |offset: usize| unsafe { start_info.add(offset).cast::<u64>().read_volatile() };
    // SAFETY: Xen lets guests read its table for their own frames.
    let page = |mfn: u64| unsafe { VIRT_BASE + M2P.add(mfn as usize).read_volatile() as usize * PAGE };
    let target = match env::args().nth(1).as_deref() {
        Some("console") => page(mfn(72)),
        Some("xenstore") => page(mfn(56)),
        _ => start_info as usize,
    };
    let mut ports = [0u32; 2];
    for (port, offset) in ports.iter_mut().zip([64, 80]) {
        // SAFETY: as above.
        *port = unsafe { start_info.add(offset).cast::<u32>().read_volatile() };
    }
    loop {
        let mut bytes = [0; PAGE];
        random::fill(&mut bytes);
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: the page is mapped, and spoiling it is what this program is for.
            unsafe { (target as *mut u8).add(i).write_volatile(*byte) };
        }
        for port in ports {
            notify(port);
        }
        time::sleep(time::Duration::from_millis(5)).await;
    }
}

/// The start-info page, found by its magic: page by page from the bottom of memory.
fn start_info() -> *const u8 {
    let mut page = VIRT_BASE as *const u8;
    loop {
        // SAFETY: all memory is mapped, and the page lies in the first few MiB of it.
        let magic = unsafe { page.cast::<[u8; 14]>().read_volatile() };
        if &magic == b"xen-3.0-x86_64" {
            return page;
        }
        page = page.wrapping_add(PAGE);
    }
}

/// Wakes whoever listens at the other end, so that it looks at the page.
fn notify(port: u32) {
    // SAFETY: EVTCHNOP_send; Xen checks the port.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") 32usize => _,
            inlateout("rdi") 4usize => _,
            inlateout("rsi") &raw const port => _,
            out("rcx") _,
            out("r11") _,
        );
    }
}
