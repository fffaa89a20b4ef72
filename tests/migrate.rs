//! Capsules that move between nodes, into files and out of them, as users have it.
//!
//! The tests share one cloud of two nodes and run one after the other; those that need another
//! hypervisor, or another time of day, have a cloud of their own.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use fcap_api::{Capsule, State};
use fcap_tests::cli;
use fcap_tests::moves::{self, Diary, find, is_well, nothing_left, start};
use fcap_tests::rig::{self, Node, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A sentence of httpd's root page.
const PAGE: &str = "<title>";
/// So slow that a move is still under way when something happens to it.
const SLOWLY: &str = "1m";

/// The nodes, for one test at a time.
struct Turn {
    here: &'static Node,
    there: &'static Node,
    _turn: MutexGuard<'static, ()>,
}

fn turn() -> Turn {
    let (turn, [here, there]) = Node::shared_two();
    for node in [here, there] {
        moves::answers(node).unwrap();
        moves::clear(node).unwrap();
    }
    for node in [here, there] {
        nothing_left(node).unwrap();
    }
    Turn { here, there, _turn: turn }
}

impl Turn {
    /// Runs `fcap` as users of a local cloud do.
    fn fcap(&self, args: &[&str]) -> cli::Output {
        let output = self.here.cloud_fcap(args).stdin(Stdio::null()).output().expect("fcap is built");
        cli::Output {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn ok(&self, args: &[&str]) -> cli::Output {
        let output = self.fcap(args);
        assert_eq!(output.code, 0, "fcap {args:?}: {output:?}");
        output
    }

    /// Expects failure with all of these words in what is said.
    fn refused(&self, args: &[&str], words: &[&str]) {
        let output = self.fcap(args);
        assert_ne!(output.code, 0, "fcap {args:?}: {output:?}");
        for word in words {
            assert!(output.stderr.contains(word), "{word:?} is missing; fcap {args:?}: {output:?}");
        }
    }

    /// Runs a shell's line, in which `fcap` is the one for this cloud.
    fn shell(&self, script: &str) -> cli::Output {
        let fcap = self.here.cloud_fcap(&[]);
        let mut shell = std::process::Command::new("bash");
        shell.args(["-c", &format!("set -o pipefail; {script}")]);
        shell.env("FCAP", fcap.get_program());
        for (name, value) in fcap.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        let output = shell.stdin(Stdio::null()).output().expect("there is a shell");
        cli::Output {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn is_here(&self, name: &str) -> Capsule {
        runs_only(self.here, self.there, name)
    }

    fn is_there(&self, name: &str) -> Capsule {
        runs_only(self.there, self.here, name)
    }

    /// Begins a slow move of a capsule from here to there, and returns once its memory is on the
    /// way.
    fn slow_move(&self, name: &str) -> Slow {
        let mut command = self.here.cloud_fcap(&["migrate", "--rate", SLOWLY, name, self.there.name()]);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("tracked by") {
            let len = errors.read_line(&mut said).unwrap();
            assert!(len > 0, "the move has not begun: {said}");
        }
        Slow { child, errors, said }
    }
}

/// A move under way.
struct Slow {
    child: Child,
    errors: BufReader<std::process::ChildStderr>,
    said: String,
}

impl Slow {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end: exit code and what it has complained about.
    fn end(mut self) -> (i32, String) {
        self.errors.read_to_string(&mut self.said).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), self.said)
    }
}

/// The capsule, which runs on the first node, while the second has nothing of it.
fn runs_only(on: &Node, not_on: &Node, name: &str) -> Capsule {
    assert!(find(not_on, name).unwrap().is_none(), "{} has {name}", not_on.name());
    let capsule = find(on, name).unwrap().unwrap_or_else(|| panic!("{} has no {name}", on.name()));
    assert_eq!(capsule.state, State::Running, "{capsule:?}");
    capsule
}

/// What is checked after every failed move.
fn stayed(t: &Turn, name: &str) {
    nothing_left(t.there).unwrap();
    t.is_here(name);
    is_well(t.here, name).unwrap();
    // And the next one works.
    t.ok(&["migrate", "-q", name, t.there.name()]);
    t.is_there(name);
    nothing_left(t.here).unwrap();
    is_well(t.there, name).unwrap();
    Diary::read(t.there, name).check().unwrap();
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is published");
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Asks for the root page over a connection that stays open.
fn get(stream: &mut TcpStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("</html>") {
        let mut piece = [0; 4096];
        let len = stream.read(&mut piece).expect("an answer comes");
        assert!(len > 0, "the connection was closed after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..len]);
    }
    assert!(String::from_utf8_lossy(&answer).contains(PAGE));
}

/// Gives the store commands, each of which has one line of answer.
fn ask_store(stream: &mut TcpStream, command: &str) -> String {
    stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).expect("an answer comes");
        answer.push(byte[0]);
    }
    String::from_utf8_lossy(&answer).trim().to_owned()
}

fn guest_suspend(node: &Node, name: &str) -> Capsule {
    let capsule = start(node, name, &["-m", "16m"], "guest-suspend", &["4", "20"]).unwrap();
    // From its first look at all its memory on it is in full swing.
    wait_until("it runs", || Ok(Diary::read(node, name).saying("turn ").count() > 0)).unwrap();
    capsule
}

#[test]
fn a_server_moves_with_its_connections_its_addresses_its_port_and_its_image() {
    let t = turn();
    // Clients that stay where they are while the server moves.
    let httpd = start(t.here, "web", &["-p", "80"], "httpd", &[]).unwrap();
    let proxy = start(t.here, "proxy", &["-p", "80"], "proxy", &["tcp://web:80"]).unwrap();
    let mut through = connect(proxy.ports[0].host_port);
    get(&mut through);
    for (to, on, not_on) in [(t.there, t.there, t.here), (t.here, t.here, t.there)] {
        let said = t.ok(&["migrate", "web", to.name()]);
        assert!(said.text().contains("of downtime"), "{said:?}");
        let moved = runs_only(on, not_on, "web");
        assert_eq!((moved.networks.clone(), &moved.ports), (httpd.networks.clone(), &httpd.ports));
        get(&mut through);
        get(&mut connect(httpd.ports[0].host_port));
        get(&mut connect(proxy.ports[0].host_port));
    }
    // Its image has gone with it: it can be started again.
    t.ok(&["migrate", "-q", "web", t.there.name()]);
    t.ok(&["restart", "web"]);
    t.is_there("web");
    wait_until("it serves again", || Ok(TcpStream::connect(("127.0.0.1", httpd.ports[0].host_port)).is_ok()))
        .unwrap();
    get(&mut connect(httpd.ports[0].host_port));
}

#[test]
fn a_store_moves_with_what_it_holds() {
    let t = turn();
    start(t.here, "store", &["-m", "64m"], "kv", &[]).unwrap();
    let proxy = start(t.here, "proxy", &["-p", "6379"], "proxy", &["tcp://store:6379", "6379"]).unwrap();
    let mut stream = connect(proxy.ports[0].host_port);
    for i in 0..200 {
        assert_eq!(ask_store(&mut stream, &format!("SET key{i} {}", i * i)), "+OK");
    }
    t.ok(&["migrate", "-q", "store", t.there.name()]);
    t.is_there("store");
    assert_eq!(ask_store(&mut stream, "DBSIZE"), ":200");
    for i in 0..200 {
        assert_eq!(ask_store(&mut stream, &format!("INCR key{i}")), format!(":{}", i * i + 1));
    }
}

#[test]
fn memory_clocks_and_log_are_whole_after_moves_of_every_kind() {
    let t = turn();
    guest_suspend(t.here, "guest");
    let kinds: [&[&str]; 6] = [
        &[],
        &["--stop-copy"],
        &["--max-rounds", "1"],
        &["--max-downtime", "5000"],
        &["--dirty", "guest"],
        &["--rate", "20m", "--json"],
    ];
    for (i, kind) in kinds.into_iter().enumerate() {
        let (from, to) = if i % 2 == 0 { (t.here, t.there) } else { (t.there, t.here) };
        let said = t.ok(&[&["migrate"], kind, &["guest", to.name()]].concat());
        if kind.contains(&"--json") {
            assert!(said.text().lines().last().unwrap().contains("\"downtime_ms\""), "{said:?}");
        }
        runs_only(to, from, "guest");
        nothing_left(from).unwrap();
        is_well(to, "guest").unwrap();
    }
    let diary = Diary::read(t.here, "guest");
    diary.check().unwrap();
    assert_eq!(diary.saying("suspend Migrate").count(), kinds.len());
    assert_eq!(diary.saying("resume").count(), kinds.len());
}

#[test]
fn a_clock_goes_on_where_the_time_of_day_is_hours_ahead() {
    // Of its own: their clocks stay apart, and time of day must not go back for others' guests.
    let [here, there] = Node::two(false).unwrap();
    there.sh("date -s @$(($(date +%s) + 7200))").unwrap();
    let begun = Instant::now();
    guest_suspend(&here, "guest");
    here.cloud_ok(&["migrate", "-q", "guest", there.name()]).unwrap();
    runs_only(&there, &here, "guest");
    is_well(&there, "guest").unwrap();
    let diary = Diary::read(&there, "guest");
    diary.check().unwrap();
    let clocks = diary.clocks();
    let ((_, day_first), (since_start, day_last)) = (clocks[0], clocks[clocks.len() - 1]);
    assert!(day_last - day_first > Duration::from_secs(7000), "it does not see the other clock: {clocks:?}");
    assert!(since_start <= begun.elapsed(), "its clock has run ahead: {clocks:?}");
}

#[test]
fn copies_follow_each_other_at_once() {
    let t = turn();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guest.fcap");
    guest_suspend(t.here, "guest");
    for i in 0..4 {
        let (from, to) = if i % 2 == 0 { (t.here, t.there) } else { (t.there, t.here) };
        // Most pages are not written in between: what one copy was told, the next must not miss.
        t.ok(&["checkpoint", "guest", file.to_str().unwrap()]);
        t.ok(&["migrate", "-q", "guest", to.name()]);
        t.ok(&["checkpoint", "guest", file.to_str().unwrap()]);
        runs_only(to, from, "guest");
        is_well(to, "guest").unwrap();
    }
    Diary::read(t.here, "guest").check().unwrap();
}

#[test]
fn several_capsules_move_at_once() {
    let t = turn();
    for name in ["one", "two", "three"] {
        guest_suspend(t.here, name);
    }
    let said = t.ok(&["migrate", "-q", "one", "two", "three", t.there.name()]);
    assert_eq!(said.text().lines().count(), 3, "{said:?}");
    for name in ["one", "two", "three"] {
        t.is_there(name);
        is_well(t.there, name).unwrap();
        Diary::read(t.there, name).check().unwrap();
    }
    nothing_left(t.here).unwrap();
}

#[test]
fn the_memory_of_a_capsule_that_has_moved_is_there_for_the_next_one() {
    let t = turn();
    let free = |node: &Node| node.api().node().unwrap().free_memory_kib;
    let most = format!("{}k", free(t.here).min(free(t.there)) - 8192);
    start(t.here, "first", &["-m", &most], "clock", &[]).unwrap();
    moves::move_it(t.here, t.there, "first").unwrap();
    start(t.here, "second", &["-m", &most], "clock", &[]).unwrap();
    t.ok(&["rm", "-f", "first", "second"]);
    nothing_left(t.here).unwrap();
    nothing_left(t.there).unwrap();
}

#[test]
fn what_xenstore_knows_of_a_domain_that_is_gone_goes_with_the_next_daemon() {
    let t = turn();
    t.here.sh("xenstore-write /local/domain/30000/name gone && kill -9 $(pidof fcapd)").unwrap();
    moves::answers(t.here).unwrap();
    nothing_left(t.here).unwrap();
}

#[test]
fn a_dry_run_asks_the_destination_and_moves_nothing() {
    let t = turn();
    guest_suspend(t.here, "guest");
    let said = t.ok(&["migrate", "--dry-run", "guest", t.there.name()]);
    assert!(said.text().contains("can move"), "{said:?}");
    nothing_left(t.there).unwrap();
    start(t.there, "guest2", &[], "clock", &[]).unwrap();
    t.ok(&["rename", "guest2", "other"]);
    t.refused(&["migrate", "--dry-run", "nobody", t.there.name()], &["nobody"]);
    t.refused(&["migrate", "--dry-run", "guest", "nowhere"], &["nowhere", t.there.name()]);
    t.refused(&["migrate", "--dry-run", "guest", t.here.name()], &["already"]);
    t.ok(&["rm", "-f", "other"]);
    stayed(&t, "guest");
}

#[test]
fn an_interrupted_move_leaves_the_capsule_where_it_was() {
    let t = turn();
    guest_suspend(t.here, "guest");
    let slow = t.slow_move("guest");
    slow.signal(Signal::SIGINT);
    let (code, said) = slow.end();
    assert_ne!(code, 0, "{said}");
    assert!(said.contains("interrupted"), "{said}");
    stayed(&t, "guest");
}

#[test]
fn a_capsule_killed_in_the_midst_of_a_move_is_gone_and_nothing_is_left() {
    let t = turn();
    guest_suspend(t.here, "guest");
    let slow = t.slow_move("guest");
    t.here.sh(&format!("xl destroy {}", find(t.here, "guest").unwrap().unwrap().domid.unwrap())).unwrap();
    let (code, said) = slow.end();
    assert_ne!(code, 0, "{said}");
    nothing_left(t.there).unwrap();
    wait_until("its end is known", || {
        Ok(find(t.here, "guest")?.is_some_and(|capsule| capsule.state == State::Exited))
    })
    .unwrap();
    t.ok(&["rm", "guest"]);
    nothing_left(t.here).unwrap();
}

#[test]
fn a_killed_source_daemon_ends_the_move_and_the_capsule_stays() {
    let t = turn();
    guest_suspend(t.here, "guest");
    let slow = t.slow_move("guest");
    t.here.sh("kill -9 $(pidof fcapd)").unwrap();
    assert_ne!(slow.end().0, 0);
    moves::answers(t.here).unwrap();
    stayed(&t, "guest");
}

#[test]
fn a_killed_destination_daemon_ends_the_move_and_the_capsule_stays() {
    let t = turn();
    guest_suspend(t.here, "guest");
    let slow = t.slow_move("guest");
    t.there.sh("kill -9 $(pidof fcapd)").unwrap();
    let (code, said) = slow.end();
    assert!(code != 0 && said.contains("stays on node"), "{said}");
    moves::answers(t.there).unwrap();
    stayed(&t, "guest");
}

#[test]
fn what_the_destination_cannot_take_is_refused_before_anything_is_sent() {
    let t = turn();
    guest_suspend(t.here, "guest");
    // Behind the back of the cloud, which keeps names apart.
    start(t.there, "other", &[], "clock", &[]).unwrap();
    let free = t.there.api().node().unwrap().free_memory_kib;
    let most = format!("{}k", free - 8192);
    start(t.there, "large", &["-m", &most], "clock", &[]).unwrap();
    let move_it = ["migrate", "guest", t.there.name()];
    t.refused(&move_it, &["stays on node", "memory"]);
    t.refused(&["migrate", "--dry-run", "guest", t.there.name()], &["memory"]);
    t.ok(&["rm", "-f", "large", "other"]);
    nothing_left(t.there).unwrap();
    is_well(t.here, "guest").unwrap();
    // A name that both have: the nodes did not know of each other's.
    t.there.fcap().ok(&["run", "-d", "--name", "twin", cli::image("clock").to_str().unwrap()]);
    t.here.fcap().ok(&["rename", "guest", "twin"]);
    let id = find(t.here, "twin").unwrap().unwrap().id;
    t.refused(&["migrate", &id, t.there.name()], &["stays on node", "twin"]);
    t.there.fcap().ok(&["rm", "-f", "twin"]);
    stayed(&t, "twin");
}

#[test]
fn a_capsule_that_does_not_hear_stays_and_runs_on() {
    let t = turn();
    start(t.here, "deaf", &["-m", "4m"], "guest-deaf", &[]).unwrap();
    t.refused(&["migrate", "deaf", t.there.name()], &["stays on node", "suspend"]);
    nothing_left(t.there).unwrap();
    let cpu = || find(t.here, "deaf").unwrap().unwrap().cpu_time_ns;
    let before = cpu();
    wait_until("it runs on", || Ok(cpu() > before)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("deaf.fcap");
    t.refused(&["save", "deaf", file.to_str().unwrap()], &["suspend"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left of the file");
    t.is_here("deaf");
}

#[test]
fn a_saved_capsule_goes_on_from_its_file() {
    let t = turn();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.fcap");
    let file = path.to_str().unwrap();
    guest_suspend(t.here, "guest");
    t.ok(&["checkpoint", "guest", file]);
    is_well(t.here, "guest").unwrap();
    let said = t.ok(&["stream", "verify", file]);
    assert!(said.text().contains("good"), "{said:?}");
    // It has zero and free memory, which takes no room; what it wrote meanwhile is in there twice.
    let len = || std::fs::metadata(&path).unwrap().len();
    assert!(len() < 10 << 20, "{} bytes", len());
    t.refused(&["restore", file], &["guest"]);
    t.ok(&["save", "guest", file]);
    nothing_left(t.here).unwrap();
    assert!(len() < 6 << 20, "{} bytes", len());
    t.ok(&["restore", "--node", t.there.name(), file]);
    t.is_there("guest");
    is_well(t.there, "guest").unwrap();
    Diary::read(t.there, "guest").check().unwrap();
    // Through a pipe, and under a name of its own.
    let piped = t.shell("\"$FCAP\" checkpoint guest - | \"$FCAP\" restore --name second -");
    assert_eq!(piped.code, 0, "{piped:?}");
    let second = [t.here, t.there].into_iter().find(|node| find(node, "second").unwrap().is_some()).unwrap();
    is_well(second, "second").unwrap();
    damaged(&t, &path);
}

/// Damaged images are told from good ones, and nothing is made of them.
fn damaged(t: &Turn, path: &Path) {
    let good = std::fs::read(path).unwrap();
    let file = path.to_str().unwrap();
    let middle = good.len() / 2;
    let mut flipped = good.clone();
    flipped[middle] ^= 1;
    let mut newer = good.clone();
    newer[8] = 9;
    for (bad, what) in [(&good[..middle], "end"), (&flipped[..], ""), (&newer[..], "")] {
        std::fs::write(path, bad).unwrap();
        t.refused(&["stream", "verify", file], &[file, what]);
        t.refused(&["restore", "--name", "third", file], &[what]);
    }
    for node in [t.here, t.there] {
        assert!(find(node, "third").unwrap().is_none());
    }
}

#[test]
fn a_full_disk_ends_a_save_and_the_capsule_goes_on() {
    let t = turn();
    guest_suspend(t.here, "guest");
    let full = t.shell("\"$FCAP\" save guest - >/dev/full");
    assert!(full.code != 0 && full.stderr.contains("space"), "{full:?}");
    stayed(&t, "guest");
    let missing = t.fcap(&["save", "guest", "/nowhere/at/all"]);
    assert!(missing.code != 0 && missing.stderr.contains("/nowhere"), "{missing:?}");
    t.is_there("guest");
}

#[test]
fn a_clone_is_a_second_capsule_with_its_own_name_addresses_and_randomness() {
    let t = turn();
    guest_suspend(t.here, "guest");
    t.ok(&["clone", "guest", "copy"]);
    t.ok(&["clone", "--node", t.there.name(), "guest", "far"]);
    for (node, name) in [(t.here, "guest"), (t.here, "copy"), (t.there, "far")] {
        is_well(node, name).unwrap();
    }
    let drawn = |node, name: &str| {
        let diary = Diary::read(node, name);
        let said = diary
            .saying("resume Cloned random ")
            .last()
            .unwrap_or_else(|| panic!("{name} is no clone: {diary:?}"));
        let (number, own) = said.split_once(' ').expect("a number and a name");
        assert_eq!(own, name);
        number.to_owned()
    };
    assert_ne!(drawn(t.here, "copy"), drawn(t.there, "far"));
    t.refused(&["clone", "guest", "far"], &["far"]);
    let web = start(t.here, "web", &["-p", "80"], "httpd", &[]).unwrap();
    t.ok(&["clone", "web", "web2"]);
    let web2 = t.is_here("web2");
    assert_ne!(web.networks[0].ipv4, web2.networks[0].ipv4);
    assert!(web2.ports.is_empty(), "its ports stay the first one's");
    for name in ["web", "web2"] {
        let url = format!("http://{name}/");
        let load =
            t.here.fcap().call(&["run", "--rm", cli::image("load").to_str().unwrap(), "-n", "50", &url]);
        assert_eq!(load.code, 0, "{load:?}");
    }
}

#[test]
fn the_address_of_a_saved_capsule_must_be_free_when_it_comes_back() {
    let t = turn();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.fcap");
    let file = path.to_str().unwrap();
    let web = start(t.here, "web", &[], "httpd", &[]).unwrap();
    t.ok(&["checkpoint", "web", file]);
    t.ok(&["rename", "web", "first"]);
    for node in [t.here, t.there] {
        t.refused(&["restore", "--node", node.name(), file], &[&web.networks[0].ipv4.to_string(), "name"]);
    }
    t.ok(&["rm", "-f", "first"]);
    wait_until("the other node has heard of it", || {
        Ok(t.fcap(&["restore", "--node", t.there.name(), file]).code == 0)
    })
    .unwrap();
    assert_eq!(t.is_there("web").networks, web.networks);
}

/// A Linux guest that counts.
fn linux(node: &Node) {
    let script = "i=0\nwhile true; do i=$((i+1)); echo count $i; sleep 0.2; done";
    let initramfs = rig::busybox_initramfs(node, script).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("initramfs");
    File::create(&path).unwrap().write_all(&initramfs).unwrap();
    let kernel = rig::vmlinuz();
    let options = ["run", "-d", "--name", "linux", "-m", "96m", "--append", "console=hvc0 quiet"];
    let files = ["--initrd", path.to_str().unwrap(), kernel.to_str().unwrap()];
    node.fcap().ok(&[&options[..], &files].concat());
    wait_until("Linux counts", || Ok(counted(node) > 5)).unwrap();
}

fn counted(node: &Node) -> u64 {
    let log = node.fcap().ok(&["logs", "linux"]);
    let text = String::from_utf8_lossy(&log.stdout).into_owned();
    let counts: Vec<u64> =
        text.lines().filter_map(|line| line.trim().strip_prefix("count ")?.parse().ok()).collect();
    assert!(counts.iter().copied().eq(1..=counts.len() as u64), "it does not count one by one: {text}");
    counts.last().copied().unwrap_or(0)
}

fn linux_moves(here: &Node, there: &Node, dirty: &str) {
    linux(here);
    let moved = here.cloud_fcap(&["migrate", "--dirty", dirty, "linux", there.name()]).output().unwrap();
    assert!(moved.status.success(), "{moved:?}");
    runs_only(there, here, "linux");
    let before = counted(there);
    wait_until("Linux goes on", || Ok(counted(there) > before + 5)).unwrap();
    there.fcap().ok(&["rm", "-f", "linux"]);
    nothing_left(here).unwrap();
    nothing_left(there).unwrap();
}

#[test]
fn linux_moves_by_the_dirty_bits_of_its_page_tables() {
    let t = turn();
    linux_moves(t.here, t.there, "dbits");
}

#[test]
fn linux_moves_where_the_hypervisor_tracks_its_pages() {
    // Two clouds would be more than some machines have memory for at a time.
    let _turn = turn();
    let [here, there] = Node::two_log_dirty().expect("two nodes come up");
    linux_moves(&here, &there, "log");
}
