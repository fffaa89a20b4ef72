//! The library OS that capsules are linked with.
//!
//! An application is a `no_std` program whose `main` is an async function:
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//!
//! use libos::println;
//!
//! #[libos::main]
//! async fn main() {
//!     println!("Hello from a capsule");
//! }
//! ```
//!
//! Linked with this crate by `fcap build`, it becomes an image that boots as a
//! paravirtualized Xen guest, with one virtual processor and one address space.
//! The API is shaped like `std` and tokio: [`spawn`], [`time`], [`mod@env`], [`io`],
//! [`process`], [`random`], [`signal`], [`net`], [`lifecycle`]. Closer to Xen are [`xenstore`],
//! [`evtchn`] and [`gnttab`].
//!
//! # Layers
//! ```text
//!   application        #[libos::main]  spawn  println!  sleep  args  stdin
//!  ───────────────────────────────────────────────────────────────────────────
//!   what it calls      task   time   io   env   process   random   signal     net
//!                        │      │     │                              │          │
//!   protocols            │      │     │                              │   fcap-libos-net
//!                        │      │     │                              │          │
//!   devices              │      │  console                       xenstore   netfront
//!                        ▼      ▼     ▼                              ▼          ▼
//!   events and memory  evtchn (ports, waiting)   mm (heap, pages)   gnttab
//!                        │                         │
//!   doors to Xen       hypercall   shared_info     │
//!                        │                         │
//!   processor          arch: entry, traps, page tables, raw hypercall
//! ```
//! - `arch` has the entry point, which switches to a stack of 64 KiB and calls
//!   `start::start`. That reads top to bottom: shared-info page, trap handlers,
//!   memory, then the application. Each capsule does a handful of hypercalls
//!   before its first line of output.
//! - `task` polls `main` and all tasks. When nothing can run, it takes pending
//!   events, fires timers, and sleeps in `SCHEDOP_poll` until the next of either.
//!   Event delivery is masked for ever: there are no interrupts, nothing runs
//!   between two statements, and `Single` statics need no locks.
//! - `net` has one task that moves packets between `netfront`, the card, and the crate
//!   `fcap-libos-net`, which is TCP/IP without Xen and is tested on the host. `xenbus`
//!   follows the card's backend, which may go away and return.
//! - `suspend` brings everything to rest and lets it go on, here or in another domain: its
//!   list of subsystems is the order. `dirty` tells the host meanwhile which pages have
//!   changed and which it need not copy, from the processor's dirty bits and the heap's lists.
//!   [`lifecycle`] is what the application sees of it.
//! - `mm::balloon` gives memory back and takes it again, when the host asks.
//! - `end` is every way out: it leaves kind, exit code, message and backtrace in
//!   the console page for the manager, and powers the domain off.
//!
//! # What is linked
//! Only what is used. No subsystem registers itself before it is used; each is reached through
//! the functions that the application calls, and sets itself up when first called.
//! Started for every application that ever waits are only `signal` and `suspend`, which
//! watch for the requests to stop and to suspend.
//!
//! # Limits
//! - 64 KiB of stack, below which nothing is mapped: what needs more belongs on
//!   the heap.
//! - Memory up to 2 GiB is used.
//! - No threads, no files, and no `std`.
#![no_std]
// Nothing here can be part of a host program, as which `--all-targets` would build tests.
#![cfg(not(test))]

extern crate alloc;

mod arch;
mod console;
mod dirty;
mod end;
pub mod env;
pub mod evtchn;
pub mod gnttab;
mod hypercall;
pub mod io;
pub mod lifecycle;
mod mm;
pub mod net;
mod netfront;
pub mod prelude;
pub mod process;
pub mod random;
mod shared_info;
pub mod signal;
mod single;
mod start;
mod suspend;
pub mod task;
pub mod time;
mod xenbus;
pub mod xenstore;

pub use fcap_libos_macros::main;
pub use hypercall::Errno;
pub use mm::{Page, SharedPage};
pub use task::spawn;
pub use xen_proto::DomId;
