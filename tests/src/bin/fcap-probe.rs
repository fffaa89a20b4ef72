//! Measures inside dom0, so that both toolstacks are timed by the same clock on the same side.
//!
//! `fcap-probe run SOCKET REQUEST_JSON MARKER` sends `POST /v1/run` to fcapd and prints the
//! milliseconds until MARKER is in the answer. `fcap-probe exec MARKER COMMAND [ARGUMENT...]`
//! starts a command and prints the milliseconds until MARKER is in its output; the command is
//! then ended. Both read until the peer closes or two minutes have passed.
//!
//! `fcap-probe create-http SOCKET REQUEST_JSON` sends `POST /v1/capsules` and prints the
//! milliseconds until the new capsule has answered a first HTTP request; `fcap-probe exec-http
//! ADDRESS COMMAND [ARGUMENT...]` does the same for a command that starts a guest with that
//! address. `fcap-probe send|receive ADDRESS:PORT SECONDS` moves bytes to or from `guest-bulk`
//! and prints Mbit/s. Standard library only: it is copied into the node as it is.
//!
//! `fcap-probe pipe ADDRESS:PORT` connects its standard input and output to a server; `fcap-probe
//! serve PORT COMMAND [ARGUMENT...]` is one for a single connection, on which the command runs.
//! `fcap-probe drain PORT` reads a single connection to its end, and `fcap-probe pour
//! ADDRESS:PORT MIB` fills it with that much and prints the seconds until all of it was read.
//!
//! `fcap-probe link ADDRESS:PORT ADDRESS:PORT cut|stall|flip BYTES` listens at the first address
//! and passes what comes on to the second; the first connection is cut, stands still, or has a
//! bit flipped once so many bytes have gone through.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);
/// Longest wait for a guest that may not be there yet: its kernel would wait a second before it
/// asks again.
const TRY: Duration = Duration::from_millis(20);
/// How long a link stands still, longer than anybody waits for it, before it is cut.
const STALL: Duration = Duration::from_secs(15);
/// Bytes moved at a time.
const PIECE: usize = 128 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match &args[..] {
        ["pipe", address] => return pipe(address.parse()?),
        ["serve", port, program, rest @ ..] => return serve(port.parse()?, program, rest),
        ["drain", port] => return drain(port.parse()?),
        ["link", from, to, fault, bytes] => return link(from.parse()?, to.parse()?, fault, bytes.parse()?),
        _ => {}
    }
    let figure = match &args[..] {
        ["pour", address, mib] => pour(address.parse()?, mib.parse()?)?,
        ["run", socket, body, marker] => ms(run(socket, body, marker)?),
        ["exec", marker, program, rest @ ..] => ms(exec(marker, program, rest)?),
        ["create-http", socket, body] => ms(create_http(socket, body)?),
        ["exec-http", address, program, rest @ ..] => ms(exec_http(address.parse()?, program, rest)?),
        ["send", address, seconds] => send(address.parse()?, Duration::from_secs(seconds.parse()?))?,
        ["receive", address, seconds] => receive(address.parse()?, Duration::from_secs(seconds.parse()?))?,
        _ => return Err("fcap-probe: what it does is in the head of its source".into()),
    };
    println!("{figure:.3}");
    Ok(())
}

fn accept(port: u16) -> std::io::Result<TcpStream> {
    Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?.accept()?.0)
}

fn pipe(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut to = stream.try_clone()?;
    // Ends with the process: what the server says last is the end.
    std::thread::spawn(move || copy(&mut std::io::stdin(), &mut to));
    copy(&mut &stream, &mut std::io::stdout())?;
    Ok(())
}

/// In larger pieces than the library does.
fn copy(from: &mut dyn Read, to: &mut dyn Write) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            len => {
                to.write_all(&piece[..len])?;
                to.flush()?;
            }
        }
    }
}

fn serve(port: u16, program: &str, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let stream = OwnedFd::from(accept(port)?);
    let (input, output) = (Stdio::from(stream.try_clone()?), Stdio::from(stream));
    Command::new(program).args(arguments).stdin(input).stdout(output).status()?;
    Ok(())
}

fn drain(port: u16) -> Result<(), Box<dyn Error>> {
    let mut stream = accept(port)?;
    let mut piece = vec![0; PIECE];
    while stream.read(&mut piece)? > 0 {}
    stream.write_all(&[0])?;
    Ok(())
}

fn pour(address: SocketAddr, mib: usize) -> Result<f64, Box<dyn Error>> {
    let mut stream = TcpStream::connect(address)?;
    let piece = vec![0x5a; PIECE];
    let start = Instant::now();
    for _ in 0..(mib << 20) / PIECE {
        stream.write_all(&piece)?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(start.elapsed().as_secs_f64())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Sends a request to fcapd.
fn post(socket: &str, path: &str, body: &str) -> Result<UnixStream, Box<dyn Error>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: node\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(stream)
}

fn run(socket: &str, body: &str, marker: &str) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    let mut stream = post(socket, "/v1/run", body)?;
    let elapsed = time_to(&mut stream, marker, start)?;
    // To the end of the answer, so that the capsule is gone before the next one.
    std::io::copy(&mut stream, &mut std::io::sink())?;
    Ok(elapsed)
}

fn exec(marker: &str, program: &str, args: &[&str]) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    // Standard input stays open: a console client would leave at its end.
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().ok_or("no standard output")?;
    let elapsed = time_to(&mut stdout, marker, start);
    child.kill()?;
    child.wait()?;
    elapsed
}

fn time_to(source: &mut impl Read, marker: &str, start: Instant) -> Result<Duration, Box<dyn Error>> {
    let mut seen = Vec::new();
    let mut piece = [0; 4096];
    while start.elapsed() < LIMIT {
        let len = source.read(&mut piece)?;
        if len == 0 {
            break;
        }
        seen.extend_from_slice(&piece[..len]);
        if seen.windows(marker.len()).any(|window| window == marker.as_bytes()) {
            return Ok(start.elapsed());
        }
    }
    Err(format!("{marker:?} did not come; this did: {:?}", String::from_utf8_lossy(&seen)).into())
}

fn create_http(socket: &str, body: &str) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    let mut answer = String::new();
    post(socket, "/v1/capsules", body)?.read_to_string(&mut answer)?;
    // The one field that is of interest; a parser of JSON would be more than all the rest.
    let (_, rest) = answer.split_once("\"ipv4\":\"").ok_or_else(|| format!("no address in {answer}"))?;
    let address = rest.split('"').next().unwrap_or_default().parse()?;
    first_answer(address)?;
    Ok(start.elapsed())
}

fn exec_http(address: Ipv4Addr, program: &str, args: &[&str]) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    let mut child = Command::new(program).args(args).stdin(Stdio::null()).spawn()?;
    first_answer(address)?;
    let elapsed = start.elapsed();
    child.wait()?;
    Ok(elapsed)
}

/// Asks for the root page until the first answer.
fn first_answer(address: Ipv4Addr) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        let Ok(mut stream) = TcpStream::connect_timeout(&SocketAddr::from((address, 80)), TRY) else {
            continue;
        };
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: guest\r\nconnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        if answer.starts_with(b"HTTP/1.1 200") {
            return Ok(());
        }
        return Err(format!("it answered {:?}", String::from_utf8_lossy(&answer)).into());
    }
    Err("no answer in two minutes".into())
}

fn send(address: SocketAddr, time: Duration) -> Result<f64, Box<dyn Error>> {
    let mut stream = TcpStream::connect(address)?;
    let start = Instant::now();
    stream.write_all(b"s")?;
    let piece = vec![0; PIECE];
    while start.elapsed() < time {
        stream.write_all(&piece)?;
    }
    stream.shutdown(Shutdown::Write)?;
    // The server's own count, once it has all.
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    Ok(mbit(u64::from_le_bytes(count), start.elapsed()))
}

fn receive(address: SocketAddr, time: Duration) -> Result<f64, Box<dyn Error>> {
    let mut stream = TcpStream::connect(address)?;
    let start = Instant::now();
    stream.write_all(b"r")?;
    let mut piece = vec![0; PIECE];
    let mut count = 0;
    while start.elapsed() < time {
        let len = stream.read(&mut piece)?;
        if len == 0 {
            return Err("the server ended the connection".into());
        }
        count += len as u64;
    }
    Ok(mbit(count, start.elapsed()))
}

/// Passes connections on, the first one with a fault; for ever.
fn link(from: SocketAddr, to: SocketAddr, fault: &str, bytes: usize) -> Result<(), Box<dyn Error>> {
    let fault = match fault {
        "cut" => Fault::Cut,
        "stall" => Fault::Stall,
        "flip" => Fault::Flip,
        _ => return Err("a link can be cut, stall, or flip a bit".into()),
    };
    let mut fault = Some((fault, bytes));
    let listener = TcpListener::bind(from)?;
    println!("ready");
    for near in listener.incoming() {
        let near = near?;
        let Ok(far) = TcpStream::connect(to) else { continue };
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (near_too, far_too) = (near.try_clone()?, far.try_clone()?);
        let fault = fault.take();
        std::thread::spawn(move || pass(near, far, fault));
        std::thread::spawn(move || pass(far_too, near_too, None));
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Fault {
    Cut,
    Stall,
    Flip,
}

/// Passes bytes in one direction, until an end or a fault.
fn pass(mut from: TcpStream, mut to: TcpStream, fault: Option<(Fault, usize)>) {
    let mut piece = vec![0; PIECE];
    let mut passed = 0;
    while let Ok(len @ 1..) = from.read(&mut piece) {
        let bytes = &mut piece[..len];
        if let Some((fault, at)) = fault
            && (passed..passed + len).contains(&at)
        {
            match fault {
                Fault::Cut => break,
                Fault::Flip => bytes[at - passed] ^= 1,
                Fault::Stall => {
                    std::thread::sleep(STALL);
                    break;
                }
            }
        }
        passed += len;
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

fn mbit(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / 1e6 / time.as_secs_f64()
}
