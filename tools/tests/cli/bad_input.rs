//! What goes wrong gives one line that names the object and the remedy, and docker's exit codes.

use crate::rig::{Server, check_refused, fcap, finished, wait_for};

#[test]
fn images_that_are_not_there_or_cannot_run() {
    let server = Server::start();
    server.refused(&["run", "none"], 127, &["none", "fcap build"]);
    server.refused(&["run", "./none"], 127, &["./none"]);
    server.refused(&["run", "sha256:00"], 127, &["sha256:00"]);
    server.refused(&["run", "sha256:xyz"], 127, &["sha256:xyz"]);
    server.refused(&["run", "./state"], 126, &["./state", "cannot be read"]);
    std::fs::write(server.path("empty"), "").unwrap();
    server.refused(&["run", "./empty"], 126, &[]);
    std::fs::write(server.path("text"), "#!/bin/sh\necho no\n").unwrap();
    server.refused(&["create", "./text"], 126, &[]);
    let huge = std::fs::File::create(server.path("huge")).unwrap();
    huge.set_len(2 << 30).unwrap();
    server.refused(&["run", "./huge"], 126, &["huge", "2147483648"]);
    assert_eq!(server.ok(&["ps", "-aq"]), "");
}

#[test]
fn numbers_and_names_that_make_no_sense() {
    let server = Server::start();
    let image = server.image("hello");
    server.refused(&["run", "-m", "0", &image], 125, &["memory"]);
    server.refused(&["run", "-m", "100k", &image], 125, &["512"]);
    server.refused(&["run", "-m", "4000g", &image], 125, &["memory"]);
    for name in ["", "a b", "-x", "ä", "a\u{7}b", &"n".repeat(300)] {
        server.refused(&["run", &format!("--name={name}"), &image], 125, &["name"]);
    }
    server.refused(&["run", "--rm", "--restart", "always", &image], 125, &["--rm", "--restart"]);
    server.refused(&["run", "-e", "=x", &image], 125, &["KEY=VALUE"]);
    server.refused(&["run", "-l", "=x", &image], 125, &["KEY=VALUE"]);
    server.refused(&["run", "--env-file", "none", &image], 125, &["none"]);
    server.ok(&["create", "--name", "taken", &image]);
    server.refused(&["run", "--name", "taken", &image], 125, &["taken"]);
    for usage in [
        &["run"][..],
        &["run", "-m", "much", "x"],
        &["run", "--cpu-cap", "half", "x"],
        &["run", "--restart", "sometimes", "x"],
        &["ps", "-f", "colour=red"],
        &["ps", "-o", "xml"],
        &["logs", "--tail", "some", "x"],
        &["logs", "--since", "yesterday", "x"],
        &["logs", "a/b"],
        &["stop", "-t", "-1", "x"],
        &["inspect", ""],
        &["kill"],
        &["cloud", "up", "--flavor", "huge"],
        &["nonsense"],
        &["--host", "ftp://x", "ps"],
    ] {
        let output = server.call(usage);
        assert_eq!(output.code, 2, "{usage:?}: {output:?}");
        assert!(output.stderr.starts_with("error: "), "{usage:?}: {output:?}");
    }
}

#[test]
fn capsules_that_are_not_there_or_not_certain() {
    let server = Server::start();
    let image = server.image("hello");
    for verb in
        ["start", "stop", "kill", "pause", "unpause", "rm", "wait", "restart", "logs", "attach", "inspect"]
    {
        server.refused(&[verb, "none"], 1, &["none"]);
    }
    server.refused(&["rename", "none", "x"], 1, &["none"]);
    server.refused(&["update", "--weight", "1", "none"], 1, &["none"]);
    server.refused(&["stats", "--no-stream", "none"], 1, &["none"]);
    server.refused(&["image", "rm", "feed"], 1, &["feed"]);
    server.refused(&["image", "rm", "pictures"], 1, &["pictures"]);
    // Seventeen ids share a first digit somewhere.
    let ids: Vec<String> = (0..17).map(|_| server.ok(&["create", &image])).collect();
    let shared = ids.iter().find(|id| ids.iter().filter(|other| other[..1] == id[..1]).count() > 1).unwrap();
    server.refused(&["inspect", &shared[..1]], 1, &["several", &shared[..12]]);
}

#[test]
fn servers_that_do_not_answer_or_do_not_trust() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = format!("unix://{}", folder.path().join("none.sock").display());
    for args in [&["-H", &nowhere, "ps"][..], &["--host", "http://127.0.0.1:1", "ps"]] {
        check_refused(args, &finished(fcap(args).spawn().unwrap()), 1, &["no answer from"]);
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start_with(|folder| {
        std::fs::write(folder.join("token"), "the-token-of-this-test").unwrap();
        vec!["--listen".into(), format!("127.0.0.1:{port}"), "--token-file".into(), "token".into()]
    });
    let host = format!("127.0.0.1:{port}");
    wait_for("the daemon's port", || std::net::TcpStream::connect(&host).is_ok());
    let call = |args: &[&str]| finished(fcap(args).args(["--host", &host, "ps"]).spawn().unwrap());
    check_refused(&[], &call(&[]), 1, &["token"]);
    check_refused(&[], &call(&["--token", "wrong"]), 1, &["token"]);
    assert_eq!(call(&["--token", "the-token-of-this-test"]).code, 0);
    let file = server.path("token").display().to_string();
    assert_eq!(call(&["--token-file", &file]).code, 0);
    check_refused(&[], &call(&["--token-file", "/none"]), 1, &["/none"]);
    let from_variable = fcap(&["-H", &host, "ps"]).env("FCAP_TOKEN", "the-token-of-this-test").spawn();
    assert_eq!(finished(from_variable.unwrap()).code, 0);
}
