//! QEMU's control channel: JSON objects, one a line.
//!
//! The channel of a start is a pair of sockets, one of which QEMU gets as its standard input:
//! there is no path to wait for, and its end is QEMU's end. Later, whoever wants something of the
//! machine connects to its socket `qmp`, which serves one at a time.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{AtPath, CloudError, Result};

/// Longest silence of QEMU that is not taken for its death.
const TIMEOUT: Duration = Duration::from_secs(120);

/// One end of the channel.
pub(super) struct Qmp {
    node: String,
    reader: BufReader<UnixStream>,
    /// Events that came while something else was waited for.
    events: Vec<String>,
}

impl Qmp {
    /// Makes a channel; returns our end, and the one to give to QEMU.
    pub(super) fn pair(node: &str) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(TIMEOUT))?;
        Ok((Self { node: node.into(), reader: BufReader::new(ours), events: Vec::new() }, theirs))
    }

    /// Connects to the control socket of a machine that runs.
    pub(super) fn connect(node: &str, socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).at("connect to", socket)?;
        stream.set_read_timeout(Some(TIMEOUT)).at("use", socket)?;
        let mut qmp = Self { node: node.into(), reader: BufReader::new(stream), events: Vec::new() };
        qmp.greet()?;
        Ok(qmp)
    }

    /// Waits for QEMU's greeting, and for permission to give commands.
    pub(super) fn greet(&mut self) -> Result<()> {
        self.read("greeting")?;
        self.execute("qmp_capabilities", json!({})).map(drop)
    }

    fn failed(&self, command: &str, answer: impl ToString) -> CloudError {
        CloudError::Qmp { node: self.node.clone(), command: command.into(), answer: answer.to_string() }
    }

    fn read(&mut self, command: &str) -> Result<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Err(self.failed(command, "it closed the connection")),
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
            if let Some(event) = event(&answer) {
                self.events.push(event);
            } else if answer.get("error").is_some() {
                return Err(self.failed(command, &answer["error"]["desc"]));
            } else {
                return Ok(answer["return"].take());
            }
        }
    }

    /// Runs one command of the monitor for people, and returns what it says.
    pub(super) fn monitor(&mut self, line: &str) -> Result<String> {
        let answer = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Waits for one of `wanted` (an event's name, and its status if it has one); returns which.
    pub(super) fn wait(&mut self, wanted: &[&str]) -> Result<String> {
        loop {
            if let Some(i) = self.events.iter().position(|event| wanted.contains(&&event[..])) {
                return Ok(self.events.remove(i));
            }
            let message = self.read("to go on")?;
            self.events.extend(event(&message));
        }
    }
}

/// An event's name, and its status if it has one.
fn event(message: &Value) -> Option<String> {
    let event = message["event"].as_str()?;
    let status = message["data"]["status"].as_str().unwrap_or("");
    Some(format!("{event} {status}").trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_between_command_and_answer_are_kept() {
        let (mut qmp, mut theirs) = Qmp::pair("n").unwrap();
        let answers = [
            r#"{"QMP": {}}"#,
            r#"{"return": {}}"#,
            r#"{"event": "STOP"}"#,
            r#"{"event": "MIGRATION", "data": {"status": "completed"}}"#,
            r#"{"return": 7}"#,
            r#"{"error": {"desc": "no"}}"#,
        ];
        theirs.write_all((answers.join("\n") + "\n").as_bytes()).unwrap();
        qmp.greet().unwrap();
        assert_eq!(qmp.execute("seven", json!({})).unwrap(), 7);
        assert_eq!(qmp.wait(&["MIGRATION failed", "MIGRATION completed"]).unwrap(), "MIGRATION completed");
        assert!(qmp.execute("x", json!({})).unwrap_err().to_string().contains("no"));
        drop(theirs);
        assert!(qmp.wait(&["STOP"]).is_ok());
        assert!(qmp.wait(&["STOP"]).is_err());
    }
}
