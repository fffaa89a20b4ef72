//! What `std` brings into scope by itself, and `no_std` programs miss:
//! `use libos::prelude::*;`.

pub use crate::{eprint, eprintln, print, println};
pub use alloc::{
    borrow::ToOwned,
    boxed::Box,
    format,
    string::{String, ToString},
    vec,
    vec::Vec,
};
