//! Connections that come, with TLS or without, on one port.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::PeerError;
use crate::subject::Subject;

/// First byte of whoever speaks TLS: a record with a handshake. No method of HTTP begins so.
const HANDSHAKE: u8 = 0x16;

/// A connection that has come.
pub enum Accepted {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS, and whose it is, if that was shown.
    Secured(Box<TlsStream<TcpStream>>, Option<Subject>),
}

/// Finds out how the other side speaks, and who it is. Waits as long as the other side does:
/// limiting that is the caller's.
///
/// # Errors
/// When it breaks off, is not believed, or speaks TLS where there is no configuration for it.
pub async fn accept(stream: TcpStream, config: Option<Arc<ServerConfig>>) -> io::Result<Accepted> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first[0] != HANDSHAKE {
        return Ok(Accepted::Plain(stream));
    }
    let config =
        config.ok_or_else(|| io::Error::other("this machine is in no cluster, and has no certificate"))?;
    let stream = TlsAcceptor::from(config).accept(stream).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = shown.map(Subject::of).transpose();
    let peer = peer.map_err(|error: PeerError| io::Error::new(io::ErrorKind::PermissionDenied, error))?;
    Ok(Accepted::Secured(Box::new(stream), peer))
}
