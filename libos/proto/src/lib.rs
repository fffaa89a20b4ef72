//! Xen ABI types and pure protocol logic.
//!
//! What both sides of a capsule's life agree on: the library OS inside and the
//! manager in dom0 link the same definitions. Nothing here does I/O, reads a
//! clock, follows a pointer or allocates; everything is tested on the host.
#![no_std]
#![forbid(unsafe_code)]

pub mod boot;
pub mod console;
pub mod domid;
pub mod xenstore;

pub use domid::DomId;
