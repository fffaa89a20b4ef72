//! The client against a xenstored of a few lines.

use std::{os::unix::net::UnixListener, sync::mpsc, thread};

use xen_proto::xenstore::{Header, Op};

use super::*;

/// Listens on a socket and answers each message as `answer` says: operation and payload.
fn server(
    answer: impl Fn(Header, &[u8]) -> (Op, Vec<u8>) + Send + Sync + 'static,
) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let answer = std::sync::Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let answer = answer.clone();
            thread::spawn(move || {
                let mut incoming = Incoming::default();
                while let Ok((header, payload)) =
                    incoming.next(&mut stream, |packet| (packet.header, packet.payload.to_vec()))
                {
                    let (op, payload) = answer(header, &payload);
                    let reply = Header { op: op as u32, len: payload.len() as u32, ..header };
                    if stream.write_all(&[&reply.emit()[..], &payload].concat()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (dir, path)
}

#[test]
fn replies_of_a_batch_come_in_order() {
    let (_dir, path) = server(|header, payload| match Op::from_u32(header.op) {
        Some(Op::Read) => (Op::Read, payload.to_vec()),
        _ => (Op::Error, b"ENOSYS\0".to_vec()),
    });
    let client = Client::connect(&path).unwrap();
    let replies =
        client.batch(TxId::NONE, &[Request::Read("a"), Request::Mkdir("b"), Request::Read("c")]).unwrap();
    assert_eq!(replies, [Ok(b"a\0".to_vec()), Err(wire::Error::Unsupported), Ok(b"c\0".to_vec())]);
}

#[test]
fn a_transaction_that_meets_another_is_made_again() {
    let (sender, seen) = mpsc::channel();
    let sender = Mutex::new(sender);
    let (_dir, path) = server(move |header, _| {
        let op = Op::from_u32(header.op).unwrap();
        sender.lock().unwrap().send((op, header.tx_id.0)).unwrap();
        match (op, header.tx_id.0) {
            (Op::TransactionStart, _) => {
                use std::sync::atomic::{AtomicU32, Ordering};
                static NEXT: AtomicU32 = AtomicU32::new(1);
                (op, format!("{}\0", NEXT.fetch_add(1, Ordering::Relaxed)).into_bytes())
            }
            (Op::TransactionEnd, 1) => (Op::Error, b"EAGAIN\0".to_vec()),
            _ => (op, b"OK\0".to_vec()),
        }
    });
    let client = Client::connect(&path).unwrap();
    client.transaction(&[Request::Write { path: "/a", value: b"1" }], &[Request::Mkdir("/after")]).unwrap();
    let seen: Vec<_> = seen.try_iter().collect();
    use Op::*;
    assert_eq!(
        seen,
        [
            (TransactionStart, 0),
            (Write, 1),
            (TransactionEnd, 1),
            (Mkdir, 0),
            (TransactionStart, 0),
            (Write, 2),
            (TransactionEnd, 2),
        ]
    );
}

#[test]
fn a_refused_request_is_named() {
    let (_dir, path) = server(|header, _| match Op::from_u32(header.op) {
        Some(Op::Write) => (Op::Error, b"ENOSPC\0".to_vec()),
        Some(op) => (op, b"1\0".to_vec()),
        None => (Op::Error, b"EINVAL\0".to_vec()),
    });
    let client = Client::connect(&path).unwrap();
    let error = client.transaction(&[Request::Write { path: "/full", value: b"1" }], &[]).unwrap_err();
    assert!(
        matches!(&error, Error::Refused { request, source: wire::Error::Quota } if request.contains("/full"))
    );
}

#[test]
fn a_client_survives_a_server_that_hangs_up() {
    let (_dir, path) = server(|header, payload| {
        if payload == b"bad\0" {
            (Op::Read, vec![0; 5000])
        } else {
            (Op::from_u32(header.op).unwrap(), vec![])
        }
    });
    let client = Client::connect(&path).unwrap();
    // A reply longer than any may be breaks the stream.
    assert!(matches!(client.request(Request::Read("bad")), Err(Error::Connection(..))));
    assert_eq!(client.request(Request::Read("good")).unwrap(), b"");
}

#[test]
fn watches_fire_at_once() {
    let (_dir, path) = server(|_, _| (Op::Watch, b"OK\0".to_vec()));
    let (sender, fired) = mpsc::channel();
    watch(&path, "@releaseDomain", move || sender.send(()).unwrap()).unwrap();
    fired.recv().unwrap();
}
