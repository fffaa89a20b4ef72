//! Nodes that come, fall silent, and go.

use std::collections::BTreeMap;

use fcap_api::ErrorCode;
use fcap_api::cluster::{AddNode, NodeState, UpdateClusterNode};

use crate::rig::{cluster, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_that_somebody_else_started_are_taken_in() {
    let (cloud, server) = cluster(2).await;
    let node = server.node("node1").await.unwrap();
    assert_eq!((node.flavor.as_deref(), node.price_micros), (Some("small"), Some(10_000)));
    assert!(!node.cordoned && node.cpus == 2 && node.seen_ms.is_some(), "{node:?}");
    cloud.run("node1", "web", 16).await;
    until("its capsule is counted", async || server.node("node1").await.unwrap().capsules == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_makes_a_node_suspect_then_lost_and_an_answer_ready_again() {
    let (cloud, server) = cluster(2).await;
    cloud.run("node1", "web", 16).await;
    until("web is listed", async || server.client.capsules(false).await.unwrap().len() == 1).await;
    until("it was seen there", async || server.node("node1").await.unwrap().capsules == 1).await;
    tokio::task::block_in_place(|| cloud.with("node1", |node| node.kill_daemon()));
    let state = async || server.node("node1").await.unwrap().state;
    until("it is suspect", async || state().await == NodeState::Suspect).await;
    until("it is lost", async || state().await == NodeState::Lost).await;
    // What it said last is still shown, and nothing was done about its capsule.
    let capsules = server.client.capsules(false).await.unwrap();
    assert_eq!(capsules.len(), 1, "{capsules:?}");
    assert_eq!(cloud.client("node2").capsules(true).await.unwrap(), []);
    let error = server.client.act("web", fcap_client::Verb::Kill).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NodeUnreachable), "{error}");
    tokio::task::block_in_place(|| cloud.with("node1", |node| node.start_daemon()));
    until("it is ready again", async || state().await == NodeState::Ready).await;
    assert_eq!(cloud.whereabouts().await["web"], ["node1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_gone_is_shown_until_it_is_forgotten() {
    let (cloud, server) = cluster(2).await;
    tokio::task::block_in_place(|| cloud.lose("node2"));
    let lost = async || server.node("node2").await.unwrap().state == NodeState::Lost;
    until("it is lost", lost).await;
    let message = server.node("node2").await.unwrap().message.unwrap();
    assert!(message.contains("fcap node rm"), "{message}");
    let operation = server.client.remove_node("node2", false).await.unwrap();
    server.done(operation).await;
    assert!(server.node("node2").await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_added_with_labels_and_removed_when_empty() {
    let (cloud, server) = cluster(1).await;
    let labels = BTreeMap::from([("zone".to_owned(), "b".to_owned())]);
    let add = AddNode { flavor: "large".into(), labels, reason: Some("more load".into()) };
    let operation = server.client.add_node(&add).await.unwrap();
    server.done(operation).await;
    let node = server.node("node2").await.unwrap();
    assert_eq!((node.state, node.cordoned, node.labels["zone"].as_str()), (NodeState::Ready, false, "b"));
    let change =
        UpdateClusterNode { labels: BTreeMap::from([("zone".into(), None), ("a".into(), Some("1".into()))]) };
    let node = server.client.update_cluster_node("node2", &change).await.unwrap();
    assert_eq!(node.labels, BTreeMap::from([("a".to_owned(), "1".to_owned())]));

    cloud.run("node2", "web", 16).await;
    let operation = server.client.remove_node("node2", false).await.unwrap();
    let failed = server.ended(&operation.id).await;
    assert!(failed.message.as_ref().unwrap().contains("still has capsules: web"), "{failed:?}");
    assert_eq!(cloud.names(), ["node1", "node2"]);
    let operation = server.client.remove_node("node2", true).await.unwrap();
    server.done(operation).await;
    assert_eq!(cloud.names(), ["node1"]);

    let audit = server.client.audit().await.unwrap();
    assert!(
        audit.iter().any(|entry| entry.what == "add a large node" && entry.reason == "more load"),
        "{audit:?}"
    );
    assert_eq!(audit[0].what, "remove node node2 by force");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flavor_that_nobody_has_and_a_full_cloud_are_said() {
    let (cloud, server) = cluster(1).await;
    let add = |flavor: &str| AddNode { flavor: flavor.into(), labels: BTreeMap::new(), reason: None };
    let error = server.client.add_node(&add("huge")).await.unwrap_err();
    assert_eq!(error.to_string(), "no flavor \"huge\"; there are small, large");
    cloud.is_full.store(true, std::sync::atomic::Ordering::Relaxed);
    let operation = server.client.add_node(&add("small")).await.unwrap();
    let failed = server.ended(&operation.id).await;
    assert!(failed.message.as_ref().unwrap().contains("the quota is used up"), "{failed:?}");
    // Nothing is left of it.
    assert_eq!(server.client.cluster_nodes().await.unwrap().len(), 1);
}
