//! Capsules that Xen's own tools suspend, save, restore and move.
//!
//! They run without fcapd, by plain `xl`: what is tested is the library OS.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, OnceLock};

use fcap_tests::cli;
use fcap_tests::rig::{Node, wait_until};

/// Restores in a row.
const ROUNDS: usize = 20;

/// The node, for one test at a time.
fn node() -> (&'static Node, MutexGuard<'static, ()>) {
    static NODE: OnceLock<Node> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    // A failed test has reported what it found; the next one starts anew.
    let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let node = NODE.get_or_init(|| {
        let node = Node::compare().expect("a node comes up");
        // The console daemon writes all output of domains into files, by their names.
        node.sh(
            "kill $(pidof xenconsoled); while pidof xenconsoled >/dev/null; do :; done; mkdir -p /tmp/console
             /usr/lib/xen-4.17/bin/xenconsoled --log=guest --log-dir=/tmp/console",
        )
        .expect("the console daemon starts");
        node
    });
    (node, turn)
}

/// A capsule that `xl` has started, which notices what goes wrong with it.
struct Guest<'a> {
    node: &'a Node,
    name: &'static str,
}

impl<'a> Guest<'a> {
    fn start(node: &'a Node, name: &'static str) -> Self {
        let image = std::fs::read(cli::image("guest-suspend")).unwrap();
        node.put("/tmp/guest-suspend", &image).unwrap();
        let config = format!(
            "name=\"{name}\"\nkernel=\"/tmp/guest-suspend\"\nmemory=32\nvcpus=1\ntsc_mode=\"native\"\nextra=\"4 20\"\n"
        );
        node.put(&format!("/tmp/{name}.cfg"), config.as_bytes()).unwrap();
        let guest = Self { node, name };
        guest.sh("xl create /tmp/NAME.cfg");
        // From its second turn on it waits for requests.
        guest.wait_for("turn 50");
        guest
    }

    /// Runs a command in dom0, with the guest's name for `NAME`.
    fn sh(&self, command: &str) -> String {
        self.node.sh(&command.replace("NAME", self.name)).unwrap()
    }

    /// Lines that it has printed so far, in all its domains.
    fn lines(&self) -> Vec<String> {
        let file = format!("/tmp/console/guest-{}.log", self.name);
        let text = self.node.get(&file).unwrap();
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let text = String::from_utf8_lossy(&text[..whole]);
        text.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Lines that say this behind their number.
    fn saying(&self, words: &str) -> Vec<String> {
        let says = |line: &String| line.split_once(' ').is_some_and(|(_, rest)| rest.starts_with(words));
        self.lines().into_iter().filter(says).collect()
    }

    fn wait_for(&self, words: &str) {
        self.wait_for_count(words, 1);
    }

    fn wait_for_count(&self, words: &str, count: usize) {
        wait_until(&format!("{} says {words:?} {count} times", self.name), || {
            Ok(self.saying(words).len() >= count)
        })
        .unwrap_or_else(|error| panic!("{error}: {:#?}", self.lines()));
    }

    /// Its xenstore, timers and memory are looked after by itself; it tells what comes of it.
    fn is_well(&self, value: &str) {
        self.sh(&format!("xenstore-write /local/domain/$(xl domid NAME)/data/test {value}"));
        self.wait_for(&format!("watch {value}"));
        let turns = self.saying("turn").len();
        self.wait_for_count("turn", turns + 1);
    }

    /// Ends it, and checks that it has said everything once and in order, and has noticed no
    /// more than `gaps` times that it stood still for long.
    fn end(self, gaps: usize) {
        self.sh("xl destroy NAME");
        let lines = self.lines();
        for (line, number) in lines.iter().zip(1..) {
            assert!(line.starts_with(&format!("{number} ")), "{line:?} is the line {number} of {lines:#?}");
        }
        assert!(self.saying("gap").len() <= gaps, "the clock has jumped: {lines:#?}");
        let turns: Vec<u64> = self
            .saying("turn")
            .iter()
            .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
            .collect();
        assert!(turns.iter().copied().eq((1..=turns.len() as u64).map(|turn| turn * 25)), "{turns:?}");
    }
}

#[test]
fn a_capsule_is_saved_and_restored_again_and_again() {
    let (node, _turn) = node();
    let guest = Guest::start(node, "saved");
    for round in 1..=ROUNDS {
        guest.sh("xl save NAME /tmp/NAME.image && xl restore /tmp/NAME.image && rm /tmp/NAME.image");
        guest.wait_for_count("resume NewHost", round);
        guest.is_well(&format!("round-{round}"));
    }
    let randoms: HashSet<_> =
        guest.saying("resume").iter().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect();
    assert_eq!(randoms.len(), ROUNDS, "no two domains draw the same numbers: {randoms:?}");
    // Its clock stands while it is in a file.
    guest.end(0);
}

#[test]
fn a_capsule_goes_on_after_a_checkpoint() {
    let (node, _turn) = node();
    let guest = Guest::start(node, "checked");
    for round in 1..=3 {
        guest.sh("xl save -c NAME /tmp/NAME.image && rm /tmp/NAME.image");
        guest.wait_for_count("resume Cancelled", round);
        guest.is_well(&format!("round-{round}"));
    }
    guest.end(3);
}

#[test]
fn copies_of_one_capsule_draw_different_numbers() {
    let (node, _turn) = node();
    let guest = Guest::start(node, "copied");
    guest.sh("xl save NAME /tmp/NAME.image");
    for count in 1..=2 {
        guest.sh("xl restore /tmp/NAME.image");
        guest.wait_for_count("resume NewHost", count);
        guest.sh("xl destroy NAME");
    }
    let [first, second] = &guest.saying("resume")[..] else { panic!("{:#?}", guest.lines()) };
    // The same moment of the same capsule, but for what it has drawn.
    assert_eq!(first.split(' ').next(), second.split(' ').next());
    assert_ne!(first, second);
}
