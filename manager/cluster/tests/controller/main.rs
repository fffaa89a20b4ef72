//! The controller with simulated nodes: real daemons, real HTTP, real moves, no Xen.

mod api;
mod conformance;
mod crashes;
mod metrics;
mod nodes;
mod operations;
mod policies;
mod rig;
