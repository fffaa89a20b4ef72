//! The node as a whole: identity, token, description.

use fcap_api::{ErrorCode, Node, Stats, Version};
use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{Server, TOKEN, error};

#[tokio::test]
async fn over_tcp_the_token_is_needed() {
    let server = Server::start().await;
    let client = reqwest::Client::new();
    for path in ["/version", "/openapi.json"] {
        assert_eq!(client.get(server.tcp_url(path)).send().await.unwrap().status(), 200, "{path}");
    }
    for wrong in ["", "x", &TOKEN[1..], &format!("{TOKEN}0")] {
        for path in ["/node", "/capsules", "/images", "/nothing"] {
            let response = client.get(server.tcp_url(path)).bearer_auth(wrong).send().await.unwrap();
            assert_eq!(error(response).await.code, ErrorCode::Unauthorized, "{path}");
        }
    }
    let response = client.get(server.tcp_url("/node")).send().await.unwrap();
    assert_eq!(error(response).await.code, ErrorCode::Unauthorized);
    let response = client.get(server.tcp_url("/node")).bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_node_is_adopted_once_and_stays_so() {
    let mut server = Server::start().await;
    let before: Node = server.get("/node").await;
    let new_token = "fedcba9876543210fedcba9876543210";
    let adopt = json!({ "name": "node-7", "flavor": "small", "token": new_token,
        "seed": "5a".repeat(32), "wall_time_ns": 1_800_000_000_000_000_000u64 });
    let lan = |mac: &str, address: &str, prefix: u8, mtu: u16| json!({ "mac": mac, "address": address, "prefix": prefix, "mtu": mtu });
    for (key, bad) in [
        ("name", json!("a b")),
        ("token", json!("short")),
        ("seed", json!("xy")),
        ("flavor", json!("\n")),
        ("lan", lan("52:54:00:63:00", "10.99.0.1", 24, 1500)),
        ("lan", lan("52:54:00:63:00:+1", "10.99.0.1", 24, 1500)),
        ("lan", lan("53:54:00:63:00:01", "10.99.0.1", 24, 1500)),
        ("lan", lan("52:54:00:63:00:01", "224.0.0.1", 24, 1500)),
        ("lan", lan("52:54:00:63:00:01", "10.99.0.1", 31, 1500)),
        ("lan", lan("52:54:00:63:00:01", "10.99.0.1", 24, 576)),
    ] {
        let mut body = adopt.clone();
        body[key] = bad;
        let error = server.refused(Method::POST, "/node/adopt", body.to_string()).await;
        assert_eq!(error.code, ErrorCode::BadRequest, "{key}");
    }
    assert_eq!(server.get::<Node>("/node").await.name, before.name);
    let mut whole = adopt.clone();
    whole["lan"] = lan("52:54:00:63:00:01", "10.99.0.1", 24, 9000);
    server.ok::<()>(Method::POST, "/node/adopt", whole).await;
    server.kill_daemon();
    server.start_daemon().await;
    let node: Node = server.get("/node").await;
    assert_eq!((node.name.as_str(), node.flavor.as_deref()), ("node-7", Some("small")));
    let client = reqwest::Client::new();
    let status =
        async |token| client.get(server.tcp_url("/node")).bearer_auth(token).send().await.unwrap().status();
    assert_eq!(
        (status(TOKEN).await, status(new_token).await),
        (401.try_into().unwrap(), 200.try_into().unwrap())
    );
    let error = server.refused(Method::POST, "/node/adopt", adopt.to_string()).await;
    assert_eq!(error.code, ErrorCode::WrongState);
}

#[tokio::test]
async fn the_node_tells_about_itself() {
    let server = Server::start().await;
    let version: Version = server.get("/version").await;
    assert_eq!((version.api.as_str(), version.hypervisor.as_str()), ("v1", "simulator"));
    server.start_capsule("SIM:spin", "x").await;
    let node: Node = server.get("/node").await;
    assert_eq!((node.memory_kib, node.capsules), (1 << 20, 1));
    assert_eq!(node.memory_kib - node.free_memory_kib, fcap_api::DEFAULT_MEMORY_KIB);
    let stats: Vec<Stats> = server.get("/stats").await;
    let later: Vec<Stats> = server.get("/stats").await;
    assert!(later[0].cpu_time_ns > stats[0].cpu_time_ns && later[0].monotonic_ns > stats[0].monotonic_ns);
    let node: Node = server.ok(Method::PATCH, "/node", json!({ "pool_size": 3 })).await;
    assert_eq!(node.pool_size, 3);
}

#[tokio::test]
async fn the_document_describes_everything_with_its_errors() {
    let server = Server::start().await;
    let document: Value = server.get("/openapi.json").await;
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/api/src/lib.rs")).unwrap();
    // The table at the head of the API's crate is the list of what there is.
    let mut described = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("//! | `")) {
        let Some((request, _)) = line.split_once(" |") else { continue };
        let mut words = request.split(['`', ' ', ',']).filter(|word| !word.is_empty());
        let Some(method) = words.next().filter(|word| word.chars().all(|c| c.is_ascii_uppercase())) else {
            continue;
        };
        let mut first: Option<String> = None;
        for word in words {
            let path = word.split('?').next().unwrap();
            // "/kill" after "/v1/capsules/{id}/start" stands for its neighbour.
            let path = match &first {
                Some(first) => format!("{}{path}", &first[..first.rfind('/').unwrap()]),
                None => path.to_owned(),
            };
            first.get_or_insert_with(|| path.clone());
            if path == "/v1/openapi.json" {
                continue;
            }
            let operation = &document["paths"][&path][method.to_lowercase()];
            assert!(operation["responses"]["400"].is_object(), "{method} {path} is not described");
            assert!(
                operation["summary"].is_string() || operation["description"].is_string(),
                "{method} {path}"
            );
            described += 1;
        }
    }
    assert!(described >= 25, "only {described} are listed");
    check_references(&document, &document);
}

fn check_references(value: &Value, document: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get("$ref") {
                let found = document.pointer(target.strip_prefix('#').unwrap());
                assert!(found.is_some(), "{target} is not there");
            }
            map.values().for_each(|value| check_references(value, document));
        }
        Value::Array(list) => list.iter().for_each(|value| check_references(value, document)),
        _ => {}
    }
}
