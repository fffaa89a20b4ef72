//! TCP/IP of the library OS, without Xen: everything between a network card and an application.
//!
//! [`Stack`] has the interfaces, the connections, the listeners and the datagram sockets. Frames
//! go in with [`Stack::receive`], leave through [`Transmit`] when [`Stack::send`] is called, and
//! [`Stack::next_deadline`] says when time alone makes something happen. It never waits, reads no
//! clock, and knows no tasks but their wakers, so that tests run it on the host, with a clock
//! that they drive.
//!
//! # What is smoltcp's, and what is ours
//! smoltcp has TCP's state machine, and answers pings and what nobody listens to. Around it:
//!
//! - **Demultiplexing.** smoltcp walks all sockets for each packet. Here each connection has a
//!   socket set of its own, which `flows` finds by addresses and ports. Sending looks only at
//!   connections that may have something to send: those that received something, were written
//!   to, or whose timer is due.
//! - **Listening.** A connection begins to exist with the packet that opens it. Half-open ones
//!   and those that nobody has accepted are bounded, per listener and in memory.
//! - **Links.** smoltcp sees IP packets; `neighbor` and `interface` do ARP and neighbour discovery.
//! - **UDP** is little more than its header, and needs no state machine.
//!
//! # Limits
//! IPv4 packets that come in pieces are dropped, and none are sent. There is no SYN cookie: under
//! a flood of connection requests, the oldest half-open connection gives way to the newest.
//! TIME-WAIT ends when the application has let go of the connection.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod dns;
mod error;
mod flow;
mod flows;
mod interface;
pub mod link;
mod moderation;
mod neighbor;
mod slab;
mod stack;
mod tcp;
mod udp;

#[cfg(test)]
mod tests;

pub use error::Error;
pub use link::{Config, Features, Mac, Offload, Transmit};
pub use moderation::Moderation;
pub use smoltcp::time::{Duration, Instant};
pub use stack::{Addresses, Stack};
pub use tcp::{ConnectionId, ListenerId, Options};
pub use udp::UdpId;
