//! What Prometheus is told: by its own tools, and by itself.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use fcap_api::cluster::{AddNode, MetricsTarget, MoveTo, PolicySpec};
use fcap_api::{CreateCapsule, DEFAULT_NETWORK};

use crate::rig::{Server, SimCloud, TOKEN, cluster, reference, until};

/// The page for people.
fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/monitoring.md");
    std::fs::read_to_string(path).unwrap()
}

async fn get(server: &Server, path: &str) -> String {
    let request = reqwest::Client::new().get(format!("{}{path}", server.url)).bearer_auth(TOKEN);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    response.text().await.unwrap()
}

/// Names that a text has numbers for, and describes.
fn names(text: &str) -> BTreeSet<String> {
    let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    described.map(str::to_owned).collect()
}

/// The names in the first column of the table that follows a heading of the page.
fn listed(heading: &str) -> BTreeSet<String> {
    let page = page();
    let (_, section) = page.split_once(&format!("\n### {heading}\n")).expect("the page has this heading");
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next());
    rows.map(str::to_owned).collect()
}

/// Has Prometheus's own tool look for what is wrong with a text.
fn check(text: &str) {
    use std::io::Write as _;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`cargo xtask setup` installs promtool");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

/// A cluster in which everything has happened that is counted.
async fn eventful() -> (Arc<SimCloud>, Server) {
    let (cloud, server) = cluster(2).await;
    let image = cloud.run("node1", "web", 16).await.image;
    let networked = CreateCapsule {
        name: Some("db".into()),
        image,
        networks: Some(vec![DEFAULT_NETWORK.into()]),
        ..CreateCapsule::default()
    };
    cloud.client("node1").create(&networked).await.unwrap();
    let order = MoveTo { node: "node2".into(), reason: None };
    let operation = server.client.move_to(&reference("web"), &order).await.unwrap();
    server.done(operation).await;
    let idle = PolicySpec { source: Some("return {}".into()), interval_ms: 100, ..PolicySpec::default() };
    server.client.apply_policy("idle", &idle).await.unwrap();
    (cloud, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_numbers_are_well_formed_and_on_the_page() {
    let (_cloud, server) = eventful().await;
    let mut own = String::new();
    until("the policy has run", async || {
        own = get(&server, "/metrics").await;
        own.contains("fcap_cluster_policy_runs_total{outcome=\"idle\",policy=\"idle\"}")
    })
    .await;
    check(&own);
    assert_eq!(names(&own), listed("The controller"));
    for line in [
        "fcap_cluster_nodes{state=\"ready\"} 2.0",
        "fcap_cluster_operations_total{kind=\"plan\",outcome=\"done\"} 1.0",
        "fcap_cluster_operations_total{kind=\"drain\",outcome=\"failed\"} 0.0",
        "fcap_cluster_moves_total{outcome=\"done\",policy=\"\"} 1.0",
        "fcap_cluster_policies{state=\"active\"} 1.0",
        "fcap_cluster_cost_per_hour 0.02",
    ] {
        assert!(own.lines().any(|other| other == line), "{line} is missing in {own}");
    }
    let (source, destination) =
        (get(&server, "/v1/nodes/node1/metrics").await, get(&server, "/v1/nodes/node2/metrics").await);
    for (text, lines) in [
        (
            &source,
            [
                "fcap_capsules{state=\"running\"} 1.0",
                "fcap_migrations_total{direction=\"out\",outcome=\"done\"} 1.0",
                "fcap_migration_downtime_seconds_count 1",
                "fcap_capsule_memory_bytes{capsule=\"db\"} 16777216.0",
            ],
        ),
        (
            &destination,
            [
                "fcap_capsules{state=\"running\"} 1.0",
                "fcap_migrations_total{direction=\"in\",outcome=\"done\"} 1.0",
                "fcap_migration_downtime_seconds_count 0",
                "fcap_images 1.0",
            ],
        ),
    ] {
        check(text);
        for line in lines {
            assert!(text.lines().any(|other| other == line), "{line} is missing in {text}");
        }
    }
    assert_eq!(names(&source), listed("A node"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_need_the_token_and_a_node_that_is_there() {
    let (cloud, server) = cluster(1).await;
    let http = reqwest::Client::new();
    for url in [format!("{}/metrics", server.url), format!("{}/metrics", cloud.url("node1"))] {
        assert_eq!(http.get(&url).send().await.unwrap().status(), 401, "{url}");
        assert_eq!(http.get(&url).bearer_auth(TOKEN).send().await.unwrap().status(), 200, "{url}");
    }
    let nobody = http.get(format!("{}/v1/nodes/nobody/metrics", server.url)).bearer_auth(TOKEN);
    assert_eq!(nobody.send().await.unwrap().status(), 404);
    let targets: Vec<MetricsTarget> = serde_json::from_str(&get(&server, "/v1/targets").await).unwrap();
    assert_eq!(targets[0].targets, [server.url.strip_prefix("http://").unwrap()]);
    assert_eq!(targets[0].labels["__metrics_path__"], "/v1/nodes/node1/metrics");
    // One that is silent is a target still, of which Prometheus sees that it is down.
    cloud.with("node1", |node| node.kill_daemon());
    let silent = http.get(format!("{}/v1/nodes/node1/metrics", server.url)).bearer_auth(TOKEN);
    assert_eq!(silent.send().await.unwrap().status(), 503);
    let targets: Vec<MetricsTarget> = serde_json::from_str(&get(&server, "/v1/targets").await).unwrap();
    assert_eq!(targets.len(), 1);
}

/// Prometheus itself, which ends with this.
struct Prometheus {
    server: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Prometheus {
    /// With the page's configuration, but for the addresses and the patience.
    fn start(controller: &Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, TOKEN).unwrap();
        let page = page();
        let (_, config) = page.split_once("```yaml\n").expect("the page has a configuration");
        let config = config.split("```").next().unwrap();
        let mut text = config.to_owned();
        for (before, after) in [
            ("127.0.0.1:8099", controller.url.strip_prefix("http://").unwrap()),
            ("/etc/prometheus/fcap.token", token.to_str().unwrap()),
            ("scrape_interval: 15s", "scrape_interval: 500ms"),
            ("refresh_interval: 15s", "refresh_interval: 1s"),
        ] {
            assert!(text.contains(before), "{before} is missing in {config}");
            text = text.replace(before, after);
        }
        let file: PathBuf = folder.path().join("prometheus.yml");
        std::fs::write(&file, text).unwrap();
        // Prometheus does not say which port it was given, so one is chosen for it.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("`cargo xtask setup` installs prometheus");
        Self { server, url: format!("http://127.0.0.1:{port}"), _folder: folder }
    }

    /// The value of an expression, if it has one.
    async fn value(&self, expression: &str) -> Option<f64> {
        let answer = reqwest::Client::new()
            .post(format!("{}/api/v1/query", self.url))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("query={}", expression.replace('+', "%2B").replace('=', "%3D")))
            .send();
        let answer: serde_json::Value = serde_json::from_str(&answer.await.ok()?.text().await.ok()?).ok()?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }

    async fn until(&self, expression: &str, wanted: f64) {
        until(expression, async || self.value(expression).await == Some(wanted)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_finds_all_nodes_and_gets_their_numbers() {
    let (cloud, server) = eventful().await;
    let prometheus = Prometheus::start(&server);
    prometheus.until("fcap_cluster_nodes{state=\"ready\"}", 2.0).await;
    prometheus.until("fcap_capsules{node=\"node2\",flavor=\"small\",state=\"running\"}", 1.0).await;
    prometheus.until("fcap_migrations_total{node=\"node1\",direction=\"out\",outcome=\"done\"}", 1.0).await;
    prometheus.until("fcap_capsule_memory_bytes{capsule=\"web\",instance=\"node2\"}", 16.0 * 1048576.0).await;
    prometheus.until("count(up{job=\"fcap-nodes\"})", 2.0).await;
    // Nodes come, and are found; and fall silent, which is seen.
    let add = AddNode { flavor: "small".into(), labels: Default::default(), reason: None };
    let operation = server.client.add_node(&add).await.unwrap();
    server.done(operation).await;
    prometheus.until("up{node=\"node3\"}", 1.0).await;
    cloud.with("node2", |node| node.kill_daemon());
    prometheus.until("up{node=\"node2\"}", 0.0).await;
    prometheus.until("fcap_cluster_node_silence_seconds{node=\"node2\"} > bool 1", 1.0).await;
}
