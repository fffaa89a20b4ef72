//! ELF notes by which a kernel tells a domain builder about itself
//! (`xen/include/public/elfnote.h`).

/// Owner of the notes, with its zero byte.
pub const OWNER: &[u8; 4] = b"Xen\0";
/// Where to enter the kernel.
pub const ENTRY: u32 = 1;
/// A page to fill with hypercall stubs.
pub const HYPERCALL_PAGE: u32 = 2;
/// Virtual address of frame 0.
pub const VIRT_BASE: u32 = 3;
/// What to subtract from physical addresses.
pub const PADDR_OFFSET: u32 = 4;
/// The interface: "xen-3.0".
pub const XEN_VERSION: u32 = 5;
/// The operating system's name.
pub const GUEST_OS: u32 = 6;
/// The operating system's version.
pub const GUEST_VERSION: u32 = 7;
/// The loader: "generic".
pub const LOADER: u32 = 8;
/// Whether a suspend can be taken back.
pub const SUSPEND_CANCEL: u32 = 14;
/// Virtual address for the p2m list.
pub const INIT_P2M: u32 = 15;
/// Whether the boot module may stay unmapped and be named by its frame.
pub const MOD_START_PFN: u32 = 16;

/// [`GUEST_OS`] of capsules linked with our library OS.
///
/// It lets the builder map all memory in the initial page tables, which that
/// library OS makes use of, and hand over a [boot module](crate::boot).
pub const GUEST_OS_FCAP: &str = "fcap";
