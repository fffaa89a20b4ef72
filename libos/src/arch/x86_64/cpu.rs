//! Small questions to the processor.

use core::arch::{asm, x86_64};

unsafe extern "C" {
    static __stack_bottom: u8;
    static __stack_top: u8;
    static __text_start: u8;
    static __text_end: u8;
}

/// The time-stamp counter.
#[inline]
pub(crate) fn counter() -> u64 {
    // SAFETY: the instructions have no effect on memory; Xen lets guests use them.
    // The fence keeps the counter from being read before what came earlier.
    unsafe {
        x86_64::_mm_lfence();
        x86_64::_rdtsc()
    }
}

/// Eight bytes from the processor's random generator, if it has one and it delivers.
pub(crate) fn hardware_random() -> Option<u64> {
    const RDRAND: u32 = 1 << 30;
    if x86_64::__cpuid(1).ecx & RDRAND == 0 {
        return None;
    }
    // It may be exhausted for a moment; Intel advises ten attempts.
    (0..10).find_map(|_| {
        let (value, delivered): (u64, u8);
        // SAFETY: the processor has the instruction, which changes these two alone.
        unsafe {
            asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) delivered, options(nomem, nostack));
        }
        (delivered != 0).then_some(value)
    })
}

/// The caller's frame pointer.
#[inline(always)]
pub(crate) fn frame_pointer() -> usize {
    let pointer;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

/// Gives the return addresses of the frames from `frame` outwards to `visit`, until it returns false.
///
/// Believes nothing: frames must lie on the stack and go outwards, and addresses
/// must be code; the walk ends at the first that is not so.
pub(crate) fn walk_stack(mut frame: usize, mut visit: impl FnMut(usize) -> bool) {
    let stack = (&raw const __stack_bottom).addr()..(&raw const __stack_top).addr() - 16;
    let text = (&raw const __text_start).addr()..(&raw const __text_end).addr();
    while stack.contains(&frame) && frame.is_multiple_of(8) {
        let words = core::ptr::with_exposed_provenance::<usize>(frame);
        // SAFETY: both words are on the stack, which is all mapped.
        let (outer, address) = unsafe { (words.read(), words.add(1).read()) };
        if !text.contains(&address) || !visit(address) || outer <= frame {
            return;
        }
        frame = outer;
    }
}
