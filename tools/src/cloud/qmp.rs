//! QEMU's control socket: JSON objects, one a line.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{AtPath, CloudError, Result};

/// Longest silence of QEMU that is not taken for its death.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A connection to a machine's control socket.
pub(super) struct Qmp {
    node: String,
    reader: BufReader<UnixStream>,
    /// Events that came while something else was waited for.
    events: Vec<String>,
}

impl Qmp {
    /// Connects to the socket `qmp` in the machine's folder.
    pub(super) fn connect(folder: &Path) -> Result<Self> {
        let directory = std::fs::File::open(folder).at("open", folder)?;
        // By way of a descriptor, since a socket's path may have only 107 bytes.
        let path = format!("/proc/self/fd/{}/qmp", directory.as_raw_fd());
        let stream = UnixStream::connect(path).at("connect to QEMU in", folder)?;
        stream.set_read_timeout(Some(TIMEOUT)).at("connect to QEMU in", folder)?;
        let node = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut qmp = Self { node, reader: BufReader::new(stream), events: Vec::new() };
        qmp.read("greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn failed(&self, command: &str, answer: impl ToString) -> CloudError {
        CloudError::Qmp { node: self.node.clone(), command: command.into(), answer: answer.to_string() }
    }

    fn read(&mut self, command: &str) -> Result<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err(self.failed(command, "QEMU closed the connection")),
            Ok(_) => serde_json::from_str(&line).map_err(|error| self.failed(command, error)),
            Err(error) => Err(self.failed(command, error)),
        }
    }

    /// Runs one command and returns what it returns.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.reader.get_mut().write_all(line.as_bytes()).map_err(|error| self.failed(command, error))?;
        loop {
            let mut answer = self.read(command)?;
            if let Some(event) = answer["event"].as_str() {
                let status = answer["data"]["status"].as_str().unwrap_or("");
                self.events.push(format!("{event} {status}").trim_end().to_owned());
            } else if answer.get("error").is_some() {
                return Err(self.failed(command, &answer["error"]["desc"]));
            } else {
                return Ok(answer["return"].take());
            }
        }
    }

    /// Waits for one of `wanted` (an event's name, and its status if it has one); returns which.
    pub(super) fn wait(&mut self, wanted: &[&str]) -> Result<String> {
        loop {
            if let Some(i) = self.events.iter().position(|event| wanted.contains(&&event[..])) {
                return Ok(self.events.remove(i));
            }
            let message = self.read("to go on")?;
            if let Some(event) = message["event"].as_str() {
                let status = message["data"]["status"].as_str().unwrap_or("");
                self.events.push(format!("{event} {status}").trim_end().to_owned());
            }
        }
    }
}
