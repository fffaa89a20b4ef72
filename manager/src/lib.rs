//! `fcapd`: runs the capsules of one node.

pub mod toolstack;
