//! The entry point, and the notes by which domain builders find it.

use core::arch::global_asm;
use xen_proto::elfnote;

// Numbers and texts as `xen/include/public/elfnote.h` has them. There is no
// hypercall page, because `syscall` is used directly, and no PHYS32_ENTRY, because
// that would mean PVH.
global_asm!(
    ".macro xen_note type:req, content:vararg",
    "    .p2align 2",
    "    .long 4, 3f - 2f, \\type",
    "    .asciz \"Xen\"",
    "2:  \\content",
    "3:  .p2align 2",
    ".endm",
    ".pushsection .note.Xen, \"a\", @note",
    "xen_note {xen_version}, .asciz \"xen-3.0\"",
    "xen_note {loader}, .asciz \"generic\"",
    "xen_note {guest_os}, .asciz \"fcap\"",
    "xen_note {virt_base}, .quad {base}",
    "xen_note {paddr_offset}, .quad {base}",
    "xen_note {entry}, .quad _start",
    "xen_note {suspend_cancel}, .quad 1",
    ".popsection",
    ".purgem xen_note",
    xen_version = const elfnote::XEN_VERSION,
    loader = const elfnote::LOADER,
    guest_os = const elfnote::GUEST_OS,
    virt_base = const elfnote::VIRT_BASE,
    paddr_offset = const elfnote::PADDR_OFFSET,
    entry = const elfnote::ENTRY,
    suspend_cancel = const elfnote::SUSPEND_CANCEL,
    base = const super::BASE,
);

// Xen enters with the address of the start-info page in rsi, on a stack of one
// page, with all events masked and the FPU ready. The frame pointer 0 ends
// backtraces.
global_asm!(
    ".pushsection .text._start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "    mov rsp, offset __stack_top",
    "    xor ebp, ebp",
    "    mov rdi, rsi",
    "    call {start}",
    "    ud2",
    ".popsection",
    start = sym crate::start::start,
);
