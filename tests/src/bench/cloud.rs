//! A node from its template to fcapd answering.

use std::time::Instant;

use anyhow::ensure;
use serde_json::json;

use crate::cli;
use crate::stats::{median, ms, summary};

const ROUNDS: usize = 10;

/// Runs the benchmark and returns its line of JSON.
pub fn run() -> anyhow::Result<serde_json::Value> {
    let home = tempfile::tempdir()?;
    let fcap = |args: &[&str]| -> anyhow::Result<()> {
        let status = cli::fcap_command(args)
            .env("XDG_DATA_HOME", home.path())
            .env("FCAP_CLOUD", "bench")
            .stdout(std::process::Stdio::null())
            .status()?;
        ensure!(status.success(), "fcap {args:?}: {status}");
        Ok(())
    };
    // The first builds the template, unless there is one.
    eprintln!("template");
    fcap(&["cloud", "up"])?;
    fcap(&["cloud", "down"])?;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        // Returns when fcapd has answered.
        fcap(&["cloud", "up"])?;
        times.push(ms(start.elapsed()) / 1e3);
        fcap(&["version"])?;
        fcap(&["cloud", "down"])?;
    }
    println!("{}", summary("fcap cloud up", "s", &times));
    Ok(json!({ "bench": "cloud", "ready_s": median(&times) }))
}
