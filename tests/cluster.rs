//! A cluster on real Xen: its controller comes up by itself, and moves what runs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use fcap_tests::cli;
use fcap_tests::rig::{Node, wait_until};
use serde_json::Value;

fn path(name: &str) -> String {
    cli::image(name).to_str().expect("the tree's path is text").to_owned()
}

fn ok(node: &Node, args: &[&str]) -> String {
    node.cloud_ok(args).unwrap()
}

fn json(node: &Node, args: &[&str]) -> Value {
    node.cloud_json(args).unwrap()
}

/// Names of capsules that run, with their nodes.
fn places(node: &Node) -> Vec<(String, String)> {
    let listed = json(node, &["ps"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    listed.as_array().unwrap().iter().map(|it| (text(&it["name"]), text(&it["node"]))).collect()
}

/// Asks for a page over a connection of its own.
fn get(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") { Ok(answer) } else { Err(std::io::Error::other(answer)) }
}

#[test]
fn nodes_are_listed_cordoned_and_emptied_under_load() {
    let [one, two] = Node::two(false).expect("two nodes come up");
    // The controller comes up with the first command that needs it.
    let nodes = json(&one, &["node", "ls"]);
    assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
    wait_until("both are ready", || {
        let nodes = json(&one, &["node", "ls"]);
        Ok(nodes.as_array().unwrap().iter().all(|node| node["state"] == "ready"))
    })
    .unwrap();
    ok(&one, &["node", "cordon", "node2"]);
    for name in ["a", "b", "c"] {
        ok(&one, &["run", "-d", "--name", name, &path("httpd")]);
    }
    assert!(places(&one).iter().all(|(_, node)| node == "node1"), "{:?}", places(&one));
    ok(&one, &["node", "uncordon", "node2"]);
    // A proxy that stays, so that what is asked is always reached the same way.
    ok(
        &one,
        &["run", "-d", "--name", "front", "--node", "node2", "-p", "80", &path("proxy"), "tcp://a:80", "80"],
    );
    let port = json(&one, &["inspect", "front"])[0]["ports"][0]["host_port"].as_u64().unwrap() as u16;
    wait_until("the proxy answers", || Ok(get(port).is_ok())).unwrap();

    let (stop, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                get(port).map_err(|error| format!("request {}: {error}", asked.load(Ordering::Relaxed)))?;
                asked.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, String>(())
        });
        let drained = one.cloud_ok(&["node", "drain", "node1", "--reason", "a test"]);
        stop.store(true, Ordering::Relaxed);
        load.join().unwrap().expect("no request fails");
        drained.unwrap();
    });
    assert!(asked.load(Ordering::Relaxed) > 0);
    assert!(places(&one).iter().all(|(_, node)| node == "node2"), "{:?}", places(&one));
    let audit = json(&one, &["audit"]);
    assert_eq!(
        (audit[0]["what"].as_str(), audit[0]["reason"].as_str()),
        (Some("drain node node1"), Some("a test"))
    );
    drop(two);
}

#[test]
fn a_node_is_replaced_by_a_larger_one_and_the_controller_may_die_meanwhile() {
    let [one, _two] = Node::two(false).expect("two nodes come up");
    for name in ["a", "b"] {
        ok(&one, &["run", "-d", "--name", name, "--node", "node1", &path("clock")]);
    }
    let operation = ok(&one, &["node", "replace", "node1", "--flavor", "medium", "-d"]);
    wait_until("it has begun to move them", || {
        let operation = json(&one, &["operation", "inspect", &operation]);
        let moves = operation["steps"].as_array().unwrap().iter();
        Ok(moves.filter(|step| step["work"]["work"] == "move").count() > 0)
    })
    .unwrap();
    one.kill_controller().unwrap();
    // The next command starts it again, and it goes on.
    ok(&one, &["operation", "follow", &operation]);
    let nodes = ok(&one, &["node", "ls", "-o", "name"]);
    assert_eq!(nodes, "node2\nnode3");
    assert_eq!(json(&one, &["node", "inspect", "node3"])[0]["flavor"], "medium");
    let mut places = places(&one);
    places.sort();
    assert_eq!(places, [("a".to_owned(), "node3".to_owned()), ("b".to_owned(), "node3".to_owned())]);
}
