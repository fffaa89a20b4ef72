//! Application authors' packages: making one, and building images of it.

pub mod build;
pub mod new;

#[path = "../../libos/toolchain.rs"]
pub mod toolchain;
