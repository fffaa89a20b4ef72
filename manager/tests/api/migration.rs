//! Capsules that move between two daemons, and into and out of images.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fcap_api::migrate::{Invitation, Migrate, MigrationIdentity, Precopy, Progress, Ticket};
use fcap_api::{Capsule, ErrorCode, State};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::server::{Server, until};

async fn invite(source: &Server, destination: &Server) -> Ticket {
    let identity: MigrationIdentity = source.get("/migrations/identity").await;
    destination.ok(Method::POST, "/migrations", json!(Invitation::from(identity))).await
}

/// Moves a capsule and tells what was told.
async fn migrate(source: &Server, ticket: Ticket, name: &str, how: Precopy) -> Vec<Progress> {
    let order = json!(Migrate { ticket, how }).to_string();
    let response = source.request(Method::POST, &format!("/capsules/{name}/migrate"), order).await;
    let status = response.status();
    let text = response.text().await.unwrap();
    assert_eq!(status, StatusCode::OK, "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until a destination has taken apart what did not come.
async fn nothing_left(server: &Server) {
    until("nothing is left of the attempt", async || server.world.domids().is_empty()).await;
}

async fn there(server: &Server) -> Vec<String> {
    let capsules: Vec<Capsule> = server.get("/capsules?all=true").await;
    capsules.into_iter().map(|capsule| capsule.name).collect()
}

async fn save(server: &Server, name: &str, mode: &str) -> Vec<u8> {
    let response = server.request(Method::POST, &format!("/capsules/{name}/save?mode={mode}"), "").await;
    let status = response.status();
    let image = response.bytes().await.unwrap().to_vec();
    assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&image));
    image
}

#[tokio::test]
async fn a_capsule_moves_with_what_it_knows_and_comes_back() {
    let (a, b) = (Server::start().await, Server::start().await);
    let before = a.start_capsule("SIM:tick 20", "clock").await;
    a.logs("clock", "?follow=true").await.read_until("tick 5\n").await;
    let told = migrate(&a, invite(&a, &b).await, "clock", Precopy::default()).await;
    let Some(Progress::Done(moved)) = told.last() else { panic!("{told:?}") };
    assert!(!moved.unsettled && moved.pages > 0 && moved.downtime_ms <= moved.total_ms, "{moved:?}");
    assert!(told.iter().any(|step| matches!(step, Progress::Round(_))), "{told:?}");
    until("it is there", async || there(&b).await == ["clock"]).await;
    assert_eq!(there(&a).await, [""; 0]);
    assert_eq!(a.world.domids(), [0; 0]);
    let after: Capsule = b.get("/capsules/clock").await;
    assert_eq!((after.id, after.state, after.created_ms), (before.id, State::Running, before.created_ms));
    let text = b.logs("clock", "?follow=true").await.read_until("tick 15\n").await;
    let ticks: Vec<u32> =
        text.lines().map(|line| line.strip_prefix("tick ").unwrap().parse().unwrap()).collect();
    assert!(
        ticks.iter().copied().eq(ticks[0]..ticks[0] + ticks.len() as u32),
        "it goes on where it was: {text}"
    );
    // Once all has followed that it had, its whole log is there, and it can be started again.
    until("its log is there", async || {
        b.logs("clock", "?follow=true").await.read_until("tick 15\n").await.starts_with("tick 1\n")
    })
    .await;
    until("its image is there", async || !b.get::<Vec<fcap_api::Image>>("/images").await.is_empty()).await;
    let told =
        migrate(&b, invite(&b, &a).await, "clock", Precopy { stop_copy: true, ..Precopy::default() }).await;
    assert!(matches!(told.last(), Some(Progress::Done(_))), "{told:?}");
    until("it is back", async || there(&a).await == ["clock"]).await;
    assert_eq!(there(&b).await, [""; 0]);
    let stopped: Capsule = a.post("/capsules/clock/stop").await;
    assert_eq!(stopped.end.unwrap().exit_code, 143);
    for server in [&a, &b] {
        until("no file of the moves is left", async || {
            let left = std::fs::read_dir(server.state_dir().join("migrations")).unwrap();
            let mut left = left.map(|entry| entry.unwrap().file_name());
            left.all(|name| name == "node.crt" || name == "node.key")
        })
        .await;
    }
}

/// Leads to a server what connects to it, and counts that.
async fn detour(to: &str) -> (String, Arc<AtomicUsize>, watch::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (count, (cut, cuts)) = (Arc::new(AtomicUsize::new(0)), watch::channel(()));
    let (to, counted) = (to.to_owned(), count.clone());
    tokio::spawn(async move {
        while let Ok((mut one, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut other = TcpStream::connect(&to).await.unwrap();
            let mut cuts = cuts.clone();
            cuts.mark_unchanged();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut one, &mut other) => {}
                    _ = cuts.changed() => {}
                }
            });
        }
    });
    (address, count, cut)
}

#[tokio::test]
async fn a_connection_serves_one_move_after_the_other() {
    let (a, b) = (Server::start().await, Server::start().await);
    let (address, connections, cut) = detour(&invite(&a, &b).await.address).await;
    for name in ["x", "y", "z"] {
        a.start_capsule("SIM:tick 20", name).await;
    }
    let go = async |name: &str| {
        let ticket = Ticket { address: address.clone(), ..invite(&a, &b).await };
        let told = migrate(&a, ticket, name, Precopy::default()).await;
        assert!(matches!(told.last(), Some(Progress::Done(moved)) if !moved.unsettled), "{told:?}");
        b.logs(name, "?follow=true").await.read_until("tick 1\n").await;
        connections.load(Ordering::Relaxed)
    };
    assert_eq!(go("x").await, 1);
    assert_eq!(go("y").await, 1, "the same connection again");
    // One that has ended is not taken.
    cut.send(()).unwrap();
    assert_eq!(go("z").await, 2);
    // One over which a move has failed neither.
    a.start_capsule("SIM:spin", "x").await;
    let ticket = Ticket { address: address.clone(), ..invite(&a, &b).await };
    let told = migrate(&a, ticket, "x", Precopy::default()).await;
    assert!(matches!(told.last(), Some(Progress::Failed { .. })), "its name is taken: {told:?}");
    a.start_capsule("SIM:spin", "w").await;
    let unknown = Ticket { address: address.clone(), attempt: "00".repeat(16), ..invite(&a, &b).await };
    let told = migrate(&a, unknown, "w", Precopy::default()).await;
    let Some(Progress::Failed { error }) = told.last() else { panic!("{told:?}") };
    assert!(error.message.contains("does not expect the capsule"), "{error:?}");
    assert_eq!(connections.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn what_cannot_move_stays_and_says_why() {
    let (a, b) = (Server::start().await, Server::start().await);
    a.start_capsule("SIM:spin", "x").await;
    let failed = async |told: Vec<Progress>, part: &str| {
        let Some(Progress::Failed { error }) = told.last() else { panic!("{told:?}") };
        assert!(error.message.contains(part), "{error:?}");
        until("it runs", async || a.state("x").await == State::Running).await;
    };
    // Its name is taken.
    b.start_capsule("SIM:spin", "x").await;
    failed(migrate(&a, invite(&a, &b).await, "x", Precopy::default()).await, "taken").await;
    b.delete("/capsules/x?force=true").await;
    // A ticket is good for one attempt, and for one node.
    let ticket = invite(&a, &b).await;
    let forged = Ticket { fingerprint: "00".repeat(32), ..ticket.clone() };
    failed(migrate(&a, forged, "x", Precopy::default()).await, "cannot be reached").await;
    let stolen = Ticket { attempt: "00".repeat(16), ..ticket };
    failed(migrate(&a, stolen, "x", Precopy::default()).await, "").await;
    // Nobody is there.
    let nobody = Ticket { address: "127.0.0.1:1".into(), ..invite(&a, &b).await };
    failed(migrate(&a, nobody, "x", Precopy::default()).await, "cannot be reached").await;
    nothing_left(&b).await;
    let error = a.refused(Method::POST, "/capsules/x/migrate", json!({ "ticket": 1 }).to_string()).await;
    assert_eq!(error.code, ErrorCode::BadRequest);
    let killed: Capsule = a.post("/capsules/x/kill").await;
    assert_eq!(killed.end.unwrap().exit_code, 137);
}

#[tokio::test]
async fn a_dry_run_has_the_destination_answer_and_moves_nothing() {
    let (a, b) = (Server::start().await, Server::start().await);
    a.start_capsule("SIM:spin", "x").await;
    let dry = Precopy { dry_run: true, ..Precopy::default() };
    let told = migrate(&a, invite(&a, &b).await, "x", dry.clone()).await;
    assert!(matches!(told.last(), Some(Progress::Possible)), "{told:?}");
    nothing_left(&b).await;
    b.start_capsule("SIM:spin", "x").await;
    let told = migrate(&a, invite(&a, &b).await, "x", dry).await;
    let Some(Progress::Failed { error }) = told.last() else { panic!("{told:?}") };
    assert!(error.message.contains("taken"), "{error:?}");
    until("it runs", async || a.state("x").await == State::Running).await;
}

#[tokio::test]
async fn one_that_never_suspends_stays() {
    let (a, b) = (Server::start().await, Server::start().await);
    a.start_capsule("SIM:stubborn", "x").await;
    let told = migrate(&a, invite(&a, &b).await, "x", Precopy::default()).await;
    let Some(Progress::Failed { error }) = told.last() else { panic!("{told:?}") };
    assert!(error.message.contains("did not answer"), "{error:?}");
    assert_eq!((a.state("x").await, there(&b).await), (State::Running, vec![]));
    nothing_left(&b).await;
    // An image breaks off in its midst; why, is to be asked for.
    assert_eq!(a.get::<Option<fcap_api::ErrorBody>>("/capsules/x/save").await, None);
    let whole = match a.try_request(Method::POST, "/capsules/x/save?mode=save", "").await {
        Ok(image) => image.status().is_success() && image.bytes().await.is_ok(),
        Err(_) => false,
    };
    assert!(!whole, "it cannot be saved");
    let why: Option<fcap_api::ErrorBody> = a.get("/capsules/x/save").await;
    assert!(why.is_some_and(|error| error.message.contains("did not answer")));
}

#[tokio::test]
async fn a_saved_capsule_ends_when_its_image_is_in_safety_and_goes_on_elsewhere() {
    let (a, b) = (Server::start().await, Server::start().await);
    a.start_capsule("SIM:spin", "x").await;
    let image = save(&a, "x", "save").await;
    let error = a.refused(Method::POST, "/capsules/x/pause", "").await;
    assert_eq!(error.code, ErrorCode::WrongState, "it is held");
    a.ok::<()>(Method::POST, "/capsules/x/saved", Value::Null).await;
    assert_eq!((there(&a).await, a.world.domids()), (vec![], vec![]));
    let response = b.request(Method::POST, "/restore", image.clone()).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let restored: Capsule = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!((restored.name.as_str(), restored.state), ("x", State::Running));
    // Its name is taken now, and half an image is none.
    let error = b.refused(Method::POST, "/restore", image.clone()).await;
    assert!(error.message.contains("taken"), "{error:?}");
    for len in [0, 5, image.len() / 2, image.len() - 1] {
        let error = b.refused(Method::POST, "/restore?name=y", image[..len].to_vec()).await;
        assert_eq!(error.code, ErrorCode::BadRequest, "{len}: {error:?}");
    }
    let mut spoilt = image.clone();
    spoilt[image.len() / 2] ^= 1;
    b.refused(Method::POST, "/restore?name=y", spoilt).await;
    assert_eq!(there(&b).await, ["x"]);
    assert_eq!(b.world.domids().len(), 1);
}

#[tokio::test]
async fn a_checkpoint_and_a_clone_leave_the_first_one_running() {
    let a = Server::start().await;
    a.start_capsule("SIM:tick 20", "x").await;
    a.logs("x", "?follow=true").await.read_until("tick 5\n").await;
    let checkpoint = save(&a, "x", "checkpoint").await;
    let clone = save(&a, "x", "clone").await;
    a.logs("x", "?follow=true").await.read_until("tick 15\n").await;
    let error = a.refused(Method::POST, "/restore", clone.clone()).await;
    assert!(error.message.contains("name"), "{error:?}");
    for (name, image) in [("y", checkpoint), ("z", clone)] {
        let response = a.request(Method::POST, &format!("/restore?name={name}"), image).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        a.logs(name, "?follow=true").await.read_until("tick 15\n").await;
    }
    assert_eq!(there(&a).await, ["x", "y", "z"]);
}

#[tokio::test]
async fn a_daemon_killed_while_a_capsule_is_held_lets_it_go_on() {
    let mut a = Server::start().await;
    a.start_capsule("SIM:tick 20", "x").await;
    save(&a, "x", "save").await;
    a.kill_daemon();
    a.start_daemon().await;
    assert_eq!(a.state("x").await, State::Running);
    a.logs("x", "?follow=true").await.read_until("tick 8\n").await;
}
