//! Moves bytes as fast as it can, for measurements of throughput.
//!
//! `guest-bulk serve PORT` takes connections. The first byte of each says what it is for: with
//! `s` (sink) the server reads to the end and answers with the count, eight bytes, little endian;
//! with `r` (source) it sends until the client goes. `guest-bulk send HOST PORT SECONDS` sends to
//! such a server, and prints the bytes that came and the nanoseconds that it took.
#![no_std]
#![no_main]

use libos::net::{TcpListener, TcpStream};
use libos::prelude::*;
use libos::time::{Duration, Instant};
use libos::{env, spawn};

const PIECE: usize = 64 * 1024;

#[libos::main]
async fn main() -> Result<(), String> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is no number"));
    match args[..] {
        ["serve", port] => serve(number(port)? as u16).await,
        ["send", host, port, seconds] => {
            send(host, number(port)? as u16, Duration::from_secs(number(seconds)?)).await
        }
        _ => Err("usage: guest-bulk serve PORT | send HOST PORT SECONDS".into()),
    }
}

async fn serve(port: u16) -> Result<(), String> {
    let listener = TcpListener::bind(("::", port)).await.map_err(|error| error.to_string())?;
    println!("serving at port {port}");
    loop {
        let (stream, _) = listener.accept().await.map_err(|error| error.to_string())?;
        spawn(async move {
            // A client that goes ends its connection and nothing else.
            let _ = connection(stream).await;
        });
    }
}

async fn connection(mut stream: TcpStream) -> Result<(), libos::net::Error> {
    let mut kind = [0];
    if stream.read(&mut kind).await? == 0 {
        return Ok(());
    }
    let mut piece = vec![0; PIECE];
    if kind == *b"r" {
        loop {
            stream.write_all(&piece).await?;
        }
    }
    let mut count = 0_u64;
    loop {
        let len = stream.read(&mut piece).await?;
        if len == 0 {
            stream.write_all(&count.to_le_bytes()).await?;
            stream.shutdown();
            return Ok(());
        }
        count += len as u64;
    }
}

async fn send(host: &str, port: u16, time: Duration) -> Result<(), String> {
    let text = |error: libos::net::Error| error.to_string();
    let mut stream = TcpStream::connect((host, port)).await.map_err(text)?;
    let start = Instant::now();
    stream.write_all(b"s").await.map_err(text)?;
    let piece = vec![0; PIECE];
    while start.elapsed() < time {
        stream.write_all(&piece).await.map_err(text)?;
    }
    stream.shutdown();
    let mut count = [0; 8];
    stream.read_exact(&mut count).await.map_err(text)?;
    println!("{} {}", u64::from_le_bytes(count), start.elapsed().as_nanos());
    Ok(())
}
