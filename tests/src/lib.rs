//! End-to-end tests, benchmarks and long runs: what they share.
//!
//! [`rig`] brings up nodes with real Xen, [`cli`] runs the built `fcap` against them, [`api`]
//! speaks to fcapd directly, [`moves`] has what moving capsules takes, [`load`] has clients.
//! Benchmarks are in [`mod@bench`], long runs in [`soak`], demonstrations in [`demo`]; the files beside
//! this folder hold the tests.
#![forbid(unsafe_code)]

pub mod api;
pub mod bench;
pub mod cli;
pub mod demo;
pub mod load;
pub mod moves;
pub mod rig;
pub mod soak;
pub mod stats;
