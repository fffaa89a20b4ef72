//! A client that puts load on an HTTP server, and tells what it got.
//!
//! ```console
//! $ fcap build --bin load
//! $ fcap run -d --name web target/capsule/httpd
//! $ fcap run target/capsule/load -c 100 -d 10 http://web/
//! ```
//! Each connection asks again as soon as it has its answers. `-n` ends after so many
//! requests, `-d` after so many seconds, and `-p` sends so many requests at a time. A connection
//! or an answer that takes longer than the seconds of `-t`, ten if not given, has failed, and
//! its requests count as sent. A server that cannot be reached at all is reported at once.
//!
//! Shows many tasks that wait at once, and what it costs to look at a clock for each.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use fcap_examples::{Ended, Inbox, Patience, Received, authority_parts, write_all};
use http_core::{
    body::Body,
    histogram::Histogram,
    message::{Headers, Response},
};
use libos::{
    env,
    net::{SocketAddr, TcpStream},
    prelude::*,
    spawn,
    time::{Duration, Instant, sleep, timeout},
};

const USAGE: &str = "usage: load [-c CONNECTIONS] [-d SECONDS | -n REQUESTS] [-p PIPELINE] [-t SECONDS] http://HOST[:PORT][/PATH]";

/// How long a connection waits after an error, so that a server that is gone is not hammered.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes received at a time.
const PIECE: usize = 16 * 1024;

/// What is to be done.
struct Plan {
    connections: u32,
    requests: Option<u64>,
    duration: Duration,
    pipeline: u32,
    /// How long a connection or an answer may take.
    patience: Duration,
    host: String,
    port: u16,
    path: String,
}

/// What all connections share.
struct Load {
    address: SocketAddr,
    /// All requests that are sent at a time.
    batch: Vec<u8>,
    pipeline: u32,
    patience: Duration,
    end: Instant,
    /// Requests that may still be sent.
    left: Cell<u64>,
    result: RefCell<Tally>,
}

/// What came of it.
#[derive(Default)]
struct Tally {
    latency_ns: Histogram,
    bytes: u64,
    /// Answers with a status of 400 or more.
    refused: u64,
    connect_errors: u64,
    /// Connections that broke, or brought no HTTP.
    broken: u64,
    timeouts: u64,
}

#[libos::main]
async fn main() -> Result<(), String> {
    let plan = Plan::from_args(env::args().skip(1))?;
    let name = (&*plan.host, plan.port);
    // The address of several that answers, if one does.
    let first = match timeout(plan.patience, TcpStream::connect(name)).await {
        Ok(connected) => connected.map_err(|error| format!("{}: {error}", plan.host))?,
        Err(_) => return Err(format!("{}: no answer for {} s", plan.host, plan.patience.as_secs())),
    };
    let address = first.peer_addr();
    drop(first);
    let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", plan.path, plan.host);
    println!("{} connections to {address}, {} requests at a time", plan.connections, plan.pipeline);

    let started = Instant::now();
    let load = Rc::new(Load {
        address,
        batch: request.repeat(plan.pipeline as usize).into_bytes(),
        pipeline: plan.pipeline,
        patience: plan.patience,
        end: started + plan.duration,
        left: Cell::new(plan.requests.unwrap_or(u64::MAX)),
        result: RefCell::default(),
    });
    let start = |_| {
        let load = load.clone();
        spawn(async move { load.run().await })
    };
    let connections: Vec<_> = (0..plan.connections).map(start).collect();
    for connection in connections {
        connection.await;
    }
    let tally = load.result.borrow();
    tally.print(started.elapsed());
    if tally.latency_ns.count() == 0 { Err("no request was answered".into()) } else { Ok(()) }
}

impl Plan {
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut connections, mut pipeline, mut patience) = (10, 1, 10);
        let (mut requests, mut seconds, mut url) = (None, None, None);
        while let Some(arg) = args.next() {
            let mut number = || {
                let number =
                    args.next().and_then(|text| text.parse::<u32>().ok()).filter(|&number| number > 0);
                number.ok_or_else(|| format!("{arg} takes a number above 0; {USAGE}"))
            };
            match &*arg {
                "-c" => connections = number()?,
                "-p" => pipeline = number()?,
                "-n" => requests = Some(number()?.into()),
                "-d" => seconds = Some(number()?),
                "-t" => patience = number()?,
                _ if url.is_none() && !arg.starts_with('-') => url = Some(arg),
                _ => return Err(USAGE.into()),
            }
        }
        let url = url.ok_or(USAGE)?;
        let rest = url.strip_prefix("http://").ok_or(USAGE)?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, to_port) = authority_parts(authority)?;
        let to_port = to_port.unwrap_or(80);
        // For so many requests as are asked for, however long they take; otherwise for a time.
        let for_ever = if requests.is_some() { u32::MAX } else { 10 };
        Ok(Self {
            connections,
            requests,
            duration: Duration::from_secs(seconds.unwrap_or(for_ever).into()),
            pipeline,
            patience: Duration::from_secs(patience.into()),
            host: host.into(),
            port: to_port,
            path: if path.is_empty() { "/".into() } else { path.into() },
        })
    }
}

impl Load {
    /// Keeps one connection busy, or another after it, until all is done.
    async fn run(&self) {
        while self.left.get() > 0 && Instant::now() < self.end {
            let stream = match timeout(self.patience, TcpStream::connect(self.address)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(_)) | Err(_) => {
                    self.take();
                    self.result.borrow_mut().connect_errors += 1;
                    sleep(PAUSE).await;
                    continue;
                }
            };
            if let Err(ended) = self.use_connection(stream).await {
                self.result.borrow_mut().count(ended);
                sleep(PAUSE).await;
            }
        }
    }

    /// How many requests are to be sent next, at a time.
    fn take(&self) -> u64 {
        let count = u64::from(self.pipeline).min(self.left.get());
        self.left.set(self.left.get() - count);
        count
    }

    /// Sends requests until all is done or the server ends the connection in good order.
    async fn use_connection(&self, mut stream: TcpStream) -> Result<(), Ended> {
        let mut patience = Patience::new();
        let mut inbox = Inbox::new(PIECE);
        loop {
            let sent = Instant::now();
            if sent >= self.end {
                return Ok(());
            }
            let count = self.take();
            if count == 0 {
                return Ok(());
            }
            let bytes = self.batch.len() / self.pipeline as usize * count as usize;
            write_all(&mut stream, &mut patience, &self.batch[..bytes]).await?;
            for _ in 0..count {
                let goes_on = self.receive(&mut stream, &mut inbox, &mut patience, sent).await?;
                if !goes_on {
                    return Ok(());
                }
            }
        }
    }

    /// Receives one answer. Tells whether there will be another.
    async fn receive(
        &self,
        stream: &mut TcpStream,
        inbox: &mut Inbox,
        patience: &mut Patience,
        sent: Instant,
    ) -> Result<bool, Ended> {
        let deadline = sent + self.patience;
        let (status, mut body, keep_alive) = loop {
            let mut room = Headers::new();
            match Response::parse(inbox.bytes(), &mut room, false) {
                Ok(Some(response)) => {
                    let (len, status) = (response.len, response.status);
                    let found = (status, Body::new(response.body), response.keep_alive);
                    inbox.consume(len);
                    self.result.borrow_mut().bytes += len as u64;
                    break found;
                }
                Ok(None) => {}
                Err(_) => return Err(Ended::Broken(libos::net::Error::Closed)),
            }
            if inbox.receive(stream, patience, deadline).await? != Received::More {
                return Err(Ended::Broken(libos::net::Error::Closed));
            }
        };
        loop {
            let Ok(taken) = body.take(inbox.bytes()) else {
                return Err(Ended::Broken(libos::net::Error::Closed));
            };
            inbox.consume(taken);
            self.result.borrow_mut().bytes += taken as u64;
            if body.is_done() {
                break;
            }
            match inbox.receive(stream, patience, deadline).await? {
                Received::More => {}
                Received::End if body.may_end_here() => break,
                Received::End | Received::Full => return Err(Ended::Broken(libos::net::Error::Closed)),
            }
        }
        let mut tally = self.result.borrow_mut();
        tally.latency_ns.record(sent.elapsed().as_nanos() as u64);
        tally.refused += u64::from(status >= 400);
        Ok(keep_alive)
    }
}

impl Tally {
    fn count(&mut self, ended: Ended) {
        match ended {
            Ended::TooSlow => self.timeouts += 1,
            Ended::Broken(_) => self.broken += 1,
        }
    }

    fn print(&self, elapsed: Duration) {
        let latency = &self.latency_ns;
        let per_second = |count: u64| (u128::from(count) * 1000 / elapsed.as_millis().max(1)) as u64;
        let ms = |ns: u64| format!("{}.{:03} ms", ns / 1_000_000, ns / 1000 % 1000);
        println!(
            "{} requests in {}.{:03} s: {} requests/s, {} KiB/s",
            latency.count(),
            elapsed.as_secs(),
            elapsed.subsec_millis(),
            per_second(latency.count()),
            per_second(self.bytes) / 1024,
        );
        println!(
            "latency: mean {}, p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
            ms(latency.mean()),
            ms(latency.quantile(5000)),
            ms(latency.quantile(9000)),
            ms(latency.quantile(9900)),
            ms(latency.quantile(9990)),
            ms(latency.max()),
        );
        println!(
            "errors: {} status of 400 or more, {} connections refused, {} broken, {} timeouts",
            self.refused, self.connect_errors, self.broken, self.timeouts,
        );
    }
}
