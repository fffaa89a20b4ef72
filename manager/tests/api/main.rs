//! The daemon over its API, on the simulated hypervisor.

mod bad_input;
mod lifecycle;
mod node;
mod output;
mod server;
