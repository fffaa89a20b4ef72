//! What `httpd`, `proxy` and `load` know of HTTP/1.1 (RFC 9110, RFC 9112).
//!
//! Nothing here does input or output, or reads a clock: bytes and times come in, bytes
//! go out. So all of it is tested on the host.
//!
//! - [`message`]: heads of requests and responses, and what they say of the body.
//! - [`body`]: where a body ends.
//! - [`date`]: dates as HTTP writes them.
//! - [`site`]: a web site out of a tar archive, and its answers to requests.
//! - [`server`]: requests out of bytes, one after the other.
//! - [`forward`]: heads on their way through a proxy.
//! - [`histogram`]: latencies, for percentiles.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod body;
pub mod date;
pub mod forward;
pub mod histogram;
pub mod message;
pub mod server;
pub mod site;
pub mod status;
