//! Requests that make no sense get one clear error each, and change nothing.

use fcap_api::{Capsule, CreateCapsule, ErrorCode};
use proptest::prelude::*;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::{IMAGE_BYTES, Server, digest};

#[tokio::test]
async fn capsules_that_cannot_be_are_refused() {
    let server = Server::start().await;
    let image = server.image("SIM:hello").await;
    let kernel = server.image("SIMK:hello").await;
    let data = server.image("just text").await;
    let missing = digest(b"nobody has this");
    let long = "n".repeat(300);
    let cases = [
        (json!({ "image": image, "name": "" }), ErrorCode::BadRequest, "empty"),
        (json!({ "image": image, "name": long }), ErrorCode::BadRequest, "300 bytes"),
        (json!({ "image": image, "name": "a\u{7}b" }), ErrorCode::BadRequest, "letters"),
        (json!({ "image": image, "name": "../x" }), ErrorCode::BadRequest, "starts with"),
        (json!({ "image": image, "memory_kib": 0 }), ErrorCode::BadRequest, "memory"),
        (json!({ "image": image, "memory_kib": 100 }), ErrorCode::NotEnoughMemory, "at least 512 KiB"),
        (json!({ "image": image, "memory_kib": 2u64 << 20 }), ErrorCode::NoRoom, "2097152 KiB"),
        (json!({ "image": image, "memory_kib": u64::MAX }), ErrorCode::BadRequest, "at most"),
        (json!({ "image": image, "memory_kib": -1 }), ErrorCode::BadRequest, "parse"),
        (json!({ "image": image, "max_memory_kib": 1024 }), ErrorCode::BadRequest, "16384 (its memory)"),
        (json!({ "image": image, "max_memory_kib": u64::MAX }), ErrorCode::BadRequest, "max_memory_kib"),
        (json!({ "image": image, "vcpus": 0 }), ErrorCode::BadRequest, "vcpus"),
        (json!({ "image": image, "vcpus": 1000 }), ErrorCode::BadRequest, "vcpus"),
        (json!({ "image": image, "weight": 0 }), ErrorCode::BadRequest, "weight"),
        (json!({ "image": image, "cpu_cap": 70000 }), ErrorCode::BadRequest, "parse"),
        (json!({ "image": image, "args": ["a\0b"] }), ErrorCode::BadRequest, "NUL"),
        (json!({ "image": image, "args": ["x".repeat(300_000)] }), ErrorCode::BadRequest, "262144"),
        (json!({ "image": image, "env": { "": "x" } }), ErrorCode::BadRequest, "environment"),
        (json!({ "image": image, "env": { "a=b": "x" } }), ErrorCode::BadRequest, "environment"),
        (json!({ "image": image, "labels": { "": "x" } }), ErrorCode::BadRequest, "label"),
        (json!({ "image": image, "image_name": "\u{1b}[31m" }), ErrorCode::BadRequest, "image_name"),
        (json!({ "image": image, "append": "console=hvc0" }), ErrorCode::BadRequest, "other kernels"),
        (json!({ "image": image, "initrd": data }), ErrorCode::BadRequest, "other kernels"),
        (json!({ "image": image, "remove": true, "restart": "always" }), ErrorCode::BadRequest, "exclude"),
        (json!({ "image": image, "colour": "red" }), ErrorCode::BadRequest, "colour"),
        (json!({ "image": kernel, "args": ["x"] }), ErrorCode::BadRequest, "append"),
        (json!({ "image": kernel, "append": "x".repeat(1024) }), ErrorCode::BadRequest, "1023"),
        (json!({ "image": kernel, "initrd": missing }), ErrorCode::NoSuchImage, "upload"),
        (json!({ "image": data }), ErrorCode::BadImage, "not a kernel"),
        (json!({ "image": missing }), ErrorCode::NoSuchImage, "upload"),
        (json!({ "image": "hello" }), ErrorCode::BadRequest, "digest"),
        (json!({}), ErrorCode::BadRequest, "digest"),
        (json!([1, 2]), ErrorCode::BadRequest, "parse"),
    ];
    for (body, code, part) in cases {
        for path in ["/capsules", "/run"] {
            let error = server.refused(Method::POST, path, body.to_string()).await;
            let shown: String = body.to_string().chars().take(100).collect();
            assert_eq!(error.code, code, "{shown}: {error:?}");
            assert!(error.message.contains(part), "{shown}: {error:?}");
        }
    }
    assert_eq!(server.get::<Vec<Capsule>>("/capsules?all=true").await, []);
    assert_eq!(std::fs::read_dir(server.state_dir().join("capsules")).unwrap().count(), 0);
    assert_eq!(server.world.domids(), [0; 0]);
}

#[tokio::test]
async fn images_that_cannot_be_are_refused_and_leave_nothing() {
    let server = Server::start().await;
    let good = digest(b"SIM:hello");
    let put = async |digest: &str, bytes: Vec<u8>| {
        server.refused(Method::PUT, &format!("/images/{digest}"), bytes).await
    };
    let large = vec![7; IMAGE_BYTES as usize + 1];
    assert_eq!(put(&good, b"SIM:other".to_vec()).await.code, ErrorCode::BadRequest);
    assert_eq!(put("sha256:12", b"x".to_vec()).await.code, ErrorCode::BadRequest);
    assert_eq!(put(&good.to_uppercase(), b"x".to_vec()).await.code, ErrorCode::BadRequest);
    assert_eq!(put("..%2F..%2Fetc", b"x".to_vec()).await.code, ErrorCode::BadRequest);
    assert_eq!(put(&digest(b""), Vec::new()).await.code, ErrorCode::BadImage);
    assert_eq!(put(&digest(&large), large.clone()).await.code, ErrorCode::TooLarge);
    for bad in ["\u{7f}ELF and no more", "SIM:juggle", "SIM:exit five"] {
        assert_eq!(put(&digest(bad.as_bytes()), bad.into()).await.code, ErrorCode::BadImage, "{bad}");
    }
    let pieces: Vec<_> = large.chunks(1000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    let pieces = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let error = server.refused(Method::PUT, &format!("/images/{}", digest(&large)), pieces).await;
    assert_eq!(error.code, ErrorCode::TooLarge, "when its size was not announced, too");
    assert_eq!(std::fs::read_dir(server.state_dir().join("images")).unwrap().count(), 0);
    let path = format!("/images/{good}");
    assert_eq!(server.refused(Method::GET, &path, "").await.code, ErrorCode::NoSuchImage);
    assert_eq!(server.refused(Method::DELETE, &path, "").await.code, ErrorCode::NoSuchImage);
}

#[tokio::test]
async fn images_in_use_stay_and_the_longest_unused_go_for_new_ones() {
    let server = Server::start().await;
    let used = server.start_capsule("SIM:spin", "x").await.image;
    let error = server.refused(Method::DELETE, &format!("/images/{used}"), "").await;
    assert_eq!(error.code, ErrorCode::WrongState);
    let third = |n: u8| String::from_utf8(vec![n; IMAGE_BYTES as usize / 3]).unwrap();
    let old = server.image(&third(b'a')).await;
    let newer = server.image(&third(b'b')).await;
    let newest = server.image(&third(b'c')).await;
    let held: Vec<fcap_api::Image> = server.get("/images").await;
    let held: Vec<_> = held.into_iter().map(|image| image.digest).collect();
    assert!(held.contains(&used) && held.contains(&newer) && held.contains(&newest) && !held.contains(&old));
}

#[tokio::test]
async fn other_requests_that_make_no_sense_are_refused() {
    let server = Server::start().await;
    server.start_capsule("SIM:spin", "x").await;
    let cases = [
        (Method::GET, "/capsules/nobody", "", ErrorCode::NoSuchCapsule),
        (Method::GET, "/capsules/%00%1b", "", ErrorCode::NoSuchCapsule),
        (Method::GET, "/capsules/%ff", "", ErrorCode::BadRequest),
        (Method::GET, "/capsules?all=perhaps", "", ErrorCode::BadRequest),
        (Method::GET, "/capsules?any=true", "", ErrorCode::BadRequest),
        (Method::PATCH, "/capsules/x", "{", ErrorCode::BadRequest),
        (Method::PATCH, "/capsules/x", r#"{"memory_kib":1}"#, ErrorCode::BadRequest),
        (Method::PATCH, "/capsules/nobody", "{}", ErrorCode::NoSuchCapsule),
        (Method::DELETE, "/capsules/nobody?force=true", "", ErrorCode::NoSuchCapsule),
        (Method::DELETE, "/capsules/x?force=2", "", ErrorCode::BadRequest),
        (Method::POST, "/capsules/nobody/start", "", ErrorCode::NoSuchCapsule),
        (Method::POST, "/capsules/nobody/kill", "", ErrorCode::NoSuchCapsule),
        (Method::POST, "/capsules/nobody/stdin", "x", ErrorCode::NoSuchCapsule),
        (Method::POST, "/capsules/x/stop?timeout_s=-1", "", ErrorCode::BadRequest),
        (Method::POST, "/capsules/x/stop?timeout_s=99999999999", "", ErrorCode::BadRequest),
        (Method::POST, "/capsules/x/explode", "", ErrorCode::NoSuchPath),
        (Method::GET, "/capsules/x/kill", "", ErrorCode::NoSuchMethod),
        (Method::GET, "/capsules/nobody/wait", "", ErrorCode::NoSuchCapsule),
        (Method::GET, "/capsules/nobody/logs", "", ErrorCode::NoSuchCapsule),
        (Method::GET, "/capsules/x/logs?tail=some", "", ErrorCode::BadRequest),
        (Method::GET, "/capsules/nobody/attach", "", ErrorCode::NoSuchCapsule),
        (Method::GET, "/events?since_ms=now", "", ErrorCode::BadRequest),
        (Method::PATCH, "/node", r#"{"pool_size":-1}"#, ErrorCode::BadRequest),
        (Method::POST, "/node/adopt", "{}", ErrorCode::BadRequest),
        (Method::PUT, "/node/certificate", "{}", ErrorCode::BadRequest),
        (Method::PUT, "/node/certificate", r#"{"chain":""}"#, ErrorCode::WrongState),
        (Method::PUT, "/node", "{}", ErrorCode::NoSuchMethod),
        (Method::GET, "/nothing", "", ErrorCode::NoSuchPath),
        (Method::POST, "/run", r#"{"image":"x","no_start":true}"#, ErrorCode::BadRequest),
    ];
    for (method, path, body, code) in cases {
        let error = server.refused(method.clone(), path, body).await;
        assert_eq!(error.code, code, "{method} {path} {body}: {error:?}");
    }
    let error = server.refused(Method::POST, "/capsules", "x".repeat((1 << 20) + 1)).await;
    assert_eq!(error.code, ErrorCode::TooLarge);
    assert_eq!(server.get::<Vec<Capsule>>("/capsules").await.len(), 1);
}

#[tokio::test]
async fn what_is_no_http_ends_the_connection_and_nothing_else() {
    let server = Server::start().await;
    let endless_head = [b"GET /v1/node HTTP/1.1\r\nx: ".to_vec(), vec![b'x'; 1 << 20]].concat();
    for bytes in [b"\0\x01\x02\r\n\r\n".to_vec(), b"HELLO\r\n\r\n".to_vec(), endless_head] {
        let mut socket = tokio::net::UnixStream::connect(server.socket()).await.unwrap();
        let _ = socket.write_all(&bytes).await;
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    server.get::<fcap_api::Node>("/node").await;
}

#[test]
fn any_body_anywhere_is_answered_and_never_by_an_internal_error() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::start());
    let image = runtime.block_on(server.image("SIM:hello"));
    let paths = [
        (Method::POST, "/capsules"),
        (Method::POST, "/run"),
        (Method::PATCH, "/capsules/x"),
        (Method::PATCH, "/node"),
        (Method::POST, "/node/adopt"),
        (Method::PUT, "/node/certificate"),
    ];
    let request = CreateCapsule { no_start: true, name: Some("x".into()), image, ..CreateCapsule::default() };
    runtime.block_on(server.create(&request));
    let template = json!(request).to_string().into_bytes();
    let damaged = (any::<prop::sample::Index>(), any::<u8>()).prop_map(move |(at, byte)| {
        let mut bytes = template.clone();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes
    });
    let body = prop_oneof![any::<Vec<u8>>(), damaged];
    proptest!(ProptestConfig::with_cases(100), |(body in body, at in 0..paths.len())| {
        let (method, path) = paths[at].clone();
        let status = runtime.block_on(server.request(method, path, body)).status();
        prop_assert_ne!(status, 500);
    });
}
