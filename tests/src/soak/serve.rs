//! A web server and a store serve through moves back and forth: no request fails, no answer is
//! wrong.
//!
//! The clients are on this computer. They reach the servers through a proxy each, a capsule that
//! stays where it is: so it is the proxies' connections that are open while their other end moves.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fcap_api::migrate::Moved;

use crate::load::{self, Load};
use crate::moves;
use crate::rig::Node;
use crate::stats;

/// Connections of each load generator.
const CONNECTIONS: &str = "4";
/// Longer than any stall that is not an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// Moves both so many times.
pub fn run(times: u32) -> anyhow::Result<()> {
    let [one, two] = Node::two(false)?;
    moves::start(&one, "web", &["-m", "16m"], "httpd", &[])?;
    moves::start(&one, "store", &["-m", "32m"], "kv", &[])?;
    let proxy = |name, node, to, port: &str| -> anyhow::Result<u16> {
        let capsule = moves::start(node, name, &["-p", port], "proxy", &[to, port])?;
        Ok(capsule.ports[0].host_port)
    };
    // One of them is on the node that the servers leave first, the other where they go.
    let web = proxy("web-proxy", &one, "tcp://web:80", "80")?;
    let store = proxy("store-proxy", &two, "tcp://store:6379", "6379")?;
    let wrk = Load::wrk(web, CONNECTIONS)?;
    let store_port = store.to_string();
    // For ever, silently.
    let redis =
        Load::start(&["redis-benchmark", "-p", &store_port, "-c", CONNECTIONS, "-t", "set,get", "-l", "-q"])?;
    let stop = AtomicBool::new(false);
    let (moved, watched_web, watched_store) = std::thread::scope(|scope| {
        let watched_web = scope.spawn(|| watch(&stop, web, Pages::default()));
        let watched_store = scope.spawn(|| watch(&stop, store, Counts::default()));
        let moved = back_and_forth(&one, &two, times);
        stop.store(true, Ordering::Relaxed);
        (moved, watched_web.join().expect("no panic"), watched_store.join().expect("no panic"))
    });
    let (moved, watched_web, watched_store) = (moved?, watched_web?, watched_store?);
    // It goes on for ever unless it finds an error.
    redis.end_running()?;
    println!("wrk: {}; no error", wrk.end_wrk()?);
    println!("redis-benchmark: no error");
    let downtimes: Vec<f64> = moved.iter().map(|moved| moved.downtime_ms).collect();
    println!("{}", stats::summary("downtime reported", "ms", &downtimes));
    for (what, watched) in [("httpd", watched_web), ("kv", watched_store)] {
        println!(
            "{what}: {} requests one after the other, all answered rightly; the longest took {:.1} ms",
            watched.requests,
            stats::ms(watched.longest)
        );
    }
    println!("{} moves under load: no request failed, no answer was wrong", moved.len());
    Ok(())
}

fn back_and_forth(one: &Node, two: &Node, times: u32) -> anyhow::Result<Vec<Moved>> {
    let mut all = Vec::new();
    for i in 0..times {
        let (from, to) = if i % 2 == 0 { (one, two) } else { (two, one) };
        for name in ["web", "store"] {
            let moved = moves::move_it(from, to, name).with_context(|| format!("move {}", i + 1))?;
            all.push(moved);
        }
        if (i + 1) % 10 == 0 {
            println!("{} moves of each", i + 1);
        }
    }
    Ok(all)
}

/// Requests one after the other over one connection.
trait Dialogue {
    /// Asks, and checks the answer.
    fn turn(&mut self, stream: &mut TcpStream) -> anyhow::Result<()>;
}

struct Watched {
    requests: u64,
    longest: Duration,
}

fn watch(stop: &AtomicBool, port: u16, mut dialogue: impl Dialogue) -> anyhow::Result<Watched> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut watched = Watched { requests: 0, longest: Duration::ZERO };
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        dialogue.turn(&mut stream).with_context(|| format!("request {}", watched.requests + 1))?;
        watched.requests += 1;
        watched.longest = watched.longest.max(asked.elapsed());
    }
    Ok(watched)
}

/// The same page each time.
#[derive(Default)]
struct Pages {
    first: Option<Vec<u8>>,
}

impl Dialogue for Pages {
    fn turn(&mut self, stream: &mut TcpStream) -> anyhow::Result<()> {
        let page = load::page(stream)?;
        let first = self.first.get_or_insert_with(|| page.clone());
        ensure!(*first == page, "another page: {:?}", String::from_utf8_lossy(&page));
        Ok(())
    }
}

/// A number that grows by one each time.
#[derive(Default)]
struct Counts {
    last: u64,
}

impl Dialogue for Counts {
    fn turn(&mut self, stream: &mut TcpStream) -> anyhow::Result<()> {
        stream.write_all(b"INCR watched\r\n")?;
        let answer = load::read_until(stream, |answer| answer.ends_with(b"\r\n"))?;
        self.last += 1;
        ensure!(answer == format!(":{}\r\n", self.last).as_bytes(), "{:?} after {}", answer, self.last - 1);
        Ok(())
    }
}
