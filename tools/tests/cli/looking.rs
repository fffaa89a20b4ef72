//! ps, logs, inspect, stats, events, version: what people and scripts read.

use crate::rig::{Server, fcap, finished, first_line, signal};
use std::io::BufRead as _;

#[test]
fn ps_lists_in_every_format() {
    let server = Server::start();
    let id = server.ok(&["run", "-d", "--name", "one", "-l", "tier=front", &server.image("tick 1000")]);
    assert_eq!(server.call(&["run", "--name", "two", &server.image("exit 3")]).code, 3);
    let table = server.ok(&["ps"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with("CAPSULE ID"), "{table}");
    for part in [&id[..12], "tick-1000", "Up ", "16MiB", "one"] {
        assert!(lines[1].contains(part), "{part} is missing in {table}");
    }
    assert!(server.ok(&["ps", "--no-trunc"]).contains(&id));
    assert!(server.ok(&["ls", "-a"]).contains("Exited (3)"));
    assert!(server.ok(&["ps", "-o", "wide"]).contains("tier=front"));
    assert_eq!(server.ok(&["ps", "-q"]), &id[..12]);
    assert_eq!(server.ok(&["ps", "-q", "--no-trunc"]), id);
    assert_eq!(server.ok(&["ps", "-a", "-o", "name"]), "two\none");
    assert_eq!(server.ok(&["ps", "-n", "1", "-o", "name"]), "two");
    assert_eq!(server.ok(&["ps", "--last", "5", "-o", "name"]), "two\none");
    assert_eq!(server.ok(&["ps", "-l", "-o", "name"]), "two");
    assert!(server.ok(&["ps", "-o", "yaml"]).contains("name: one"));
    assert_eq!(server.call(&["ps", "-o", "json"]).json()[0]["labels"]["tier"], "front");
    let by_id = format!("id={}", &id[..4]);
    for (filter, names) in [
        ("name=on", "one"),
        ("label=tier", "one"),
        ("label=tier=back", ""),
        ("state=exited", "two"),
        ("status=running", "one"),
        ("exited=3", "two"),
        ("image=exit-3", ""),
        ("node=nowhere", ""),
        (&by_id, "one"),
    ] {
        assert_eq!(server.ok(&["ps", "-o", "name", "-f", filter]), names, "{filter}");
    }
    assert_eq!(server.ok(&["ps", "-a", "-o", "name", "--filter", "image=exit-3"]), "two");
}

#[test]
fn logs_can_be_cut_stamped_and_followed() {
    let server = Server::start();
    let args = ["run", "--name", "x", &server.image("args"), "alpha", "beta", "gamma"];
    let written = server.ok(&args);
    assert_eq!(server.ok(&["logs", "x"]), written);
    assert_eq!(server.ok(&["logs", "--tail", "all", "x"]), written);
    let tail = server.ok(&["logs", "-n", "1", "x"]);
    assert_eq!(tail, written.lines().last().unwrap());
    assert_eq!(server.ok(&["logs", "--tail", "0", "x"]), "");
    let stamped = server.ok(&["logs", "-t", "x"]);
    for (stamped, plain) in stamped.lines().zip(written.lines()) {
        let (time, line) = stamped.split_once(' ').unwrap();
        assert!(time.ends_with('Z') && time.len() == 30, "{stamped}");
        assert_eq!(line, plain);
    }
    assert_eq!(server.ok(&["logs", "--since", "1h", "x"]), written);
    assert_eq!(server.ok(&["logs", "--since", "2100-01-01T00:00:00Z", "x"]), "");
    assert_eq!(server.ok(&["logs", "-f", "x"]), written);

    server.ok(&["run", "-d", "--name", "t", &server.image("tick 20")]);
    let mut following = server.command(&["logs", "--follow", "t"]).spawn().unwrap();
    let (first, mut more) = first_line(&mut following);
    assert!(first.starts_with("tick"), "{first}");
    let mut next = String::new();
    more.read_line(&mut next).unwrap();
    server.ok(&["stop", "t"]);
    // To the end, so that nothing holds it up.
    assert!(more.lines().map_while(Result::ok).all(|line| line.starts_with("tick")));
    assert_eq!(finished(following).code, 0);
}

#[test]
fn inspect_gives_what_is_there() {
    let server = Server::start();
    assert_eq!(server.call(&["run", "--name", "p", &server.image("panic")]).code, 101);
    let output = server.call(&["inspect", "none", "p"]);
    assert_eq!(output.code, 1);
    let list = output.json();
    assert_eq!(list.as_array().unwrap().len(), 1);
    assert_eq!(list[0]["end"]["reason"], "panicked");
    assert!(list[0]["end"]["message"].is_string());
    assert!(server.ok(&["inspect", "-o", "yaml", "p"]).contains("reason: panicked"));
}

#[test]
fn stats_are_measured_over_time() {
    let server = Server::start();
    server.ok(&["run", "-d", "--name", "spins", &server.image("spin")]);
    server.ok(&["run", "-d", "--name", "ticks", &server.image("tick 1000")]);
    let json = server.call(&["stats", "--no-stream", "-o", "json"]).json();
    assert_eq!(json[0]["name"], "spins");
    assert!(json[0]["cpu_percent"].as_f64().unwrap() > 0.0, "{json}");
    let table = server.ok(&["stats", "--no-stream", "ticks"]);
    assert!(table.contains("CPU %") && table.contains("ticks") && !table.contains("spins"), "{table}");
    assert!(server.ok(&["stats", "--no-stream", "-o", "yaml", "--no-trunc"]).contains("name: ticks"));
    let mut streaming = server.command(&["stats"]).spawn().unwrap();
    let (head, _) = first_line(&mut streaming);
    assert!(head.starts_with("CAPSULE ID"), "{head}");
    assert_eq!(finished(streaming).code, 141);
}

#[test]
fn events_are_kept_and_followed() {
    let server = Server::start();
    let id = server.ok(&["run", "-d", "--name", "e", &server.image("tick 1000")]);
    server.ok(&["kill", "e"]);
    server.ok(&["wait", "e"]);
    let kept = server.ok(&["events", "--no-follow"]);
    for part in [" create ", " start ", " kill ", "(name=e,", "exitCode=137", &id[..12]] {
        assert!(kept.contains(part), "{part:?} is missing in {kept}");
    }
    assert!(server.ok(&["events", "--no-follow", "--no-trunc"]).contains(&id));
    assert_eq!(server.ok(&["events", "--no-follow", "--since", "2100-01-01T00:00:00Z"]), "");

    let until_now = server.ok(&["events", "--since", "1h", "--until", "0s"]);
    assert!(until_now.contains(" kill "), "{until_now}");
    assert_eq!(server.ok(&["events", "--since", "1h", "--until", "1h"]), "");

    let args = ["events", "--since", "1h", "--follow", "-o", "json"];
    let mut following = server.command(&args).spawn().unwrap();
    let (first, more) = first_line(&mut following);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&first).unwrap()["action"], "create");
    server.ok(&["rm", "e"]);
    assert!(more.lines().map_while(Result::ok).any(|line| line.contains(r#""action":"remove""#)));
    signal(&following, "TERM");
    following.wait().unwrap();
}

#[test]
fn version_tells_both_sides() {
    let server = Server::start();
    let table = server.ok(&["version"]);
    assert!(table.contains("simulator") && table.contains(env!("CARGO_PKG_VERSION")), "{table}");
    let json = server.call(&["version", "-o", "json"]).json();
    assert_eq!(json["servers"][0]["hypervisor"], "simulator");
    assert!(server.ok(&["version", "-o", "yaml"]).contains("client:"));
    assert_eq!(server.ok(&["--version"]), format!("fcap {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn lists_into_a_closed_pipe_end_quietly() {
    let server = Server::start();
    let mut child = server.command(&["completion", "bash"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = finished(child);
    assert_eq!((output.code, output.stderr.as_str()), (141, ""), "{output:?}");
}

#[test]
fn without_a_cloud_lists_are_empty_and_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let call = |args: &[&str]| finished(fcap(args).env("XDG_DATA_HOME", folder.path()).spawn().unwrap());
    let ps = call(&["--cloud", "none", "ps"]);
    assert_eq!((ps.code, ps.lines().len()), (0, 1), "{ps:?}");
    assert!(ps.stderr.contains("no cloud \"none\" is up"), "{ps:?}");
    assert_eq!(call(&["ps", "-o", "json"]).json(), serde_json::json!([]));
    let logs = call(&["logs", "x"]);
    assert_eq!(logs.code, 1);
    assert!(logs.stderr.contains("`fcap run` starts one"), "{logs:?}");
    assert!(call(&["version"]).stdout.contains("fcap"));
    assert!(call(&["cloud", "ls"]).stdout.starts_with("CLOUD"));
    assert_eq!(call(&["cloud", "ls", "-o", "json"]).json(), serde_json::json!([]));
    assert!(call(&["cloud", "flavors"]).stdout.contains("medium"));
    assert_eq!(call(&["cloud", "down"]).code, 0);
}
