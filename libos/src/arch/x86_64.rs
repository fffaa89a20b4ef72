//! x86-64.

mod cpu;
mod dirty;
mod entry;
mod hypercall;
mod memory;
mod paging;
mod traps;

pub(crate) use cpu::{counter, frame_pointer, hardware_random, walk_stack};
pub(crate) use dirty::{Then, collect_dirty};
pub(crate) use hypercall::hypercall;
pub(crate) use paging::{
    BASE, address_of, frame_at, map_at, map_frames, map_missing, own_frame, table_of, take_remapped,
    top_table, unmap, unmap_frames, usable_frames,
};
pub(crate) use traps::install_traps;
