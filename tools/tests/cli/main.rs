//! Runs the built `fcap` as a user would, against daemons with a simulated hypervisor.

mod attached;
mod bad_input;
mod cluster;
mod fleet;
mod lifecycle;
mod looking;
mod making;
mod network;
mod policy;
mod rig;
