//! Our `httpd` against nginx in Linux: rate, guest's processor time and 99th percentile.
//!
//! One processor has dom0 and the client, the other the guest alone; same memory, same file, and
//! each side in turn. nginx in dom0 itself is there for the record.

use anyhow::{Context, ensure};
use serde_json::json;

use super::guest::Guest;
use crate::rig::{self, Node};
use crate::stats::{median, ratio, summary};

const ROUNDS: usize = 15;
const SECONDS: u32 = 4;
const CONNECTIONS: u32 = 32;

/// Runs the benchmark and returns its line of JSON.
pub fn run() -> anyhow::Result<serde_json::Value> {
    let node = Node::bench()?;
    let linux = Guest::linux(&node, "nginx", "fcap.serve=nginx")?;
    let ours = Guest::capsule(&node, "httpd", "httpd", &[])?;
    linux.wait_for(80)?;
    ours.wait_for(80)?;
    let page = |guest: &Guest<'_>| node.sh(&format!("wget -q -O - http://{}/index.html", guest.address));
    ensure!(page(&linux)? == page(&ours)?, "the two do not serve the same file");

    let mut sides = [Side::default(), Side::default()];
    // One of each that does not count.
    for round in 0..=ROUNDS {
        for (side, guest) in sides.iter_mut().zip([&ours, &linux]) {
            rig::quiet(&node.api())?;
            let before = guest.cpu_ns()?;
            let load = wrk(&node, &format!("http://{}:80/index.html", guest.address))?;
            let cpu_us = (guest.cpu_ns()? - before) as f64 / 1e3 / load.requests;
            eprintln!(
                "round {round}: {:7.0} requests/s, {cpu_us:6.1} us of the guest each, p99 {:6.1} ms",
                load.rate, load.p99_ms
            );
            if round > 0 {
                side.rate.push(load.rate);
                side.cpu_us.push(cpu_us);
                side.p99_ms.push(load.p99_ms);
            }
        }
    }
    node.sh("nginx >/tmp/nginx.log 2>&1 &")?;
    rig::wait_until("nginx answers in dom0", || {
        Ok(node.sh("wget -q -O /dev/null http://127.0.0.1/index.html && echo yes || true")?.trim() == "yes")
    })?;
    let dom0 = wrk(&node, "http://127.0.0.1:80/index.html")?;

    let [ours, linux] = sides;
    ours.print("httpd");
    linux.print("nginx in Linux");
    println!("nginx in dom0 itself: {:.0} requests/s, p99 {:.1} ms", dom0.rate, dom0.p99_ms);
    Ok(json!({
        "bench": "http",
        "rate_ratio": ratio(&ours.rate, &linux.rate),
        "cpu_ratio": ratio(&ours.cpu_us, &linux.cpu_us),
        "p99_ratio": ratio(&ours.p99_ms, &linux.p99_ms),
        "rate": median(&ours.rate),
        "peer_rate": median(&linux.rate),
        "dom0_rate": dom0.rate,
    }))
}

#[derive(Default)]
struct Side {
    rate: Vec<f64>,
    cpu_us: Vec<f64>,
    p99_ms: Vec<f64>,
}

impl Side {
    fn print(&self, name: &str) {
        println!("{}", summary(name, "requests/s", &self.rate));
        println!("{}", summary("", "us of the guest a request", &self.cpu_us));
        println!("{}", summary("", "ms 99th percentile", &self.p99_ms));
    }
}

struct Load {
    rate: f64,
    requests: f64,
    p99_ms: f64,
}

fn wrk(node: &Node, url: &str) -> anyhow::Result<Load> {
    let output = node.sh(&format!("wrk -t 1 -c {CONNECTIONS} -d {SECONDS} --latency {url}"))?;
    let load = read(&output).with_context(|| format!("wrk said {output:?}"))?;
    ensure!(!output.contains("Socket errors") && !output.contains("Non-2xx"), "{url}: {output}");
    Ok(load)
}

/// Reads wrk's report.
fn read(output: &str) -> Option<Load> {
    let behind = |words: &str| {
        output.lines().find_map(|line| line.trim().strip_prefix(words)?.split_whitespace().next())
    };
    let requests = output.lines().find_map(|line| line.trim().split_once(" requests in")?.0.parse().ok())?;
    let p99 = behind("99%")?;
    let (number, unit) = p99.split_at(p99.find(|c: char| c.is_ascii_alphabetic())?);
    let scale = match unit {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        _ => return None,
    };
    Some(Load {
        rate: behind("Requests/sec:")?.parse().ok()?,
        requests,
        p99_ms: number.parse::<f64>().ok()? * scale,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_wrk_is_read() {
        let load = read(
            "Running 8s test @ http://10.88.1.1/\n  1 threads and 32 connections\n  Latency Distribution\n     \
             50%    1.20ms\n     99%   12.34ms\n  52341 requests in 8.01s, 40.00MB read\n\
             Requests/sec:   6534.46\nTransfer/sec:      4.99MB\n",
        )
        .unwrap();
        assert_eq!((load.rate, load.requests, load.p99_ms), (6534.46, 52341.0, 12.34));
        assert!(read("unable to connect").is_none());
    }
}
