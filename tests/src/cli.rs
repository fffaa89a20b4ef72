//! Runs the built `fcap` against one server, as a user would.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The source tree.
pub fn tree() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// An image that `cargo xtask build` has made: an example or a guest of the tests.
pub fn image(name: &str) -> PathBuf {
    let path = tree().join("target/capsule").join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask build`", path.display());
    path
}

/// Where the built `fcap` is.
pub fn fcap_path() -> PathBuf {
    std::env::var_os("FCAP_BIN").map_or_else(|| tree().join("target/release/fcap"), PathBuf::from)
}

/// The built `fcap`, which finds its server by itself.
pub fn fcap_command(args: &[&str]) -> Command {
    let mut command = Command::new(fcap_path());
    command.args(args);
    command
}

/// `fcap` with a server to talk to.
#[derive(Clone, Debug)]
pub struct Fcap {
    /// For `--host`.
    pub host: String,
    /// For `FCAP_TOKEN`.
    pub token: String,
}

/// What one call of `fcap` did.
#[derive(Debug)]
pub struct Output {
    /// The exit code.
    pub code: i32,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: String,
}

impl Output {
    /// Standard output as text, without white space around it.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("standard output is text").trim()
    }

    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

impl Fcap {
    /// The command, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = fcap_command(args);
        command.env("FCAP_HOST", &self.host).env("FCAP_TOKEN", &self.token);
        command
    }

    /// Runs it to its end, with nothing on standard input.
    pub fn call(&self, args: &[&str]) -> Output {
        self.call_with(args, b"")
    }

    /// Runs it to its end with `input` on standard input.
    pub fn call_with(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.spawn(args);
        let mut stdin = child.stdin.take().expect("standard input is a pipe");
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                // A program may well end before it has read everything.
                let _ = stdin.write_all(input);
            });
            child.wait_with_output().expect("fcap can be waited for")
        });
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs it and expects success.
    pub fn ok(&self, args: &[&str]) -> Output {
        let output = self.call(args);
        assert_eq!(output.code, 0, "fcap {args:?}: {output:?}");
        output
    }

    /// Runs it and expects failure with one line on standard error that has all of `words`.
    pub fn refused(&self, args: &[&str], code: i32, words: &[&str]) {
        let output = self.call(args);
        assert_eq!(output.code, code, "fcap {args:?}: {output:?}");
        assert_eq!(output.stderr.trim_end().lines().count(), 1, "fcap {args:?}: {output:?}");
        for word in words {
            assert!(output.stderr.contains(word), "{word:?} is missing; fcap {args:?}: {output:?}");
        }
    }

    /// Starts it with all three streams piped.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("target/release/fcap is there: run `cargo xtask build`")
    }
}
