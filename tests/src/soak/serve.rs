//! A web server and a store serve through moves back and forth: no request fails, no answer is
//! wrong.
//!
//! The clients are on this computer. They reach the servers through a proxy each, a capsule that
//! stays where it is: so it is the proxies' connections that are open while their other end moves.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use fcap_api::migrate::Moved;

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
    let url = format!("http://127.0.0.1:{web}/");
    let wrk = Load::start(&["wrk", "-t", "1", "-c", CONNECTIONS, "-d", "24h", "--timeout", "60", &url])?;
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
    let report = wrk.interrupt()?;
    let line = |what: &str| report.lines().map(str::trim).find(|line| line.contains(what));
    let requests = line("requests in").with_context(|| report.clone())?;
    ensure!(line("Socket errors").is_none() && line("Non-2xx").is_none(), "wrk: {report}");
    println!("wrk: {requests}; no error");
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

/// A load generator.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Load {
    fn start(words: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(Self(command.spawn().with_context(|| format!("{words:?}; `cargo xtask setup` installs it"))?))
    }

    /// Ends it; it must not have ended by itself.
    fn end_running(mut self) -> anyhow::Result<()> {
        let ended = self.0.try_wait()?;
        ensure!(ended.is_none(), "redis-benchmark ended with {ended:?}: {}", self.output()?);
        Ok(())
    }

    /// Has it end as from the keyboard, and returns its report.
    fn interrupt(mut self) -> anyhow::Result<String> {
        let status = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status()?;
        ensure!(status.success(), "it has ended before: {}", self.output()?);
        self.output()
    }

    fn output(&mut self) -> anyhow::Result<String> {
        let mut text = String::new();
        self.0.stdout.take().context("its output is a pipe")?.read_to_string(&mut text)?;
        Ok(text)
    }
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

fn read_until(stream: &mut TcpStream, mut done: impl FnMut(&[u8]) -> bool) -> anyhow::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !done(&answer) {
        let len = stream.read(&mut piece)?;
        if len == 0 {
            bail!("the connection was closed after {:?}", String::from_utf8_lossy(&answer));
        }
        answer.extend_from_slice(&piece[..len]);
    }
    Ok(answer)
}

/// The same page each time.
#[derive(Default)]
struct Pages {
    first: Option<Vec<u8>>,
}

impl Dialogue for Pages {
    fn turn(&mut self, stream: &mut TcpStream) -> anyhow::Result<()> {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")?;
        let answer = read_until(stream, |answer| answer.ends_with(b"</html>\n"))?;
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("a head")?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
        let page = answer[end..].to_vec();
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
        let answer = read_until(stream, |answer| answer.ends_with(b"\r\n"))?;
        self.last += 1;
        ensure!(answer == format!(":{}\r\n", self.last).as_bytes(), "{:?} after {}", answer, self.last - 1);
        Ok(())
    }
}
