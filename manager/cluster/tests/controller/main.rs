//! The controller with simulated nodes: real daemons, real HTTP over mutual TLS, real moves, no Xen.

mod api;
mod conformance;
mod crashes;
mod joining;
mod metrics;
mod nodes;
mod operations;
mod policies;
mod rig;
