//! Our `kv` against redis-server in Linux: rate and guest's processor time.
//!
//! As [`super::http`]: redis-benchmark in dom0 on one processor, the guest alone on the other.

use anyhow::Context;
use serde_json::{Map, json};

use super::guest::Guest;
use crate::rig::{self, Node};
use crate::stats::{ratio, summary};

const ROUNDS: usize = 7;
const PORT: u16 = 6379;
/// Command, commands sent at a time, and how many in all.
const LOADS: [(&str, u32, u32); 4] =
    [("get", 1, 4_000), ("set", 1, 4_000), ("get", 16, 30_000), ("set", 16, 30_000)];

/// Runs the benchmark and returns its line of JSON: of the four loads the worst ratios, and those
/// of each.
pub fn run() -> anyhow::Result<serde_json::Value> {
    let node = Node::bench()?;
    let linux = Guest::linux(&node, "redis", "fcap.serve=redis")?;
    let ours = Guest::capsule(&node, "kv", "kv", &[])?;
    linux.wait_for(PORT)?;
    ours.wait_for(PORT)?;

    // By load and side: rates, and microseconds of the guest a command.
    let mut samples: [[(Vec<f64>, Vec<f64>); 2]; LOADS.len()] = Default::default();
    for round in 0..=ROUNDS {
        for (load, sides) in LOADS.iter().zip(&mut samples) {
            for (side, guest) in sides.iter_mut().zip([&ours, &linux]) {
                rig::quiet(&node.api())?;
                let before = guest.cpu_ns()?;
                let rate = benchmark(&node, guest, *load)?;
                let cpu_us = (guest.cpu_ns()? - before) as f64 / 1e3 / f64::from(load.2);
                eprintln!(
                    "round {round}: {} x{}: {rate:8.0}/s, {cpu_us:6.1} us of the guest",
                    load.0, load.1
                );
                if round > 0 {
                    side.0.push(rate);
                    side.1.push(cpu_us);
                }
            }
        }
    }

    let mut figures = Map::new();
    let (mut worst_rate, mut worst_cpu) = (f64::INFINITY, 0.0_f64);
    for ((command, pipeline, _), [ours, linux]) in LOADS.iter().zip(&samples) {
        let what = format!("{command} x{pipeline}");
        println!("{}", summary(&format!("kv, {what}"), "commands/s", &ours.0));
        println!("{}", summary(&format!("redis, {what}"), "commands/s", &linux.0));
        println!("{}", summary(&format!("kv, {what}"), "us of the guest", &ours.1));
        println!("{}", summary(&format!("redis, {what}"), "us of the guest", &linux.1));
        let rate = ratio(&ours.0, &linux.0);
        let cpu = ratio(&ours.1, &linux.1);
        worst_rate = worst_rate.min(rate);
        worst_cpu = worst_cpu.max(cpu);
        figures.insert(format!("{command}{pipeline}_rate_ratio"), json!(rate));
        figures.insert(format!("{command}{pipeline}_cpu_ratio"), json!(cpu));
    }
    figures.insert("bench".into(), json!("kv"));
    figures.insert("rate_ratio".into(), json!(worst_rate));
    figures.insert("cpu_ratio".into(), json!(worst_cpu));
    Ok(figures.into())
}

fn benchmark(node: &Node, guest: &Guest<'_>, load: (&str, u32, u32)) -> anyhow::Result<f64> {
    let (command, pipeline, count) = load;
    let output = node.sh(&format!(
        "redis-benchmark -h {} -p {PORT} -c 50 -t {command} -P {pipeline} -n {count} --csv",
        guest.address
    ))?;
    read(&output).with_context(|| format!("redis-benchmark said {output:?}"))
}

/// Reads the rate from redis-benchmark's table, which has one line below its head.
fn read(output: &str) -> Option<f64> {
    let line = output.lines().skip_while(|line| !line.starts_with("\"test\"")).nth(1)?;
    line.split(',').nth(1)?.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_redis_benchmark_is_read() {
        let output = "\"test\",\"rps\",\"avg_latency_ms\"\n\"GET\",\"12345.68\",\"1.234\"\n";
        assert_eq!(read(output), Some(12345.68));
        assert_eq!(read("Could not connect"), None);
    }
}
