//! The API of the whole cluster.

use fcap_api::stream::Frame;
use fcap_api::{Action, CreateCapsule, ErrorCode, State};
use fcap_client::{Client, LogQuery, Verb};

use crate::rig::{cluster, reference, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capsule_is_handled_as_on_its_node() {
    let (cloud, server) = cluster(2).await;
    let there = cloud.run("node2", "web", 16).await;
    let client = &server.client;
    let web = client.capsule(&reference("web")).await.unwrap();
    assert_eq!((web.id.as_str(), web.node.as_str()), (there.id.as_str(), "node2"));
    // By the beginning of its id, too.
    assert_eq!(client.capsule(&reference(&web.id[..8])).await.unwrap().name, "web");
    let mut frames = client.logs("web", &LogQuery { follow: true, ..LogQuery::default() }).await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"tick 3\n") {
        if let Some(Frame::Output { bytes, .. }) = frames.next().await.unwrap() {
            text.extend_from_slice(&bytes);
        }
    }
    assert_eq!(client.act("web", Verb::Pause).await.unwrap().state, State::Paused);
    assert_eq!(client.act("web", Verb::Unpause).await.unwrap().state, State::Running);
    assert_eq!(client.stats().await.unwrap().len(), 1);
    let stopped = client.stop("web", 5).await.unwrap();
    assert_eq!(stopped.end.unwrap().exit_code, 143);
    client.remove("web", false).await.unwrap();
    let error = client.capsule(&reference("web")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NoSuchCapsule));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_capsules_go_where_they_may() {
    let (cloud, server) = cluster(2).await;
    // Both nodes have the image.
    let image = cloud.run("node1", "one", 16).await.image;
    cloud.run("node2", "two", 16).await;
    let spec = |name: &str, memory_mib: u64| CreateCapsule {
        name: Some(name.into()),
        image: image.clone(),
        memory_kib: Some(memory_mib * 1024),
        ..CreateCapsule::default()
    };
    server.client.cordon("node1", true).await.unwrap();
    assert_eq!(server.client.create(&spec("three", 16)).await.unwrap().node, "node2");
    let error = server.client.create(&spec("one", 16)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NameTaken), "{error}");
    let error = server.client.create(&spec("vast", 4096)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NoRoom), "{error}");
    assert!(error.to_string().contains("node1: ") && error.to_string().contains("node2: "), "{error}");
    server.client.cordon("node2", true).await.unwrap();
    let error = server.client.create(&spec("four", 16)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NoRoom), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_from_all_nodes() {
    let (cloud, server) = cluster(2).await;
    let mut live = server.client.events(None, true).await.unwrap();
    cloud.run("node1", "one", 16).await;
    cloud.run("node2", "two", 16).await;
    let mut nodes = std::collections::BTreeSet::new();
    while nodes.len() < 2 {
        nodes.insert(live.next().await.unwrap().unwrap().node);
    }
    let mut past = server.client.events(Some(0), false).await.unwrap();
    let mut names = Vec::new();
    while let Some(event) = past.next().await.unwrap() {
        names.push(event.name);
    }
    assert!(names.iter().any(|name| name == "one") && names.iter().any(|name| name == "two"), "{names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_the_past_and_those_to_come_are_told_once() {
    let (cloud, server) = cluster(2).await;
    cloud.run("node1", "one", 16).await;
    let mut events = server.client.events(Some(0), true).await.unwrap();
    cloud.run("node2", "two", 16).await;
    cloud.client("node2").act("two", Verb::Kill).await.unwrap();
    let mut told = Vec::new();
    while told.last().is_none_or(|(name, action)| (name, *action) != (&"two".to_owned(), Action::Die)) {
        let event = events.next().await.unwrap().unwrap();
        told.push((event.name, event.action));
    }
    for event in [("one", Action::Create), ("one", Action::Start), ("two", Action::Create)] {
        let times = told.iter().filter(|(name, action)| (name.as_str(), *action) == event).count();
        assert_eq!(times, 1, "{event:?}: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_did_what_is_told_as_it_happens() {
    let (cloud, server) = cluster(2).await;
    cloud.run("node1", "web", 16).await;
    let somebody = server.client.clone().named("somebody");
    somebody.cordon("node2", true).await.unwrap();
    server.client.cordon("node2", false).await.unwrap();
    let mut entries = somebody.follow_audit(1).await.unwrap();
    let mut next = async || {
        let entry = entries.next().await.unwrap().unwrap();
        (entry.by, entry.what)
    };
    assert_eq!(next().await, ("operator".into(), "uncordon node node2".into()));
    somebody.act("web", Verb::Pause).await.unwrap();
    assert_eq!(next().await, ("somebody".into(), "pause capsule web on node node1".into()));
    // What only looks, and what comes to nothing, is no change.
    somebody.capsule(&reference("web")).await.unwrap();
    somebody.act("web", Verb::Pause).await.unwrap_err();
    somebody.remove("web", true).await.unwrap();
    assert_eq!(next().await, ("somebody".into(), "remove capsule web on node node1".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_told_without_the_token() {
    let (_cloud, server) = cluster(1).await;
    for token in [None, Some("another-token-that-is-none-of-its")] {
        let stranger = Client::new(server.url.parse().unwrap(), token, false).unwrap();
        assert_eq!(stranger.version().await.unwrap().hypervisor, "cluster");
        let error = stranger.cluster_nodes().await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Unauthorized), "{error}");
    }
    until("it answers those who have it", async || server.client.cluster_nodes().await.is_ok()).await;
    let error = server.client.cluster_node("nobody").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NoSuchNode));
    let error = server.client.operation("99").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NoSuchOperation));
}
