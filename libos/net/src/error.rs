//! What goes wrong with sockets.

use core::fmt;
use embedded_io_async::ErrorKind;

/// Why something with a socket failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The capsule has no network interface.
    NoNetwork,
    /// No interface leads to the address, or nobody on its link has it.
    Unreachable,
    /// Another socket has the address and port.
    AddressInUse,
    /// The address is none of the capsule's.
    AddressNotAvailable,
    /// Nobody listens there.
    Refused,
    /// The peer has ended the connection before it was done.
    Reset,
    /// The peer has not answered in time.
    TimedOut,
    /// This side has closed the connection.
    Closed,
    /// Connections have all the memory that they may have.
    OutOfMemory,
    /// A datagram is larger than a packet can be.
    MessageTooLong,
    /// The name is not one that can be looked up, or the port is missing.
    InvalidName,
    /// No such name.
    NameNotFound,
    /// The capsule has been told of no name server.
    NoNameServer,
    /// The name server cannot tell.
    NameServerFailed,
    /// A datagram socket sends to nobody in particular before it is connected.
    NotConnected,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoNetwork => "the capsule has no network: start it with one, as `fcap run --network`",
            Self::Unreachable => "no way leads to the address, or nobody has it",
            Self::AddressInUse => "address and port are in use by another socket",
            Self::AddressNotAvailable => "the address is none of the capsule's",
            Self::Refused => "connection refused: nobody listens there",
            Self::Reset => "connection reset by the peer",
            Self::TimedOut => "the peer has not answered in time",
            Self::Closed => "this side has closed the connection",
            Self::OutOfMemory => "connections have all the memory that they may have",
            Self::MessageTooLong => "the datagram is larger than a packet of the interface",
            Self::InvalidName => "not a host name and a port",
            Self::NameNotFound => "no such host name",
            Self::NoNameServer => "the capsule has been told of no name server",
            Self::NameServerFailed => "the name server cannot tell",
            Self::NotConnected => "the datagram socket is not connected",
        })
    }
}

impl core::error::Error for Error {}

impl embedded_io_async::Error for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::AddressInUse => ErrorKind::AddrInUse,
            Self::AddressNotAvailable => ErrorKind::AddrNotAvailable,
            Self::Refused => ErrorKind::ConnectionRefused,
            Self::Reset => ErrorKind::ConnectionReset,
            Self::TimedOut => ErrorKind::TimedOut,
            Self::Closed => ErrorKind::BrokenPipe,
            Self::NotConnected => ErrorKind::NotConnected,
            Self::OutOfMemory => ErrorKind::OutOfMemory,
            Self::MessageTooLong | Self::InvalidName => ErrorKind::InvalidInput,
            Self::NameNotFound => ErrorKind::NotFound,
            Self::NoNetwork | Self::Unreachable | Self::NoNameServer | Self::NameServerFailed => {
                ErrorKind::Other
            }
        }
    }
}
