//! Networks, published ports, and figures of the network.

use crate::rig::{Server, check_refused, fcap, finished};

#[test]
fn ports_of_a_capsule_are_published_and_shown() {
    let server = Server::start();
    let image = server.image("serve");
    let args =
        ["run", "-d", "--name", "web", "-p", "8080:80", "--publish", "443", "-p", "53:5353/udp", &image];
    server.ok(&args);
    let it = server.inspect("web");
    assert_eq!(it["ports"][0], serde_json::json!({ "host_port": 8080, "port": 80, "protocol": "tcp" }));
    let chosen = it["ports"][1]["host_port"].as_u64().unwrap();
    assert!((20000..=32767).contains(&chosen), "{it}");
    let all = format!("80/tcp -> 0.0.0.0:8080\n443/tcp -> 0.0.0.0:{chosen}\n5353/udp -> 0.0.0.0:53");
    assert_eq!(server.ok(&["port", "web"]), all);
    assert_eq!(server.ok(&["port", "web", "443"]), format!("443/tcp -> 0.0.0.0:{chosen}"));
    assert_eq!(server.ok(&["port", "web", "5353/udp"]), "5353/udp -> 0.0.0.0:53");
    assert_eq!(server.call(&["port", "web", "80", "-o", "json"]).json()[0]["host_port"], 8080);
    server.refused(&["port", "web", "5353/tcp"], 1, &["5353", "web"]);
    server.refused(&["port", "none"], 1, &["none"]);
    let table = server.ok(&["ps"]);
    assert!(table.contains("PORTS") && table.contains("8080->80/tcp, "), "{table}");
    assert!(server.ok(&["ps", "--no-trunc"]).contains(&format!("{chosen}->443/tcp, 53->5353/udp")));

    server.refused(&["run", "-p", "8080:1", &image], 125, &["8080/tcp", "capsule web"]);
    server.ok(&["stop", "web"]);
    server.ok(&["run", "-d", "--name", "next", "-p", "8080:1", &image]);
    server.refused(&["start", "web"], 1, &["8080/tcp", "capsule next"]);
}

#[test]
fn capsules_are_told_their_addresses_and_shown_with_them() {
    let server = Server::start();
    let image = server.image("net");
    let told = server.ok(&["run", "--name", "one", &image]);
    assert!(told.starts_with("0a:fc:0a:58:01:01 mtu 1500 10.88.1.1/16 via 10.88.0.1"), "{told}");
    assert_eq!(server.inspect("one")["networks"][0]["ipv4"], "10.88.1.1");
    assert_eq!(server.ok(&["run", "--network", "none", &image]), "");
    let plain = server.image("args");
    server.ok(&["create", "--name", "asked", "--network", "default", "--net-rate", "10m", &plain]);
    let it = server.inspect("asked");
    assert_eq!((&it["networks"][0]["network"], &it["net_rate_kbit"]), (&"default".into(), &10_000.into()));
    assert!(server.ok(&["ps", "-a", "-o", "wide"]).contains("10.88.1.1"));
    server.refused(&["run", "--network", "none", "--network", "default", &image], 125, &["stands alone"]);
    server.refused(&["run", "--network", "none", "-p", "80", &image], 125, &["network"]);
    server.refused(&["run", "--network", "nowhere", &image], 125, &["nowhere", "fcap network create"]);
    for usage in [
        &["run", "-p", "x", &image][..],
        &["run", "-p", "1:2:3", &image],
        &["run", "-p", "0", &image],
        &["run", "-p", "80/sctp", &image],
        &["run", "--network", "a/b", &image],
        &["run", "--net-rate", "fast", &image],
        &["port", "a/b"],
        &["port", "web", "x"],
        &["network", "create", "A"],
        &["network", "rm"],
    ] {
        let output = server.call(usage);
        assert_eq!(output.code, 2, "{usage:?}: {output:?}");
    }
}

#[test]
fn networks_are_made_listed_and_removed() {
    let server = Server::start();
    assert_eq!(server.ok(&["network", "create", "back", "--subnet", "192.168.7.0/24", "--internal"]), "back");
    assert_eq!(server.ok(&["network", "ls", "-q"]), "back\ndefault");
    assert_eq!(server.ok(&["network", "list", "-o", "name"]), "back\ndefault");
    let table = server.ok(&["network", "ls"]);
    let back: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(back, ["back", "192.168.7.0/24", "no", "0"]);
    assert!(server.ok(&["network", "ls", "-o", "wide"]).contains("fd88::/64"));
    assert_eq!(server.call(&["network", "ls", "-o", "json"]).json()[1]["subnet4"], "10.88.0.0/16");
    assert!(server.ok(&["network", "inspect", "-o", "yaml", "back"]).contains("outbound: false"));
    let some = server.call(&["network", "inspect", "none", "back"]);
    assert_eq!((some.code, some.json().as_array().unwrap().len()), (1, 1));

    let image = server.image("serve");
    server.ok(&["run", "-d", "--name", "x", "--network", "back", "--network", "default", &image]);
    assert_eq!(server.inspect("x")["networks"][0]["ipv4"], "192.168.7.17");
    server.refused(&["network", "rm", "back"], 1, &["back", "in use", "(1)"]);
    server.refused(&["network", "rm", "default"], 1, &["default"]);
    server.refused(&["network", "create", "back"], 1, &["back", "already"]);
    server.refused(&["network", "create", "other", "--subnet", "192.168.0.0/16"], 1, &["network back"]);
    server.refused(&["network", "create", "other", "--subnet", "8.8.8.0/24"], 1, &["not private"]);
    server.ok(&["rm", "-f", "x"]);
    assert_eq!(server.ok(&["network", "rm", "back"]), "back");
    server.refused(&["network", "rm", "back"], 1, &["back"]);
}

#[test]
fn a_network_is_one_on_all_nodes_that_use_it() {
    let (one, two) = (Server::named("one"), Server::named("two"));
    let hosts = format!("{},{}", one.host(), two.host());
    let call = |args: &[&str]| finished(fcap(args).env("FCAP_HOST", &hosts).spawn().unwrap());
    assert_eq!(call(&["network", "create", "both"]).code, 0);
    let subnet = |server: &Server| {
        server.call(&["network", "inspect", "both"]).json()[0]["subnet4"].as_str().map(str::to_owned)
    };
    assert!(subnet(&one).is_some());
    assert_eq!(subnet(&one), subnet(&two));
    // One that only the first node has comes to the second with the first capsule that wants it.
    one.ok(&["network", "create", "late", "--internal"]);
    let image = one.image("serve");
    let args = ["run", "-d", "--name", "x", "--node", "two", "--network", "late", &image];
    assert_eq!(call(&args).code, 0);
    assert_eq!(two.call(&["network", "inspect", "late"]).json()[0]["outbound"], false);
    let refused = ["network", "rm", "late"];
    check_refused(&refused, &call(&refused), 1, &["in use", "(1)"]);
    assert_eq!(call(&["rm", "-f", "x"]).code, 0);
    assert_eq!(call(&["network", "rm", "late", "both"]).stdout, "late\nboth\n");
    assert_eq!(one.ok(&["network", "ls", "-q"]), "default");
    assert_eq!(two.ok(&["network", "ls", "-q"]), "default");
}

#[test]
fn figures_of_the_network_are_shown() {
    let server = Server::start();
    server.ok(&["run", "-d", "--name", "web", &server.image("serve")]);
    server.ok(&["run", "-d", "--name", "plain", &server.image("spin")]);
    let table = server.ok(&["stats", "--no-stream"]);
    let line = |name: &str| table.lines().find(|line| line.contains(name)).unwrap().to_owned();
    assert!(table.contains("NET I/O") && line("web").contains("0B / 0B"), "{table}");
    assert!(!line("plain").contains("0B / 0B"), "{table}");
    let json = server.call(&["stats", "--no-stream", "-o", "json", "web"]).json();
    assert_eq!(json[0]["net"]["denied"], 0);
    assert_eq!(server.inspect("web")["net"]["rx_bytes"], 0);
}
