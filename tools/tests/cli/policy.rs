//! Policies are tried on a saved view, without any cluster.

use crate::rig::{Output, check_refused, fcap, finished};

/// Two nodes of a processor, of which one has little to do and the other nothing.
const VIEW: &str = r#"{
    "time_ms": 1800000000000,
    "nodes": [
        {"name": "node1", "flavor": "small", "state": "ready", "started_ms": 0, "price_micros": 10000,
         "capacity": {"cpu_milli": 1000, "memory_kib": 655360}, "free_memory_kib": 638976,
         "used": {"minute": {"cpu_milli": 100, "memory_kib": 16384, "net_kbit": 0},
                  "ten_minutes": {"cpu_milli": 100, "memory_kib": 16384, "net_kbit": 0},
                  "hour": {"cpu_milli": 100, "memory_kib": 16384, "net_kbit": 0}}},
        {"name": "node2", "flavor": "small", "state": "ready", "started_ms": 0, "price_micros": 10000,
         "capacity": {"cpu_milli": 1000, "memory_kib": 655360}, "free_memory_kib": 655360}
    ],
    "capsules": [
        {"id": "00000000000000000000000000000001", "name": "web", "node": "node1", "state": "running",
         "memory_kib": 16384, "max_memory_kib": 16384, "vcpus": 1, "weight": 256,
         "used": {"minute": {"cpu_milli": 100, "memory_kib": 16384, "net_kbit": 0},
                  "ten_minutes": {"cpu_milli": 100, "memory_kib": 16384, "net_kbit": 0},
                  "hour": {"cpu_milli": 100, "memory_kib": 16384, "net_kbit": 0}}}
    ],
    "flavors": [{"name": "small", "vcpus": 1, "memory_mib": 1024, "price_micros": 10000,
                 "capacity": {"cpu_milli": 1000, "memory_kib": 655360}}]
}"#;

fn call(folder: &std::path::Path, args: &[&str]) -> Output {
    finished(fcap(args).current_dir(folder).spawn().unwrap())
}

#[test]
fn policies_are_tried_on_a_saved_view() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("view.json"), VIEW).unwrap();
    let call = |args: &[&str]| call(folder.path(), args);
    let output = call(&["policy", "test", "consolidate", "--view", "view.json"]);
    assert_eq!(output.code, 0, "{output:?}");
    let lines = output.lines();
    assert_eq!(lines[0], "policy consolidate would do the following, and nothing is done now");
    assert_eq!(lines[1], "  step 1: stop node2: node node2 used at most 0 % of its processors");
    assert_eq!(lines[2..], ["  saves 0.01 an hour"]);
    let args =
        ["policy", "test", "consolidate", "--view", "view.json", "--rule", "least_nodes=2", "-o", "json"];
    let output = call(&args);
    let result = output.json();
    assert_eq!(result["plan"]["rejected"][0]["why"], "the cluster keeps at least 2 nodes ready", "{result}");
    std::fs::write(folder.path().join("mine.luau"), "print(setting('word', 'none')) return {}").unwrap();
    let args = ["policy", "test", "./mine.luau", "--view", "view.json", "--set", "word=some"];
    let output = call(&args);
    assert_eq!(output.lines()[1..], ["  it says: some", "  nothing"]);
}

#[test]
fn what_cannot_be_tried_is_said_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("view.json"), VIEW).unwrap();
    std::fs::write(folder.path().join("none.json"), "{}").unwrap();
    std::fs::write(folder.path().join("twice.json"), VIEW.replace("node2", "node1")).unwrap();
    std::fs::write(folder.path().join("bad.luau"), "return 1").unwrap();
    std::fs::write(folder.path().join("a b.luau"), "return {}").unwrap();
    for (args, words) in [
        (&["skale", "--view", "view.json"][..], &["skale is neither a file nor a policy", "scale"][..]),
        (&["scale", "--view", "nothing.json"], &["nothing.json"]),
        (&["scale", "--view", "none.json"], &["none.json is no view", "fcap policy view"]),
        (&["scale", "--view", "twice.json"], &["twice.json", "two nodes node1"]),
        (&["bad.luau", "--view", "view.json"], &["it returned a number, not a list of proposals"]),
        (&["a b.luau", "--view", "view.json"], &["\"a b\" is no name for a policy"]),
        (&["scale", "--view", "view.json", "--set", "fil=1"], &["has no setting fil"]),
        (
            &["scale", "--view", "view.json", "--set", "window=week"],
            &["there are minute, ten_minutes and hour"],
        ),
        (&["scale", "--view", "view.json", "--rule", "speed=1"], &["there is no rule speed"]),
        (&["scale", "--view", "view.json", "--rule", "moves=many"], &["rule moves", "no whole number"]),
    ] {
        let args = [&["policy", "test"][..], args].concat();
        check_refused(&args, &call(folder.path(), &args), 1, words);
    }
    for usage in [
        &["policy", "apply"][..],
        &["policy", "apply", "scale", "--every", "soon"],
        &["policy", "apply", "scale", "--set", "fill"],
        &["policy", "history", "-n", "-1"],
        &["policy", "rm"],
        &["cost", "--since", "yesterday"],
    ] {
        let output = call(folder.path(), usage);
        assert_eq!(output.code, 2, "{usage:?}: {output:?}");
    }
}
