//! Request to first byte: fcapd against `xl create -c`, same kernel, same node, alternately.

use std::time::Duration;

use anyhow::Context;
use fcap_api::{Capsule, CreateCapsule};
use serde_json::json;

use crate::cli;
use crate::rig::{self, Node};
use crate::stats::{median, summary};

const ROUNDS: usize = 15;
const MEMORY_KIB: u64 = 16 * 1024;
/// hello's first word.
const MARKER: &str = "Hello";

/// Runs the benchmark and returns its line of JSON.
pub fn run() -> anyhow::Result<serde_json::Value> {
    let node = Node::compare()?;
    let api = node.api();
    let hello = cli::image("hello");
    let image = api.upload(&hello).map_err(anyhow::Error::msg)?;
    node.put("/tmp/fcap-probe", &std::fs::read(rig::probe())?)?;
    node.put("/tmp/image", &std::fs::read(&hello)?)?;
    let config = format!(
        "name = \"peer\"\nkernel = \"/tmp/image\"\nmemory = {}\nvcpus = 1\non_poweroff = \"destroy\"\n",
        MEMORY_KIB / 1024
    );
    node.put("/tmp/peer.cfg", config.as_bytes())?;
    node.sh("chmod +x /tmp/fcap-probe")?;

    // xl is several times slower in the first minute of dom0's life.
    let up: f64 = node.sh("cut -d' ' -f1 /proc/uptime")?.trim().parse()?;
    let rest = (75.0 - up).max(0.0);
    eprintln!("dom0 is up for {up:.0} s, waiting {rest:.0} s before timing");
    std::thread::sleep(Duration::from_secs_f64(rest));

    let request = |name: &str| CreateCapsule {
        name: Some(name.into()),
        image: image.digest.clone(),
        image_name: Some("hello".into()),
        memory_kib: Some(MEMORY_KIB),
        ..Default::default()
    };
    let ours = |name: &str| -> anyhow::Result<(f64, Capsule)> {
        let body = serde_json::to_string(&request(name))?;
        let ms = node.sh(&format!("/tmp/fcap-probe run {} '{body}' {MARKER}", fcap_api::DEFAULT_SOCKET))?;
        let capsule = api.get(&format!("/v1/capsules/{name}")).map_err(anyhow::Error::msg)?;
        api.delete(&format!("/v1/capsules/{name}?force=true")).map_err(anyhow::Error::msg)?;
        Ok((probed(&ms)?, capsule))
    };

    let (mut xl, mut cold, mut warm) = (vec![], vec![], vec![]);
    let (mut cold_runs, mut warm_runs) = (vec![], vec![]);
    // One of each that does not count: pages of programs and libraries come in, the image is parsed.
    for round in 0..=ROUNDS {
        rig::quiet(&api)?;
        let ms = node.sh(&format!("/tmp/fcap-probe exec {MARKER} xl create -c /tmp/peer.cfg"))?;
        node.sh("while xl domid peer >/dev/null 2>&1; do xl destroy peer 2>/dev/null; done")?;
        let xl_ms = probed(&ms)?;
        rig::quiet(&api)?;
        let (cold_ms, cold_run) = ours("cold")?;
        api.set_pool(1).map_err(anyhow::Error::msg)?;
        // The pool holds ready what has been used since it was turned on.
        ours("first")?;
        rig::wait_until("the pool is full", || Ok(api.node().map_err(anyhow::Error::msg)?.pool_ready == 1))?;
        rig::quiet(&api)?;
        let (warm_ms, warm_run) = ours("warm")?;
        api.set_pool(0).map_err(anyhow::Error::msg)?;
        rig::wait_until("the pool is empty", || Ok(api.node().map_err(anyhow::Error::msg)?.pool_ready == 0))?;
        eprintln!("round {round:>2}: xl {xl_ms:7.1} ms, cold {cold_ms:6.1} ms, warm {warm_ms:6.1} ms");
        if round > 0 {
            xl.push(xl_ms);
            cold.push(cold_ms);
            warm.push(warm_ms);
            cold_runs.push(cold_run);
            warm_runs.push(warm_run);
        }
    }

    println!("request to first byte of the application's output, measured in dom0:");
    println!("{}", summary("xl create -c", "ms", &xl));
    println!("{}", summary("fcapd, cold", "ms", &cold));
    println!("{}", summary("fcapd, warm pool", "ms", &warm));
    print_steps("cold", &cold_runs);
    print_steps("warm", &warm_runs);
    let (xl, cold, warm) = (median(&xl), median(&cold), median(&warm));
    Ok(json!({
        "bench": "run",
        "cold_ratio": xl / cold,
        "warm_ratio": xl / warm,
        "xl_ms": xl,
        "cold_ms": cold,
        "warm_ms": warm,
    }))
}

/// Where the time of starts went, by their own account.
fn print_steps(kind: &str, runs: &[Capsule]) {
    println!("where fcapd's time goes ({kind}, medians):");
    for (i, step) in runs[0].steps.iter().enumerate() {
        let samples: Vec<f64> =
            runs.iter().filter_map(|run| run.steps.get(i)).map(|step| step.ns as f64 / 1e6).collect();
        println!("  {:<32} {:>7.3} ms", step.name, median(&samples));
    }
}

/// The probe's figure: its last line, behind what the commands themselves had to say.
fn probed(output: &str) -> anyhow::Result<f64> {
    output
        .lines()
        .last()
        .and_then(|line| line.parse().ok())
        .with_context(|| format!("no figure in {output:?}"))
}
