//! Notices how it is moved, for measurements.
//!
//! `guest-move rest MIB noise|words` fills that much memory with bytes that cannot be packed, or
//! with a text, says "ready", and looks at its clocks every millisecond. When it finds itself in
//! another domain, it says how much has passed since the last time, by the wall clock (which may be
//! another one there: less than nothing may have passed) and by its own. It answers datagrams at
//! [`PORT`] if it has a network. `guest-move hold MIB noise|words` fills memory and does nothing more.
//! `guest-move ask ADDRESS` sends such a datagram every five
//! milliseconds, and says for how long no answer came. `guest-move write MIB` writes to each page
//! of that much memory every [`SWEEP`], and says how many it has done in a while. All times are in
//! nanoseconds, and the first in each line is when it was, since 1970.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::rc::Rc;
use core::{cell::Cell, future};

use libos::prelude::*;
use libos::time::{self, Duration, Instant, SystemTime};
use libos::{env, lifecycle, net, random, spawn};

const PORT: u16 = 7;
/// Shorter silences are the scheduler's.
const GAP: Duration = Duration::from_millis(10);
/// From one writing to all pages to the next.
const SWEEP: Duration = Duration::from_millis(5);
/// Bytes of a page.
const PAGE: usize = 4096;

#[libos::main]
async fn main() -> Result<(), String> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let bytes = |text: &str| match text.parse::<usize>() {
        Ok(mib) => Ok(mib << 20),
        Err(_) => Err(format!("{text:?} is no number of MiB")),
    };
    match args[..] {
        ["rest", mib, content] => rest(bytes(mib)?, content).await,
        ["hold", mib, content] => hold(bytes(mib)?, content).await,
        ["ask", address] => ask(address).await,
        ["write", mib] => write(bytes(mib)?).await,
        _ => Err("usage: guest-move rest|hold MIB noise|words | ask ADDRESS | write MIB".into()),
    }
}

/// By the wall clock, since 1970.
fn now_ns() -> u128 {
    SystemTime::now().since_epoch().as_nanos()
}

/// What memory holds that can be packed: a text of such words.
const WORDS: &str = "the capsule node request answer with from memory page which is and was sent \
    received 127.0.0.1 GET POST HTTP/1.1 200 404 OK error warning info user=alice user=bob size=4096 \
    time=12ms time=340us key value table index row column true false null 2026-11-21 12:00:00 /index.html \
    /v1/capsules content-type: text/plain application/json keep-alive cache miss hit retry timeout";

/// A few instructions for each number, so that filling memory takes no time that counts.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn fill(memory: &mut [u8], content: &str) -> Result<(), String> {
    let mut numbers = Numbers(random::u64() | 1);
    match content {
        "noise" => memory.as_chunks_mut().0.iter_mut().for_each(|word| *word = numbers.next().to_le_bytes()),
        "words" => {
            let words: Vec<&[u8]> = WORDS.split_whitespace().map(str::as_bytes).collect();
            let mut at = 0;
            while at < memory.len() {
                let word = words[numbers.next() as usize % words.len()];
                let len = word.len().min(memory.len() - at);
                memory[at..at + len].copy_from_slice(&word[..len]);
                // What lies between words is zero.
                at += len + 1;
            }
        }
        _ => return Err(format!("{content:?} is neither noise nor words")),
    }
    Ok(())
}

async fn rest(bytes: usize, content: &str) -> Result<(), String> {
    let mut memory = vec![0; bytes];
    fill(&mut memory, content)?;
    if !net::interfaces().is_empty() {
        spawn(async {
            // It ends only with an error, and then the client hears nothing more.
            let _ = answer().await;
        });
    }
    let moved = Rc::new(Cell::new(false));
    lifecycle::on_resume({
        let moved = moved.clone();
        move |place| moved.set(place != lifecycle::Where::Cancelled)
    });
    println!("ready");
    let (mut wall, mut own) = (now_ns(), Instant::now());
    let mut ticks = time::interval(Duration::from_millis(1));
    loop {
        ticks.tick().await;
        let now = (now_ns(), Instant::now());
        if moved.take() {
            let by_wall = now.0 as i128 - wall as i128;
            println!("moved {} {by_wall} {}", now.0, now.1.duration_since(own).as_nanos());
        }
        (wall, own) = now;
        // Else it is memory that nobody needs.
        core::hint::black_box(&memory);
    }
}

async fn hold(bytes: usize, content: &str) -> Result<(), String> {
    let mut memory = vec![0; bytes];
    fill(&mut memory, content)?;
    println!("ready");
    // Else it is memory that nobody needs.
    core::hint::black_box(&memory);
    future::pending().await
}

async fn answer() -> Result<(), net::Error> {
    let socket = net::UdpSocket::bind(("0.0.0.0", PORT)).await?;
    let mut datagram = [0; 64];
    loop {
        let (len, from) = socket.recv_from(&mut datagram).await?;
        // What is lost is asked again.
        let _ = socket.send_to(&datagram[..len], from).await;
    }
}

async fn ask(address: &str) -> Result<(), String> {
    let failed = |error: net::Error| error.to_string();
    let socket = Rc::new(net::UdpSocket::bind("0.0.0.0:0").await.map_err(failed)?);
    socket.connect((address, PORT)).await.map_err(failed)?;
    spawn({
        let socket = socket.clone();
        async move {
            let mut ticks = time::interval(Duration::from_millis(5));
            loop {
                ticks.tick().await;
                let _ = socket.send(b"are you there?").await;
            }
        }
    });
    let mut datagram = [0; 64];
    socket.recv(&mut datagram).await.map_err(failed)?;
    println!("ready");
    let mut last = Instant::now();
    loop {
        socket.recv(&mut datagram).await.map_err(failed)?;
        let silence = last.elapsed();
        if silence > GAP {
            println!("silence {} {}", now_ns(), silence.as_nanos());
        }
        last = Instant::now();
    }
}

async fn write(bytes: usize) -> Result<(), String> {
    let mut memory = vec![0_u8; bytes];
    // It cannot be packed, so that copying all of it takes the time that the link's rate says.
    fill(&mut memory, "noise")?;
    println!("ready");
    let mut count = 0;
    let mut began = Instant::now();
    let mut ticks = time::interval(SWEEP);
    for turn in 0_u64.. {
        ticks.tick().await;
        for page in memory.chunks_mut(PAGE) {
            // Volatile would do as well; what counts is that it is written each time.
            core::hint::black_box(page)[0] = turn as u8;
            count += 1;
        }
        let took = began.elapsed();
        if took > Duration::from_millis(50) {
            println!("pages {} {count} {}", now_ns(), took.as_nanos());
            (count, began) = (0, Instant::now());
        }
    }
    Ok(())
}
