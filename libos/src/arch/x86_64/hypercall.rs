//! The raw hypercall; [`crate::hypercall`] has a typed function for each operation.

use core::arch::asm;

/// Asks Xen for operation `nr` with up to four arguments; returns what Xen does, negative for errors.
///
/// In kernel mode of a PV guest, `syscall` is a hypercall. It does not touch the
/// stack, so no hypercall page is needed.
///
/// # Safety
/// The operation must be one that keeps memory safe, and pointers among the
/// arguments must point to what it reads or writes.
#[inline]
pub(crate) unsafe fn hypercall(nr: usize, args: [usize; 4]) -> isize {
    let result;
    // SAFETY: the caller vouches for the operation. Xen may change the argument
    // registers, and `syscall` itself changes rcx and r11: all are declared so.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") nr => result,
            inlateout("rdi") args[0] => _,
            inlateout("rsi") args[1] => _,
            inlateout("rdx") args[2] => _,
            inlateout("r10") args[3] => _,
            lateout("r8") _,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
