//! The checks of the network: the capsule speaks with itself, which needs no other.

use libos::{
    net::{self, Error, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    prelude::*,
    spawn,
    time::{self, Duration},
};

/// Connections at the same time.
const MANY: usize = 20;

/// Sends back what comes.
async fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 512];
    while let Ok(count @ 1..) = stream.read(&mut bytes).await {
        if stream.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
}

pub(crate) async fn streams_carry_bytes_both_ways() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = listener.local_addr();
    let server = spawn(async move {
        for _ in 0..MANY {
            let (stream, _) = listener.accept().await.expect("listeners do not fail");
            spawn(echo(stream));
        }
    });
    let clients: Vec<_> = (0..MANY)
        .map(|n| {
            spawn(async move {
                let stream = TcpStream::connect(address).await.expect("somebody listens");
                let sent = vec![n as u8; 200_000];
                let mut received = vec![0; sent.len()];
                let (mut reader, mut writer) = stream.into_split();
                // More than fits on the way: both directions must go on at once.
                let copy = sent.clone();
                let write = spawn(async move { writer.write_all(&copy).await });
                reader.read_exact(&mut received).await.expect("the peer sends everything back");
                write.await.expect("the peer reads");
                assert!(received == sent);
            })
        })
        .collect();
    for client in clients {
        client.await;
    }
    server.await;
}

pub(crate) async fn ends_of_streams_are_told_apart() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = listener.local_addr();
    let mut client = TcpStream::connect(address).await.expect("somebody listens");
    let (server, peer) = listener.accept().await.expect("listeners do not fail");
    assert_eq!(peer, client.local_addr());
    drop(server);
    assert_eq!(client.read(&mut [0; 10]).await, Ok(0));
    let mut client = TcpStream::connect(address).await.expect("somebody listens");
    let (server, _) = listener.accept().await.expect("listeners do not fail");
    server.abort();
    assert_eq!(client.read(&mut [0; 10]).await, Err(Error::Reset));
    drop(listener);
    assert_eq!(TcpStream::connect(address).await.err(), Some(Error::Refused));
    assert!(TcpListener::bind("127.0.0.2:80").await.is_err());
}

pub(crate) async fn datagrams_and_names_arrive() {
    let here = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let there = UdpSocket::bind("localhost:5353").await.expect("the port is free");
    let count = there.send_to(b"across", ("::1", 5353)).await;
    assert_eq!(count, Ok(6));
    assert_eq!(there.recv(&mut [0; 100]).await, Ok(6));
    let nobody = time::timeout(Duration::from_millis(5), here.recv(&mut [0; 100])).await;
    assert!(nobody.is_err());
    let found: Vec<_> = net::lookup_host("[::1]:80").await.expect("it is a number").collect();
    assert_eq!(format!("{found:?}"), "[[::1]:80]");
    assert_eq!(net::lookup_host("no port").await.err(), Some(Error::InvalidName));
}
