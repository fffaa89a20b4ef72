//! What depends on the processor.
//!
//! Each architecture has a module here with the same names; there is one.
//! Together with [`mm`](crate::mm), this is where most of the crate's `unsafe` is.

mod x86_64;
pub(crate) use x86_64::*;
