//! The console page: Xen's console rings, and behind them fcap's status area.
//!
//! Xen's `struct xencons_interface` (`xen/include/public/io/console.h`) fills
//! the first 3,088 bytes of the page. The last 1,000 bytes are ours: a capsule
//! and `fcapd` exchange through them what the rings cannot carry (end of input,
//! requests to suspend, exit code, why the capsule died), without a single xenstore
//! request. A capsule started by another toolstack finds no [`STATUS_MAGIC`] there
//! and does without. What is said about suspending is explained in
//! [`suspend`](crate::suspend), what is said about memory in [`balloon`](crate::balloon).
//!
//! Each field has one writer. Everything a capsule writes is hostile to the
//! manager: copy once, bound, then use.

/// Byte offset of the ring towards the guest, [`IN_LEN`] bytes.
pub const IN: usize = 0;
/// Length of the ring towards the guest.
pub const IN_LEN: usize = 1024;
/// Byte offset of the ring from the guest, [`OUT_LEN`] bytes.
pub const OUT: usize = 1024;
/// Length of the ring from the guest.
pub const OUT_LEN: usize = 2048;
/// `u32`: consumer index of the input ring, written by the guest.
pub const IN_CONS: usize = 3072;
/// `u32`: producer index of the input ring, written by the host.
pub const IN_PROD: usize = 3076;
/// `u32`: consumer index of the output ring, written by the host.
pub const OUT_CONS: usize = 3080;
/// `u32`: producer index of the output ring, written by the guest.
pub const OUT_PROD: usize = 3084;

/// `u32`: bits for the host, written by the guest: [`GUEST_SUSPENDS`], [`GUEST_BALLOONS`].
pub const GUEST_FLAGS: usize = 3096;
/// The guest listens for [`HOST_SUSPEND`] and [`HOST_TRACK`], from when it first waits for anything.
pub const GUEST_SUSPENDS: u32 = 1;
/// The guest listens for [`MEMORY_REQUEST`], from when it first waits for anything.
pub const GUEST_BALLOONS: u32 = 2;
/// `u32`: number of the last request for other memory that was answered, written by the guest.
pub const MEMORY_ANSWER: usize = 3100;
/// Records as in the boot module ([`boot`](crate::boot)), written by the host while the guest is
/// suspended: what is new to it when it goes on. What is longer than [`RESUME_HEAD`] continues in
/// [`MESSAGE`], which nobody needs before the guest's end.
pub const RESUME: usize = 3104;
/// Bytes of records in [`RESUME`].
pub const RESUME_HEAD: usize = MEMORY_TARGET - RESUME;
/// Most bytes of records: room for a name, entropy, and eight network interfaces.
pub const RESUME_LEN: usize = RESUME_HEAD + MESSAGE_MAX;
/// `u32`: pages of memory that the guest shall have, written by the host before [`MEMORY_REQUEST`];
/// 0 where a request is taken back.
pub const MEMORY_TARGET: usize = 3576;
/// `u32`: number of the request that [`MEMORY_TARGET`] belongs to, written by the host; changed
/// with an event.
pub const MEMORY_REQUEST: usize = 3580;

/// `u64`: [`STATUS_MAGIC`] when the builder is fcapd; written before the guest runs.
pub const STATUS: usize = 3584;
/// "fcapcon1" in memory order.
pub const STATUS_MAGIC: u64 = u64::from_le_bytes(*b"fcapcon1");
/// `u32`: bits for the guest, written by the host: [`HOST_STDIN`], [`HOST_EOF`], [`HOST_NO_STORE`],
/// [`HOST_SUSPEND`], [`HOST_TRACK`], and in [`HOST_REASON`] a [`Reason`](crate::suspend::Reason).
pub const HOST_FLAGS: usize = 3592;
/// The host will send standard input. Without it, reading yields end of file at once.
pub const HOST_STDIN: u32 = 1;
/// The host has closed standard input: once the ring is empty, it is at its end.
pub const HOST_EOF: u32 = 2;
/// xenstored does not know the capsule yet, so that what is put into its ring is lost: it
/// empties the ring when it is told of the capsule. The bit is cleared then, with an event.
/// This keeps xenstored out of the way of a capsule that starts.
pub const HOST_NO_STORE: u32 = 4;
/// The guest shall suspend itself; set and cleared with an event.
pub const HOST_SUSPEND: u32 = 8;
/// The guest shall keep track of the pages it changes ([`dirty`](crate::dirty)); set and cleared
/// with an event.
pub const HOST_TRACK: u32 = 16;
/// The bits that say why the guest is to be suspended, or was.
pub const HOST_REASON: u32 = 0xf00;
/// `u32`: an [`EndKind`], written last by the guest, before it shuts down; 0 until then.
pub const END_KIND: usize = 3596;
/// `i32`: the exit code.
pub const EXIT_CODE: usize = 3600;
/// `u32`: bytes used of [`MESSAGE`].
pub const MESSAGE_LEN: usize = 3604;
/// `u32`: entries used of [`BACKTRACE`].
pub const BACKTRACE_LEN: usize = 3608;
/// `u32`: frame of the page that [`dirty`](crate::dirty) describes, written by the guest; 0 while there is none,
/// [`NO_TRACKING`] if there will be none.
pub const TRACKING: usize = 3612;
/// [`HOST_TRACK`] is set, but there is no memory for it.
pub const NO_TRACKING: u32 = u32::MAX;
/// `[u64; BACKTRACE_MAX]`: return addresses, innermost first.
pub const BACKTRACE: usize = 3616;
/// Most return addresses that fit.
pub const BACKTRACE_MAX: usize = 16;
/// UTF-8: why the capsule died, for people ("panicked at src/main.rs:3:5: ...").
pub const MESSAGE: usize = 3744;
/// Most bytes of the message that fit.
pub const MESSAGE_MAX: usize = 352;

const _: () = assert!(MEMORY_REQUEST + 4 == STATUS);
const _: () = assert!(BACKTRACE + 8 * BACKTRACE_MAX == MESSAGE && MESSAGE + MESSAGE_MAX == 4096);

/// How a capsule says it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EndKind {
    /// `main` returned, or the application called `exit`.
    Exited = 1,
    /// A panic; the message has location and text.
    Panicked = 2,
    /// The allocator found no memory.
    OutOfMemory = 3,
    /// A processor exception (page fault, invalid instruction).
    Fault = 4,
    /// Stopped on request of the operator.
    Stopped = 5,
}

impl EndKind {
    /// The kind for a number read from the page.
    pub fn from_u32(n: u32) -> Option<Self> {
        [Self::Exited, Self::Panicked, Self::OutOfMemory, Self::Fault, Self::Stopped]
            .into_iter()
            .find(|&kind| kind as u32 == n)
    }
}
