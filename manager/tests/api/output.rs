//! Output and input: nothing lost, nothing unbounded.

use std::time::Duration;

use fcap_api::stream::Frame;
use fcap_api::{Capsule, CreateCapsule, EndReason, ErrorCode, State, Stats};
use fcap_manager::log::MIN_BYTES;
use reqwest::Method;
use serde_json::Value;

use crate::server::{Server, until};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn input_comes_back_as_output_unchanged() {
    let server = Server::start().await;
    let request = CreateCapsule { stdin: true, ..server.spec("SIM:echo", "x").await };
    let frames = server.run(&request).await;
    let sent = pattern(300_000);
    let give = server.request(Method::POST, "/capsules/x/stdin", sent.clone());
    let (given, (output, lost, end)) = tokio::join!(give, frames.rest());
    assert_eq!(given.status(), 204);
    assert_eq!((output == sent, lost, end.unwrap().exit_code), (true, 0, 0));
}

#[tokio::test]
async fn much_input_is_taken_as_fast_as_it_is_read() {
    let server = Server::start().await;
    let request = CreateCapsule { stdin: true, ..server.spec("SIM:count", "x").await };
    let frames = server.run(&request).await;
    server.request(Method::POST, "/capsules/x/stdin", pattern(3 << 20)).await;
    assert_eq!(frames.rest().await.0, format!("{}\n", 3 << 20).into_bytes());
}

#[tokio::test]
async fn input_may_come_in_several_requests() {
    let server = Server::start().await;
    let request = CreateCapsule { stdin: true, ..server.spec("SIM:count", "x").await };
    let frames = server.run(&request).await;
    for _ in 0..3 {
        let given = server.request(Method::POST, "/capsules/x/stdin?keep_open=true", "12345").await;
        assert_eq!(given.status(), 204);
    }
    server.request(Method::POST, "/capsules/x/stdin", "").await;
    let (output, _, _) = frames.rest().await;
    assert_eq!(output, b"15\n");
    let error = server.refused(Method::POST, "/capsules/x/stdin", "late").await;
    assert_eq!(error.code, ErrorCode::WrongState);
}

#[tokio::test]
async fn input_that_cannot_be_taken_is_refused() {
    let server = Server::start().await;
    server.start_capsule("SIM:spin", "deaf").await;
    let error = server.refused(Method::POST, "/capsules/deaf/stdin", "x").await;
    assert!(error.message.contains("without input"), "{error:?}");
    let request = CreateCapsule { stdin: true, ..server.spec("SIM:spin", "x").await };
    server.create(&request).await;
    server.request(Method::POST, "/capsules/x/stdin", "").await;
    let error = server.refused(Method::POST, "/capsules/x/stdin", "x").await;
    assert!(error.message.contains("closed"), "{error:?}");
}

#[tokio::test]
async fn a_capsule_that_ends_before_its_input_does_not_keep_the_client() {
    let server = Server::start().await;
    let request = CreateCapsule { stdin: true, ..server.spec("SIM:sleep 50", "x").await };
    server.create(&request).await;
    // More than the ring takes, and nobody reads it.
    let error = server.refused(Method::POST, "/capsules/x/stdin", pattern(100_000)).await;
    assert!(error.message.contains("is not running"), "{error:?}");
    // Nothing comes, and it ends.
    server.post::<Capsule>("/capsules/x/start").await;
    let nothing = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let error = server.refused(Method::POST, "/capsules/x/stdin", reqwest::Body::wrap_stream(nothing)).await;
    assert_eq!(error.code, ErrorCode::WrongState);
}

async fn output_bytes(server: &Server) -> u64 {
    server.get::<Vec<Stats>>("/stats").await[0].output_bytes
}

#[tokio::test]
async fn a_slow_attached_reader_slows_the_capsule_and_loses_nothing() {
    let server = Server::start().await;
    const TOTAL: usize = 3 << 20;
    let request = server.spec(&format!("SIM:flood {TOTAL}"), "x").await;
    let mut frames = server.run(&request).await;
    assert!(matches!(frames.next().await, Some(Frame::Capsule(_))));
    // It writes until all buffers are full, and then waits.
    let mut last = 0;
    until("waiting", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = output_bytes(&server).await;
        std::mem::replace(&mut last, now) == now && now > 0
    })
    .await;
    assert!(last < TOTAL as u64, "{last} bytes are out");
    let (output, lost, end) = frames.rest().await;
    assert_eq!((output.len(), lost, end.unwrap().exit_code), (TOTAL, 0, 0));
}

#[tokio::test]
async fn a_client_that_goes_away_holds_nobody_up() {
    let server = Server::start().await;
    let request = server.spec("SIM:flood 8000000", "x").await;
    let mut frames = server.run(&request).await;
    assert!(matches!(frames.next().await, Some(Frame::Capsule(_))));
    drop(frames);
    assert_eq!(server.wait("x").await.exit_code, 0);
}

#[tokio::test]
async fn logs_are_bounded_and_followers_learn_what_they_lost() {
    let server = Server::start().await;
    const TOTAL: u64 = 1 << 20;
    server.start_capsule(&format!("SIM:flood {TOTAL}"), "x").await;
    server.wait("x").await;
    let (kept, lost, end) = server.logs("x", "").await.rest().await;
    assert_eq!((lost, end), (0, None), "what was rotated away before is no loss of this reader");
    let kept = kept.len() as u64;
    assert!((MIN_BYTES / 2 - 4096..TOTAL).contains(&kept), "{kept} bytes are kept");
    let files = std::fs::read_dir(server.state_dir().join("capsules")).unwrap();
    let on_disk: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(on_disk <= 2 * MIN_BYTES, "{on_disk} bytes are on disk");
}

#[tokio::test]
async fn logs_begin_where_they_are_asked_to() {
    let server = Server::start().await;
    let request =
        CreateCapsule { args: vec!["one".into(), "two".into()], ..server.spec("SIM:args", "x").await };
    server.run(&request).await.rest().await;
    let logs = async |query: &str| String::from_utf8(server.logs("x", query).await.rest().await.0).unwrap();
    let all = logs("").await;
    assert!(all.ends_with("\none\ntwo\n"), "{all:?}");
    assert_eq!(logs("?tail=2").await, "one\ntwo\n");
    assert_eq!(logs("?tail=0").await, "");
    assert_eq!(logs("?tail=100").await, all);
    assert_eq!(logs("?since_ms=0").await, all);
    assert_eq!(logs("?since_ms=99999999999999").await, "");
    assert_eq!(logs("?follow=true&tail=1").await, "two\n");
}

#[tokio::test]
async fn following_ends_with_the_capsule() {
    let server = Server::start().await;
    server.start_capsule("SIM:tick 1", "x").await;
    let mut follower = server.logs("x", "?follow=true").await;
    follower.read_until("tick 20\n").await;
    server.post::<Capsule>("/capsules/x/stop").await;
    let (_, lost, end) = follower.rest().await;
    assert_eq!((lost, end.unwrap().exit_code), (0, 143));
}

#[tokio::test]
async fn attaching_gives_what_comes_and_the_end() {
    let server = Server::start().await;
    let request = CreateCapsule { stdin: true, ..server.spec("SIM:echo", "x").await };
    server.create(&request).await;
    server.request(Method::POST, "/capsules/x/stdin?keep_open=true", "before\n").await;
    until("output", async || output_bytes(&server).await > 0).await;
    let mut attached = server.frames(Method::GET, "/capsules/x/attach", Value::Null).await;
    server.request(Method::POST, "/capsules/x/stdin", "after\n").await;
    assert_eq!(attached.read_until("\n").await, "after\n");
    let (_, _, end) = attached.rest().await;
    assert_eq!(end.unwrap().reason, EndReason::Exited);
    let error = server.refused(Method::GET, "/capsules/x/attach", "").await;
    assert_eq!(error.code, ErrorCode::WrongState);
}

#[tokio::test]
async fn one_may_attach_before_the_start() {
    let server = Server::start().await;
    let request = CreateCapsule { no_start: true, ..server.spec("SIM:hello", "x").await };
    server.create(&request).await;
    let attached = server.frames(Method::GET, "/capsules/x/attach", Value::Null).await;
    server.post::<Capsule>("/capsules/x/start").await;
    let (output, _, end) = attached.rest().await;
    assert!(output.starts_with(b"Hello") && end.is_some());
    assert_eq!(server.state("x").await, State::Exited);
}
