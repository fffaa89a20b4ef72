//! Speaks to a server's REST API directly, where a benchmark must not pay for starting `fcap`.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use fcap_api::migrate::{Invitation, Migrate, MigrationIdentity, Precopy, Progress};
use fcap_api::{Capsule, CreateCapsule, Image, Node, NodeUpdate};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// A server and the token it wants. Connections are kept and used again.
pub struct Api {
    base: String,
    token: String,
    agent: ureq::Agent,
}

/// What a request answers; errors are texts, which is all that tests do with them.
pub type Answer<T> = Result<T, String>;

impl Api {
    /// For the server at `base` ("http://127.0.0.1:7070").
    pub fn new(base: &str, token: &str) -> Self {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        Self { base: base.into(), token: token.into(), agent }
    }

    fn read<T: DeserializeOwned>(
        what: &str,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Answer<T> {
        let mut response = response.map_err(|error| format!("{what}: {error}"))?;
        let body = response.body_mut().read_to_vec().map_err(|error| format!("{what}: {error}"))?;
        if !response.status().is_success() {
            return Err(format!("{what}: {} {}", response.status(), String::from_utf8_lossy(&body)));
        }
        // "204 No Content" reads as null.
        let body = if body.is_empty() { &b"null"[..] } else { &body };
        serde_json::from_slice(body).map_err(|error| format!("{what}: {error}"))
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }

    /// `GET path`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Answer<T> {
        let url = format!("{}{path}", self.base);
        Self::read(path, self.agent.get(&url).header("authorization", self.bearer()).call())
    }

    /// `DELETE path`.
    pub fn delete(&self, path: &str) -> Answer<()> {
        let url = format!("{}{path}", self.base);
        Self::read(path, self.agent.delete(&url).header("authorization", self.bearer()).call())
    }

    /// `POST path` with JSON.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Answer<T> {
        let url = format!("{}{path}", self.base);
        let request = self.agent.post(&url).header("authorization", self.bearer());
        Self::read(path, request.header("content-type", "application/json").send(json(body)))
    }

    /// `POST path` with JSON, which answers one piece of JSON a line. What has come before the
    /// connection broke counts.
    pub fn post_lines<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Answer<Vec<T>> {
        let url = format!("{}{path}", self.base);
        let request = self.agent.post(&url).header("authorization", self.bearer());
        let response = request.header("content-type", "application/json").send(json(body));
        let mut response = response.map_err(|error| format!("{path}: {error}"))?;
        let is_success = response.status().is_success();
        let lines = BufReader::new(response.body_mut().as_reader()).lines();
        let lines: Vec<String> = lines.map_while(Result::ok).collect();
        if !is_success {
            return Err(format!("{path}: {}", lines.join(" ")));
        }
        let parse = |line: &String| serde_json::from_str(line).map_err(|error| format!("{line}: {error}"));
        lines.iter().map(parse).collect()
    }

    /// `POST path` with bytes.
    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Answer<()> {
        let url = format!("{}{path}", self.base);
        let request = self.agent.post(&url).header("authorization", self.bearer());
        Self::read(path, request.header("content-type", "application/octet-stream").send(body))
    }

    /// The node.
    pub fn node(&self) -> Answer<Node> {
        self.get("/v1/node")
    }

    /// Sets the size of the pool of pre-built capsules.
    pub fn set_pool(&self, size: u32) -> Answer<Node> {
        let url = format!("{}/v1/node", self.base);
        let request = self.agent.patch(&url).header("authorization", self.bearer());
        let body = json(&NodeUpdate { pool_size: Some(size) });
        Self::read("set the pool", request.header("content-type", "application/json").send(body))
    }

    /// Uploads the image in a file.
    pub fn upload(&self, file: &Path) -> Answer<Image> {
        let mut bytes = Vec::new();
        std::fs::File::open(file)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(|error| format!("{}: {error}", file.display()))?;
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let url = format!("{}/v1/images/sha256:{digest}", self.base);
        let request = self.agent.put(&url).header("authorization", self.bearer());
        Self::read("upload", request.header("content-type", "application/octet-stream").send(&bytes[..]))
    }

    /// Moves a capsule from here to another server; says what was told of it, the result last.
    pub fn migrate(&self, to: &Self, capsule: &str, how: &Precopy) -> Answer<Vec<Progress>> {
        let identity: MigrationIdentity = self.get("/v1/migrations/identity")?;
        let ticket = to.post("/v1/migrations", &Invitation::from(identity))?;
        let url = format!("{}/v1/capsules/{capsule}/migrate", self.base);
        let request = self.agent.post(&url).header("authorization", self.bearer());
        let body = json(&Migrate { ticket, how: how.clone() });
        let what = |error: &dyn std::fmt::Display| format!("migrate {capsule}: {error}");
        let response = request.header("content-type", "application/json").send(body);
        let mut response = response.map_err(|error| what(&error))?;
        let text = response.body_mut().read_to_string().map_err(|error| what(&error))?;
        if !response.status().is_success() {
            return Err(what(&text));
        }
        text.lines().map(|line| serde_json::from_str(line).map_err(|error| what(&error))).collect()
    }

    /// Makes and starts a capsule, and leaves as soon as it runs, without its output.
    pub fn run(&self, request: &CreateCapsule) -> Answer<()> {
        let url = format!("{}/v1/run", self.base);
        let call = self.agent.post(&url).header("authorization", self.bearer());
        let response = call.header("content-type", "application/json").send(json(request));
        let status = response.map_err(|error| format!("run: {error}"))?.status();
        if status.is_success() { Ok(()) } else { Err(format!("run: {status}")) }
    }

    /// Makes and starts a capsule.
    pub fn create(&self, request: &CreateCapsule) -> Answer<Capsule> {
        self.post("/v1/capsules", request)
    }
}

fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("API types always serialize")
}
