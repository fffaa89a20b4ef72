//! Drains, replacements and moves.

use std::time::Duration;

use fcap_api::cluster::{Drain, Failure, MoveTo, NodeState, OperationState, Replace, StepState, Work};
use fcap_api::{ErrorCode, UpdateCapsule};

use crate::rig::{check_whole, cluster, reference, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_empties_a_node_and_leaves_it_cordoned() {
    let (cloud, server) = cluster(3).await;
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        cloud.run("node1", name, 16).await;
    }
    let drain = Drain { parallel: Some(3), reason: Some("maintenance".into()), ..Drain::default() };
    let operation = server.client.drain("node1", &drain).await.unwrap();
    let operation = server.done(operation).await;
    let moves = operation.steps.iter().filter(|step| matches!(step.work, Work::Move { .. }));
    assert!(moves.clone().count() == 5 && moves.clone().all(|step| step.state == StepState::Done));
    assert!(moves.clone().all(|step| step.note.as_ref().unwrap().contains("downtime")), "{operation:#?}");
    check_whole(&cloud, &server, &names).await;
    let places = cloud.whereabouts().await;
    // They are spread over the others.
    for node in ["node2", "node3"] {
        let there = places.values().filter(|nodes| nodes[0] == node).count();
        assert!((2..=3).contains(&there), "{places:?}");
    }
    let node = server.node("node1").await.unwrap();
    assert!(node.cordoned && node.operation.is_none(), "{node:?}");
    server.client.cordon("node1", false).await.unwrap();
    assert!(!server.node("node1").await.unwrap().cordoned);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_with_nowhere_to_go_says_which_and_why() {
    for on_failure in [Failure::Leave, Failure::Back] {
        let (cloud, server) = cluster(2).await;
        cloud.run("node1", "small", 16).await;
        cloud.run("node1", "large", 120).await;
        cloud.run("node2", "other", 120).await;
        until("all are listed", async || {
            server.client.cluster_nodes().await.unwrap().iter().map(|node| node.capsules).sum::<u32>() == 3
        })
        .await;
        let operation =
            server.client.drain("node1", &Drain { on_failure, ..Drain::default() }).await.unwrap();
        let failed = server.ended(&operation.id).await;
        assert_eq!(failed.state, OperationState::Failed, "{failed:#?}");
        let message = failed.message.clone().unwrap();
        assert!(message.starts_with("nowhere to go for large (node2: "), "{message}");
        check_whole(&cloud, &server, &["small", "large", "other"]).await;
        let small = cloud.whereabouts().await["small"].clone();
        let cordoned = server.node("node1").await.unwrap().cordoned;
        match on_failure {
            Failure::Leave => assert_eq!((small[0].as_str(), cordoned), ("node2", true), "{message}"),
            Failure::Back => assert_eq!((small[0].as_str(), cordoned), ("node1", false), "{message}"),
        }
        if on_failure == Failure::Leave {
            // With room, it goes on.
            cloud.client("node2").remove("other", true).await.unwrap();
            until("the room is seen", async || {
                server.node("node2").await.unwrap().free_memory_kib > 150 << 10
            })
            .await;
            let operation = server.client.resume_operation(&failed.id).await.unwrap();
            server.done(operation).await;
            assert_eq!(cloud.whereabouts().await["large"], ["node2"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replace_moves_all_to_a_new_node_and_destroys_the_old_one() {
    let (cloud, server) = cluster(1).await;
    for name in ["a", "b", "c"] {
        cloud.run("node1", name, 16).await;
    }
    let order = Replace { flavor: Some("large".into()), parallel: None, reason: None };
    let operation = server.client.replace("node1", &order).await.unwrap();
    // One at a time has a node.
    let error = server.client.drain("node1", &Drain::default()).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::WrongState), "{error}");
    server.done(operation).await;
    assert_eq!(cloud.names(), ["node2"]);
    let node = server.node("node2").await.unwrap();
    assert_eq!((node.flavor.as_deref(), node.cordoned, node.state), (Some("large"), false, NodeState::Ready));
    check_whole(&cloud, &server, &["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replace_that_cannot_be_done_is_undone() {
    let (cloud, server) = cluster(1).await;
    cloud.run("node1", "a", 16).await;
    let paused = cloud.run("node1", "held", 16).await;
    cloud.client("node1").act(&paused.id, fcap_client::Verb::Pause).await.unwrap();
    let order = Replace { flavor: None, parallel: None, reason: None };
    let operation = server.client.replace("node1", &order).await.unwrap();
    let failed = server.ended(&operation.id).await;
    assert_eq!(failed.state, OperationState::Failed);
    let message = failed.message.unwrap();
    assert!(message.contains("these are paused, and cannot move: held"), "{message}");
    assert!(message.ends_with("everything is on node node1 as before"), "{message}");
    check_whole(&cloud, &server, &["a"]).await;
    assert_eq!(cloud.names(), ["node1"]);
    assert!(!server.node("node1").await.unwrap().cordoned);
    let error = server.client.resume_operation(&operation.id).await.unwrap_err();
    assert!(error.to_string().contains("was undone"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_operation_leaves_nothing_half_done() {
    let (cloud, server) = cluster(1).await;
    let names = ["a", "b", "c", "d", "e", "f"];
    for name in names {
        cloud.run("node1", name, 16).await;
    }
    let order = Replace { flavor: None, parallel: Some(1), reason: None };
    let operation = server.client.replace("node1", &order).await.unwrap();
    until("the first has moved", async || {
        let operation = server.client.operation(&operation.id).await.unwrap();
        operation.steps.iter().any(|step| matches!(step.work, Work::Move { .. }))
    })
    .await;
    server.client.cancel_operation(&operation.id).await.unwrap();
    let cancelled = server.ended(&operation.id).await;
    assert_eq!(cancelled.state, OperationState::Cancelled, "{cancelled:#?}");
    check_whole(&cloud, &server, &names).await;
    assert_eq!(cloud.names(), ["node1"]);
    let error = server.client.cancel_operation(&operation.id).await.unwrap_err();
    assert!(error.to_string().ends_with("is over"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_dies_in_a_drain_is_waited_for() {
    let (cloud, server) = cluster(2).await;
    let names = ["a", "b", "c", "d"];
    for name in names {
        cloud.run("node1", name, 16).await;
    }
    let drain = Drain { parallel: Some(2), ..Drain::default() };
    let operation = server.client.drain("node1", &drain).await.unwrap();
    until("moves are under way", async || {
        let operation = server.client.operation(&operation.id).await.unwrap();
        operation.steps.iter().any(|step| matches!(step.work, Work::Move { .. }))
    })
    .await;
    for node in ["node2", "node1"] {
        tokio::task::block_in_place(|| {
            cloud.with(node, |node| {
                node.kill_daemon();
                std::thread::sleep(Duration::from_millis(100));
                node.start_daemon();
            });
        });
    }
    server.done(operation).await;
    check_whole(&cloud, &server, &names).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_capsule_moves_and_its_placement_is_explained() {
    let (cloud, server) = cluster(2).await;
    cloud.run("node1", "web", 16).await;
    let order = MoveTo { node: "node2".into(), reason: Some("to try".into()) };
    let operation = server.client.move_to(&reference("web"), &order).await.unwrap();
    server.done(operation).await;
    assert_eq!(cloud.whereabouts().await["web"], ["node2"]);
    let error = server.client.move_to(&reference("web"), &order).await.unwrap_err();
    assert_eq!(error.to_string(), "web is on node node2 already");
    until("the controller has seen it", async || {
        server.client.placement(&reference("web")).await.is_ok_and(|placement| {
            placement
                .considered
                .iter()
                .any(|node| node.node == "node2" && node.reasons.contains(&"it is here".to_owned()))
        })
    })
    .await;
}

/// A wish for so much memory.
fn memory(mib: u64) -> UpdateCapsule {
    UpdateCapsule { memory_kib: Some(mib << 10), ..UpdateCapsule::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capsule_gets_memory_where_it_is_or_moves_to_where_it_is_to_be_had() {
    // Each node has 192 MiB for capsules.
    let (cloud, server) = cluster(2).await;
    cloud.grows("node1", "a", 16, 180).await;
    cloud.run("node1", "other", 96).await;
    until("all are seen", async || server.client.view().await.unwrap().capsules.len() == 2).await;
    let view = server.client.view().await.unwrap();
    let seen = view.capsules.iter().find(|capsule| capsule.name == "a").unwrap();
    assert_eq!((seen.memory_kib, seen.max_memory_kib), (16 << 10, 180 << 10));

    let here = server.client.update("a", &memory(96)).await.unwrap();
    assert_eq!((here.memory_kib, here.node.as_str()), (96 << 10, "node1"));
    assert!(server.client.operations().await.unwrap().is_empty(), "nothing had to move");

    let change = UpdateCapsule { weight: Some(300), ..memory(150) };
    let there = server.client.update("a", &change).await.unwrap();
    assert_eq!((there.memory_kib, there.node.as_str(), there.weight), (150 << 10, "node2", 300));
    check_whole(&cloud, &server, &["a", "other"]).await;
    let audit = server.client.audit().await.unwrap();
    assert!(
        audit.iter().any(|entry| entry.what == "move a to node node2 and give it 150 MiB of memory"),
        "{audit:?}"
    );

    let error = server.client.update("a", &memory(181)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::BadRequest), "{error}");
    assert!(error.to_string().contains("at most 180 MiB"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capsule_for_which_no_node_has_the_memory_stays_as_it_is() {
    let (cloud, server) = cluster(2).await;
    cloud.grows("node1", "a", 16, 180).await;
    cloud.run("node1", "b", 96).await;
    cloud.run("node2", "c", 96).await;
    until("all are seen", async || server.client.view().await.unwrap().capsules.len() == 3).await;
    let error = server.client.update("a", &memory(150)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NoRoom), "{error}");
    for part in ["node node1 has not so much memory", "node2: it has 96 MiB of memory left of the 150"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let same = server.client.capsule(&reference("a")).await.unwrap();
    assert_eq!((same.memory_kib, same.node.as_str()), (16 << 10, "node1"));
    assert!(server.client.operations().await.unwrap().is_empty());
}
