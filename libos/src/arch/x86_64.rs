//! x86-64.

mod cpu;
mod entry;
mod hypercall;
mod memory;
mod paging;
mod traps;

pub(crate) use cpu::{counter, frame_pointer, hardware_random, walk_stack};
pub(crate) use hypercall::hypercall;
pub(crate) use paging::{BASE, address_of_mfn, map_at, map_missing};
pub(crate) use traps::install_traps;
