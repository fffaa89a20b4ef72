//! An HTTP server made with a crate: `picoserve`, as it is published.
//!
//! ```console
//! $ fcap build --bin hello-http
//! $ fcap run -p 8080:80 target/capsule/hello-http
//! $ curl http://localhost:8080/hello/world
//! ```
//! Shows how a crate that knows nothing of the library OS is brought together with it. All
//! that is needed is said in the two traits below: how a stream is divided and closed, and
//! how time passes. Reading and writing are the traits of `embedded-io-async` on both sides.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::rc::Rc;
use libos::{
    net::{self, Ipv6Addr, ReadHalf, TcpListener, TcpStream, WriteHalf},
    prelude::*,
    spawn, time,
};
use picoserve::{
    Config, Error, Router, Server, Timeouts, Timer,
    io::{BaseWrite, ErrorType, Socket, Write},
    mem::{BorrowedBuffer, BorrowedCursor},
    routing::{get, parse_path_segment},
    time::Duration,
};

#[libos::main]
async fn main() -> Result<(), net::Error> {
    let hello = ("/hello", parse_path_segment::<String>());
    let app = Router::new()
        .route("/", get(|| async { "This is a capsule. Try /hello/world\n" }))
        .route(hello, get(|name: String| async move { format!("Hello, {name}\n") }));
    let app = Rc::new(app);
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let app = app.clone();
        spawn(async move {
            let config = Config::new(Timeouts::default()).keep_connection_alive();
            let mut buffer = vec![0; 4096];
            let server = Server::custom(&app, Clock, &config, &mut buffer);
            // Whatever ends a connection, others go on.
            let _ = server.serve(Stream(stream)).await;
        });
    }
}

/// Tells implementations for this library OS from others.
struct Libos;

/// The clock.
struct Clock;

impl Timer<Libos> for Clock {
    async fn delay(&self, duration: Duration) {
        time::sleep(time::Duration::from_millis(duration.as_millis())).await;
    }
}

/// A connection.
struct Stream(TcpStream);

impl Socket<Libos> for Stream {
    type Error = net::Error;
    type ReadHalf<'a> = ReadHalf<'a>;
    type WriteHalf<'a> = Writer<'a>;

    fn split(&mut self) -> (ReadHalf<'_>, Writer<'_>) {
        let (reader, writer) = self.0.split();
        (reader, Writer(writer))
    }

    async fn abort<T: Timer<Libos>>(self, _: &Timeouts, _: &T) -> Result<(), Error<net::Error>> {
        self.0.abort();
        Ok(())
    }

    async fn shutdown<T: Timer<Libos>>(
        mut self,
        timeouts: &Timeouts,
        timer: &T,
    ) -> Result<(), Error<net::Error>> {
        self.0.shutdown();
        // Until the client closes too: what it still sends must not break the connection.
        let mut scrap = [0; 256];
        let drain = async { while let Ok(1..) = self.0.read(&mut scrap).await {} };
        timer.run_with_timeout(timeouts.read_request, drain).await.map_err(Error::ReadTimeout)
    }
}

/// The half of a connection that is written to.
struct Writer<'a>(WriteHalf<'a>);

impl ErrorType for Writer<'_> {
    type Error = net::Error;
}

impl BaseWrite for Writer<'_> {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, net::Error> {
        self.0.write(bytes).await
    }

    async fn flush(&mut self) -> Result<(), net::Error> {
        // What was written is sent as soon as the task waits.
        Ok(())
    }
}

impl Write for Writer<'_> {
    async fn write_with<F: FnOnce(BorrowedCursor<'_>) -> R, R>(&mut self, fill: F) -> Result<R, net::Error> {
        let mut buffer = [0; 512];
        let mut buffer = BorrowedBuffer::new(&mut buffer);
        let result = fill(buffer.unfilled());
        self.0.write_all(buffer.filled()).await?;
        Ok(result)
    }
}
