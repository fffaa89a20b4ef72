//! A daemon of its own for each test, and the command line against it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

/// Longest that a test waits for something that should take milliseconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The daemon's program: named in `FCAPD_BIN`, or built beside ours.
fn fcapd() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(path) = std::env::var_os("FCAPD_BIN") {
            return path.into();
        }
        let folder = Path::new(env!("CARGO_BIN_EXE_fcap")).parent().expect("programs are in a folder");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--package", "fcap-manager", "--bin", "fcapd"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("CARGO_TARGET_DIR", folder.parent().expect("profiles are in a folder"))
            .status()
            .expect("cargo runs");
        assert!(built.success(), "fcapd does not build");
        folder.join("fcapd")
    })
}

/// A daemon with a simulated hypervisor and a folder for its files and images.
pub(crate) struct Server {
    daemon: Child,
    folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// What one call of `fcap` did.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub(crate) fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }
}

/// A program that ended, with what it wrote; one that hangs is killed.
pub(crate) fn finished(child: Child) -> Output {
    let (ended, watched) = mpsc::channel::<()>();
    let id = child.id();
    let watchdog = std::thread::spawn(move || {
        if watched.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").args(["-9", &id.to_string()]).status();
        }
    });
    let output = child.wait_with_output().expect("fcap can be waited for");
    drop(ended);
    watchdog.join().expect("the watchdog does not panic");
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// `fcap` with nothing of the user's own around it.
pub(crate) fn fcap(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fcap"));
    for variable in ["FCAP_HOST", "FCAP_TOKEN", "FCAP_CLOUD", "FCAP_PATH", "NO_COLOR"] {
        command.env_remove(variable);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(|_| Vec::new())
    }

    /// With more arguments, which may name files in the server's folder.
    pub(crate) fn start_with(arguments: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments = arguments(folder.path());
        let daemon = Command::new(fcapd())
            .args(["--simulate", "--socket", "fcapd.sock", "--state-dir", "state"])
            .args(arguments)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("fcapd starts");
        let server = Self { daemon, folder };
        wait_for("the daemon", || UnixStream::connect(server.path("fcapd.sock")).is_ok());
        server
    }

    /// Gives the node a name of its own.
    pub(crate) fn named(name: &str) -> Self {
        let server = Self::start();
        let seed = "0".repeat(64);
        let body = format!(
            r#"{{"name":"{name}","flavor":null,"token":"0123456789abcdef","seed":"{seed}","wall_time_ns":0}}"#
        );
        let mut socket = UnixStream::connect(server.path("fcapd.sock")).expect("the daemon listens");
        write!(
            socket,
            "POST /v1/node/adopt HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("a request");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        server
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.path("fcapd.sock").display())
    }

    /// An image that does what the simulator's program does; gives its path.
    pub(crate) fn image(&self, program: &str) -> String {
        let path = self.path(&program.replace(' ', "-"));
        std::fs::write(&path, format!("SIM:{program}")).expect("an image");
        path.display().to_string()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = fcap(args);
        command.env("FCAP_HOST", self.host()).current_dir(self.folder.path());
        command
    }

    pub(crate) fn call(&self, args: &[&str]) -> Output {
        finished(self.command(args).spawn().expect("fcap starts"))
    }

    pub(crate) fn call_with(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().expect("fcap starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // A program may end before it has read everything.
                let _ = stdin.write_all(input);
            });
            finished(child)
        })
    }

    /// Calls and expects success; gives standard output without the last line end.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.call(args);
        assert_eq!(output.code, 0, "fcap {args:?}: {output:?}");
        output.stdout.trim_end().to_owned()
    }

    /// Calls and expects one line on standard error with all of `words`.
    pub(crate) fn refused(&self, args: &[&str], code: i32, words: &[&str]) {
        check_refused(args, &self.call(args), code, words);
    }

    /// Everything about a capsule, or null.
    pub(crate) fn inspect(&self, capsule: &str) -> serde_json::Value {
        self.call(&["inspect", capsule]).json().get_mut(0).map_or(serde_json::Value::Null, |it| it.take())
    }

    pub(crate) fn state(&self, capsule: &str) -> String {
        self.inspect(capsule)["state"].as_str().unwrap_or("gone").to_owned()
    }
}

pub(crate) fn check_refused(args: &[&str], output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, code, "fcap {args:?}: {output:?}");
    assert_eq!(output.stderr.trim_end().lines().count(), 1, "fcap {args:?}: {output:?}");
    for word in words {
        assert!(output.stderr.contains(word), "{word:?} is missing; fcap {args:?}: {output:?}");
    }
}

/// Waits until something holds that is on its way.
pub(crate) fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first line of a program that goes on; its output stays open in the reader.
pub(crate) fn first_line(child: &mut Child) -> (String, BufReader<std::process::ChildStdout>) {
    let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line");
    (line.trim_end().to_owned(), reader)
}

/// Sends a signal by its name, as a terminal or a person would.
pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status();
    assert!(sent.is_ok_and(|status| status.success()));
}
