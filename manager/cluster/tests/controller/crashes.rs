//! A controller that is killed at any point: the next one finishes or undoes.

use std::sync::Arc;

use fcap_api::cluster::{AddNode, Drain, Operation, OperationState, Replace};
use fcap_cluster::store::Local;

use crate::rig::{Cut, Server, SimCloud, check_whole, cloud, until};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// More writes than any operation of these tests makes.
const MOST: i64 = 60;

/// Kills the controller at each of its writes, before it or after it, until it needs no more; then
/// has another one go on, and checks what has become of the operation.
async fn at_each_write(
    silently: bool,
    nodes: u32,
    begin: impl AsyncFn(&Server) -> Option<Operation>,
    check: impl AsyncFn(&SimCloud, &Server, Option<Operation>),
) {
    // The first writes are about the nodes, which are taken in, and what they cost.
    for writes in i64::from(nodes) + 1..MOST {
        let cloud = cloud(nodes).await;
        for name in NAMES {
            cloud.run("node1", name, 16).await;
        }
        let store = Arc::new(Local::in_memory());
        let cut = Cut::after(store.clone(), writes, silently);
        let first = Server::start(cut.clone(), cloud.clone());
        let names: Vec<String> = cloud.names();
        first.until_ready(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let begun = async {
            match begin(&first).await {
                Some(operation) => drop(first.ended(&operation.id).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = begun => {}
            () = until("the store is cut", async || cut.is_cut()) => {}
        }
        let was_cut = cut.is_cut();
        first.kill();
        let second = Server::start(store, cloud.clone());
        let operations = second.client.operations().await.unwrap();
        assert!(operations.len() <= 1, "{operations:#?}");
        let operation = match operations.first() {
            Some(operation) => Some(second.ended(&operation.id).await),
            None => None,
        };
        check_whole(&cloud, &second, &NAMES).await;
        check(&cloud, &second, operation).await;
        if !was_cut {
            assert!(writes > i64::from(nodes) + 4, "an operation takes some writes");
            return;
        }
    }
    panic!("an operation takes more than {MOST} writes");
}

fn is_done(operation: Option<Operation>) -> bool {
    let Some(operation) = operation else { return false };
    assert_eq!(operation.state, OperationState::Done, "{operation:#?}");
    true
}

async fn replaces(silently: bool) {
    let begin = async |server: &Server| {
        let order = Replace { flavor: Some("large".into()), parallel: Some(2), reason: None };
        server.client.replace("node1", &order).await.ok()
    };
    let check = async |cloud: &SimCloud, _: &Server, operation: Option<Operation>| {
        let expected = if is_done(operation) { ["node2"] } else { ["node1"] };
        assert_eq!(cloud.names(), expected);
        let started = cloud.started.load(std::sync::atomic::Ordering::Relaxed);
        assert!(started <= 2, "{started} machines were started for one");
    };
    at_each_write(silently, 1, begin, check).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replace_survives_death_before_each_write() {
    replaces(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replace_survives_death_after_each_write() {
    replaces(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_survives_death_after_each_write() {
    let begin = async |server: &Server| {
        let drain = Drain { parallel: Some(2), ..Drain::default() };
        server.client.drain("node1", &drain).await.ok()
    };
    let check = async |cloud: &SimCloud, server: &Server, operation: Option<Operation>| {
        let expected = if is_done(operation) { "node2" } else { "node1" };
        let places = cloud.whereabouts().await;
        assert!(places.values().all(|nodes| nodes[0] == expected), "{places:?}");
        assert!(server.node("node1").await.unwrap().operation.is_none());
    };
    at_each_write(true, 2, begin, check).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_added_node_is_neither_stranded_nor_started_twice() {
    let begin = async |server: &Server| {
        let add = AddNode { flavor: "small".into(), labels: Default::default(), reason: None };
        server.client.add_node(&add).await.ok()
    };
    let check = async |cloud: &SimCloud, _: &Server, operation: Option<Operation>| {
        let expected = if is_done(operation) { 2 } else { 1 };
        assert_eq!(cloud.names().len(), expected);
        assert_eq!(cloud.started.load(std::sync::atomic::Ordering::Relaxed), expected as i64);
    };
    at_each_write(true, 1, begin, check).await;
}
