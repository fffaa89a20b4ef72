//! Policies on a cluster of 1,000 nodes and 20,000 capsules: how long a decision takes, and what a
//! day costs beside the same day packed anew every five minutes by one who knows the load.

use std::time::{Duration, Instant};

use anyhow::Context;
use fcap_api::cluster::{FlavorSpec, Setting};
use fcap_cluster::flavor;
use fcap_cluster::plan::{Limits, money};
use fcap_cluster::policy::{self, Budget, SHIPPED, Script, Shipped};
use fcap_cluster::simulate::{self, Hour, Simulation};
use fcap_cluster::view::Index;
use fcap_tools::cloud::FLAVORS;
use serde_json::json;

const NODES: usize = 1000;
const CAPSULES: usize = 20_000;
const HOURS: u64 = 24;
/// Fuller than by default: with so many capsules a node, their ups and downs make up for each
/// other.
const SETTINGS: [(&str, f64); 2] = [("high_percent", 97.0), ("fill_percent", 93.0)];

/// Runs the benchmark and returns its line of JSON.
pub fn run() -> anyhow::Result<serde_json::Value> {
    let specs: Vec<FlavorSpec> = FLAVORS
        .iter()
        .map(|flavor| FlavorSpec {
            name: flavor.name.into(),
            vcpus: flavor.cpus,
            memory_mib: flavor.memory_mib.into(),
            reserved_memory_mib: None,
            price_per_hour: Some(flavor.price_per_hour),
        })
        .collect();
    let scale = Shipped::named("scale").context("scale is shipped")?;
    let settings = SETTINGS.map(|(name, value)| (name.to_owned(), Setting::Number(value)));
    let simulation = Simulation {
        nodes: NODES,
        capsules: CAPSULES,
        hours: HOURS,
        seed: 1,
        flavors: flavor::check_all(&specs)?,
        interval_minutes: 5,
        script: Script { name: "scale".into(), source: scale.source.into(), settings: settings.into() },
        limits: Limits {
            moves_at_once: 200,
            moves_at_once_per_node: 4,
            moves: 20_000,
            nodes: 2 * NODES,
            ..Limits::default()
        },
        budget: Budget::default(),
    };

    let mut decide = decide_all(&simulation)?;
    println!("a day with policy scale, asked every {} minutes:", simulation.interval_minutes);
    let outcome = simulate::run(&simulation, |hour: &Hour| {
        println!(
            "{:>2} h: {:>4} nodes, {:>5.0} processors wanted, {} an hour, packed {}, {} moves so far",
            hour.hour,
            hour.nodes,
            hour.wanted_milli as f64 / 1e3,
            money(hour.per_hour_micros as i64),
            money(hour.packed_micros as i64),
            hour.moves,
        );
    })?;
    decide = decide.max(outcome.decide);
    let over = |bound: u64| outcome.bill.cost_micros as f64 / bound as f64;
    println!(
        "cost {}, packed anew every {} minutes {}, liquid {}; saved {}",
        money(outcome.bill.cost_micros as i64),
        simulation.interval_minutes,
        money(outcome.packed_micros as i64),
        money(outcome.liquid_micros as i64),
        money(outcome.bill.saved_micros),
    );
    Ok(json!({
        "bench": "policy",
        "decide_s": decide.as_secs_f64(),
        "cost_over_bound": over(outcome.packed_micros),
        "cost_over_liquid": over(outcome.liquid_micros),
        "migrations_per_capsule_hour": outcome.moves_per_capsule_hour,
        "unserved_share": outcome.unserved,
        "decisions": outcome.decisions,
        "rejected": outcome.rejected,
        "nodes_least": outcome.nodes.0,
        "nodes_most": outcome.nodes.1,
    }))
}

/// Has each shipped policy decide on the first view, and returns the longest time, from the view
/// to its plan.
fn decide_all(simulation: &Simulation) -> anyhow::Result<Duration> {
    let view = simulate::first_view(simulation);
    let mut longest = Duration::ZERO;
    for shipped in SHIPPED {
        let script =
            Script { name: shipped.name.into(), source: shipped.source.into(), settings: Default::default() };
        let begun = Instant::now();
        let index = Index::new(&view)?;
        let result = policy::test(&script, &index, &simulation.limits, &simulation.budget)?;
        let took = begun.elapsed();
        println!(
            "{:<16} {:>6.3} s: {} proposals, {} rejected, saves {} an hour",
            shipped.name,
            took.as_secs_f64(),
            result.proposals.len(),
            result.plan.rejected.len(),
            money(result.plan.saving_micros)
        );
        longest = longest.max(took);
    }
    Ok(longest)
}
