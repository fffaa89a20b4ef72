//! From create to rm, and every option of a new capsule.

use crate::rig::{Server, finished, wait_for};

#[test]
fn every_option_of_a_new_capsule_arrives() {
    let server = Server::start();
    std::fs::write(server.path("vars"), "# comment\nFROM_FILE=yes\nA=overridden\n").unwrap();
    let image = server.image("tick 1000");
    let id = server.ok(&[
        "run",
        "-d",
        "--name",
        "full",
        "-m",
        "32m",
        "--vcpus",
        "1",
        "--cpu-cap",
        "50%",
        "--weight",
        "512",
        "-e",
        "A=1",
        "--env-file",
        "vars",
        "-l",
        "tier=front",
        "--label",
        "plain",
        "--restart",
        "on-failure:3",
        &image,
        "arg",
    ]);
    let it = server.inspect("full");
    assert_eq!(it["id"], id.as_str());
    assert_eq!(it["memory_kib"], 32 * 1024);
    assert_eq!(it["vcpus"], 1);
    assert_eq!(it["cpu_cap"], 50);
    assert_eq!(it["weight"], 512);
    assert_eq!(it["env"], serde_json::json!({"A": "1", "FROM_FILE": "yes"}));
    assert_eq!(it["labels"], serde_json::json!({"plain": "", "tier": "front"}));
    assert_eq!(it["restart"], serde_json::json!({"on-failure": {"max_retries": 3}}));
    assert_eq!(it["args"], serde_json::json!(["arg"]));
    assert_eq!(it["image_name"], "tick-1000");
    assert_eq!(it["stdin"], false);
}

#[test]
fn a_capsule_goes_through_its_states() {
    let server = Server::start();
    let image = server.image("tick 50");
    let id = server.ok(&["create", "--name", "c", &image]);
    assert_eq!(server.state("c"), "created");
    assert_eq!(server.ok(&["start", "c"]), "c");
    assert_eq!(server.ok(&["pause", &id[..6]]), &id[..6]);
    assert_eq!(server.state("c"), "paused");
    assert_eq!(server.ok(&["unpause", "c"]), "c");
    assert_eq!(server.ok(&["stop", "-t", "5", "c"]), "c");
    assert_eq!(server.ok(&["wait", "c"]), "143");
    server.ok(&["restart", "c"]);
    assert_eq!(server.state("c"), "running");
    server.ok(&["restart", "-t", "1", "c"]);
    assert_eq!(server.state("c"), "running");
    server.refused(&["rm", "c"], 1, &["c"]);
    assert_eq!(server.ok(&["kill", "c"]), "c");
    assert_eq!(server.ok(&["wait", "c"]), "137");
    assert_eq!(server.ok(&["rm", "c"]), "c");
    server.refused(&["inspect", "c"], 1, &["no such capsule"]);
}

#[test]
fn stop_forces_after_its_time() {
    let server = Server::start();
    server.ok(&["run", "-d", "--name", "s", &server.image("stubborn")]);
    server.ok(&["stop", "--time", "0", "s"]);
    assert_eq!(server.ok(&["wait", "s"]), "137");
}

#[test]
fn several_capsules_at_once_and_one_failure_does_not_stop_the_others() {
    let server = Server::start();
    let image = server.image("tick 50");
    for name in ["a", "b", "c"] {
        server.ok(&["run", "-d", "--name", name, &image]);
    }
    let output = server.call(&["kill", "a", "none", "b", "c"]);
    assert_eq!((output.code, output.stdout.as_str()), (1, "a\nb\nc\n"), "{output:?}");
    assert!(output.stderr.contains("none"), "{output:?}");
    assert_eq!(server.ok(&["wait", "a", "b", "c"]), "137\n137\n137");
    assert_eq!(server.ok(&["rm", "-f", "a", "b", "c"]), "a\nb\nc");
}

#[test]
fn wait_waits() {
    let server = Server::start();
    server.ok(&["run", "-d", "--name", "w", &server.image("tick 50")]);
    let mut waiting = server.command(&["wait", "w"]).spawn().unwrap();
    assert!(waiting.try_wait().unwrap().is_none());
    server.ok(&["stop", "w"]);
    let output = finished(waiting);
    assert_eq!((output.code, output.stdout.as_str()), (0, "143\n"));
}

#[test]
fn update_and_rename_change_a_running_capsule() {
    let server = Server::start();
    server.ok(&["run", "-d", "--name", "old", &server.image("tick 50")]);
    server.ok(&["update", "--cpu-cap", "25", "--weight", "100", "--restart", "always", "old"]);
    server.ok(&["rename", "old", "new"]);
    let it = server.inspect("new");
    assert_eq!((&it["cpu_cap"], &it["weight"], &it["restart"]), (&25.into(), &100.into(), &"always".into()));
    server.refused(&["rename", "new", "bad name"], 1, &["name"]);
    assert_eq!(server.call(&["update", "new"]).code, 2);
}

#[test]
fn update_changes_the_memory_of_a_running_capsule() {
    let server = Server::start();
    let image = server.image("hold 20480");
    server.ok(&["run", "-d", "--name", "c", "-m", "32m", "--memory-max", "64m", &image]);
    assert_eq!(server.ok(&["update", "-m", "48m", "c"]), "c");
    let it = server.inspect("c");
    assert_eq!((&it["memory_kib"], &it["max_memory_kib"]), (&(48 << 10).into(), &(64 << 10).into()));
    let wide = server.ok(&["ps", "-o", "wide"]);
    assert!(wide.contains("MAX MEM") && wide.contains("48MiB") && wide.contains("64MiB"), "{wide}");
    assert!(server.ok(&["stats", "--no-stream"]).contains("48MiB / 64MiB"));
    server.refused(&["update", "-m", "65m", "c"], 1, &["capsule c", "at most 64 MiB", "--memory-max"]);
    server.refused(&["update", "-m", "16m", "c"], 1, &["capsule c gave back 28 MiB of 32 MiB", "in use"]);
    assert_eq!(server.inspect("c")["memory_kib"], 20 << 10);
    server.refused(&["run", "-m", "32m", "--memory-max", "16m", &image], 125, &["max_memory_kib"]);
}

#[test]
fn rm_at_the_end_and_prune_remove() {
    let server = Server::start();
    server.ok(&["run", "--rm", &server.image("hello")]);
    assert_eq!(server.ok(&["ps", "-aq"]), "");
    server.ok(&["run", "--name", "p", &server.image("hello")]);
    server.ok(&["run", "-d", "--name", "stays", &server.image("tick 50")]);
    let asked = server.call_with(&["prune"], b"n\n");
    assert_eq!((asked.code, asked.stdout.as_str()), (1, ""), "{asked:?}");
    assert!(asked.stderr.contains("[y/N]"), "{asked:?}");
    let pruned = server.call_with(&["prune"], b"y\n");
    assert_eq!((pruned.code, pruned.lines().len()), (0, 2), "{pruned:?}");
    assert_eq!(server.ok(&["prune", "-f"]), "");
    assert_eq!(server.ok(&["ps", "-a", "-o", "name"]), "stays");
}

#[test]
fn restart_policies_start_again() {
    let server = Server::start();
    server.ok(&["run", "-d", "--name", "r", "--restart", "on-failure:1", &server.image("exit 1")]);
    wait_for("its end", || server.state("r") == "exited");
    assert_eq!(server.inspect("r")["restarts"], 1);
}

#[test]
fn images_are_sent_once_and_can_be_named_by_digest() {
    let server = Server::start();
    let image = server.image("hello");
    let first = server.call(&["-D", "run", "--rm", &image]);
    assert!(first.stderr.contains("PUT"), "{first:?}");
    let second = server.call(&["-D", "run", &image]);
    assert!(!second.stderr.contains("PUT") && !second.stderr.contains("GET"), "{second:?}");
    let digest = server.ok(&["image", "ls", "-q", "--no-trunc"]);
    assert!(digest.starts_with("sha256:"), "{digest}");
    assert_eq!(server.call(&["run", "--rm", &digest[..15]]).code, 0);
    server.refused(&["image", "rm", &digest], 1, &["use"]);
    server.ok(&["prune", "-f"]);
    assert_eq!(server.ok(&["images", "-q"]), "");
    server.refused(&["run", &digest], 127, &["image"]);
}

#[test]
fn other_kernels_get_an_initrd_and_a_command_line() {
    let server = Server::start();
    std::fs::write(server.path("kernel"), "SIMK:hello").unwrap();
    std::fs::write(server.path("initrd"), "files").unwrap();
    let output =
        server.call(&["run", "--name", "k", "--initrd", "initrd", "--append", "console=hvc0", "./kernel"]);
    assert!(output.stdout.contains("Hello"), "{output:?}");
    assert_eq!(server.ok(&["image", "ls", "-q"]).lines().count(), 2);
    server.refused(&["run", "--initrd", "missing", "./kernel"], 126, &["missing", "cannot be read"]);
}
