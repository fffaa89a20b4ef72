//! The daemon over its API, on the simulated hypervisor.

mod bad_input;
mod lifecycle;
mod membership;
mod migration;
mod network;
mod node;
mod output;
mod server;
