//! The port for machines: TLS alone, and limits for those that nobody knows yet.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use fcap_tls::rustls::ServerConfig;
use fcap_tls::{Accepted, accept, explain};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Most connections at a time; more have to wait.
const MAX_CONNECTIONS: usize = 256;
/// How long a handshake, or a request's head, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection may last: who joins asks once.
const LIFE: Duration = Duration::from_secs(60);
/// After a connection could not be accepted for want of descriptors.
const AGAIN: Duration = Duration::from_millis(100);

/// Serves everybody who speaks TLS. Requests bear the address from which they come.
///
/// # Errors
/// When there is nothing to listen on any more.
pub(crate) async fn serve_tls(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    router: Router,
) -> io::Result<()> {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = connections.clone().acquire_owned().await;
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if error.raw_os_error().is_none() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let (config, router) = (config.clone(), router.clone());
        tokio::spawn(async move {
            if timeout(LIFE, serve(stream, from, config, router)).await.is_err() {
                tracing::debug!(%from, "a connection of a machine took too long");
            }
            drop(permit);
        });
    }
}

async fn serve(stream: TcpStream, from: SocketAddr, config: Arc<ServerConfig>, router: Router) {
    let stream = match timeout(PATIENCE, accept(stream, Some(config))).await {
        Ok(Ok(Accepted::Secured(stream, _))) => stream,
        Ok(Ok(Accepted::Plain(_))) => return tracing::debug!(%from, "a machine does not speak TLS"),
        Ok(Err(error)) => {
            return match explain(&error) {
                Some(why) => tracing::warn!(%from, %why, "a machine is not believed"),
                None => tracing::debug!(%from, %error, "a connection broke off"),
            };
        }
        Err(_) => return tracing::debug!(%from, "a connection says nothing"),
    };
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(from);
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = builder.serve_connection(TokioIo::new(*stream), service).await {
        tracing::debug!(%from, error = error.to_string(), "a connection broke off");
    }
}
