//! Nodes that are in a cluster, and nodes of another one.

use std::time::{Duration, SystemTime};

use fcap_api::migrate::{Invitation, Migrate, MigrationIdentity, Precopy, Progress, Ticket};
use fcap_api::{Capsule, ErrorCode, NodeCertificate, OverlayStatus};
use fcap_tls::{Authority, Key, Request, Subject, VALIDITY};
use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{Server, until};

const SECRET: &str = "the-secret-of-all-nodes";

fn identity(authority: &Authority, name: &str) -> String {
    authority.identity(&Subject::node(name).unwrap(), VALIDITY).unwrap().to_pem()
}

fn adoption(name: &str, identity: &str) -> Value {
    json!({ "name": name, "flavor": null, "token": "fedcba9876543210fedcba9876543210",
        "seed": "5a".repeat(32), "wall_time_ns": 0, "identity": identity })
}

async fn member(authority: &Authority, name: &str) -> Server {
    let server = Server::start().await;
    server.ok::<()>(Method::POST, "/node/adopt", adoption(name, &identity(authority, name))).await;
    server
}

#[tokio::test]
async fn a_node_is_adopted_into_a_cluster_and_stays_there() {
    let (authority, other) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let mut server = Server::start().await;
    let error = server.refused(Method::GET, "/node/certificate", "").await;
    assert_eq!(error.code, ErrorCode::WrongState);
    let mut mixed = identity(&authority, "node-7");
    mixed = mixed.replace("CERTIFICATE", "NOTHING");
    for bad in ["", "nonsense", &mixed, &identity(&authority, "node-8")] {
        let error = server.refused(Method::POST, "/node/adopt", adoption("node-7", bad).to_string()).await;
        assert_eq!(error.code, ErrorCode::BadRequest, "{error:?}");
    }
    assert!(!server.state_dir().join("cluster.pem").exists());
    server.ok::<()>(Method::POST, "/node/adopt", adoption("node-7", &identity(&authority, "node-7"))).await;
    let known: NodeCertificate = server.get("/node/certificate").await;
    assert_eq!((known.name.as_str(), known.authority), ("node-7", authority.fingerprint().to_string()));
    server.kill_daemon();
    server.start_daemon().await;

    // A new certificate takes the place of the old one only if it is for this node and its key.
    let again: NodeCertificate = server.get("/node/certificate").await;
    let request = Request::parse(&again.request).unwrap();
    let others = Request::parse(&Key::generate().unwrap().request().unwrap()).unwrap();
    let issue = |authority: &Authority, request: &Request, name: &str| {
        let from = SystemTime::now() + Duration::from_secs(60);
        authority.issue(request, &Subject::node(name).unwrap(), from, VALIDITY).unwrap()
    };
    for bad in [
        issue(&authority, &request, "node-8"),
        issue(&authority, &others, "node-7"),
        issue(&other, &request, "node-7"),
        "nonsense".into(),
    ] {
        let error =
            server.refused(Method::PUT, "/node/certificate", json!({ "chain": bad }).to_string()).await;
        assert_eq!(error.code, ErrorCode::BadRequest, "{error:?}");
    }
    let chain = issue(&authority, &request, "node-7");
    let new: NodeCertificate = server.ok(Method::PUT, "/node/certificate", json!({ "chain": chain })).await;
    assert!(new.not_after_ms > again.not_after_ms, "{new:?}");
    server.kill_daemon();
    server.start_daemon().await;
    assert_eq!(server.get::<NodeCertificate>("/node/certificate").await.not_after_ms, new.not_after_ms);
}

async fn invite(source: &Server, destination: &Server) -> Ticket {
    let identity: MigrationIdentity = source.get("/migrations/identity").await;
    destination.ok(Method::POST, "/migrations", json!(Invitation::from(identity))).await
}

async fn last(source: &Server, ticket: Ticket) -> Progress {
    let order = json!(Migrate { ticket, how: Precopy::default() }).to_string();
    let response = source.request(Method::POST, "/capsules/web/migrate", order).await;
    let text = response.text().await.unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

#[tokio::test]
async fn capsules_move_between_nodes_of_a_cluster_by_their_names() {
    let (authority, other) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let (one, two) = (member(&authority, "one").await, member(&authority, "two").await);
    one.start_capsule("SIM:spin", "web").await;
    let ticket = invite(&one, &two).await;
    assert_eq!(ticket.authority, Some(authority.fingerprint().to_string()));
    // Nobody else is at that address, whatever a ticket says.
    let forged = Ticket { node: "three".into(), ..ticket.clone() };
    let Progress::Failed { error } = last(&one, forged).await else { panic!("it moved") };
    assert!(error.message.contains("it is node two, and not node three"), "{error:?}");
    let Progress::Done(_) = last(&one, ticket).await else { panic!("it did not move") };
    until("it is there", async || two.get::<Vec<Capsule>>("/capsules").await.len() == 1).await;
    // To another cluster, and to a node in none, by the fingerprints that the client brings.
    for stranger in [member(&other, "two").await, Server::start().await] {
        let ticket = invite(&two, &stranger).await;
        assert_eq!(ticket.authority, None);
        let Progress::Done(_) = last(&two, ticket).await else { panic!("it did not move") };
        until("it is there", async || stranger.get::<Vec<Capsule>>("/capsules").await.len() == 1).await;
        let foreign =
            Ticket { authority: Some(authority.fingerprint().to_string()), ..invite(&two, &stranger).await };
        let order = json!(Migrate { ticket: foreign, how: Precopy::default() }).to_string();
        let error = stranger.refused(Method::POST, "/capsules/web/migrate", order).await;
        assert_eq!(error.code, ErrorCode::BadRequest, "{error:?}");
        let Progress::Done(_) = last(&stranger, invite(&stranger, &two).await).await else {
            panic!("it did not come back");
        };
        until("it is back", async || two.get::<Vec<Capsule>>("/capsules").await.len() == 1).await;
    }
}

#[tokio::test]
async fn nodes_of_a_cluster_tell_each_other_where_capsules_are_by_tls() {
    let authority = Authority::generate().unwrap();
    let (one, two) = (member(&authority, "node1").await, member(&authority, "node2").await);
    let peer = |server: &Server, index: u8, name: &str| {
        let url = server.tcp_url("").replace("http:", "https:");
        json!({ "name": name, "address": format!("10.99.0.{index}"), "index": index,
            "url": url.trim_end_matches("/v1") })
    };
    let join = async |server: &Server, index: u8, peer: Value| {
        let body = json!({ "index": index, "address": format!("10.99.0.{index}"), "peers": [peer], "secret": SECRET });
        server.ok::<OverlayStatus>(Method::PUT, "/node/overlay", body).await;
    };
    let connected = async |server: &Server| {
        server.get::<Option<OverlayStatus>>("/node/overlay").await.unwrap().peers[0].connected
    };
    join(&one, 1, peer(&two, 2, "node2")).await;
    join(&two, 2, peer(&one, 1, "node3")).await;
    until("one hears two", async || connected(&one).await).await;
    // Two expects somebody else where one is.
    assert!(!connected(&two).await);
    join(&two, 2, peer(&one, 1, "node1")).await;
    until("two hears one", async || connected(&two).await).await;
}
