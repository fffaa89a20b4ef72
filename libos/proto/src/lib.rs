//! Xen ABI types and pure protocol logic.
//!
//! What both sides of a capsule's life agree on: the library OS inside and the
//! manager in dom0 link the same definitions. Nothing here does I/O, reads a
//! clock, follows a pointer or allocates; everything is tested on the host.
//!
//! | module | holds |
//! |---|---|
//! | [`boot`], [`console`] | what is ours alone: boot module, status area of the console page |
//! | [`suspend`], [`dirty`] | the same, for moving a capsule while it runs |
//! | [`balloon`] | the same, for changing its memory while it runs |
//! | [`elfnote`], [`start_info`], [`cmdline`] | start of day |
//! | [`domid`], [`frame`], [`evtchn`], [`gnttab`] | domains, frames, ports, grants |
//! | [`hypercall`], [`shared_info`], [`pvclock`] | the doors to Xen |
//! | [`ring`], [`xenstore`] | rings, and what xenstored speaks over one |
//! | [`xenbus`], [`netif`] | how devices connect, and what network cards speak |
#![no_std]
#![forbid(unsafe_code)]

pub mod balloon;
pub mod boot;
pub mod cmdline;
pub mod console;
pub mod dirty;
pub mod domid;
pub mod elfnote;
pub mod evtchn;
pub mod frame;
pub mod gnttab;
pub mod hypercall;
pub mod netif;
pub mod pvclock;
pub mod ring;
pub mod shared_info;
pub mod start_info;
pub mod suspend;
pub mod xenbus;
pub mod xenstore;

pub use domid::DomId;
