//! Clients on this computer: load generators, and connections that must not break.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

/// Longer than any stall that is not an error.
const PATIENCE: Duration = Duration::from_secs(60);

/// A load generator.
pub struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Load {
    /// Starts any.
    pub fn start(words: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(Self(command.spawn().with_context(|| format!("{words:?}; `cargo xtask setup` installs it"))?))
    }

    /// Has wrk ask for `/` at a port of this computer, over so many connections, until it is ended.
    pub fn wrk(port: u16, connections: &str) -> anyhow::Result<Self> {
        let url = format!("http://127.0.0.1:{port}/");
        Self::start(&["wrk", "-t", "1", "-c", connections, "-d", "24h", "--timeout", "60", &url])
    }

    /// Ends it; it must not have ended by itself.
    pub fn end_running(mut self) -> anyhow::Result<()> {
        let ended = self.0.try_wait()?;
        ensure!(ended.is_none(), "it ended with {ended:?}: {}", self.output()?);
        Ok(())
    }

    /// Ends wrk, which must not have seen an error; returns what it says of its requests.
    pub fn end_wrk(mut self) -> anyhow::Result<String> {
        // As from the keyboard: it reports then.
        let status = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status()?;
        ensure!(status.success(), "wrk has ended before: {}", self.output()?);
        let report = self.output()?;
        let line = |what: &str| report.lines().map(str::trim).find(|line| line.contains(what));
        let requests = line("requests in").with_context(|| report.clone())?;
        ensure!(line("Socket errors").is_none() && line("Non-2xx").is_none(), "wrk: {report}");
        Ok(requests.to_owned())
    }

    fn output(&mut self) -> anyhow::Result<String> {
        let mut text = String::new();
        self.0.stdout.take().context("its output is a pipe")?.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// One connection to each of many web servers, over which it is asked for `/` now and then.
pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<anyhow::Result<u64>>>,
}

impl Clients {
    /// Asks the servers at these ports of this computer, with this pause after each answer.
    pub fn start(ports: &[u16], pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |&port: &u16| {
            let stop = stop.clone();
            std::thread::spawn(move || ask(port, pause, &stop))
        };
        let threads = ports.iter().map(thread).collect();
        Self { stop, threads }
    }

    /// Ends them; how many requests were answered.
    ///
    /// # Errors
    /// When one was not.
    pub fn end(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    }
}

fn ask(port: u16, pause: Duration, stop: &AtomicBool) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        page(&mut stream).with_context(|| format!("request {} at port {port}", answered + 1))?;
        answered += 1;
        std::thread::sleep(pause);
    }
    Ok(answered)
}

/// Asks for the page of `httpd`.
pub fn page(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n")?;
    let answer = read_until(stream, |answer| answer.ends_with(b"</html>\n"))?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("a head")?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
    Ok(answer[end..].to_vec())
}

/// Reads until all has come.
pub fn read_until(stream: &mut TcpStream, mut done: impl FnMut(&[u8]) -> bool) -> anyhow::Result<Vec<u8>> {
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
