//! An HTTP server: files out of an archive that is part of the image, and figures as JSON.
//!
//! ```console
//! $ fcap build --bin httpd
//! $ fcap run -p 8080:80 target/capsule/httpd
//! $ curl http://localhost:8080/
//! $ curl http://localhost:8080/api/status
//! ```
//! The files are those of the folder `www`, or of the one that `HTTPD_ROOT` names when it
//! is built. An argument is another port to listen at.
//!
//! Shows how a server keeps to bounds that its clients cannot move: a task for each
//! connection, so many of them and no more; a limit for the head of a request, for the time
//! it takes to come, and for the time a client may not read. Requests that come together
//! are answered together. What HTTP says is in `http-core`, which is tested on the host.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::rc::Rc;
use core::cell::Cell;
use fcap_examples::{Ended, Inbox, Patience, Received, Slots, close, port, write_all};
use http_core::{
    date::HttpDate,
    message::{MAX_HEAD, Request},
    server::{self, Next},
    site::Site,
    status::{Connection, Status, push_content, push_plain},
};
use libos::{
    env,
    net::{Ipv6Addr, TcpListener, TcpStream},
    prelude::*,
    process, signal, spawn,
    time::{Duration, Instant, SystemTime},
};

static ARCHIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/www.tar"));

/// Connections at a time.
const CONNECTIONS: u32 = 4096;
/// How long a connection may be without a request.
const IDLE: Duration = Duration::from_secs(60);
/// How long a request may take to come.
const REQUEST: Duration = Duration::from_secs(10);

/// What all connections share.
struct Server {
    site: Site<'static>,
    slots: Slots,
    started: Instant,
    requests: Cell<u64>,
    /// The date as answers have it, and when it has to be made anew.
    date: Cell<Option<(HttpDate, Instant)>>,
    /// A buffer that nobody uses just now.
    spare: Cell<Vec<u8>>,
}

#[libos::main]
async fn main() -> Result<(), String> {
    let port = port(env::args().nth(1), 80)?;
    let site = Site::from_tar(ARCHIVE).map_err(|error| format!("the archive is broken: {error}"))?;
    // An address, not a name: so no resolver is linked.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .await
        .map_err(|error| format!("port {port}: {error}"))?;
    println!("{} files at port {port}", site.len());
    let server = Rc::new(Server {
        site,
        slots: Slots::new(CONNECTIONS),
        started: Instant::now(),
        requests: Cell::new(0),
        date: Cell::new(None),
        spare: Cell::default(),
    });
    let watched = server.clone();
    spawn(async move {
        signal::shutdown().await;
        println!("stopped after {} requests", watched.requests.get());
        process::exit(0);
    });
    loop {
        let (stream, _) = listener.accept().await.map_err(|error| error.to_string())?;
        let server = server.clone();
        match server.slots.take() {
            Some(slot) => drop(spawn(async move {
                // Whatever ends a connection, others go on.
                let _ = serve(stream, &server).await;
                drop(slot);
            })),
            None => server.turn_away(&stream),
        }
    }
}

/// Answers the requests of one connection.
async fn serve(mut stream: TcpStream, server: &Server) -> Result<(), Ended> {
    let mut inbox = Inbox::new(MAX_HEAD);
    let mut patience = Patience::new();
    // Since when there is nothing, or a part of a request.
    let (mut since, mut partial) = (Instant::now(), false);
    loop {
        let deadline = since + if partial { REQUEST } else { IDLE };
        match inbox.receive(&mut stream, &mut patience, deadline).await {
            Ok(Received::More | Received::Full) => {}
            Ok(Received::End) => return Ok(()),
            Err(Ended::TooSlow) if partial => {
                let mut out = Vec::new();
                push_plain(&mut out, Status::REQUEST_TIMEOUT, "", &server.date(), Connection::Close, false);
                write_all(&mut stream, &mut patience, &out).await?;
                break;
            }
            Err(ended) => return Err(ended),
        }
        let (answered, next) = server.answer(&mut inbox, &mut stream, &mut patience).await?;
        if next == Next::Close {
            break;
        }
        let is_partial = !inbox.is_empty();
        if answered || is_partial != partial {
            (since, partial) = (Instant::now(), is_partial);
        }
    }
    close(stream, &mut patience).await;
    Ok(())
}

impl Server {
    /// Answers all requests that have come as a whole, and tells whether there were any, and
    /// what comes next.
    async fn answer(
        &self,
        inbox: &mut Inbox,
        stream: &mut TcpStream,
        patience: &mut Patience,
    ) -> Result<(bool, Next), Ended> {
        let mut answered = false;
        loop {
            let mut out = self.spare.take();
            let step = server::answer(inbox.bytes(), &self.date(), &mut out, |request, connection, out| {
                self.respond(request, connection, out)
            });
            answered |= step.requests > 0;
            self.requests.set(self.requests.get() + u64::from(step.requests));
            inbox.consume(step.consumed);
            write_all(stream, patience, &out).await?;
            out.clear();
            self.spare.set(out);
            write_all(stream, patience, step.body).await?;
            if step.next != Next::Again {
                return Ok((answered, step.next));
            }
        }
    }

    /// Appends the answer to a request, and returns what is to be sent after that.
    fn respond(&self, request: &Request<'_, '_>, connection: Connection, out: &mut Vec<u8>) -> &'static [u8] {
        if request.target != "/api/status" || !matches!(request.method, "GET" | "HEAD") {
            return self.site.answer(request, &self.date(), connection, out);
        }
        let status = format!(
            "{{\"uptime_seconds\":{},\"requests\":{},\"connections\":{},\"wakeups\":{}}}\n",
            self.started.elapsed().as_secs(),
            self.requests.get(),
            self.slots.taken(),
            process::wakeups(),
        );
        let headers = "Content-Type: application/json\r\nCache-Control: no-store\r\n";
        let head_only = request.method == "HEAD";
        push_content(out, Status(200), headers, status.as_bytes(), &self.date(), connection, head_only);
        &[]
    }

    /// Tells a client that there are too many, if that costs nothing.
    fn turn_away(&self, stream: &TcpStream) {
        let mut out = Vec::new();
        push_plain(&mut out, Status::UNAVAILABLE, "", &self.date(), Connection::Close, false);
        let _ = stream.try_write(&out);
    }

    /// The date of this second.
    fn date(&self) -> HttpDate {
        let now = Instant::now();
        if let Some((date, until)) = self.date.get()
            && now < until
        {
            return date;
        }
        let time = SystemTime::now().since_epoch();
        let date = HttpDate::from_unix(time.as_secs());
        let rest = Duration::from_secs(1) - Duration::from_nanos(time.subsec_nanos().into());
        self.date.set(Some((date, now + rest)));
        date
    }
}
