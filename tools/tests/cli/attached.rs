//! `run`, `attach`, `start -a`: streams, signals, exit codes.

use crate::rig::{Server, finished, first_line, signal, wait_for};
use std::process::{Command, Stdio};

#[test]
fn output_and_exit_code_are_the_applications() {
    let server = Server::start();
    let hello = server.call(&["run", &server.image("hello")]);
    assert_eq!((hello.code, hello.stderr.as_str()), (0, ""), "{hello:?}");
    assert!(hello.stdout.contains("Hello"), "{hello:?}");
    assert_eq!(server.call(&["run", &server.image("exit 3")]).code, 3);
    assert_eq!(server.call(&["run", &server.image("panic")]).code, 101);
    let leak = server.call(&["run", &server.image("leak")]);
    assert_eq!(leak.code, 134);
    assert!(leak.stderr.starts_with("fcap: out of memory"), "{leak:?}");
    let fault = server.call(&["run", &server.image("fault")]);
    assert_eq!(fault.code, 139);
    assert!(fault.stderr.starts_with("fcap: crashed"), "{fault:?}");
}

#[test]
fn arguments_after_the_image_are_the_applications() {
    let server = Server::start();
    let output = server.call(&["run", "--rm", "-e", "A=1", &server.image("args"), "--name", "x", "-d", "--"]);
    let lines = output.lines();
    for expected in ["--name", "x", "-d", "--", "A=1"] {
        assert!(lines.contains(&expected), "{expected} is missing: {output:?}");
    }
    assert_eq!(server.ok(&["ps", "-aq"]), "");
}

#[test]
fn standard_input_goes_through_whole_and_ends() {
    let server = Server::start();
    let input: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let output = server.call_with(&["run", "-i", "--rm", &server.image("count")], &input);
    assert_eq!((output.code, output.stdout.trim()), (0, "3000000"), "{output:?}");
    let mut echo = server.command(&["run", "-i", &server.image("echo")]);
    let echoed = echo.stdin(Stdio::piped()).spawn().unwrap();
    let output = finished(echoed);
    assert_eq!((output.code, output.stdout.as_str()), (0, ""));
    // Without -i there is no input, and nobody waits for it.
    let output = server.call_with(&["run", &server.image("count")], b"not for you");
    assert_eq!(output.stdout.trim(), "0");
}

#[test]
fn pipes_get_the_bytes_as_they_are() {
    let server = Server::start();
    let output = server.call_with(&["run", "-i", &server.image("echo")], b"\x1b[2J\x07\r\0end");
    assert_eq!(output.stdout.as_bytes(), b"\x1b[2J\x07\r\0end");
}

#[test]
fn terminals_get_no_control_sequences() {
    let server = Server::start();
    server.ok(&["create", "--name", "evil", &server.image("args"), "\x1b[2Jwiped\x07"]);
    for command in ["start -a evil", "logs evil", "ps -a --no-trunc"] {
        // `script` gives it a terminal.
        let fcap = format!("{} {command}", env!("CARGO_BIN_EXE_fcap"));
        let output = server_env(&server, Command::new("script").args(["-qec", &fcap, "/dev/null"]));
        assert!(output.contains("wiped"), "{command}: {output:?}");
        assert!(!output.contains("\x1b[2J") && !output.contains('\x07'), "{command}: {output:?}");
    }
}

fn server_env(server: &Server, command: &mut Command) -> String {
    let output = command.env("FCAP_HOST", server.host()).stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_first_ctrl_c_asks_and_the_second_forces() {
    let server = Server::start();
    let mut polite = server.command(&["run", "--rm", &server.image("tick 20")]).spawn().unwrap();
    let (_, _open) = first_line(&mut polite);
    signal(&polite, "INT");
    assert_eq!(finished(polite).code, 143);
    assert_eq!(server.ok(&["ps", "-aq"]), "");

    let mut stubborn =
        server.command(&["run", "--rm", "--name", "s", &server.image("stubborn")]).spawn().unwrap();
    wait_for("the capsule", || server.state("s") == "running");
    signal(&stubborn, "TERM");
    wait_for("the request", || server.state("s") == "stopping");
    assert!(stubborn.try_wait().unwrap().is_none());
    signal(&stubborn, "INT");
    assert_eq!(finished(stubborn).code, 137);
    wait_for("its removal", || server.ok(&["ps", "-aq"]).is_empty());
}

#[test]
fn without_sig_proxy_ctrl_c_only_leaves() {
    let server = Server::start();
    let image = server.image("tick 20");
    let mut child = server.command(&["run", "--sig-proxy=false", "--name", "t", &image]).spawn().unwrap();
    let (_, _open) = first_line(&mut child);
    signal(&child, "INT");
    assert_eq!(finished(child).code, 130);
    assert_eq!(server.state("t"), "running");

    let mut child = server.command(&["attach", "--sig-proxy=false", "--no-stdin", "t"]).spawn().unwrap();
    let (_, _open) = first_line(&mut child);
    signal(&child, "INT");
    assert_eq!(finished(child).code, 130);
    assert_eq!(server.state("t"), "running");
}

#[test]
fn when_nobody_reads_the_capsule_ends_as_a_process_would() {
    let server = Server::start();
    let image = server.image("flood");
    let mut child = server.command(&["run", "--name", "f", &image]).spawn().unwrap();
    drop(first_line_of_flood(&mut child));
    let output = finished(child);
    assert_eq!((output.code, output.stderr.as_str()), (141, ""), "{output:?}");
    wait_for("its end", || server.state("f") == "exited");
    assert_eq!(server.inspect("f")["end"]["exit_code"], 137);
}

fn first_line_of_flood(child: &mut std::process::Child) -> std::process::ChildStdout {
    use std::io::Read as _;
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 100]).unwrap();
    stdout
}

#[test]
fn attach_connects_output_and_input() {
    let server = Server::start();
    server.ok(&["run", "-d", "-i", "--name", "e", &server.image("echo")]);
    let output = server.call_with(&["attach", "e"], b"one\ntwo\n");
    assert_eq!((output.code, output.stdout.as_str()), (0, "one\ntwo\n"), "{output:?}");
    server.refused(&["attach", "e"], 1, &["ended", "logs"]);
}

#[test]
fn start_with_attach_gives_output_and_exit_code() {
    let server = Server::start();
    server.ok(&["create", "--name", "x", &server.image("exit 7")]);
    assert_eq!(server.call(&["start", "-a", "x"]).code, 7);
    server.ok(&["create", "-i", "--name", "e", &server.image("echo")]);
    let output = server.call_with(&["start", "-ai", "e"], b"in and out\n");
    assert_eq!((output.code, output.stdout.as_str()), (0, "in and out\n"), "{output:?}");
    server.refused(&["start", "-a", "x", "e"], 1, &["one capsule"]);
}
