//! A daemon to test, and a client of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fcap_api::stream::{Decoder, Frame};
use fcap_api::{Capsule, CreateCapsule, End, ErrorBody, ErrorCode, State};
use fcap_manager::daemon::{Daemon, Options, Signals};
use fcap_manager::http;
use fcap_manager::log::MIN_BYTES;
use fcap_manager::migration::listen;
use fcap_manager::net::sim::Sim;
use fcap_manager::node::Identity;
use fcap_manager::store::Store;
use fcap_manager::toolstack::sim::World;
use reqwest::{Method, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// Bytes of all images together that the daemon takes.
pub(crate) const IMAGE_BYTES: u64 = 64 << 10;
/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine with a daemon, which serves a Unix socket and a TCP port.
pub(crate) struct Server {
    pub(crate) world: Arc<World>,
    pub(crate) fabric: Arc<Sim>,
    directory: tempfile::TempDir,
    running: Option<Running>,
    client: reqwest::Client,
}

struct Running {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
    port: u16,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("token"), TOKEN).unwrap();
        let client = reqwest::Client::builder().unix_socket(directory.path().join("socket")).build().unwrap();
        // One GiB.
        let mut server =
            Self { world: World::new(2, 1 << 20), fabric: Arc::default(), directory, running: None, client };
        server.start_daemon().await;
        server
    }

    pub(crate) async fn start_daemon(&mut self) {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let (world, fabric) = (self.world.clone(), self.fabric.clone());
        let path = self.directory.path().to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let signals = Arc::<Signals>::default();
                let toolstack = Arc::new(world.toolstack(signals.sink()));
                let store = Store::open(&path.join("state")).unwrap();
                let identity = Identity::load(&store, Some(path.join("token")), false).unwrap();
                let options = Options { log_bytes: MIN_BYTES, image_bytes: IMAGE_BYTES, pool: 0 };
                let daemon = Daemon::start(toolstack, fabric, signals, store, identity, options);
                let daemon = daemon.await.unwrap();
                let others = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                listen::serve(daemon.clone(), others).unwrap();
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                let port = listener.local_addr().unwrap().port();
                let membership = daemon.membership.clone();
                let (open, guarded) = http::routers(daemon);
                tokio::spawn(http::serve_tcp(listener, guarded, membership));
                let socket = http::bind_unix(&path.join("socket")).unwrap();
                ready.send(port).unwrap();
                tokio::select! {
                    result = http::serve_unix(socket, open) => result.unwrap(),
                    _ = stopped => {}
                }
            });
            runtime.shutdown_background();
        });
        let port = is_ready.await.unwrap();
        self.running = Some(Running { stop, thread, port });
    }

    /// Ends the daemon without giving it any time for last things.
    pub(crate) fn kill_daemon(&mut self) {
        let running = self.running.take().unwrap();
        running.stop.send(()).unwrap();
        running.thread.join().unwrap();
        self.world.toolstack(Arc::new(|_| {}));
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub(crate) fn tcp_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/v1{path}", self.running.as_ref().unwrap().port)
    }

    /// A request with any body.
    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> Response {
        self.try_request(method, path, body).await.unwrap()
    }

    /// The same where the server may break off before it has begun to answer.
    pub(crate) async fn try_request(
        &self,
        method: Method,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> reqwest::Result<Response> {
        let request = self.client.request(method, format!("http://node/v1{path}")).body(body);
        tokio::time::timeout(PATIENCE, request.send()).await.expect("it answers")
    }

    pub(crate) async fn ok<T: DeserializeOwned>(&self, method: Method, path: &str, body: Value) -> T {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = self.request(method.clone(), path, body).await;
        let status = response.status();
        let text = tokio::time::timeout(PATIENCE, response.text()).await.expect("it ends").unwrap();
        assert!(status.is_success(), "{method} {path}: {status} {text}");
        serde_json::from_str(if text.is_empty() { "null" } else { &text }).unwrap()
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        self.ok(Method::GET, path, Value::Null).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str) -> T {
        self.ok(Method::POST, path, Value::Null).await
    }

    pub(crate) async fn delete(&self, path: &str) {
        self.ok::<()>(Method::DELETE, path, Value::Null).await;
    }

    /// A request that is refused.
    pub(crate) async fn refused(
        &self,
        method: Method,
        path: &str,
        body: impl Into<reqwest::Body>,
    ) -> ErrorBody {
        let response = self.request(method.clone(), path, body).await;
        error(response).await
    }

    /// Stores a simulated program, and gives its digest.
    pub(crate) async fn image(&self, program: &str) -> String {
        let digest = digest(program.as_bytes());
        let path = format!("/images/{digest}");
        let stored: fcap_api::Image = serde_json::from_str(
            &self.request(Method::PUT, &path, program.to_owned()).await.text().await.unwrap(),
        )
        .unwrap();
        assert_eq!(stored.digest, digest);
        digest
    }

    /// A request for a capsule with a program and a name.
    pub(crate) async fn spec(&self, program: &str, name: &str) -> CreateCapsule {
        let image = self.image(program).await;
        CreateCapsule { name: Some(name.into()), image, ..CreateCapsule::default() }
    }

    pub(crate) async fn create(&self, request: &CreateCapsule) -> Capsule {
        self.ok(Method::POST, "/capsules", json!(request)).await
    }

    /// Makes a capsule with a program and a name, and starts it.
    pub(crate) async fn start_capsule(&self, program: &str, name: &str) -> Capsule {
        let spec = self.spec(program, name).await;
        self.create(&spec).await
    }

    pub(crate) async fn frames(&self, method: Method, path: &str, body: Value) -> Frames {
        let response = self.request(method, path, body.to_string()).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], fcap_api::stream::MEDIA_TYPE);
        Frames { response, decoder: Decoder::default() }
    }

    pub(crate) async fn run(&self, request: &CreateCapsule) -> Frames {
        self.frames(Method::POST, "/run", json!(request)).await
    }

    pub(crate) async fn logs(&self, name: &str, query: &str) -> Frames {
        self.frames(Method::GET, &format!("/capsules/{name}/logs{query}"), Value::Null).await
    }

    pub(crate) async fn state(&self, name: &str) -> State {
        self.get::<Capsule>(&format!("/capsules/{name}")).await.state
    }

    pub(crate) async fn wait(&self, name: &str) -> End {
        self.get(&format!("/capsules/{name}/wait")).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.stop.send(());
        }
    }
}

/// The error that a response reports; its status is the one that belongs to it.
pub(crate) async fn error(response: Response) -> ErrorBody {
    let status = response.status();
    let text = response.text().await.unwrap();
    let body: ErrorBody =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status} {text:?}: {error}"));
    assert_eq!(status, body.code.status(), "{body:?}");
    assert!(!body.message.is_empty() && !body.message.contains(char::is_control), "{body:?}");
    assert_ne!(body.code, ErrorCode::Internal, "{body:?}");
    body
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// Frames as they come.
pub(crate) struct Frames {
    response: Response,
    decoder: Decoder,
}

impl Frames {
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("more comes");
            let Some(bytes) = chunk.unwrap() else {
                assert!(self.decoder.is_empty(), "the last frame is not whole");
                return None;
            };
            self.decoder.push(&bytes);
        }
    }

    /// The rest: output, bytes lost, and the end.
    pub(crate) async fn rest(mut self) -> (Vec<u8>, u64, Option<End>) {
        let (mut output, mut lost, mut end) = (Vec::new(), 0, None);
        while let Some(frame) = self.next().await {
            assert!(end.is_none(), "the end is the last frame");
            match frame {
                Frame::Capsule(_) => {}
                Frame::Output { time_ns, bytes } => {
                    assert!(time_ns > 0);
                    output.extend(bytes);
                }
                Frame::Lost(count) => lost += count,
                Frame::End(this) => end = Some(this),
            }
        }
        (output, lost, end)
    }

    /// Reads output until it holds `text`.
    pub(crate) async fn read_until(&mut self, text: &str) -> String {
        let mut output = String::new();
        while !output.contains(text) {
            match self.next().await.expect("more comes") {
                Frame::Output { bytes, .. } => output.push_str(std::str::from_utf8(&bytes).unwrap()),
                Frame::Capsule(_) => {}
                other => panic!("{other:?} comes before {text:?}"),
            }
        }
        output
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !is_so().await {
        assert!(started.elapsed() < PATIENCE, "{what} does not come true");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
