//! Listening, and the limits of connections.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use fcap_tls::{Accepted, Subject, accept, explain};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::cluster::Membership;

/// Most connections at a time; more have to wait.
const MAX_CONNECTIONS: usize = 1024;
/// How long a request's head may take to arrive.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Bytes buffered for a connection in either direction. A request's head must fit, and what is
/// buffered towards a client adds to what an attached client may be behind.
const BUFFER: usize = 64 << 10;

/// Makes the Unix socket. One that an earlier daemon left is replaced; that there is no other
/// daemon is the state directory's matter.
///
/// # Errors
/// When it cannot be made.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Serves everybody who connects to the Unix socket.
///
/// # Errors
/// When the system stops accepting connections.
pub async fn serve_unix(listener: UnixListener, router: Router) -> io::Result<()> {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = connections.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    serve(stream, router, None).await;
                    drop(permit);
                });
            }
            Err(error) => after_failed_accept(error).await?,
        }
    }
}

/// Serves everybody who connects over TCP, and with TLS those who are of the node's cluster.
///
/// # Errors
/// When the system stops accepting connections.
pub async fn serve_tcp(listener: TcpListener, router: Router, membership: Arc<Membership>) -> io::Result<()> {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = connections.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((stream, from)) => {
                // Output goes out as it comes.
                let _ = stream.set_nodelay(true);
                let (router, config) = (router.clone(), membership.server());
                tokio::spawn(async move {
                    match timeout(HEAD_TIME, accept(stream, config)).await {
                        Ok(Ok(Accepted::Plain(stream))) => serve(stream, router, None).await,
                        Ok(Ok(Accepted::Secured(stream, peer))) => serve(stream, router, peer).await,
                        Ok(Err(error)) => match explain(&error) {
                            Some(why) => tracing::warn!(%from, %why, "another machine is not believed"),
                            None => tracing::debug!(%from, %error, "a connection broke off"),
                        },
                        Err(_) => tracing::debug!(%from, "a connection says nothing"),
                    }
                    drop(permit);
                });
            }
            Err(error) => after_failed_accept(error).await?,
        }
    }
}

/// A connection that broke off before it was accepted, or a lack of descriptors, is no reason to
/// end; the latter passes when other connections end.
async fn after_failed_accept(error: io::Error) -> io::Result<()> {
    use nix::libc::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    match error.raw_os_error() {
        Some(EMFILE | ENFILE | ENOBUFS | ENOMEM) => {
            tracing::warn!(%error, "a connection cannot be accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(())
        }
        _ if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
        _ => Err(error),
    }
}

/// Serves a connection; requests bear the name of the machine whose it is, if that is known.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, router: Router, peer: Option<Subject>) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(BUFFER);
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        router.call(request)
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(error = ?error.to_string(), "a connection broke off");
    }
}
