//! How many capsules a small node holds, what each costs, and what they cost when nothing happens.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fcap_api::{Capsule, CreateCapsule, Stats};
use serde_json::json;

use crate::cli::{self, Fcap};
use crate::rig::{self, Node};
use crate::stats::{median, ms, summary};

const CAPSULES: usize = 200;
/// Long enough that a wake-up a second of each capsule would show.
const IDLE: Duration = Duration::from_secs(30);

/// Runs the benchmark and returns its line of JSON.
pub fn run() -> anyhow::Result<serde_json::Value> {
    let node = Node::plain()?;
    let api = node.api();
    let fcap = node.fcap();
    let hello_kib = std::fs::metadata(cli::image("hello"))?.len() as f64 / 1024.0;
    let image = api.upload(&cli::image("echo")).map_err(anyhow::Error::msg)?;
    let least_kib = image.min_memory_kib.context("echo is a kernel")?;
    println!(
        "image of hello {hello_kib:.1} KiB, echo {:.1} KiB, runs in {least_kib} KiB",
        image.size as f64 / 1024.0
    );

    let mut times = Vec::new();
    for i in 0..CAPSULES {
        let request = CreateCapsule {
            name: Some(format!("idle-{i}")),
            image: image.digest.clone(),
            image_name: Some("echo".into()),
            memory_kib: Some(least_kib),
            stdin: true,
            ..Default::default()
        };
        let start = Instant::now();
        api.create(&request).map_err(anyhow::Error::msg).with_context(|| format!("capsule {i}"))?;
        times.push(ms(start.elapsed()));
        if (i + 1) % 50 == 0 {
            eprintln!("{} capsules", i + 1);
        }
    }
    // A single creation is noise on an emulated processor; the first and the last ten are not.
    let (first, last) = (median(&times[..10]), median(&times[CAPSULES - 10..]));
    println!("{}", summary("creating one", "ms", &times));
    println!("first ten {first:.1} ms, last ten {last:.1} ms");

    let stats: Vec<Stats> = api.get("/v1/stats").map_err(anyhow::Error::msg)?;
    ensure!(stats.len() == CAPSULES, "{} capsules have figures", stats.len());
    let largest = stats.iter().map(|stats| stats.memory_kib).max().unwrap_or(0);
    let overhead_kib = largest as f64 - image.size as f64 / 1024.0;

    rig::quiet(&api)?;
    println!("idle for {} s", IDLE.as_secs());
    let (start, before) = (Instant::now(), api.node().map_err(anyhow::Error::msg)?);
    std::thread::sleep(IDLE);
    let after = api.node().map_err(anyhow::Error::msg)?;
    let used = Duration::from_nanos(after.dom0_cpu_time_ns - before.dom0_cpu_time_ns);
    let dom0_cpu_pct = 100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64();

    let mut ps = Vec::new();
    for _ in 0..15 {
        let start = Instant::now();
        let lines = fcap.ok(&["ps"]).text().lines().count();
        ps.push(ms(start.elapsed()));
        ensure!(lines == CAPSULES + 1, "fcap ps has {lines} lines");
    }
    println!("{}", summary("fcap ps", "ms", &ps));

    let alive = answering(&node, &fcap)?;
    println!("{alive} of {CAPSULES} answered a line on standard input");
    let state: Vec<Capsule> = api.get("/v1/capsules").map_err(anyhow::Error::msg)?;
    ensure!(state.len() == CAPSULES, "{} capsules run", state.len());
    Ok(json!({
        "bench": "density",
        "image_kib": hello_kib,
        "overhead_kib": overhead_kib,
        "alive": alive,
        "last_over_first": last / first,
        "dom0_cpu_pct": dom0_cpu_pct,
        "ps_ms": median(&ps),
    }))
}

/// Sends each capsule a line of its own, and counts those whose log has it afterwards.
fn answering(node: &Node, fcap: &Fcap) -> anyhow::Result<usize> {
    let api = node.api();
    for i in 0..CAPSULES {
        let line = format!("are you there, {i}?\n");
        api.post_bytes(&format!("/v1/capsules/idle-{i}/stdin?keep_open=true"), line.as_bytes())
            .map_err(anyhow::Error::msg)?;
    }
    let mut alive = 0;
    for i in 0..CAPSULES {
        let name = format!("idle-{i}");
        let wanted = format!("are you there, {i}?");
        let answered = rig::wait_until(&format!("{name} answers"), || {
            Ok(fcap.ok(&["logs", &name]).text().contains(&wanted))
        });
        alive += usize::from(answered.is_ok());
    }
    Ok(alive)
}
