//! Measures inside dom0, so that both toolstacks are timed by the same clock on the same side.
//!
//! `fcap-probe run SOCKET REQUEST_JSON MARKER` sends `POST /v1/run` to fcapd and prints the
//! milliseconds until MARKER is in the answer. `fcap-probe exec MARKER COMMAND [ARGUMENT...]`
//! starts a command and prints the milliseconds until MARKER is in its output; the command is
//! then ended. Both read until the peer closes or two minutes have passed. Standard library
//! only: it is copied into the node as it is.

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let elapsed = match &args[..] {
        ["run", socket, body, marker] => run(socket, body, marker)?,
        ["exec", marker, program, rest @ ..] => exec(marker, program, rest)?,
        _ => return Err("usage: fcap-probe run SOCKET REQUEST_JSON MARKER | exec MARKER COMMAND...".into()),
    };
    println!("{:.3}", elapsed.as_secs_f64() * 1e3);
    Ok(())
}

fn run(socket: &str, body: &str, marker: &str) -> Result<Duration, Box<dyn Error>> {
    let start = Instant::now();
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(
        stream,
        "POST /v1/run HTTP/1.1\r\nhost: node\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
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
