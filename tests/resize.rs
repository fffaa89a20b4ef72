//! Capsules whose memory changes while they run, on real Xen.
//!
//! The tests share one cloud of two nodes and run one after the other.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout};
use std::sync::MutexGuard;

use fcap_tests::moves::{self, Diary, find, is_well, move_it, nothing_left};
use fcap_tests::{
    cli,
    rig::{Node, wait_until},
};

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
        // With it goes what is held ready, whose memory would come and go.
        nothing_left(node).unwrap();
    }
    Turn { here, there, _turn: turn }
}

fn free_kib(node: &Node) -> u64 {
    node.api().node().unwrap().free_memory_kib
}

/// Waits until so much memory is free: Xen takes domains apart in the background.
fn until_free(node: &Node, kib: u64) {
    let mut free = 0;
    wait_until("the memory is free", || {
        free = free_kib(node);
        Ok(free == kib)
    })
    .unwrap_or_else(|error| panic!("{error}: {free} KiB are free instead of {kib}"));
}

/// MiB of a capsule's domain, as Xen says.
fn xen_mib(node: &Node, name: &str) -> u64 {
    let capsule = find(node, name).unwrap().expect("it is there");
    let list = node.sh(&format!("xl list {}", capsule.domid.expect("it runs"))).unwrap();
    list.lines().last().unwrap().split_whitespace().nth(2).unwrap().parse().unwrap()
}

/// `guest-memory`, to be told what to hold.
struct Holder {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Holder {
    fn start(node: &Node, options: &[&str]) -> Self {
        let path = cli::image("guest-memory");
        let path = path.to_str().expect("the tree's path is text");
        let mut child = node.fcap().spawn(&[&["run", "-i", "--name", "holder"], options, &[path]].concat());
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut holder = Self { child, output };
        assert_eq!(holder.line(), "ready");
        holder
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Has it hold so many MiB; what it says to that.
    fn hold(&mut self, mib: u64) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{mib}").unwrap();
        self.line()
    }

    /// Has it hold more than there is; how many MiB it got.
    fn fill(&mut self, mib: u64) -> u64 {
        let said = self.hold(mib);
        let (got, of) = said.strip_prefix("holds ").and_then(|rest| rest.split_once(" of ")).expect(&said);
        assert_eq!(of, mib.to_string());
        got.parse().unwrap()
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn an_application_has_the_memory_that_it_is_given_and_the_node_the_rest() {
    let t = turn();
    let fcap = t.here.fcap();
    let empty = free_kib(t.here);
    let mut holder = Holder::start(t.here, &["-m", "16m", "--memory-max", "64m"]);
    let begun = free_kib(t.here);
    // What Xen itself needs for a domain, and not a page for what is not given.
    assert!((16 << 10..18 << 10).contains(&(empty - begun)), "{empty} KiB, then {begun}");
    let first = holder.fill(40);
    assert!((12..16).contains(&first), "{first} MiB of 16");

    fcap.ok(&["update", "-m", "48m", "holder"]);
    assert_eq!((free_kib(t.here), xen_mib(t.here, "holder")), (begun - (32 << 10), 48));
    assert_eq!(holder.hold(44), "holds 44");

    // What is in use stays.
    fcap.refused(&["update", "-m", "16m", "holder"], 1, &["capsule holder gave back", "the rest is in use"]);
    let kept = find(t.here, "holder").unwrap().unwrap().memory_kib;
    assert!((44 << 10..48 << 10).contains(&kept), "{kept} KiB");
    assert_eq!(free_kib(t.here), begun - (kept - (16 << 10)));
    assert_eq!(holder.hold(44), "holds 44");

    // And goes when it is free, however it lay about.
    assert_eq!(holder.hold(0), "holds 0");
    fcap.ok(&["update", "-m", "16m", "holder"]);
    assert_eq!((free_kib(t.here), xen_mib(t.here, "holder")), (begun, 16));
    assert!((11..16).contains(&holder.fill(40)), "no more than it has");

    for mib in [20, 64, 17, 33, 16, 64] {
        assert_eq!(holder.hold(1), "holds 1");
        fcap.ok(&["update", "-m", &format!("{mib}m"), "holder"]);
        assert_eq!(free_kib(t.here), begun - ((mib - 16) << 10));
        assert_eq!(holder.hold(mib - 5), format!("holds {}", mib - 5));
    }
    fcap.refused(&["update", "-m", "65m", "holder"], 1, &["at most 64 MiB", "--memory-max"]);
    let inspected = fcap.ok(&["inspect", "holder"]).json();
    let inspected = inspected.get(0).unwrap_or(&inspected);
    assert_eq!((&inspected["memory_kib"], &inspected["max_memory_kib"]), (&65536.into(), &65536.into()));
    holder.end();
    fcap.ok(&["rm", "holder"]);
    until_free(t.here, empty);
}

#[test]
fn a_node_that_has_too_little_says_so() {
    let t = turn();
    let fcap = t.here.fcap();
    let mut holder = Holder::start(t.here, &["-m", "16m", "--memory-max", "1900m"]);
    let free = free_kib(t.here);
    assert!(free < 1800 << 10, "a small node has no {free} KiB");
    fcap.refused(&["update", "-m", "1900m", "holder"], 1, &["no room"]);
    assert_eq!((free_kib(t.here), xen_mib(t.here, "holder")), (free, 16));
    assert_eq!(holder.hold(4), "holds 4");
    holder.end();
}

#[test]
fn a_capsule_moves_with_the_memory_that_it_has_and_can_be_given_as_much_as_before() {
    let t = turn();
    let options = ["-m", "16m", "--memory-max", "64m"];
    moves::start(t.here, "guest", &options, "guest-suspend", &["4"]).unwrap();
    is_well(t.here, "guest").unwrap();
    let (mut on, mut other) = (t.here, t.there);
    for mib in [48, 16, 64, 20] {
        on.fcap().ok(&["update", "-m", &format!("{mib}m"), "guest"]);
        is_well(on, "guest").unwrap();
        move_it(on, other, "guest").unwrap();
        (on, other) = (other, on);
        let moved = find(on, "guest").unwrap().expect("it has moved");
        assert_eq!((moved.memory_kib, moved.max_memory_kib), (mib << 10, 64 << 10));
        assert_eq!(xen_mib(on, "guest"), mib);
        is_well(on, "guest").unwrap();
    }
    // Into a file and out of it, with a hole in its midst, and as a copy.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guest");
    let file = file.to_str().unwrap();
    on.fcap().ok(&["save", "guest", file]);
    on.fcap().ok(&["restore", file]);
    assert_eq!(xen_mib(on, "guest"), 20);
    is_well(on, "guest").unwrap();
    on.fcap().ok(&["clone", "guest", "copy"]);
    for name in ["guest", "copy"] {
        for mib in [64, 18] {
            on.fcap().ok(&["update", "-m", &format!("{mib}m"), name]);
            assert_eq!(xen_mib(on, name), mib);
            is_well(on, name).unwrap();
        }
    }
    Diary::read(on, "guest").check().unwrap();
    for node in [t.here, t.there] {
        moves::clear(node).unwrap();
        nothing_left(node).unwrap();
    }
}
