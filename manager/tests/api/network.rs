//! Networks, addresses, published ports, and the overlay.

use std::collections::BTreeSet;

use fcap_api::{
    Capsule, CreateCapsule, ErrorCode, Network, OverlayStatus, PublishPort, RestartPolicy, State, Stats,
};
use fcap_manager::net::{Counters, Protocol, Remote};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::{Server, TOKEN, until};

fn port(host_port: Option<u16>, port: u16) -> PublishPort {
    PublishPort { host_port, port, protocol: Protocol::Tcp }
}

impl Server {
    async fn capsule(&self, name: &str) -> Capsule {
        self.get(&format!("/capsules/{name}")).await
    }

    /// A capsule that serves on the default network, on these ports.
    async fn serve(&self, name: &str, ports: &[PublishPort]) -> Capsule {
        let spec = CreateCapsule { ports: ports.to_vec(), ..self.spec("SIM:serve", name).await };
        self.create(&spec).await
    }

    async fn refuse_capsule(&self, change: impl FnOnce(&mut CreateCapsule)) -> fcap_api::ErrorBody {
        let mut spec = self.spec("SIM:serve", "refused").await;
        change(&mut spec);
        let error = self.refused(Method::POST, "/capsules", json!(spec).to_string()).await;
        let error_of_get = self.refused(Method::GET, "/capsules/refused", "").await;
        assert_eq!(error_of_get.code, ErrorCode::NoSuchCapsule);
        error
    }
}

/// A network is of use to nobody when nothing runs.
fn assert_nothing_is_left(server: &Server) {
    server.fabric.with(|state| {
        assert!(state.attachments.is_empty() && state.placed.is_empty(), "{state:?}");
        assert!(state.published.is_empty(), "{state:?}");
    });
}

#[tokio::test]
async fn a_capsule_gets_addresses_that_it_is_told_of() {
    let server = Server::start().await;
    let image = server.image("SIM:net").await;
    let mut frames = server.run(&CreateCapsule { image, ..CreateCapsule::default() }).await;
    let line = frames.read_until("\n").await;
    assert_eq!(
        line.trim_end(),
        "0a:fc:0a:58:01:01 mtu 1500 10.88.1.1/16 via 10.88.0.1 dns 10.88.0.1 \
         fd88::a58:101/64 via fd88::1 dns fd88::1"
    );
    until("the end of what runs", async || server.fabric.with(|state| state.placed.is_empty())).await;
    assert_nothing_is_left(&server);
    let network: Network = server.get("/networks/default").await;
    assert_eq!(
        (network.subnet4.as_str(), network.subnet6.as_str(), network.mtu, network.outbound),
        ("10.88.0.0/16", "fd88::/64", 1500, true)
    );
    assert_eq!(network.capsules, 1);
}

#[tokio::test]
async fn addresses_stay_a_capsules_own_until_it_is_removed() {
    let mut server = Server::start().await;
    let first = server.serve("first", &[]).await.networks;
    let second = server.serve("second", &[]).await.networks;
    assert_eq!(first.len(), 1);
    assert_ne!(first[0].ipv4, second[0].ipv4);
    server.post::<Capsule>("/capsules/first/stop").await;
    assert_eq!(server.capsule("first").await.networks, first);
    server.kill_daemon();
    server.start_daemon().await;
    let third = server.serve("third", &[]).await.networks;
    server.post::<Capsule>("/capsules/first/start").await;
    assert_eq!(server.capsule("first").await.networks, first);
    assert_eq!(server.capsule("second").await.networks, second);
    let all: BTreeSet<_> = [&first, &second, &third].map(|it| it[0].ipv4).into();
    assert_eq!(all.len(), 3);
    server.delete("/capsules/first?force=true").await;
    assert_eq!(server.get::<Network>("/networks/default").await.capsules, 2);
}

#[tokio::test]
async fn the_default_network_is_for_those_who_want_one() {
    let server = Server::start().await;
    assert_eq!(server.start_capsule("SIM:spin", "plain").await.networks, []);
    assert_eq!(server.start_capsule("SIMK:spin", "kernel").await.networks, []);
    let spec = CreateCapsule { networks: Some(Vec::new()), ..server.spec("SIM:serve", "none").await };
    assert_eq!(server.create(&spec).await.networks, []);
    let default = Some(vec!["default".to_owned()]);
    let spec = CreateCapsule { networks: default, ..server.spec("SIMK:spin", "linux").await };
    let linux = server.create(&spec).await;
    let address = linux.networks[0].ipv4;
    let line = server.world.command_line(linux.domid.unwrap()).unwrap();
    let mac = &linux.networks[0].mac;
    assert_eq!(line, format!("fcap.mac={mac} fcap.ip={address}/16 fcap.gw=10.88.0.1 fcap.dns=10.88.0.1"));
    assert_eq!(server.fabric.with(|state| state.placed.len()), 1);
}

#[tokio::test]
async fn people_make_networks_of_their_own() {
    let mut server = Server::start().await;
    let make =
        async |server: &Server, body: Value| -> Network { server.ok(Method::POST, "/networks", body).await };
    let back = make(&server, json!({ "name": "back", "subnet": "192.168.7.0/24", "internal": true })).await;
    assert_eq!((back.gateway4.to_string().as_str(), back.outbound), ("192.168.7.1", false));
    let front = make(&server, json!({ "name": "front" })).await;
    assert!(front.subnet4.starts_with("10.") && front.outbound, "{front:?}");
    assert_ne!(front.subnet6, back.subnet6);
    let networks = Some(vec!["front".to_owned(), "back".to_owned()]);
    let spec = CreateCapsule { networks, net_rate_kbit: Some(5000), ..server.spec("SIM:net", "both").await };
    let both = server.create(&spec).await;
    assert_eq!(both.networks.len(), 2);
    assert_eq!(both.networks[1].ipv4.to_string(), "192.168.7.17");
    assert_eq!(both.net_rate_kbit, Some(5000));
    server.wait("both").await;

    for name in ["front", "back", "default"] {
        let error = server.refused(Method::DELETE, &format!("/networks/{name}"), "").await;
        assert_eq!(error.code, ErrorCode::NetworkInUse, "{error:?}");
    }
    server.kill_daemon();
    server.start_daemon().await;
    let names: Vec<String> =
        server.get::<Vec<Network>>("/networks").await.into_iter().map(|it| it.name).collect();
    assert_eq!(names, ["back", "default", "front"]);
    assert_eq!(server.get::<Network>("/networks/front").await, Network { capsules: 1, ..front });
    server.delete("/capsules/both").await;
    server.delete("/networks/front").await;
    server.delete("/networks/back").await;
    let error = server.refused(Method::DELETE, "/networks/back", "").await;
    assert_eq!(error.code, ErrorCode::NoSuchNetwork);
    assert_eq!(server.fabric.with(|state| state.networks.len()), 1);
}

#[tokio::test]
async fn networks_that_cannot_be_are_refused() {
    let server = Server::start().await;
    server.ok::<Network>(Method::POST, "/networks", json!({ "name": "one", "subnet": "10.7.0.0/16" })).await;
    for (name, subnet, code, word) in [
        ("two", Some("10.7.3.0/24"), ErrorCode::BadRequest, "network one (10.7.0.0/16)"),
        ("two", Some("10.0.0.0/8"), ErrorCode::BadRequest, "addresses of network"),
        ("two", Some("10.88.4.0/24"), ErrorCode::BadRequest, "network default"),
        ("two", Some("8.8.8.0/24"), ErrorCode::BadRequest, "not private"),
        ("two", Some("10.7.0.1/16"), ErrorCode::BadRequest, "10.7.0.0/16"),
        ("two", Some("nonsense\u{1b}"), ErrorCode::BadRequest, "10.90.0.0/16"),
        ("one", None, ErrorCode::WrongState, "already"),
        ("default", None, ErrorCode::WrongState, "already"),
        ("none", None, ErrorCode::BadRequest, "stands for no network"),
        ("", None, ErrorCode::BadRequest, "lower-case"),
        ("Two", None, ErrorCode::BadRequest, "lower-case"),
        ("2", None, ErrorCode::BadRequest, "lower-case"),
        (&"n".repeat(33), None, ErrorCode::BadRequest, "at most 32"),
    ] {
        let body = json!({ "name": name, "subnet": subnet }).to_string();
        let error = server.refused(Method::POST, "/networks", body).await;
        assert_eq!(error.code, code, "{name} {subnet:?}: {error:?}");
        assert!(error.message.contains(word), "{error:?}");
    }
    for path in ["/networks/nothing", "/networks/%1b"] {
        let error = server.refused(Method::GET, path, "").await;
        assert_eq!(error.code, ErrorCode::NoSuchNetwork);
    }
    server.fabric.with(|state| state.failing = Some("ensure"));
    let response = server.request(Method::POST, "/networks", json!({ "name": "three" }).to_string()).await;
    assert_eq!(response.status(), 500);
    server.fabric.with(|state| state.failing = None);
    assert_eq!(server.refused(Method::GET, "/networks/three", "").await.code, ErrorCode::NoSuchNetwork);
}

#[tokio::test]
async fn capsules_that_ask_for_too_much_of_a_network_are_refused() {
    let server = Server::start().await;
    server.ok::<Network>(Method::POST, "/networks", json!({ "name": "inner", "internal": true })).await;
    type Change = fn(&mut CreateCapsule);
    let cases: [(Change, ErrorCode, &str); 10] = [
        (|it| it.networks = Some(vec!["nothing".into()]), ErrorCode::NoSuchNetwork, "fcap network create"),
        (|it| it.networks = Some(vec!["default".into(); 2]), ErrorCode::BadRequest, "twice"),
        (
            |it| it.networks = Some((0..9).map(|n| format!("n{n}")).collect()),
            ErrorCode::BadRequest,
            "at most 8",
        ),
        (|it| it.ports = vec![port(None, 0)], ErrorCode::BadRequest, "port to be published is 0"),
        (|it| it.ports = vec![port(Some(0), 1)], ErrorCode::BadRequest, "is 0"),
        (|it| it.ports = vec![port(Some(9), 1), port(Some(9), 2)], ErrorCode::BadRequest, "9/tcp"),
        (|it| it.ports = vec![port(None, 1); 65], ErrorCode::BadRequest, "at most 64"),
        (
            |it| (it.networks, it.ports) = (Some(Vec::new()), vec![port(None, 1)]),
            ErrorCode::BadRequest,
            "with a network",
        ),
        (|it| it.net_rate_kbit = Some(0), ErrorCode::BadRequest, "net_rate_kbit"),
        (
            |it| (it.networks, it.ports) = (Some(vec!["inner".into()]), vec![port(None, 1)]),
            ErrorCode::BadRequest,
            "internal",
        ),
    ];
    for (change, code, word) in cases {
        let error = server.refuse_capsule(change).await;
        assert_eq!(error.code, code, "{error:?}");
        assert!(error.message.contains(word), "{word}: {error:?}");
    }
    assert_nothing_is_left(&server);
    assert_eq!(server.get::<Network>("/networks/default").await.capsules, 0);
}

#[tokio::test]
async fn a_network_without_an_address_left_says_so() {
    let server = Server::start().await;
    let body = json!({ "name": "small", "subnet": "192.168.9.0/28" });
    server.ok::<Network>(Method::POST, "/networks", body).await;
    let spec = async |name: &str| CreateCapsule {
        networks: Some(vec!["small".into(), "default".into()]),
        no_start: true,
        ..server.spec("SIM:serve", name).await
    };
    for name in ["a", "b"] {
        server.create(&spec(name).await).await;
    }
    let refused = json!(spec("c").await).to_string();
    let error = server.refused(Method::POST, "/capsules", refused.clone()).await;
    assert_eq!(error.code, ErrorCode::NoAddress);
    assert!(error.message.contains("small") && error.message.contains("remove"), "{error:?}");
    assert_eq!(server.get::<Network>("/networks/default").await.capsules, 2);
    server.delete("/capsules/a").await;
    server.ok::<Capsule>(Method::POST, "/capsules", json!(spec("c").await)).await;
}

#[tokio::test]
async fn ports_lead_to_a_capsule_while_it_runs() {
    let mut server = Server::start().await;
    let udp = PublishPort { host_port: Some(53), port: 5353, protocol: Protocol::Udp };
    let web = server.serve("web", &[port(Some(8080), 80), port(None, 443), udp]).await;
    let ports = web.ports.clone();
    assert_eq!((ports[0].host_port, ports[0].port), (8080, 80));
    assert!((20000..=32767).contains(&ports[1].host_port), "{ports:?}");
    assert_eq!((ports[2].host_port, ports[2].protocol), (53, Protocol::Udp));
    let published = |server: &Server| server.fabric.with(|state| state.published.clone());
    let before = published(&server);
    assert_eq!(before.len(), 3);
    assert_eq!(before[&(Protocol::Tcp, 8080)].ipv4, web.networks[0].ipv4);

    // An earlier daemon's are said again, and what nobody wants goes.
    server.kill_daemon();
    let stale = fcap_manager::net::Publish { node_port: 99, ..before[&(Protocol::Tcp, 8080)] };
    server.fabric.with(|state| state.published.insert((Protocol::Tcp, 99), stale));
    server.start_daemon().await;
    assert_eq!(published(&server), before);
    assert_eq!(server.capsule("web").await.ports, ports);

    let error = server.refuse_capsule(|it| it.ports = vec![port(Some(8080), 1)]).await;
    assert_eq!(error.code, ErrorCode::PortTaken);
    assert!(error.message.contains("8080/tcp") && error.message.contains("capsule web"), "{error:?}");
    server.fabric.with(|state| state.occupied.insert((Protocol::Tcp, 22)));
    let error = server.refuse_capsule(|it| it.ports = vec![port(None, 1), port(Some(22), 22)]).await;
    assert_eq!(error.code, ErrorCode::PortTaken);
    assert!(error.message.contains("22/tcp"), "{error:?}");
    assert_eq!(published(&server), before);

    server.post::<Capsule>("/capsules/web/stop").await;
    assert_nothing_is_left(&server);
    server.serve("other", &[port(Some(8080), 80)]).await;
    let error = server.refused(Method::POST, "/capsules/web/start", "").await;
    assert_eq!(error.code, ErrorCode::PortTaken);
    assert_eq!(server.state("web").await, State::Exited);
    server.delete("/capsules/other?force=true").await;
    // A port that the node chose may be another one the next time.
    server.fabric.with(|state| state.occupied.insert((Protocol::Tcp, ports[1].host_port)));
    let again: Capsule = server.post("/capsules/web/start").await;
    assert_ne!(again.ports[1].host_port, ports[1].host_port);
    assert_eq!(again.ports[0], ports[0]);
}

#[tokio::test]
async fn a_start_that_fails_leaves_nothing_in_the_network() {
    let server = Server::start().await;
    for call in ["publish", "attach", "place"] {
        server.fabric.with(|state| state.failing = Some(call));
        let spec = CreateCapsule { ports: vec![port(None, 80)], ..server.spec("SIM:serve", "x").await };
        let response = server.request(Method::POST, "/capsules", json!(spec).to_string()).await;
        assert_eq!(response.status(), 500, "{call}");
        server.fabric.with(|state| state.failing = None);
        assert_nothing_is_left(&server);
        assert_eq!(server.world.domids(), [0; 0]);
        assert_eq!(server.get::<Network>("/networks/default").await.capsules, 0);
    }
    let mut spec = CreateCapsule { ports: vec![port(Some(7), 80)], ..server.spec("SIM:serve", "big").await };
    spec.memory_kib = Some(2 << 20);
    let error = server.refused(Method::POST, "/capsules", json!(spec).to_string()).await;
    assert_eq!(error.code, ErrorCode::NoRoom);
    assert_nothing_is_left(&server);
}

#[tokio::test]
async fn a_restarted_capsule_gets_its_network_again() {
    let server = Server::start().await;
    let image = server.image("SIM:sleep 20").await;
    let spec = CreateCapsule {
        name: Some("again".into()),
        image,
        networks: Some(vec!["default".into()]),
        ports: vec![port(Some(8080), 80)],
        restart: RestartPolicy::Always,
        ..CreateCapsule::default()
    };
    let first = server.create(&spec).await;
    until("a restart", async || server.capsule("again").await.restarts > 0).await;
    let again = server.capsule("again").await;
    assert_eq!((again.networks, again.ports), (first.networks, first.ports));
    server.delete("/capsules/again?force=true").await;
    assert_nothing_is_left(&server);
}

#[tokio::test]
async fn a_restart_without_its_ports_counts_as_one() {
    let server = Server::start().await;
    let restart = RestartPolicy::OnFailure { max_retries: Some(2) };
    let networks = Some(vec!["default".to_owned()]);
    let ports = vec![port(Some(8080), 80)];
    let spec = CreateCapsule { networks, ports, restart, ..server.spec("SIM:exit 1", "again").await };
    server.create(&spec).await;
    server.fabric.with(|state| state.occupied.insert((Protocol::Tcp, 8080)));
    let end = server.wait("again").await;
    assert!(end.message.unwrap().contains("8080/tcp"));
    assert_eq!(server.capsule("again").await.restarts, 2);
    assert_nothing_is_left(&server);
}

#[tokio::test]
async fn figures_of_all_interfaces_are_added_up() {
    let server = Server::start().await;
    server.start_capsule("SIM:spin", "plain").await;
    server.ok::<Network>(Method::POST, "/networks", json!({ "name": "other" })).await;
    let networks = Some(vec!["default".to_owned(), "other".to_owned()]);
    let spec = CreateCapsule { networks, ..server.spec("SIM:serve", "web").await };
    let web = server.create(&spec).await;
    let uuid = u128::from_str_radix(&web.id, 16).unwrap().to_be_bytes();
    server.fabric.with(|state| {
        for handle in [0, 1] {
            let figures =
                Counters { rx_bytes: 1000, rx_packets: 10, tx_bytes: 100, tx_packets: 1, denied: 7 };
            state.counters.insert((uuid, handle), figures);
        }
    });
    let net = server.capsule("web").await.net.unwrap();
    assert_eq!((net.rx_bytes, net.tx_packets, net.denied), (2000, 2, 14));
    let stats: Vec<Stats> = server.get("/stats").await;
    assert_eq!(stats.iter().map(|it| it.net).collect::<Vec<_>>(), [None, Some(net)]);
    let list: Vec<Capsule> = server.get("/capsules").await;
    assert!(list.iter().all(|it| it.net.is_none()));
    server.fabric.with(|state| state.failing = Some("counters"));
    assert_eq!(server.capsule("web").await.net, None);
}

#[tokio::test]
async fn a_capsule_that_vanishes_leaves_nothing_in_the_network() {
    let server = Server::start().await;
    let web = server.serve("web", &[port(Some(8080), 80)]).await;
    server.world.destroy(web.domid.unwrap());
    assert_eq!(server.wait("web").await.exit_code, 137);
    assert_nothing_is_left(&server);
}

const SECRET: &str = "the-secret-of-all-nodes";

impl Server {
    fn wire(&self, index: u8) -> Value {
        let url = self.tcp_url("").trim_end_matches("/v1").to_owned();
        json!({ "name": format!("node{index}"), "address": format!("10.99.0.{index}"), "index": index, "url": url })
    }

    async fn join(&self, index: u8, peers: &[Value]) -> OverlayStatus {
        let address = format!("10.99.0.{index}");
        let body = json!({ "index": index, "address": address, "peers": peers, "secret": SECRET });
        self.ok(Method::PUT, "/node/overlay", body).await
    }

    async fn overlay(&self) -> Option<OverlayStatus> {
        self.get("/node/overlay").await
    }

    fn remotes(&self) -> Vec<Remote> {
        self.fabric.with(|state| state.remotes.clone())
    }
}

#[tokio::test]
async fn nodes_of_an_overlay_tell_each_other_where_capsules_are() {
    let (mut one, two) = (Server::start().await, Server::start().await);
    assert_eq!(one.overlay().await, None);
    one.serve("early", &[]).await;
    let joined = one.join(1, &[two.wire(2)]).await;
    assert_eq!((joined.index, joined.mtu, joined.encrypt, joined.peers.len()), (1, 1450, false, 1));
    two.join(2, &[one.wire(1)]).await;
    until("the early one", async || two.remotes().len() == 1).await;
    let early = two.remotes().remove(0);
    assert_eq!(
        (early.ipv4.to_string().as_str(), early.node.to_string().as_str()),
        ("10.88.1.1", "10.99.0.1")
    );

    // A capsule on each, in slices of their own; the name is taken on both.
    let web = two.serve("web", &[]).await.networks.remove(0);
    assert_eq!((web.ipv4.to_string().as_str(), web.mac.as_str()), ("10.88.2.1", "0a:fc:0a:58:02:01"));
    until("the other one", async || one.remotes().iter().any(|it| it.ipv4 == web.ipv4)).await;
    let error = one.refuse_capsule(|it| it.name = Some("web".into())).await;
    assert_eq!(error.code, ErrorCode::NameTaken);
    assert!(error.message.contains("on node node2"), "{error:?}");

    // A node that is silent keeps its capsules, and is heard again when it is back.
    one.kill_daemon();
    until("the silence", async || !two.overlay().await.unwrap().peers[0].connected).await;
    assert_eq!(two.remotes(), [early]);
    one.start_daemon().await;
    assert_eq!(one.overlay().await.unwrap().index, 1);
    until("its own view", async || one.remotes().len() == 1).await;
    two.join(2, &[one.wire(1)]).await;
    until("its return", async || two.overlay().await.unwrap().peers[0].connected).await;

    one.post::<Capsule>("/capsules/early/stop").await;
    until("the end", async || two.remotes().is_empty()).await;
    let known = two.overlay().await.unwrap().peers[0].endpoints;
    assert_eq!(known, 1, "it keeps its address and name");
    one.delete("/capsules/early").await;
    until("the removal", async || two.overlay().await.unwrap().peers[0].endpoints == 0).await;

    // Whoever leaves forgets the others.
    one.join(1, &[]).await;
    assert_eq!(one.remotes(), []);
    assert!(one.fabric.with(|state| state.overlay.is_none()));
}

#[tokio::test]
async fn the_token_between_nodes_opens_nothing_else() {
    let server = Server::start().await;
    let (asked, ask) = tokio::sync::oneshot::channel();
    let peer = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = peer.local_addr().unwrap().port();
    let peer_task = tokio::spawn(async move {
        let (mut stream, _) = peer.accept().await.unwrap();
        let mut head = vec![0; 1000];
        let len = stream.read(&mut head).await.unwrap();
        asked.send(String::from_utf8(head[..len].to_vec()).unwrap()).unwrap();
        stream
    });
    let url = format!("http://127.0.0.1:{port}");
    server.join(1, &[json!({ "name": "peer", "address": "10.99.0.2", "index": 2, "url": url })]).await;
    let head = ask.await.unwrap();
    let token = head.lines().find_map(|line| line.strip_prefix("authorization: Bearer ")).unwrap();
    assert!(!head.contains(SECRET));
    drop(peer_task.await.unwrap());
    let client = reqwest::Client::new();
    let status = async |path: &str, token: &str| {
        client.get(server.tcp_url(path)).bearer_auth(token).send().await.unwrap().status().as_u16()
    };
    assert_eq!(status("/overlay/endpoints", token).await, 200);
    assert_eq!(status("/overlay/endpoints", TOKEN).await, 200);
    assert_eq!(status("/overlay/endpoints", SECRET).await, 401);
    for path in ["/node", "/capsules", "/networks", "/node/overlay"] {
        assert_eq!(status(path, token).await, 401, "{path}");
    }
}

#[tokio::test]
async fn hostile_peers_are_bounded() {
    let server = Server::start().await;
    let peer = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = peer.local_addr().unwrap().port();
    let endpoint = |id: u8, ipv4: &str, ipv6: &str, name: &str| {
        json!({ "capsule": format!("{id:02x}").repeat(16), "name": name, "network": "default",
            "ipv4": ipv4, "ipv6": ipv6, "created_ms": 1, "generation": 0, "up": true })
    };
    let good = endpoint(1, "10.88.2.1", "fd88::a58:201", "good");
    let set = [
        endpoint(2, "10.88.0.1", "fd88::a58:1", "gateway"),
        endpoint(3, "8.8.8.8", "fd88::808:808", "foreign"),
        endpoint(4, "10.88.2.4", "fd88::1", "gateway6"),
        endpoint(5, "10.88.2.5", "fd88::a58:205", "\u{1b}[31m"),
        good,
    ];
    let text = format!("{}\n", json!({ "all": true, "set": set }));
    let bad = ["HTTP/1.1 500 No\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\nnonsense\n", "\0\0\0\0", ""];
    let answers = bad.map(str::to_owned).into_iter().chain([format!("HTTP/1.1 200 OK\r\n\r\n{text}")]);
    let answers: Vec<String> = answers.collect();
    let serve = tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = peer.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1000]).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let url = format!("http://127.0.0.1:{port}");
    server.join(1, &[json!({ "name": "peer", "address": "10.99.0.2", "index": 2, "url": url })]).await;
    serve.await.unwrap();
    until("the one that is sound", async || !server.remotes().is_empty()).await;
    assert_eq!(server.remotes().iter().map(|it| it.ipv4.to_string()).collect::<Vec<_>>(), ["10.88.2.1"]);
}

#[tokio::test]
async fn a_place_in_the_overlay_is_checked_and_changed_only_without_capsules() {
    let server = Server::start().await;
    let body = json!({ "index": 0, "address": "10.99.0.1", "peers": [], "secret": SECRET }).to_string();
    let error = server.refused(Method::PUT, "/node/overlay", body).await;
    assert_eq!(error.code, ErrorCode::BadRequest);
    server.serve("web", &[]).await;
    let place = |index: u8| json!({ "index": index, "address": format!("10.99.0.{index}"), "peers": [], "secret": SECRET });
    let error = server.refused(Method::PUT, "/node/overlay", place(2).to_string()).await;
    assert_eq!(error.code, ErrorCode::WrongState);
    server.ok::<OverlayStatus>(Method::PUT, "/node/overlay", place(1)).await;
    server.delete("/capsules/web?force=true").await;
    server.ok::<OverlayStatus>(Method::PUT, "/node/overlay", place(2)).await;
    assert_eq!(server.serve("web", &[]).await.networks[0].ipv4.to_string(), "10.88.2.1");
    server
        .ok::<Network>(Method::POST, "/networks", json!({ "name": "small", "subnet": "192.168.9.0/28" }))
        .await;
    server.delete("/capsules/web?force=true").await;
    server.ok::<OverlayStatus>(Method::PUT, "/node/overlay", place(4)).await;
    let error = server.refuse_capsule(|it| it.networks = Some(vec!["small".into()])).await;
    assert!(error.code == ErrorCode::NoAddress && error.message.contains("nodes 1 to 3"), "{error:?}");
    let body = json!({ "name": "wire", "subnet": "10.99.0.0/24" }).to_string();
    let error = server.refused(Method::POST, "/networks", body).await;
    assert!(error.message.contains("node's own address"), "{error:?}");
}
