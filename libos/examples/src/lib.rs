//! What the network examples share.
#![no_std]

extern crate alloc;

mod inbox;
mod patience;
mod slots;

pub use inbox::{Inbox, Received};
pub use patience::Patience;
pub use slots::{Slot, Slots};

use alloc::format;
use alloc::string::String;
use libos::{
    net::{Error, TcpStream},
    time::{Duration, Elapsed, Instant},
};

/// How long a peer may take no byte at all of what is sent to it.
const WRITE: Duration = Duration::from_secs(30);
/// How long the rest of what a refused peer sends is received.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes that are.
const LINGER_BYTES: usize = 256 * 1024;

/// The peer did not do its part, so that the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The connection broke.
    Broken(Error),
    /// The peer took too long.
    TooSlow,
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

impl From<Elapsed> for Ended {
    fn from(_: Elapsed) -> Self {
        Self::TooSlow
    }
}

/// Writes everything to a peer that takes some of it now and then.
///
/// # Errors
/// If it does not, or the connection breaks.
pub async fn write_all(
    stream: &mut TcpStream,
    patience: &mut Patience,
    mut bytes: &[u8],
) -> Result<(), Ended> {
    if bytes.is_empty() {
        return Ok(());
    }
    // Most often it all fits at once, and no clock is needed.
    if let Some(written) = stream.try_write(bytes) {
        bytes = &bytes[written?..];
    }
    while !bytes.is_empty() {
        let written = patience.until(Instant::now() + WRITE, stream.write(bytes)).await??;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Ends a connection whose peer may still be sending.
///
/// To close it at once would reset it, and the peer might lose what was last written.
pub async fn close(mut stream: TcpStream, patience: &mut Patience) {
    stream.shutdown();
    let deadline = Instant::now() + LINGER;
    let (mut left, mut scrap) = (LINGER_BYTES, [0; 1024]);
    while let Ok(Ok(count @ 1..)) = patience.until(deadline, stream.read(&mut scrap)).await
        && count < left
    {
        left -= count;
    }
}

/// Host and port of the authority in a URL. IPv6 addresses are in brackets there.
///
/// # Errors
/// If the port is none; the text says so.
pub fn authority_parts(authority: &str) -> Result<(&str, Option<u16>), String> {
    let (host, to_port) = match authority.rsplit_once(':') {
        Some((host, to_port)) if !to_port.ends_with(']') => (host, Some(port(Some(to_port.into()), 0)?)),
        _ => (authority, None),
    };
    Ok((host, to_port))
}

/// A port out of the command line.
///
/// # Errors
/// If it is none; the text says so.
pub fn port(argument: Option<String>, otherwise: u16) -> Result<u16, String> {
    match argument {
        None => Ok(otherwise),
        Some(text) => text.parse().map_err(|_| format!("{text:?} is no port: give a number up to 65535")),
    }
}
