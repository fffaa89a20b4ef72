//! A store of keys and values in memory, which speaks the protocol of Redis.
//!
//! ```console
//! $ fcap build --bin kv
//! $ fcap run -m 64m -p 6379:6379 target/capsule/kv
//! $ redis-cli set greeting hello
//! $ redis-benchmark -t get,set -P 16
//! ```
//! An argument is another port to listen at. `redis-cli` sees what Redis would say; there
//! are strings and what belongs to them, and `kv-core/src/command.rs` lists the commands.
//!
//! Shows how a server lives with the memory it has, which cannot grow: keys, values, and
//! what connections have received and not sent yet are charged to one account. When it is
//! full, a client gets the error that Redis has for this, and others go on.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::rc::Rc;
use core::cell::RefCell;
use fcap_examples::{Ended, Patience, Slots, close, port, write_all};
use kv_core::{
    command::{Figures, Flow, execute},
    memory::{Buffer, Memory, SMALL},
    reply,
    request::Parser,
    store::Store,
};
use libos::{
    env,
    net::{Ipv6Addr, TcpListener, TcpStream},
    prelude::*,
    random, spawn,
    time::{Duration, Instant},
};

/// Connections at a time.
const CONNECTIONS: u32 = 4096;
/// How long a connection may be without a command.
const IDLE: Duration = Duration::from_secs(600);
/// How long the next bytes of a command may take.
const COMMAND: Duration = Duration::from_secs(30);
/// When so many bytes of answers have come together, they are sent before the next command.
const BATCH: usize = 32 * 1024;
/// Of the heap, in eighths, what the account has. The network may take as much, and what
/// is left is for what is small and not charged.
const SHARE: usize = 3;

/// What all connections share.
struct Server {
    memory: Memory,
    slots: Slots,
    started: Instant,
    /// The store, and commands so far.
    store: RefCell<(Store, u64)>,
}

#[libos::main]
async fn main() -> Result<(), String> {
    let port = port(env::args().nth(1), 6379)?;
    let memory = Memory::new(free_heap() / 8 * SHARE);
    // An address, not a name: so no resolver is linked.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .await
        .map_err(|error| format!("port {port}: {error}"))?;
    println!("{} KiB for keys and values at port {port}", memory.limit() / 1024);
    let server = Rc::new(Server {
        slots: Slots::new(CONNECTIONS),
        started: Instant::now(),
        store: RefCell::new((Store::new(&memory, (random::u64(), random::u64())), 0)),
        memory,
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
            None => {
                let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
            }
        }
    }
}

/// Does what one client says.
async fn serve(mut stream: TcpStream, server: &Server) -> Result<(), Ended> {
    let mut patience = Patience::new();
    // A command may be as large as all memory: whether there is room for it is another question.
    let mut parser = Parser::new(server.memory.limit());
    let mut inbox = Buffer::new(&server.memory);
    let mut out = Buffer::new(&server.memory);
    loop {
        // As much again as has come already: to announce a large command costs no memory.
        let len = inbox.bytes().len();
        let more = parser.missing(inbox.bytes()).min(len.max(SMALL - len));
        let Ok(room) = inbox.reserve(more) else {
            write_all(&mut stream, &mut patience, b"-OOM no room in memory for the command\r\n").await?;
            break;
        };
        let deadline = Instant::now() + if len == 0 { IDLE } else { COMMAND };
        let count = patience.until(deadline, stream.read(room)).await??;
        if count == 0 {
            return Ok(());
        }
        inbox.advance(count);
        // All commands that are there, one after the other.
        let mut next = Next::Again;
        while next == Next::Again {
            next = server.execute(&mut parser, &mut inbox, &mut out);
            write_all(&mut stream, &mut patience, out.bytes()).await?;
            out.consume(out.bytes().len());
        }
        if next == Next::Close {
            break;
        }
    }
    close(stream, &mut patience).await;
    Ok(())
}

/// What comes after what is to be sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Read more.
    Read,
    /// Look at the rest of what was received.
    Again,
    /// End the connection.
    Close,
}

impl Server {
    /// Executes the commands that have come as a whole, until there are many answers.
    fn execute(&self, parser: &mut Parser, inbox: &mut Buffer, out: &mut Buffer) -> Next {
        let (store, commands) = &mut *self.store.borrow_mut();
        let uptime = self.started.elapsed();
        store.advance(uptime.as_millis() as u64);
        let mut done = 0;
        let next = loop {
            if out.bytes().len() >= BATCH {
                break Next::Again;
            }
            match parser.parse(&inbox.bytes()[done..]) {
                Ok(None) => break Next::Read,
                Ok(Some(command)) => {
                    done += command.len;
                    *commands += 1;
                    let figures = Figures {
                        commands: *commands,
                        clients: self.slots.taken(),
                        uptime: uptime.as_secs(),
                    };
                    if execute(store, &figures, command, out) == Flow::Quit {
                        break Next::Close;
                    }
                }
                Err(error) => {
                    reply::error(out, &format!("ERR {error}"));
                    break Next::Close;
                }
            }
        };
        inbox.consume(done);
        next
    }
}

/// Bytes of the heap that are free, to an eighth. It is one piece when the program starts.
fn free_heap() -> usize {
    let mut size: usize = 2 << 30;
    while Vec::<u8>::new().try_reserve_exact(size).is_err() {
        size -= size / 8;
    }
    size
}
