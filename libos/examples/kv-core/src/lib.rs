//! Protocol and store of the example application `kv`.
//!
//! Nothing here does input or output, or reads a clock: bytes and times come in, bytes
//! go out. So all of it is tested on the host.
//!
//! - [`memory`]: what there is of it, who has taken it, and buffers that keep to that.
//! - [`request`]: commands out of bytes.
//! - [`reply`]: answers into bytes.
//! - [`store`]: the keys and their values.
//! - [`command`]: what each command does.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod command;
mod glob;
pub mod memory;
pub mod reply;
pub mod request;
pub mod store;
