//! The controller with simulated nodes: real daemons, real HTTP over mutual TLS, real moves, no Xen.

mod api;
mod crashes;
mod joining;
mod nodes;
mod operations;
mod policies;
mod rig;
