//! The live-migration engine.
#![forbid(unsafe_code)]

pub mod bitmap;
pub mod domain;
pub mod error;
pub mod handover;
pub mod page;
pub mod wire;

pub use error::{MigrateError, Side};
