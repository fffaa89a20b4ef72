//! Capsules on real Xen, handled with the real command line.
//!
//! The tests share one node and run one after the other: each looks at what it leaves behind.

use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use fcap_tests::cli::{self, Fcap, Output};
use fcap_tests::rig::{Node, wait_until};
use fcap_tests::soak::churn::inventory;

/// The node, for one test at a time.
struct Turn {
    node: &'static Node,
    fcap: Fcap,
    _turn: MutexGuard<'static, ()>,
}

fn turn() -> Turn {
    static NODE: OnceLock<Node> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    // A failed test has reported what it found; the next one starts anew.
    let turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let node = NODE.get_or_init(|| Node::compare().expect("a node comes up"));
    let fcap = node.fcap();
    for id in fcap.ok(&["ps", "-a", "-q"]).text().lines() {
        fcap.ok(&["rm", "-f", id]);
    }
    Turn { node, fcap, _turn: turn }
}

fn path(name: &str) -> String {
    cli::image(name).to_str().expect("the tree's path is text").to_owned()
}

impl Turn {
    /// `fcap run --rm IMAGE ARGS`
    fn run(&self, image: &str, args: &[&str]) -> Output {
        self.fcap.call(&[&["run", "--rm", &path(image)], args].concat())
    }

    fn start(&self, name: &str, options: &[&str], image: &str, args: &[&str]) {
        self.fcap.ok(&[&["run", "-d", "--name", name], options, &[&path(image)], args].concat());
    }

    fn inspect(&self, name: &str) -> serde_json::Value {
        let inspected = self.fcap.ok(&["inspect", name]).json();
        // One or a list of one, as docker has it.
        inspected.get(0).cloned().unwrap_or(inspected)
    }

    /// Runs `action` and expects the node to be as before.
    fn leaves_nothing(&self, action: impl FnOnce()) {
        let before = inventory(self.node).expect("the node can be asked");
        action();
        let after = inventory(self.node).expect("the node can be asked");
        assert_eq!(before, after);
    }

    fn log_has(&self, name: &str, words: &str) {
        wait_until(&format!("{words:?} is in the log of {name}"), || {
            Ok(String::from_utf8_lossy(&self.fcap.ok(&["logs", name]).stdout).contains(words))
        })
        .unwrap();
    }
}

#[test]
fn hello_says_hello_and_is_gone() {
    let t = turn();
    t.leaves_nothing(|| {
        let output = t.run("hello", &[]);
        assert_eq!(output.code, 0, "{output:?}");
        assert!(output.text().contains("Hello"), "{output:?}");
    });
    assert_eq!(t.fcap.ok(&["ps", "-a", "-q"]).text(), "");
}

/// Appends files of plain text below a folder, in the order of their names, until there is enough.
fn read_all(folder: &Path, text: &mut Vec<u8>) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for entry in entries {
        if entry.is_symlink() {
            continue;
        } else if entry.is_dir() {
            read_all(&entry, text);
        } else if text.len() < 10_500_000 {
            let bytes = std::fs::read(entry).unwrap();
            // wc does not take what its locale cannot print for a part of a word.
            if bytes.iter().all(|byte| byte.is_ascii_graphic() || b" \n\t".contains(byte)) {
                text.extend(bytes);
            }
        }
    }
}

#[test]
fn words_are_counted_through_a_pipe_as_wc_counts_them() {
    let t = turn();
    let mut text = Vec::new();
    read_all(Path::new("/usr/share/perl"), &mut text);
    assert!(text.len() >= 10_000_000, "{} bytes; cargo xtask setup installs perl-doc", text.len());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, &text).unwrap();
    // wc must count bytes as wordcount does, whatever the locale.
    let wc =
        std::process::Command::new("wc").env("LC_ALL", "C").stdin(file.reopen().unwrap()).output().unwrap();
    let start = std::time::Instant::now();
    let output = t.fcap.call_with(&["run", "--rm", "-i", &path("wordcount")], &text);
    let seconds = start.elapsed().as_secs_f64();
    let numbers = |bytes: &[u8]| -> Vec<u64> {
        String::from_utf8_lossy(bytes).split_whitespace().map(|word| word.parse().unwrap()).collect()
    };
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(numbers(&output.stdout), numbers(&wc.stdout));
    println!(
        "{} bytes in {seconds:.2} s: {:.2} MB/s through standard input",
        text.len(),
        text.len() as f64 / 1e6 / seconds
    );
}

#[test]
fn exit_codes_are_the_applications() {
    let t = turn();
    assert_eq!(t.run("hello", &[]).code, 0);
    assert_eq!(t.run("guest-exit", &["42"]).code, 42);
    assert_eq!(t.run("panic", &[]).code, 101);
    assert_eq!(t.run("leak", &[]).code, 134);
    assert_eq!(t.run("guest-fault", &[]).code, 139);
}

#[test]
fn a_panic_reaches_logs_and_inspect() {
    let t = turn();
    t.start("panics", &[], "panic", &[]);
    assert_eq!(t.fcap.ok(&["wait", "panics"]).text(), "101");
    t.log_has("panics", "panicked at");
    let end = &t.inspect("panics")["end"];
    assert_eq!(end["reason"], "panicked");
    assert!(end["message"].as_str().unwrap().contains("panic.rs:"), "{end}");
    assert!(!end["backtrace"].as_array().unwrap().is_empty(), "{end}");
}

#[test]
fn leaking_and_faulting_say_so() {
    let t = turn();
    t.start("leaks", &["-m", "4M"], "leak", &[]);
    t.fcap.ok(&["wait", "leaks"]);
    assert_eq!(t.inspect("leaks")["end"]["reason"], "out_of_memory");
    t.start("faults", &[], "guest-fault", &[]);
    t.fcap.ok(&["wait", "faults"]);
    assert_eq!(t.inspect("faults")["end"]["reason"], "crashed");
    // A fault so early that nobody in the capsule could say anything.
    t.start("crashes", &[], "guest-crash", &[]);
    assert_eq!(t.fcap.ok(&["wait", "crashes"]).text(), "139");
}

#[test]
fn arguments_environment_and_input_arrive() {
    let t = turn();
    let output = t.fcap.call(&[
        "run",
        "--rm",
        "-e",
        "GREETING=grüß dich",
        "-e",
        "EMPTY=",
        &path("guest-env"),
        "one",
        "two words",
        "",
    ]);
    assert_eq!(output.code, 0, "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text, "guest-env\none\ntwo words\n\nEMPTY=\nGREETING=grüß dich\n");
    // More than a kernel command line holds.
    let long = "x".repeat(5000);
    let output = t.fcap.call(&["run", "--rm", &path("guest-env"), &long]);
    assert_eq!(output.text(), format!("guest-env\n{long}"));
    let output = t.fcap.call_with(&["run", "--rm", "-i", &path("echo")], b"first\nlast, without an end");
    assert_eq!(output.text(), "first\nlast, without an end");
    // Without -i there is no input, and echo ends at once.
    assert_eq!(t.run("echo", &[]).code, 0);
}

#[test]
fn a_capsule_is_handled_like_a_process() {
    let t = turn();
    t.start("ticker", &["--label", "tier=test", "--weight", "300"], "clock", &[]);
    t.log_has("ticker", "\n");
    let id = t.fcap.ok(&["ps", "-q", "--filter", "label=tier=test"]).text().to_owned();
    assert!(!id.is_empty() && t.inspect(&id[..4])["name"] == "ticker");

    t.fcap.ok(&["pause", "ticker"]);
    assert_eq!(t.inspect("ticker")["state"], "paused");
    let list = t.node.sh("xl list ticker").unwrap();
    let state = list.lines().last().unwrap().split_whitespace().nth(4).unwrap();
    assert_eq!(state.as_bytes()[2], b'p', "{list}");
    t.fcap.ok(&["unpause", "ticker"]);

    t.fcap.ok(&["update", "--cpu-cap", "50", "--weight", "500", "ticker"]);
    let scheduling = t.node.sh("xl sched-credit2 -d ticker").unwrap();
    let line: Vec<_> = scheduling.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(line[2..], ["500", "50"], "{scheduling}");

    t.fcap.ok(&["rename", "ticker", "tocker"]);
    assert!(t.node.sh("xl list").unwrap().contains("tocker"));
    t.fcap.refused(&["inspect", "ticker"], 1, &["ticker"]);

    let stats = t.fcap.ok(&["stats", "--no-stream", "-o", "json"]).text().to_owned();
    assert!(stats.contains("tocker"), "{stats}");
    t.fcap.ok(&["stop", "tocker"]);
    let end = &t.inspect("tocker")["end"];
    assert_eq!((end["exit_code"].as_i64(), end["reason"].as_str()), (Some(143), Some("stopped")));
    let events = t.fcap.ok(&["events", "--since", "10m", "--until", "0s", "-o", "json"]);
    for action in ["create", "start", "pause", "unpause", "update", "rename", "die"] {
        assert!(events.text().contains(&format!("\"action\":\"{action}\"")), "{action}: {events:?}");
    }

    t.fcap.ok(&["start", "tocker"]);
    t.fcap.ok(&["kill", "tocker"]);
    assert_eq!(t.fcap.ok(&["wait", "tocker"]).text(), "137");
    t.fcap.ok(&["rm", "tocker"]);
    t.fcap.refused(&["inspect", "tocker"], 1, &["tocker"]);
}

#[test]
fn one_that_does_not_listen_is_stopped_by_force() {
    let t = turn();
    // Its main never waits for anything.
    t.start("deaf", &[], "guest-flood", &[]);
    t.fcap.ok(&["stop", "-t", "1", "deaf"]);
    assert_eq!(t.inspect("deaf")["end"]["exit_code"], 137);
}

#[test]
fn restart_policies_hold() {
    let t = turn();
    t.start("stubborn", &["--restart", "on-failure:2"], "guest-exit", &["3"]);
    wait_until("it was restarted twice", || {
        let capsule = t.inspect("stubborn");
        Ok(capsule["restarts"] == 2 && capsule["state"] == "exited")
    })
    .unwrap();
    t.start("done", &["--restart", "on-failure"], "hello", &[]);
    t.fcap.ok(&["wait", "done"]);
    assert_eq!(t.inspect("done")["restarts"], 0);
}

#[test]
fn interrupting_an_attached_run_leaves_nothing() {
    let t = turn();
    t.leaves_nothing(|| {
        let mut child = t.fcap.spawn(&["run", "--rm", "--name", "attached", &path("clock")]);
        let mut byte = [0];
        child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT).unwrap();
        let status = child.wait().unwrap();
        assert_ne!(status.code(), Some(0));
        assert_eq!(t.fcap.ok(&["ps", "-a", "-q"]).text(), "");
    });
}

#[test]
fn bad_images_are_refused_and_leave_nothing() {
    let t = turn();
    let good = std::fs::read(cli::image("hello")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        bytes
    };
    let u64_at = |bytes: &mut Vec<u8>, offset: usize, value: u64| {
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    };
    let headers = usize::try_from(u64::from_le_bytes(good[32..40].try_into().unwrap())).unwrap();
    let load = (headers..).step_by(56).find(|&at| good[at..at + 4] == [1, 0, 0, 0]).unwrap();
    // The descriptor of a note of eight bytes.
    let note = |kind: u8| {
        let head = [4, 0, 0, 0, 8, 0, 0, 0, kind, 0, 0, 0, b'X', b'e', b'n', 0];
        good.windows(16).position(|window| window == head).unwrap() + 16
    };
    let cases: &[(&str, Vec<u8>, &[&str])] = &[
        ("text", b"#!/bin/sh\necho no kernel\n".to_vec(), &["ELF"]),
        ("empty", Vec::new(), &["empty"]),
        ("truncated", good[..good.len() / 2].to_vec(), &["cut off"]),
        ("only-magic", good[..20].to_vec(), &["cut off"]),
        ("thirty-two-bit", changed(&|b| b[4] = 1), &["32"]),
        ("shared-object", changed(&|b| b[16] = 3), &["static"]),
        ("other-machine", changed(&|b| b[18] = 183), &["x86_64"]),
        (
            "no-notes",
            changed(&|b| {
                while let Some(at) = b.windows(4).position(|w| w == b"Xen\0") {
                    b[at] = b'Y';
                }
            }),
            &["Xen"],
        ),
        ("overlong-segment", changed(&|b| u64_at(b, load + 40, 1 << 40)), &["segment"]),
        ("entry-outside", changed(&|b| u64_at(b, note(1), 0xffff_ffff_9000_0000)), &["ENTRY"]),
        ("absurd-base", changed(&|b| u64_at(b, note(3), 0x1234_5678_9abc_def0)), &["VIRT_BASE"]),
        ("segment-outside-file", changed(&|b| u64_at(b, load + 8, 1 << 40)), &["segment"]),
    ];
    t.leaves_nothing(|| {
        for (name, bytes, words) in cases {
            let file = folder.path().join(name);
            std::fs::write(&file, bytes).unwrap();
            t.fcap.refused(&["run", file.to_str().unwrap()], 126, words);
        }
        let huge = folder.path().join("huge");
        std::fs::File::create(&huge).unwrap().set_len(2 << 30).unwrap();
        t.fcap.refused(&["run", huge.to_str().unwrap()], 126, &["huge"]);
        t.fcap.refused(&["run", "/nonexistent/image"], 127, &["/nonexistent/image"]);
    });
    assert_eq!(t.fcap.ok(&["ps", "-a", "-q"]).text(), "");
}

#[test]
fn impossible_settings_are_refused_and_leave_nothing() {
    let t = turn();
    let hello = path("hello");
    let run = |options: &[&str], code: i32, words: &[&str]| {
        t.fcap.refused(&[&["run"], options, &[&hello[..]]].concat(), code, words);
    };
    t.leaves_nothing(|| {
        run(&["-m", "64K"], 125, &["needs at least", "KiB"]);
        run(&["-m", "1T"], 125, &["KiB"]);
        run(&["-m", "1000M"], 125, &["no room"]);
        run(&["--name", &"n".repeat(300)], 125, &["name"]);
        run(&["--name", "two words"], 125, &["name"]);
        run(&["--name", "bell\u{7}"], 125, &["name"]);
        run(&["--cpu-cap", "101"], 125, &["cap"]);
        run(&["--node", "nowhere"], 125, &["nowhere"]);
        for verb in ["stop", "kill", "rm", "pause", "unpause", "wait", "inspect", "logs", "attach"] {
            t.fcap.refused(&[verb, "nobody"], 1, &["nobody"]);
        }
    });
    t.start("taken", &[], "clock", &[]);
    run(&["--name", "taken"], 125, &["taken"]);
    // 17 capsules have at least two whose ids begin alike.
    for i in 0..17 {
        t.fcap.ok(&["create", "--name", &format!("c{i}"), &hello]);
    }
    let ids = t.fcap.ok(&["ps", "-a", "-q"]).text().to_owned();
    let twice = "0123456789abcdef".chars().find(|&c| ids.lines().filter(|id| id.starts_with(c)).count() > 1);
    t.fcap.refused(&["inspect", &twice.unwrap().to_string()], 1, &["ambiguous"]);
}

#[test]
fn hostile_capsules_hurt_nobody() {
    let t = turn();
    t.start("witness", &[], "clock", &[]);
    let hostile = [
        ("guest-flood", &[][..]),
        ("guest-scribble", &["console"]),
        ("guest-scribble", &["xenstore"]),
        ("guest-scribble", &["start-info"]),
    ];
    for (i, (image, args)) in hostile.into_iter().enumerate() {
        let name = format!("hostile-{i}");
        t.start(&name, &[], image, args);
        // Long enough to do harm, as seen by another capsule.
        let before = t.fcap.ok(&["logs", "witness"]).text().lines().count();
        wait_until("the witness goes on", || {
            Ok(t.fcap.ok(&["logs", "witness"]).text().lines().count() > before + 2)
        })
        .unwrap();
        assert!(t.fcap.ok(&["ps"]).text().contains("witness"));
        t.fcap.ok(&["rm", "-f", &name]);
    }
    assert_eq!(t.inspect("witness")["state"], "running");
    // A log is bounded however much is written.
    let logs = t.node.sh("du -sk /var/lib/fcap | cut -f1").unwrap().trim().parse::<u64>().unwrap();
    assert!(logs < 64 * 1024, "{logs} KiB under /var/lib/fcap");
}

#[test]
fn a_full_disk_and_a_full_xenstore_are_reported_and_leave_nothing() {
    let t = turn();
    let hello = path("hello");
    t.run("hello", &[]);
    t.leaves_nothing(|| {
        t.node.sh("dd if=/dev/zero of=/var/lib/fcap/filler bs=1M 2>/dev/null; true").unwrap();
        let output = t.fcap.call(&["run", "--rm", &hello]);
        t.node.sh("rm /var/lib/fcap/filler").unwrap();
        assert_eq!(output.code, 125, "{output:?}");
        assert!(output.stderr.contains("space") || output.stderr.contains("room"), "{output:?}");
    });
    assert_eq!(t.run("hello", &[]).code, 0);
}

#[test]
fn a_daemon_that_is_down_is_said_to_be_down() {
    let t = turn();
    let nobody = Fcap { host: "http://127.0.0.1:1".into(), token: "none".into() };
    nobody.refused(&["ps"], 1, &["127.0.0.1:1"]);
    nobody.refused(&["run", &path("hello")], 125, &["127.0.0.1:1"]);
    let stranger = Fcap { host: t.fcap.host.clone(), token: "wrong".into() };
    stranger.refused(&["ps"], 1, &["token"]);
}

#[test]
fn guest_output_does_not_drive_a_terminal() {
    let t = turn();
    // script gives fcap a terminal of its own.
    let command = format!("{} run --rm {}", cli::fcap_path().display(), path("guest-escape"));
    let output = std::process::Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("FCAP_HOST", &t.fcap.host)
        .env("FCAP_TOKEN", &t.fcap.token)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("harmless"), "{text:?}");
    assert!(!text.contains("\x1b]0;") && !text.contains("\x1b[2J"), "{text:?}");
    // Into a pipe it goes as it is.
    assert!(t.run("guest-escape", &[]).stdout.windows(4).any(|w| w == b"\x1b[2J"));
}

#[test]
fn hello_boots_with_plain_xl() {
    let t = turn();
    t.node.put("/tmp/hello", &std::fs::read(cli::image("hello")).unwrap()).unwrap();
    t.node.put("/tmp/hello.cfg", b"name='plain'\nkernel='/tmp/hello'\nmemory=16\n").unwrap();
    let output = t
        .node
        .sh("(sleep 20) | timeout 20 xl create -c /tmp/hello.cfg 2>&1; xl destroy plain 2>/dev/null; true")
        .unwrap();
    assert!(output.contains("Hello"), "{output}");
}

#[test]
fn debians_own_kernel_runs_as_a_capsule() {
    let t = turn();
    let initrd = fcap_tests::rig::busybox_initramfs(
        t.node,
        "echo busybox is up; uname -r; cat /proc/cmdline; poweroff -f",
    )
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("initramfs");
    std::fs::write(&file, initrd).unwrap();
    let kernel = fcap_tests::rig::vmlinuz();
    t.fcap.ok(&[
        "run",
        "-d",
        "--name",
        "linux",
        "-m",
        "128M",
        "--initrd",
        file.to_str().unwrap(),
        "--append",
        "console=hvc0 quiet marker=42",
        kernel.to_str().unwrap(),
    ]);
    assert_eq!(t.fcap.ok(&["wait", "linux"]).text(), "0");
    t.log_has("linux", "busybox is up");
    t.log_has("linux", "marker=42");
    // Of its balloon fcap knows nothing: its memory changes between two runs.
    t.fcap.ok(&["update", "-m", "96M", "linux"]);
    assert_eq!(t.inspect("linux")["memory_kib"], 96 << 10);
}

#[test]
fn floods_and_slow_readers_do_not_block_the_daemon() {
    let t = turn();
    let mut child = t.fcap.spawn(&["run", "--rm", "--name", "flood", &path("guest-flood")]);
    // Nobody reads. The daemon goes on serving others.
    let mut some = [0; 4096];
    child.stdout.as_mut().unwrap().read_exact(&mut some).unwrap();
    for _ in 0..5 {
        assert_eq!(t.run("hello", &[]).code, 0);
    }
    t.fcap.ok(&["kill", "flood"]);
    let _ = child.wait_with_output();
    let deadline = Duration::from_secs(60);
    let start = std::time::Instant::now();
    while !t.fcap.ok(&["ps", "-a", "-q"]).text().is_empty() {
        assert!(start.elapsed() < deadline, "the capsule is still there");
    }
}
