//! Machines that join with tokens, and certificates.

use std::sync::Arc;
use std::time::Duration;

use fcap_api::cluster::{Join, Joined, MakeToken, NodeState};
use fcap_api::{ErrorBody, ErrorCode};
use fcap_client::{Client, ClientError};
use fcap_cluster::nodes::now_ms;
use fcap_cluster::store::Local;
use fcap_tls::{Authority, Credentials, Identity, JoinToken, Key, Subject, VALIDITY, pinned_client};

use crate::rig::{Server, SimCloud, SimNode, TOKEN, cloud, cluster, until};

async fn token(server: &Server, ttl_s: u64) -> JoinToken {
    let make = MakeToken { ttl_s: Some(ttl_s), address: None };
    server.client.make_token(&make).await.unwrap().token.parse().unwrap()
}

/// Starts a machine that joins. A refused one is given back too.
async fn join(name: &str, token: &JoinToken) -> (SimNode, Result<(), String>) {
    let mut node = SimNode::new(256 << 10);
    node.joins = Some((name.into(), token.clone()));
    start(node).await
}

async fn start(mut node: SimNode) -> (SimNode, Result<(), String>) {
    tokio::task::spawn_blocking(move || {
        let started = node.try_to_start();
        (node, started)
    })
    .await
    .unwrap()
}

async fn names(server: &Server) -> Vec<String> {
    server.client.cluster_nodes().await.unwrap().into_iter().map(|node| node.name).collect()
}

/// Asks to join as a machine does, but with whatever the test wants.
async fn ask(
    server: &Server,
    token: &JoinToken,
    change: impl FnOnce(&mut Join),
) -> Result<Joined, ErrorBody> {
    let mut join = Join {
        name: "made-up".into(),
        secret: token.secret(),
        request: Key::generate().unwrap().request().unwrap(),
        host: None,
        port: 1,
        time_ms: now_ms(),
    };
    change(&mut join);
    let client = reqwest::Client::builder().tls_backend_preconfigured(pinned_client(token.authority));
    let url = format!("{}/v1/join", server.machines_url);
    let answer = client.build().unwrap().post(url).body(serde_json::to_vec(&join).unwrap()).send();
    let answer = answer.await.unwrap();
    let is_ok = answer.status().is_success();
    let body = answer.bytes().await.unwrap();
    if is_ok {
        Ok(serde_json::from_slice(&body).unwrap())
    } else {
        Err(serde_json::from_slice(&body).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_joins_with_a_token_and_is_a_node_like_others() {
    let (cloud, server) = cluster(1).await;
    let token = token(&server, 60).await;
    let (mut node, started) = join("visitor", &token).await;
    started.unwrap();
    server.until_ready(&["node1", "visitor"]).await;
    let shown = server.node("visitor").await.unwrap();
    assert!(!shown.provided && shown.url.starts_with("https://127.0.0.1:"), "{shown:?}");
    // Capsules move between it and nodes that the provider has started.
    cloud.run("node1", "web", 16).await;
    until("web is listed", async || server.client.capsules(false).await.unwrap().len() == 1).await;
    let operation = server.client.drain("node1", &Default::default()).await.unwrap();
    server.done(operation).await;
    let place = async || server.client.capsules(false).await.unwrap()[0].node.clone();
    until("web is with the visitor", async || place().await == "visitor").await;
    // Its daemon takes its place up again, and does not join anew.
    let node = tokio::task::spawn_blocking(move || {
        node.kill_daemon();
        node.start_daemon();
        node
    })
    .await
    .unwrap();
    server.until_ready(&["visitor"]).await;
    // It is forgotten, and not destroyed: there is no provider that could.
    let refused = server.client.remove_node("visitor", false).await.unwrap();
    let refused = server.ended(&refused.id).await;
    assert!(refused.message.as_deref().unwrap_or_default().contains("still has capsules"), "{refused:?}");
    server.client.cordon("node1", false).await.unwrap();
    let operation = server.client.drain("visitor", &Default::default()).await.unwrap();
    server.done(operation).await;
    let operation = server.client.remove_node("visitor", false).await.unwrap();
    server.done(operation).await;
    assert_eq!(names(&server).await, ["node1"]);
    drop(node);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_are_stale_used_or_unknown_let_nobody_join() {
    let (_cloud, server) = cluster(1).await;
    let stale = token(&server, 1).await;
    until("the token is stale", async || {
        // With that clock it does not join even while the token is good.
        ask(&server, &stale, |join| join.time_ms = 0)
            .await
            .is_err_and(|error| error.message.contains("expired"))
    })
    .await;
    let (node, refused) = join("late", &stale).await;
    let error = refused.unwrap_err();
    assert!(error.contains("has expired") && error.contains("fcap node token"), "{error}");
    assert!(!node.file("cluster.pem").exists());

    let used = token(&server, 60).await;
    let (_first, started) = join("first", &used).await;
    started.unwrap();
    let (node, refused) = join("second", &used).await;
    let error = refused.unwrap_err();
    assert!(error.contains("node first has joined with this token already"), "{error}");
    assert!(!node.file("cluster.pem").exists());

    let authority = used.authority;
    let unknown = JoinToken::new(authority, used.controller()).unwrap();
    let (_, refused) = join("third", &unknown).await;
    assert!(refused.unwrap_err().contains("is not known here"));
    let error = ask(&server, &unknown, |join| join.secret = "nonsense".into()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unauthorized, "{error:?}");
    assert_eq!(names(&server).await, ["first", "node1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_one_machines() {
    let (_cloud, server) = cluster(1).await;
    let (_visitor, started) = join("visitor", &token(&server, 60).await).await;
    started.unwrap();
    let url = server.node("visitor").await.unwrap().url;
    for name in ["visitor", "node1"] {
        let again = token(&server, 60).await;
        let (_, refused) = join(name, &again).await;
        let error = refused.unwrap_err();
        assert!(error.contains("there is a node") && error.contains("another name"), "{error}");
        // The token is not used up by that.
        assert!(ask(&server, &again, |join| join.name = format!("other-{name}")).await.is_ok());
    }
    assert_eq!(server.node("visitor").await.unwrap().url, url);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_machine_may_ask_again() {
    let (_cloud, server) = cluster(1).await;
    let (first, second) = (token(&server, 60).await, token(&server, 60).await);
    let (mut node, started) = join("visitor", &first).await;
    started.unwrap();
    // As if the controller's answer had been lost, and then everything but the key.
    for token in [&first, &second] {
        node = tokio::task::spawn_blocking(move || {
            node.kill_daemon();
            std::fs::remove_file(node.file("cluster.pem")).unwrap();
            node
        })
        .await
        .unwrap();
        node.joins = Some(("visitor".into(), token.clone()));
        let (again, started) = start(node).await;
        started.unwrap();
        node = again;
        server.until_ready(&["visitor"]).await;
    }
    assert_eq!(names(&server).await, ["node1", "visitor"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_hours_off_is_told_and_nothing_changes() {
    let (_cloud, server) = cluster(1).await;
    let token = token(&server, 60).await;
    let hour = 3_600_000;
    let error = ask(&server, &token, |join| join.time_ms -= 3 * hour).await.unwrap_err();
    assert!(error.message.contains("3 h 0 min behind the controller's"), "{error:?}");
    let error = ask(&server, &token, |join| join.time_ms += 2 * hour + 60_000).await.unwrap_err();
    assert!(error.message.contains("2 h 1 min ahead of") || error.message.contains("2 h 0 min"), "{error:?}");
    assert_eq!(names(&server).await, ["node1"]);
    assert!(ask(&server, &token, |_| ()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_clusters_machines_are_told_so() {
    let (cloud, server) = cluster(1).await;
    let (_other_cloud, other) = cluster(1).await;
    // The token of one cluster at the controller of another.
    let token_here = token(&server, 60).await;
    let misled = JoinToken::new(token_here.authority, token(&other, 60).await.controller()).unwrap();
    let (_, refused) = join("lost", &misled).await;
    let error = refused.unwrap_err();
    assert!(error.contains("another cluster than the token"), "{error}");
    // A node that is in one cluster does not join another.
    let (node, started) = join("visitor", &token_here).await;
    started.unwrap();
    let token_there = token(&other, 60).await;
    let (mut node, refused) = tokio::task::spawn_blocking(move || {
        let mut node = node;
        node.kill_daemon();
        node.joins = Some(("visitor".into(), token_there));
        let refused = node.try_to_start();
        (node, refused)
    })
    .await
    .unwrap();
    let error = refused.unwrap_err();
    assert!(error.contains("in another cluster already") && error.contains("cluster.pem"), "{error}");
    node.joins = None;
    let (_node, started) = start(node).await;
    started.unwrap();
    server.until_ready(&["visitor"]).await;
    assert_eq!(names(&other).await, ["node1"]);
    // Who shows a certificate of another cluster is not let in, and told why.
    let stranger = Authority::generate().unwrap().identity(&Subject::controller(), VALIDITY).unwrap();
    let config = Credentials::new(stranger).unwrap().client(Subject::node("node1").unwrap());
    let url = cloud.client("node1").address().to_string().replace("http:", "https:");
    let error = Client::trusting(&url, config).unwrap().node().await.unwrap_err();
    let ClientError::Unreachable { reason, .. } = error else { panic!("{error}") };
    assert!(reason.contains("another cluster"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_asked_by_their_names() {
    let cloud = cloud(2).await;
    let controller = cloud.authority.identity(&Subject::controller(), VALIDITY).unwrap();
    let controller = Credentials::new(controller).unwrap();
    let client = |credentials: &Credentials, name: &str, at: &str| {
        let url = cloud.client(at).address().to_string().replace("http:", "https:");
        Client::trusting(&url, credentials.client(Subject::node(name).unwrap())).unwrap()
    };
    // The controller needs no token.
    assert_eq!(client(&controller, "node1", "node1").node().await.unwrap().name, "node1");
    let error = client(&controller, "node1", "node2").node().await.unwrap_err();
    assert!(error.to_string().contains("it is node node2, and not node node1"), "{error}");
    // A node may ask where capsules are, and no more.
    let node = cloud.authority.identity(&Subject::node("node2").unwrap(), VALIDITY).unwrap();
    let node = client(&Credentials::new(node).unwrap(), "node1", "node1");
    let error = node.capsules(true).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Unauthorized), "{error}");
    let answer = node.forward(reqwest::Method::GET, "/v1/overlay/endpoints", Default::default(), "".into());
    assert!(answer.await.unwrap().status().is_success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_before_they_end() {
    let cloud = Arc::new(SimCloud::default());
    let server = Server::start_with(Arc::new(Local::in_memory()), cloud.clone(), Duration::from_secs(6));
    let token = token(&server, 60).await;
    let (node, started) = join("visitor", &token).await;
    started.unwrap();
    let until_ms = |node: &SimNode| {
        let identity = Identity::load(&node.file("cluster.pem")).unwrap().unwrap();
        identity.validity().1
    };
    let first = until_ms(&node);
    until("its certificate is a later one", async || until_ms(&node) > first).await;
    // The controller's own, too: it is asked after its first one has ended.
    until("the first certificates have ended", async || {
        std::time::SystemTime::now() > first + Duration::from_secs(1)
    })
    .await;
    server.until_ready(&["visitor"]).await;
    let operation = server.client.remove_node("visitor", false).await.unwrap();
    server.done(operation).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_make_no_sense_are_refused() {
    let (_cloud, server) = cluster(1).await;
    let refused =
        async |make: MakeToken| server.client.make_token(&make).await.err().and_then(|error| error.code());
    for ttl_s in [0, 8 * 24 * 3600] {
        let make = MakeToken { ttl_s: Some(ttl_s), address: None };
        assert_eq!(refused(make).await, Some(ErrorCode::BadRequest));
    }
    let make = MakeToken { ttl_s: None, address: Some("no address".into()) };
    assert_eq!(refused(make).await, Some(ErrorCode::BadRequest));
    let token = token(&server, 60).await;
    for change in [
        (|join| join.name = "../etc".into()) as fn(&mut Join),
        |join| join.request = "nonsense".into(),
        |join| join.host = Some("a/b?c".into()),
    ] {
        let error = ask(&server, &token, change).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest, "{error:?}");
    }
    // Where operators ask, machines do not join.
    let plain = Client::new(server.url.parse().unwrap(), Some(TOKEN), false).unwrap();
    let answer = plain.forward(reqwest::Method::POST, "/v1/join", Default::default(), "{}".into()).await;
    assert_eq!(answer.unwrap().status(), 400);
    assert!(server.node("node1").await.is_some_and(|node| node.state == NodeState::Ready));
    assert_eq!(names(&server).await, ["node1"]);
}
