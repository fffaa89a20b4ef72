//! One server of the REST API, as a set of async calls.
#![forbid(unsafe_code)]

mod cluster;
mod lines;
mod migrate;

pub use lines::Lines;
pub use migrate::Saving;

use fcap_api::cluster::BY_HEADER;
use fcap_api::stream::{Decoder, Frame, FrameError};
use fcap_api::{
    Capsule, CreateCapsule, CreateNetwork, End, ErrorBody, ErrorCode, Event, Image, Network, Node,
    NodeCertificate, Pruned, RenewCertificate, Stats, UpdateCapsule, Version,
};
use fcap_tls::rustls::ClientConfig;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an ordinary request may take. Emulated nodes are slow, and a full one slower.
const REQUEST: Duration = Duration::from_secs(60);
/// Longest text of an error that is not an [`ErrorBody`].
const MAX_ERROR_TEXT: usize = 200;

/// A request that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens, or it does not answer.
    #[error("no answer from {address}: {reason}")]
    Unreachable {
        /// Whom we asked.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The server says no.
    #[error("{}", .0.message)]
    Refused(ErrorBody),
    /// The server speaks something else.
    #[error("{address} does not speak fcap's API: {reason}")]
    Protocol {
        /// Whom we asked.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// A stream of output is broken.
    #[error("the output from {address} is broken")]
    Frames {
        /// Whom we asked.
        address: String,
        /// What is wrong.
        source: FrameError,
    },
    /// An address that is none.
    #[error("{0:?} is not an address: use unix:///path/to/socket or http://host:port")]
    BadAddress(String),
    /// A token that cannot be sent.
    #[error("the token has characters that HTTP does not carry: give the text of the token file")]
    BadToken,
}

impl ClientError {
    /// The server's own word for the error, if it is the server's.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(body) => Some(body.code),
            _ => None,
        }
    }
}

/// Result of a request.
pub type Result<T> = std::result::Result<T, ClientError>;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A base URL without a slash at its end.
    Http(String),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Http(base) => f.write_str(base),
        }
    }
}

impl std::str::FromStr for Address {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || ClientError::BadAddress(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(bad()) };
        }
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        let base = match text.split_once("://") {
            Some(("http" | "https", _)) => text.to_owned(),
            Some(("tcp", rest)) => format!("http://{rest}"),
            Some(_) => return Err(bad()),
            None => format!("http://{text}"),
        };
        let url = reqwest::Url::parse(&base).map_err(|_| bad())?;
        if url.path() != "/" || url.query().is_some() || url.port_or_known_default().is_none() {
            return Err(bad());
        }
        Ok(Self::Http(base.trim_end_matches('/').to_owned()))
    }
}

/// What may name a capsule: an id, a prefix of one, or a name.
///
/// Only such text reaches a URL, so nothing needs to be escaped there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference(String);

impl Reference {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let fits = !text.is_empty() && text.len() <= fcap_api::MAX_NAME && text.chars().all(ok);
        if fits && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            Ok(Self(text.to_owned()))
        } else {
            Err("not an id or a name of a capsule; `fcap ps -a` shows them".to_owned())
        }
    }
}

/// A server.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    address: Address,
    debug: bool,
    by: Option<HeaderValue>,
}

impl Client {
    /// A server at `address`. Connects with the first request.
    ///
    /// # Errors
    /// When the token cannot be put into a header.
    pub fn new(address: Address, token: Option<&str>, debug: bool) -> Result<Self> {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
                .map_err(|_| ClientError::BadToken)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let builder = builder(fcap_tls::plain_client()).default_headers(headers);
        let (builder, base) = match &address {
            Address::Unix(path) => (builder.unix_socket(path.clone()), "http://fcapd".to_owned()),
            Address::Http(base) => (builder, base.clone()),
        };
        let http = build(builder, &address)?;
        Ok(Self { http, base, address, debug, by: None })
    }

    /// A server at the URL `base`, reached by TLS alone; the configuration says who it must be, and
    /// who asks.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn trusting(base: &str, config: ClientConfig) -> Result<Self> {
        let address: Address = base.parse()?;
        let base = match &address {
            Address::Http(base) if base.starts_with("https://") => base.clone(),
            _ => return Err(ClientError::BadAddress(base.to_owned())),
        };
        let http = build(builder(config).https_only(true), &address)?;
        Ok(Self { http, base, address, debug: false, by: None })
    }

    /// Says who asks, for a controller's record.
    pub fn named(mut self, by: &str) -> Self {
        // A name that HTTP does not carry is none.
        self.by = HeaderValue::from_str(by).ok();
        self
    }

    /// Passes a request on as it is, but for its address; the answer may be an error.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn forward(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        body: reqwest::Body,
    ) -> Result<Response> {
        let request = self.request(method, path).headers(headers).body(body);
        request.send().await.map_err(|error| self.failed(&error))
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.by {
            Some(by) => request.header(BY_HEADER, by),
            None => request,
        }
    }

    /// Sends, and takes an error's body apart.
    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let request = request.build().map_err(|error| self.failed(&error))?;
        let what =
            self.debug.then(|| format!("{} {}{}", request.method(), self.address, request.url().path()));
        let start = Instant::now();
        let answer = self.http.execute(request).await;
        if let Some(what) = what {
            let status = answer.as_ref().map_or("no answer".to_owned(), |answer| answer.status().to_string());
            eprintln!("fcap: {what}: {status} in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        }
        let answer = answer.map_err(|error| self.failed(&error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = answer.bytes().await.map_err(|error| self.failed(&error))?;
        Err(serde_json::from_slice(&body).map_or_else(
            |_| {
                let text = String::from_utf8_lossy(&body);
                let text: String = text.trim().chars().take(MAX_ERROR_TEXT).collect();
                self.protocol(format!("{status} {}", text.escape_debug()))
            },
            |body: ErrorBody| ClientError::Refused(body),
        ))
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let answer = self.send(request.timeout(REQUEST)).await?;
        self.parse(answer).await
    }

    async fn parse<T: DeserializeOwned>(&self, answer: Response) -> Result<T> {
        let body = answer.bytes().await.map_err(|error| self.failed(&error))?;
        serde_json::from_slice(&body).map_err(|error| self.protocol(error.to_string()))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(self.request(Method::GET, path)).await
    }

    fn failed(&self, error: &reqwest::Error) -> ClientError {
        let reason = if error.is_timeout() { "it took too long".to_owned() } else { chain(error) };
        ClientError::Unreachable { address: self.address.to_string(), reason }
    }

    fn protocol(&self, reason: String) -> ClientError {
        ClientError::Protocol { address: self.address.to_string(), reason }
    }

    /// What it is.
    pub async fn version(&self) -> Result<Version> {
        self.get("/v1/version").await
    }

    /// The node behind it.
    pub async fn node(&self) -> Result<Node> {
        self.get("/v1/node").await
    }

    /// How it is known to the other machines of its cluster.
    pub async fn certificate(&self) -> Result<NodeCertificate> {
        self.get("/v1/node/certificate").await
    }

    /// Gives it a new certificate.
    pub async fn renew(&self, new: &RenewCertificate) -> Result<NodeCertificate> {
        self.json(self.request(Method::PUT, "/v1/node/certificate").json(new)).await
    }

    /// Images it holds.
    pub async fn images(&self) -> Result<Vec<Image>> {
        self.get("/v1/images").await
    }

    /// Whether it holds the image.
    pub async fn has_image(&self, digest: &str) -> Result<bool> {
        match self.get::<Image>(&format!("/v1/images/{digest}")).await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some(ErrorCode::NoSuchImage) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives it an image.
    pub async fn put_image(&self, digest: &str, len: u64, body: reqwest::Body) -> Result<Image> {
        let request = self
            .request(Method::PUT, &format!("/v1/images/{digest}"))
            .header("content-type", "application/octet-stream")
            .header("content-length", len)
            .body(body);
        let answer = self.send(request).await?;
        self.parse(answer).await
    }

    /// Removes an image.
    pub async fn remove_image(&self, digest: &str) -> Result<()> {
        self.send(self.request(Method::DELETE, &format!("/v1/images/{digest}")).timeout(REQUEST))
            .await
            .map(drop)
    }

    /// Its networks.
    pub async fn networks(&self) -> Result<Vec<Network>> {
        self.get("/v1/networks").await
    }

    /// Makes a network.
    pub async fn create_network(&self, network: &CreateNetwork) -> Result<Network> {
        self.json(self.request(Method::POST, "/v1/networks").json(network)).await
    }

    /// Removes a network.
    pub async fn remove_network(&self, name: &str) -> Result<()> {
        let request = self.request(Method::DELETE, &format!("/v1/networks/{name}"));
        self.send(request.timeout(REQUEST)).await.map(drop)
    }

    /// Its capsules; ended ones too with `all`.
    pub async fn capsules(&self, all: bool) -> Result<Vec<Capsule>> {
        self.get(&format!("/v1/capsules?all={all}")).await
    }

    /// One capsule.
    pub async fn capsule(&self, of: &Reference) -> Result<Capsule> {
        self.get(&format!("/v1/capsules/{of}")).await
    }

    /// Makes a capsule.
    pub async fn create(&self, spec: &CreateCapsule) -> Result<Capsule> {
        self.json(self.request(Method::POST, "/v1/capsules").json(spec)).await
    }

    /// Makes a capsule, starts it, and gives what it writes.
    pub async fn run(&self, spec: &CreateCapsule) -> Result<Frames> {
        self.frames(self.request(Method::POST, "/v1/run").json(spec)).await
    }

    /// Changes a capsule.
    pub async fn update(&self, id: &str, change: &UpdateCapsule) -> Result<Capsule> {
        self.json(self.request(Method::PATCH, &format!("/v1/capsules/{id}")).json(change)).await
    }

    /// Removes a capsule; a running one only with `force`.
    pub async fn remove(&self, id: &str, force: bool) -> Result<()> {
        let path = format!("/v1/capsules/{id}?force={force}");
        self.send(self.request(Method::DELETE, &path).timeout(REQUEST)).await.map(drop)
    }

    /// `start`, `kill`, `pause` or `unpause`.
    pub async fn act(&self, id: &str, verb: Verb) -> Result<Capsule> {
        let verb = verb.name();
        self.json(self.request(Method::POST, &format!("/v1/capsules/{id}/{verb}"))).await
    }

    /// Asks a capsule to stop, and forces it after `timeout_s`.
    pub async fn stop(&self, id: &str, timeout_s: u64) -> Result<Capsule> {
        let path = format!("/v1/capsules/{id}/stop?timeout_s={timeout_s}");
        let limit = REQUEST.saturating_add(Duration::from_secs(timeout_s));
        let answer = self.send(self.request(Method::POST, &path).timeout(limit)).await?;
        self.parse(answer).await
    }

    /// Waits for the end.
    pub async fn wait(&self, id: &str) -> Result<End> {
        let answer = self.send(self.request(Method::GET, &format!("/v1/capsules/{id}/wait"))).await?;
        self.parse(answer).await
    }

    /// What a capsule has written.
    pub async fn logs(&self, id: &str, query: &LogQuery) -> Result<Frames> {
        let mut path = format!("/v1/capsules/{id}/logs?follow={}", query.follow);
        if let Some(tail) = query.tail {
            path += &format!("&tail={tail}");
        }
        if let Some(since) = query.since_ms {
            path += &format!("&since_ms={since}");
        }
        self.frames(self.request(Method::GET, &path)).await
    }

    /// What a capsule writes from now on.
    pub async fn attach(&self, id: &str) -> Result<Frames> {
        self.frames(self.request(Method::GET, &format!("/v1/capsules/{id}/attach"))).await
    }

    /// Feeds a capsule's standard input; the end of `body` is the end of input.
    pub async fn stdin(&self, id: &str, body: reqwest::Body) -> Result<()> {
        let request = self
            .request(Method::POST, &format!("/v1/capsules/{id}/stdin"))
            .header("content-type", "application/octet-stream")
            .body(body);
        self.send(request).await.map(drop)
    }

    /// Use of resources by its running capsules.
    pub async fn stats(&self) -> Result<Vec<Stats>> {
        self.get("/v1/stats").await
    }

    /// What happened, and with `follow` what happens.
    pub async fn events(&self, since_ms: Option<u64>, follow: bool) -> Result<Lines<Event>> {
        let mut path = format!("/v1/events?follow={follow}");
        if let Some(since) = since_ms {
            path += &format!("&since_ms={since}");
        }
        let answer = self.send(self.request(Method::GET, &path)).await?;
        Ok(Lines::new(answer, self))
    }

    /// Removes ended capsules and images that no capsule uses.
    pub async fn prune(&self) -> Result<Pruned> {
        self.json(self.request(Method::POST, "/v1/prune")).await
    }

    async fn frames(&self, request: RequestBuilder) -> Result<Frames> {
        let answer = self.send(request).await?;
        Ok(Frames { answer, client: self.clone(), decoder: Decoder::default() })
    }
}

/// Verbs without arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Verb {
    Start,
    Kill,
    Pause,
    Unpause,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
        }
    }
}

/// Which part of a log.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogQuery {
    /// Go on until the capsule's end.
    pub follow: bool,
    /// Only so many lines from the end.
    pub tail: Option<u64>,
    /// Only what was written from then on.
    pub since_ms: Option<u64>,
}

/// Output of a capsule as it comes.
#[derive(Debug)]
pub struct Frames {
    answer: Response,
    client: Client,
    decoder: Decoder,
}

impl Frames {
    /// The next frame; none at the stream's end. Loses nothing when it is dropped while it waits.
    ///
    /// # Errors
    /// When the connection breaks off or the stream is not one of frames.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            let frame = self
                .decoder
                .next_frame()
                .map_err(|source| ClientError::Frames { address: self.client.address.to_string(), source })?;
            if frame.is_some() {
                return Ok(frame);
            }
            match self.answer.chunk().await.map_err(|error| self.client.failed(&error))? {
                Some(bytes) => self.decoder.push(&bytes),
                None if self.decoder.is_empty() => return Ok(None),
                None => return Err(self.client.protocol("the output ends in the middle of a frame".into())),
            }
        }
    }
}

fn builder(config: ClientConfig) -> reqwest::ClientBuilder {
    reqwest::Client::builder().no_proxy().connect_timeout(CONNECT).tls_backend_preconfigured(config)
}

fn build(builder: reqwest::ClientBuilder, address: &Address) -> Result<reqwest::Client> {
    builder
        .build()
        .map_err(|error| ClientError::Unreachable { address: address.to_string(), reason: chain(&error) })
}

/// What an error comes down to.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(why) = fcap_tls::explain(error) {
        return why.to_string();
    }
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// Reads a token from a file.
///
/// # Errors
/// When the file cannot be read.
pub fn read_token(path: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sockets_or_urls() {
        let ok = |text: &str| text.parse::<Address>().unwrap().to_string();
        assert_eq!(ok("unix:///run/x.sock"), "unix:///run/x.sock");
        assert_eq!(ok("/run/x.sock"), "unix:///run/x.sock");
        assert_eq!(ok("http://127.0.0.1:7070/"), "http://127.0.0.1:7070");
        assert_eq!(ok("tcp://127.0.0.1:7070"), "http://127.0.0.1:7070");
        assert_eq!(ok("node1:7070"), "http://node1:7070");
        for bad in ["", "unix://x", "ftp://x", "http://x/path", "http://"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn references_never_need_escaping() {
        for ok in ["a", "0f", "quick-fox.2_b"] {
            assert!(ok.parse::<Reference>().is_ok(), "{ok}");
        }
        for bad in ["", "..", ".", "a/b", "a?b", "a b", "ä", "-x", &"x".repeat(300)] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
