//! Both servers keep to their own OpenAPI documents, whatever they are asked: no answer says that
//! the server failed, and none has a status that the document does not know. schemathesis asks.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::rig::{SimCloud, TOKEN, cluster};

/// How long schemathesis may ask one server.
const SECONDS: &str = "40";
/// What it looks at.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_schema_conformance,unsupported_method,ignored_auth";
/// What goes on for as long as somebody listens.
const ENDLESS: [&str; 3] = ["/v1/capsules/{id}/attach", "/v1/capsules/{id}/wait", "/v1/run"];
/// Some of them are removed soon.
const CAPSULES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance")
}

/// Has schemathesis ask a server. `known` is what there is, by the name of the variable in the path;
/// `endless` what else goes on for as long as somebody listens.
async fn ask(url: &str, known: &serde_json::Value, endless: &[&str]) {
    let program = std::env::var_os("FCAP_SCHEMATHESIS").expect("`cargo xtask test` says where it is");
    let output = tokio::process::Command::new(program)
        .args(["run", &format!("{url}/v1/openapi.json")])
        .args(["--header", &format!("Authorization: Bearer {TOKEN}")])
        .args(["--checks", CHECKS])
        .args(["--phases", "examples,coverage,fuzzing", "--seed", "1", "--max-time", SECONDS])
        .args(["--generation-database", "none", "--request-timeout", "20", "--no-color"])
        .args(endless.iter().chain(&ENDLESS).flat_map(|path| ["--exclude-path", path]))
        .env("SCHEMATHESIS_HOOKS", folder().join("hooks.py"))
        .env("FCAP_KNOWN", known.to_string())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(tempfile::tempdir().unwrap().path())
        .stdin(Stdio::null())
        .output()
        .await
        .expect("schemathesis runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs schemathesis: `cargo xtask test` installs and runs it"]
async fn a_node_keeps_to_its_document() {
    let cloud = SimCloud::default();
    cloud.boot("node1", "large", None).await;
    let mut image = String::new();
    for name in CAPSULES {
        image = cloud.run("node1", name, 16).await.image;
    }
    let known = serde_json::json!({ "id": CAPSULES, "digest": [image], "name": ["default"] });
    ask(&cloud.url("node1"), &known, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs schemathesis: `cargo xtask test` installs and runs it"]
async fn a_controller_keeps_to_its_document() {
    let (cloud, server) = cluster(2).await;
    let mut image = String::new();
    for (name, node) in CAPSULES.into_iter().zip(["node1", "node2"].into_iter().cycle()) {
        image = cloud.run(node, name, 16).await.image;
    }
    // Operations have numbers, and policies names.
    let ids = [&CAPSULES[..], &["1", "2"]].concat();
    let names = ["node1", "node2", "scale", "consolidate"];
    let known = serde_json::json!({ "id": ids, "digest": [image], "name": names });
    ask(&server.url, &known, &["/v1/audit/follow"]).await;
}
