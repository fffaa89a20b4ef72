//! A reverse proxy: stands before another capsule, which it finds by name.
//!
//! ```console
//! $ fcap build --bin proxy
//! $ fcap run -d --name web target/capsule/httpd
//! $ fcap run -p 8080:80 target/capsule/proxy http://web
//! $ fcap run -p 6379:6379 target/capsule/proxy tcp://db:6379
//! ```
//! `http://` passes requests one by one, over connections that it keeps; what belongs to one
//! connection alone stays behind, and the server learns who asked (`X-Forwarded-For`).
//! `tcp://` passes bytes. A second argument is another port to listen at.
//!
//! Shows a capsule that is client and server at once: bodies of any size pass in pieces,
//! so that memory is bounded, and who reads slowly slows down who writes.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::rc::Rc;
use core::{
    cell::{Cell, RefCell},
    net::IpAddr,
};
use fcap_examples::{Ended, Inbox, Patience, Received, Slots, authority_parts, close, port, write_all};
use http_core::{
    body::{Body, Length},
    date::HttpDate,
    forward::{push_request, push_response},
    message::{HeadError, Headers, Request, Response},
    status::{Connection, Status, push_plain},
};
use libos::{
    env,
    net::{Ipv6Addr, OwnedReadHalf, OwnedWriteHalf, SocketAddr, TcpListener, TcpStream},
    prelude::*,
    spawn,
    time::{Duration, Instant, SystemTime, timeout},
};

/// Connections of clients at a time.
const CONNECTIONS: u32 = 1024;
/// How long a client's connection may be without a request, or without any bytes.
const IDLE: Duration = Duration::from_secs(60);
/// How long the head of a request may take to come.
const REQUEST: Duration = Duration::from_secs(10);
/// How long it may take to connect to the server, which may be moving to another node.
const CONNECT: Duration = Duration::from_secs(30);
/// How long the server may think, and either side be silent in the middle of a body.
const ANSWER: Duration = Duration::from_secs(60);
/// Connections to the server that are kept while nobody needs them.
const KEPT: usize = 32;
/// Bytes on their way at a time, in each direction of a connection.
const PIECE: usize = 16 * 1024;

/// Where everything goes.
struct Target {
    host: String,
    port: u16,
    /// Connections that the server keeps open, the one used last at the end.
    kept: RefCell<Vec<Peer>>,
}

/// A connection, and what it has received.
struct Peer {
    stream: TcpStream,
    inbox: Inbox,
}

#[libos::main]
async fn main() -> Result<(), String> {
    let mut args = env::args().skip(1);
    let usage = "usage: proxy http://HOST[:PORT]|tcp://HOST:PORT [LISTEN-PORT]";
    let url = args.next().ok_or(usage)?;
    let (is_http, authority) = match url.split_once("://") {
        Some(("http", rest)) => (true, rest.trim_end_matches('/')),
        Some(("tcp", rest)) => (false, rest),
        _ => return Err(usage.into()),
    };
    let (host, to_port) = authority_parts(authority)?;
    let to_port = to_port.or(is_http.then_some(80)).ok_or(usage)?;
    let port = port(args.next(), if is_http { 80 } else { to_port })?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .await
        .map_err(|error| format!("port {port}: {error}"))?;
    println!("port {port} goes to {host}:{to_port}");
    let target = Rc::new(Target { host: host.into(), port: to_port, kept: RefCell::default() });
    let slots = Slots::new(CONNECTIONS);
    loop {
        let (stream, client) = listener.accept().await.map_err(|error| error.to_string())?;
        let Some(slot) = slots.take() else {
            if is_http {
                let _ = stream.try_write(&plain(Status::UNAVAILABLE));
            }
            continue;
        };
        let target = target.clone();
        spawn(async move {
            // Whatever ends a connection, others go on.
            if is_http {
                let _ = serve(stream, client, &target).await;
            } else {
                pass(stream, &target).await;
            }
            drop(slot);
        });
    }
}

impl Target {
    async fn connect(&self) -> Result<Peer, Status> {
        match timeout(CONNECT, TcpStream::connect((&*self.host, self.port))).await {
            Ok(Ok(stream)) => Ok(Peer { stream, inbox: Inbox::new(PIECE) }),
            Ok(Err(_)) => Err(Status::BAD_GATEWAY),
            Err(_) => Err(Status::GATEWAY_TIMEOUT),
        }
    }

    /// A connection that was kept and that the server has not ended meanwhile.
    fn kept(&self) -> Option<Peer> {
        loop {
            let peer = self.kept.borrow_mut().pop()?;
            // Anything that was sent without being asked for is a reason to forget it, too.
            if peer.stream.try_read(&mut [0]).is_none() {
                return Some(peer);
            }
        }
    }

    fn keep(&self, peer: Peer) {
        let mut kept = self.kept.borrow_mut();
        if kept.len() < KEPT {
            kept.push(peer);
        }
    }
}

/// Why a request was not passed on and answered.
enum Failure {
    /// The client is told, and its connection ends.
    Tell(Status),
    /// It is not there any more, or has a part of the answer already.
    Ended,
}

impl From<Ended> for Failure {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

impl From<HeadError> for Failure {
    fn from(error: HeadError) -> Self {
        Self::Tell(error.status())
    }
}

/// Passes on the requests of one connection.
async fn serve(stream: TcpStream, client: SocketAddr, target: &Target) -> Result<(), Ended> {
    let mut client_peer = Peer { stream, inbox: Inbox::new(PIECE) };
    let mut patience = Patience::new();
    loop {
        match exchange(&mut client_peer, client.ip(), target, &mut patience).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(Failure::Tell(status)) => {
                write_all(&mut client_peer.stream, &mut patience, &plain(status)).await?;
                break;
            }
            Err(Failure::Ended) => {
                client_peer.stream.abort();
                return Ok(());
            }
        }
    }
    close(client_peer.stream, &mut patience).await;
    Ok(())
}

/// What of a request is still needed once its head was passed on.
struct Asked {
    is_head: bool,
    /// To send it twice does no more than to send it once, and there is no body.
    repeatable: bool,
    body: Length,
    connection: Connection,
}

/// Passes on one request and its answer. Tells whether the client may send another one.
async fn exchange(
    client: &mut Peer,
    address: IpAddr,
    target: &Target,
    patience: &mut Patience,
) -> Result<bool, Failure> {
    let mut head = Vec::new();
    let Some(mut asked) = receive_request(client, address, &mut head, patience).await? else {
        return Ok(false);
    };

    // A connection that was kept may end just when it is used again.
    let mut kept = target.kept();
    let mut whole = true;
    let mut server = loop {
        let is_kept = kept.is_some();
        let mut server = match kept.take() {
            Some(server) => server,
            None => target.connect().await.map_err(Failure::Tell)?,
        };
        match send_request(client, &mut server, &head, asked.body, patience).await {
            Ok(()) => {}
            Err(Sending::Client) => return Err(Failure::Tell(Status::BAD_REQUEST)),
            Err(Sending::Server) if asked.repeatable && is_kept => continue,
            // It may have answered before the end of a body that it does not want. What is
            // left of that is no request.
            Err(Sending::Server) => (whole, asked.connection) = (false, Connection::Close),
        }
        match server.inbox.receive(&mut server.stream, patience, Instant::now() + ANSWER).await {
            Ok(Received::More | Received::Full) => break server,
            Err(Ended::TooSlow) => return Err(Failure::Tell(Status::GATEWAY_TIMEOUT)),
            Ok(Received::End) | Err(Ended::Broken(_)) if asked.repeatable && is_kept => {}
            Ok(Received::End) | Err(Ended::Broken(_)) => return Err(Failure::Tell(Status::BAD_GATEWAY)),
        }
    };

    let mut out = Vec::new();
    let answer = receive_response(&mut server, &asked, &mut out, patience).await.map_err(Failure::Tell)?;
    let mut body = Body::new(answer.body);
    // Head and the first piece of the body leave together.
    let first = body.take(server.inbox.bytes()).map_err(|_| Failure::Tell(Status::BAD_GATEWAY))?;
    out.extend_from_slice(&server.inbox.bytes()[..first]);
    server.inbox.consume(first);
    write_all(&mut client.stream, patience, &out).await?;
    relay(&mut server, &mut client.stream, &mut body, patience).await.map_err(|_| Failure::Ended)?;
    if whole && answer.keep_alive && server.inbox.is_empty() {
        target.keep(server);
    }
    Ok(answer.connection != Connection::Close)
}

/// Waits for the head of a request and writes what the server gets of it to `head`. `None`
/// if there is no more.
async fn receive_request(
    client: &mut Peer,
    address: IpAddr,
    head: &mut Vec<u8>,
    patience: &mut Patience,
) -> Result<Option<Asked>, Failure> {
    let (mut since, mut partial) = (Instant::now(), !client.inbox.is_empty());
    let (asked, len, expects_continue) = loop {
        let mut room = Headers::new();
        if let Some(request) = Request::parse(client.inbox.bytes(), &mut room)? {
            if request.method == "CONNECT" {
                return Err(Failure::Tell(Status::METHOD_NOT_ALLOWED));
            }
            push_request(head, &request, address);
            let connection = match (request.keep_alive, request.minor_version) {
                (false, _) => Connection::Close,
                (true, 0) => Connection::KeepAlive,
                (true, _) => Connection::Stays,
            };
            let safe = matches!(request.method, "GET" | "HEAD" | "OPTIONS");
            let asked = Asked {
                is_head: request.method == "HEAD",
                repeatable: safe && request.body == Length::Known(0),
                body: request.body,
                connection,
            };
            break (asked, request.len, request.expects_continue);
        }
        let deadline = since + if partial { REQUEST } else { IDLE };
        match client.inbox.receive(&mut client.stream, patience, deadline).await {
            Ok(Received::More | Received::Full) => {}
            Ok(Received::End) => return Ok(None),
            Err(Ended::TooSlow) if partial => return Err(Failure::Tell(Status::REQUEST_TIMEOUT)),
            Err(Ended::TooSlow) => return Ok(None),
            Err(ended) => return Err(ended.into()),
        }
        if !partial {
            (since, partial) = (Instant::now(), true);
        }
    };
    client.inbox.consume(len);
    if expects_continue && client.inbox.is_empty() {
        write_all(&mut client.stream, patience, b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    Ok(Some(asked))
}

/// Which side ended a transfer.
enum Sending {
    Client,
    Server,
}

/// Sends a request's head, and its body as it comes.
async fn send_request(
    client: &mut Peer,
    server: &mut Peer,
    head: &[u8],
    length: Length,
    patience: &mut Patience,
) -> Result<(), Sending> {
    write_all(&mut server.stream, patience, head).await.map_err(|_| Sending::Server)?;
    let mut body = Body::new(length);
    relay(client, &mut server.stream, &mut body, patience).await
}

/// What of an answer is still needed once its head was passed on.
struct Answer {
    body: Length,
    /// The server's connection can be used again.
    keep_alive: bool,
    /// What becomes of the client's.
    connection: Connection,
}

/// Waits for the end of an answer's head, and writes what the client gets of it to `out`.
async fn receive_response(
    server: &mut Peer,
    asked: &Asked,
    out: &mut Vec<u8>,
    patience: &mut Patience,
) -> Result<Answer, Status> {
    let deadline = Instant::now() + ANSWER;
    loop {
        let mut room = Headers::new();
        match Response::parse(server.inbox.bytes(), &mut room, asked.is_head) {
            // The client was told to go on already.
            Ok(Some(response)) if (100..200).contains(&response.status) => {
                let len = response.len;
                server.inbox.consume(len);
                continue;
            }
            Ok(Some(response)) => {
                let until_close = response.body == Length::UntilClose;
                let connection = if until_close { Connection::Close } else { asked.connection };
                push_response(out, &response, connection);
                let answer = Answer { body: response.body, keep_alive: response.keep_alive, connection };
                let len = response.len;
                server.inbox.consume(len);
                return Ok(answer);
            }
            Ok(None) => {}
            Err(_) => return Err(Status::BAD_GATEWAY),
        }
        match server.inbox.receive(&mut server.stream, patience, deadline).await {
            Ok(Received::More) => {}
            Err(Ended::TooSlow) => return Err(Status::GATEWAY_TIMEOUT),
            Ok(_) | Err(_) => return Err(Status::BAD_GATEWAY),
        }
    }
}

/// Passes a body on, piece by piece. [`Sending::Client`] stands for the side it comes from.
async fn relay(
    from: &mut Peer,
    to: &mut TcpStream,
    body: &mut Body,
    patience: &mut Patience,
) -> Result<(), Sending> {
    loop {
        let taken = body.take(from.inbox.bytes()).map_err(|_| Sending::Client)?;
        write_all(to, patience, &from.inbox.bytes()[..taken]).await.map_err(|_| Sending::Server)?;
        from.inbox.consume(taken);
        if body.is_done() {
            return Ok(());
        }
        match from.inbox.receive(&mut from.stream, patience, Instant::now() + ANSWER).await {
            Ok(Received::More) => {}
            Ok(Received::End) if body.may_end_here() => return Ok(()),
            Ok(Received::End | Received::Full) | Err(_) => return Err(Sending::Client),
        }
    }
}

/// Passes the bytes of one connection on, both ways, until both are at their end.
async fn pass(client: TcpStream, target: &Target) {
    let Ok(server) = target.connect().await else {
        client.abort();
        return;
    };
    let latest = Rc::new(Cell::new(Instant::now()));
    let (client_reader, client_writer) = client.into_split();
    let (server_reader, server_writer) = server.stream.into_split();
    let there = spawn(copy(client_reader, server_writer, latest.clone()));
    let back = copy(server_reader, client_writer, latest).await;
    match back {
        Ok(()) => drop(there.await),
        Err(_) => there.abort(),
    }
}

/// Passes bytes on to the end of them; `latest` is when something moved in either direction.
async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    latest: Rc<Cell<Instant>>,
) -> Result<(), Ended> {
    let mut piece = vec![0; PIECE];
    let mut patience = Patience::new();
    loop {
        let deadline = latest.get() + IDLE;
        let count = match patience.until(deadline, from.read(&mut piece)).await {
            Ok(count) => count?,
            // The other direction may have moved meanwhile.
            Err(_) if latest.get() + IDLE > deadline => continue,
            Err(elapsed) => return Err(elapsed.into()),
        };
        if count == 0 {
            return Ok(());
        }
        latest.set(Instant::now());
        patience.until(latest.get() + IDLE, to.write_all(&piece[..count])).await??;
        latest.set(Instant::now());
    }
}

/// An answer of the proxy's own.
fn plain(status: Status) -> Vec<u8> {
    let mut out = Vec::new();
    let date = HttpDate::from_unix(SystemTime::now().since_epoch().as_secs());
    push_plain(&mut out, status, "", &date, Connection::Close, false);
    out
}
