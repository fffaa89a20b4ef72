//! Machines that meet.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn node(name: &str) -> Subject {
    Subject::node(name).unwrap()
}

fn credentials(authority: &Authority, subject: &Subject) -> Credentials {
    Credentials::new(authority.identity(subject, VALIDITY).unwrap()).unwrap()
}

/// With a certificate that is valid from so much before or after now.
fn at(authority: &Authority, subject: &Subject, from: SystemTime) -> Credentials {
    let key = Key::generate().unwrap();
    let request = Request::parse(&key.request().unwrap()).unwrap();
    let chain = authority.issue(&request, subject, from, HOUR).unwrap();
    Credentials::new(key.certified(&chain).unwrap()).unwrap()
}

/// What both sides say of each other: the client of the server, the server of the client.
async fn meet(
    client: ClientConfig,
    server: ServerConfig,
) -> (Result<(), PeerError>, Result<Option<Subject>, PeerError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = async {
        let (stream, _) = listener.accept().await.unwrap();
        match accept(stream, Some(Arc::new(server))).await {
            Ok(Accepted::Secured(mut stream, peer)) => {
                stream.write_all(b"!").await.unwrap();
                stream.shutdown().await.unwrap();
                Ok(peer)
            }
            Ok(Accepted::Plain(_)) => panic!("it speaks TLS"),
            Err(error) => Err(explain(&error).unwrap()),
        }
    };
    let client = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("any").unwrap();
        let talk = async {
            let mut stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
            // Only then it is known whether the server believes us.
            stream.read_exact(&mut [0]).await
        };
        talk.await.map(drop).map_err(|error| explain(&error).unwrap())
    };
    tokio::join!(client, server)
}

use rustls::{ClientConfig, ServerConfig};

#[tokio::test]
async fn machines_of_one_cluster_know_each_other() {
    let authority = Authority::generate().unwrap();
    let controller = credentials(&authority, &Subject::controller());
    let one = credentials(&authority, &node("one"));
    let met = meet(controller.client(node("one")), one.server(Clients::Known).unwrap()).await;
    assert_eq!(met, (Ok(()), Ok(Some(Subject::controller()))));
    let met = meet(one.client(Subject::controller()), controller.server(Clients::Anybody).unwrap()).await;
    assert_eq!(met, (Ok(()), Ok(Some(node("one")))));
}

#[tokio::test]
async fn somebody_else_is_refused() {
    let (authority, other) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let controller = credentials(&authority, &Subject::controller());
    let two = credentials(&authority, &node("two"));
    let server = || two.server(Clients::Known).unwrap();
    let wrong = PeerError::WrongPeer { expected: node("one"), found: node("two") };
    let (client, theirs) = meet(controller.client(node("one")), server()).await;
    assert_eq!(client, Err(wrong));
    assert!(theirs.is_err());
    let role = Subject::new(Role::Controller, "two").unwrap();
    let (client, _) = meet(controller.client(role), server()).await;
    assert!(matches!(client, Err(PeerError::WrongPeer { .. })), "{client:?}");

    let stranger = credentials(&other, &Subject::controller());
    let (client, _) = meet(stranger.client(node("two")), server()).await;
    assert_eq!(client, Err(PeerError::OtherCluster));
    // The other way round: it would believe, but is not believed.
    let foreign = credentials(&other, &node("two"));
    let (client, theirs) = meet(pinned_and_shown(&foreign, &authority), {
        credentials(&authority, &Subject::controller()).server(Clients::Known).unwrap()
    })
    .await;
    assert_eq!(theirs, Err(PeerError::OtherCluster));
    assert!(matches!(client, Err(PeerError::Refuses(_))), "{client:?}");
}

/// Believes the controller of one cluster, and shows a certificate of another.
fn pinned_and_shown(shown: &Credentials, authority: &Authority) -> ClientConfig {
    let mut config = pinned_client(authority.fingerprint());
    config.client_auth_cert_resolver = shown.client(Subject::controller()).client_auth_cert_resolver;
    config
}

#[tokio::test]
async fn clocks_that_are_off_are_told_by_how_much() {
    let authority = Authority::generate().unwrap();
    let controller = credentials(&authority, &Subject::controller());
    let now = SystemTime::now();
    let late = at(&authority, &node("late"), now - 3 * HOUR);
    let (client, _) = meet(controller.client(node("late")), late.server(Clients::Known).unwrap()).await;
    let Err(PeerError::Expired(ago)) = client else { panic!("{client:?}") };
    assert!(ago >= 2 * HOUR && ago < 2 * HOUR + Duration::from_secs(60), "{ago:?}");
    let early = at(&authority, &node("early"), now + 3 * HOUR);
    let (client, _) = meet(controller.client(node("early")), early.server(Clients::Known).unwrap()).await;
    let Err(PeerError::NotYetValid(ahead)) = client else { panic!("{client:?}") };
    assert!(ahead > 2 * HOUR && ahead <= 3 * HOUR - LEEWAY, "{ahead:?}");
    // The same is told to whoever shows such a certificate.
    let server = controller.server(Clients::Known).unwrap();
    let (client, theirs) = meet(late.client(Subject::controller()), server).await;
    assert!(matches!(theirs, Err(PeerError::Expired(_))), "{theirs:?}");
    assert!(matches!(client, Err(PeerError::Refuses(_))), "{client:?}");
}

#[tokio::test]
async fn who_joins_knows_the_controller_by_its_authority() {
    let (authority, other) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let controller = credentials(&authority, &Subject::controller());
    let server = || controller.server(Clients::Anybody).unwrap();
    assert_eq!(meet(pinned_client(authority.fingerprint()), server()).await, (Ok(()), Ok(None)));
    let (client, _) = meet(pinned_client(other.fingerprint()), server()).await;
    assert_eq!(client, Err(PeerError::OtherAuthority));
    // A node of the cluster is not its controller.
    let node = credentials(&authority, &node("one"));
    let (client, _) =
        meet(pinned_client(authority.fingerprint()), node.server(Clients::Anybody).unwrap()).await;
    assert!(matches!(client, Err(PeerError::WrongPeer { .. })), "{client:?}");
    let (_, theirs) =
        meet(pinned_client(authority.fingerprint()), controller.server(Clients::Known).unwrap()).await;
    assert_eq!(theirs, Err(PeerError::NoCertificate));
}

#[tokio::test]
async fn a_new_certificate_is_used_at_once() {
    let authority = Authority::generate().unwrap();
    let controller = credentials(&authority, &Subject::controller());
    let one = at(&authority, &node("one"), SystemTime::now() - 2 * HOUR);
    let (client, server) = (controller.client(node("one")), one.server(Clients::Known).unwrap());
    let (before, _) = meet(client.clone(), server.clone()).await;
    assert!(matches!(before, Err(PeerError::Expired(_))), "{before:?}");
    let identity = one.identity();
    let request = Request::parse(&identity.key().request().unwrap()).unwrap();
    assert_eq!(request.key(), identity.key().fingerprint());
    let chain = authority.issue(&request, &node("one"), SystemTime::now(), HOUR).unwrap();
    one.replace(identity.renewed(&chain).unwrap()).unwrap();
    assert_eq!(meet(client, server).await, (Ok(()), Ok(Some(Subject::controller()))));
}

#[test]
fn a_certificate_for_somebody_else_does_not_renew() {
    let (authority, other) = (Authority::generate().unwrap(), Authority::generate().unwrap());
    let identity = authority.identity(&node("one"), HOUR).unwrap();
    let request = Request::parse(&identity.key().request().unwrap()).unwrap();
    let now = SystemTime::now();
    let chain = authority.issue(&request, &node("two"), now, HOUR).unwrap();
    assert!(matches!(identity.renewed(&chain), Err(TlsError::Unexpected(_))));
    let chain = other.issue(&request, &node("one"), now, HOUR).unwrap();
    assert!(matches!(identity.renewed(&chain), Err(TlsError::Peer(PeerError::OtherCluster))));
    let chain = authority.identity(&node("one"), HOUR).unwrap().chain();
    assert!(matches!(identity.renewed(&chain), Err(TlsError::Malformed { .. })));
    assert!(identity.renewed("nonsense").is_err());
}

#[test]
fn renewal_is_due_when_a_third_is_left() {
    let authority = Authority::generate().unwrap();
    let identity = authority.identity(&node("one"), VALIDITY).unwrap();
    let (from, until) = identity.validity();
    let due = identity.renewal();
    assert_eq!(until.duration_since(due).unwrap(), until.duration_since(from).unwrap() / 3);
}

#[test]
fn authority_and_identity_are_kept_to_oneself_and_read_back() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("authority.pem");
    let first = Authority::open(&path).unwrap();
    let again = Authority::open(&path).unwrap();
    assert_eq!(first.fingerprint(), again.fingerprint());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // What the one signs, the other knows.
    let identity = again.identity(&node("one"), HOUR).unwrap();
    assert_eq!(identity.authority(), first.fingerprint());
    let file = directory.path().join("cluster.pem");
    assert!(Identity::load(&file).unwrap().is_none());
    identity.save(&file).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let loaded = Identity::load(&file).unwrap().unwrap();
    assert_eq!((loaded.to_pem(), loaded.subject()), (identity.to_pem(), identity.subject()));
    let key = directory.path().join("cluster.key");
    assert_eq!(Key::open(&key).unwrap().fingerprint(), Key::open(&key).unwrap().fingerprint());
}

#[test]
fn files_that_are_cut_off_are_named_and_left() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("authority.pem");
    let text = {
        Authority::open(&path).unwrap();
        std::fs::read_to_string(&path).unwrap()
    };
    let identity = Authority::open(&path).unwrap().identity(&node("one"), HOUR).unwrap().to_pem();
    for whole in [&text, &identity] {
        for end in (0..whole.len()).step_by(29) {
            std::fs::write(&path, &whole[..end]).unwrap();
            if *whole == text {
                let Err(error) = Authority::open(&path) else { panic!("{end}") };
                assert!(error.to_string().contains("authority.pem"), "{error}");
            } else {
                assert!(matches!(Identity::load(&path), Err(TlsError::Damaged { .. })), "{end}");
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole[..end]);
        }
    }
}

#[tokio::test]
async fn plain_connections_pass() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.write_all(b"GET /").await.unwrap();
    let Accepted::Plain(mut stream) = accept(listener.accept().await.unwrap().0, None).await.unwrap() else {
        panic!("it is plain");
    };
    let mut text = [0; 5];
    stream.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"GET /");
}
