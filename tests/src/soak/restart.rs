//! `kill -9` of fcapd, again and again, under capsules that count.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use fcap_api::{Capsule, CreateCapsule, State};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::cli;
use crate::rig::{self, Node};

const CAPSULES: usize = 20;

/// Kills fcapd `rounds` times at random moments.
pub fn run(rounds: u32, seed: u64) -> anyhow::Result<()> {
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let node = Node::compare()?;
    let api = node.api();
    let image = api.upload(&cli::image("clock")).map_err(anyhow::Error::msg)?;
    for i in 0..CAPSULES {
        let request = CreateCapsule {
            name: Some(format!("clock-{i}")),
            image: image.digest.clone(),
            image_name: Some("clock".into()),
            // Every 100 ms: more often than fcapd is killed.
            args: vec!["100".into()],
            memory_kib: Some(2048),
            ..Default::default()
        };
        api.create(&request).map_err(anyhow::Error::msg)?;
    }
    let mut domids = domids_of_xl(&node)?;
    ensure!(domids.len() == CAPSULES, "xl sees {domids:?}");

    for round in 1..=rounds {
        // Mostly while all is quiet, often in the middle of finding its capsules again.
        let pause_ms =
            if random.random_bool(0.5) { random.random_range(0..150) } else { random.random_range(0..2500) };
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        node.sh("kill -9 $(pidof fcapd)")?;
        if random.random_bool(0.3) {
            // The next one may not even have opened its socket.
            rig::wait_until("init has started fcapd again", || {
                Ok(node.sh("pidof fcapd || true")?.trim() != "")
            })?;
            node.sh("kill -9 $(pidof fcapd)")?;
        }
        let capsules = capsules(&node)?;
        let now = domids_of_xl(&node)?;
        ensure!(now == domids, "round {round}: xl sees {now:?}, and before {domids:?}");
        let known: BTreeSet<u32> = capsules.iter().filter_map(|capsule| capsule.domid).collect();
        ensure!(known == now, "round {round}: fcapd knows {known:?}, xl {now:?}");
        ensure!(capsules.len() == CAPSULES, "round {round}: {} capsules", capsules.len());
        for capsule in &capsules {
            ensure!(capsule.state == State::Running, "round {round}: {capsule:?}");
        }
        domids = now;
        if round % 10 == 0 {
            println!("{round} kills: {CAPSULES} capsules run, xl and ps agree");
        }
    }
    // All have counted without a gap or a repetition, and go on.
    capsules(&node)?;
    let fcap = node.fcap();
    for i in 0..CAPSULES {
        let name = format!("clock-{i}");
        let count = |text: &str| -> anyhow::Result<Vec<u64>> {
            text.lines()
                .map(|line| {
                    let number = line.split_whitespace().next_back().context("an empty line")?;
                    number.parse().with_context(|| format!("{name}: {line:?}"))
                })
                .collect()
        };
        let seen = count(fcap.ok(&["logs", &name]).text())?;
        ensure!(
            seen.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{name} does not count one by one: {seen:?}"
        );
        let last = *seen.last().with_context(|| format!("{name} has no log"))?;
        rig::wait_until(&format!("{name} counts on"), || {
            Ok(count(fcap.ok(&["logs", "--tail", "1", &name]).text())?.iter().any(|&n| n > last))
        })?;
    }
    println!("{rounds} kills of fcapd, {CAPSULES} capsules: none lost, doubled or a zombie; all count on");
    Ok(())
}

/// The capsules, as soon as fcapd answers again.
fn capsules(node: &Node) -> anyhow::Result<Vec<Capsule>> {
    let api = node.api();
    rig::wait_until("fcapd answers", || Ok(api.node().is_ok()))?;
    api.get("/v1/capsules?all=true").map_err(anyhow::Error::msg)
}

/// Domains but dom0, as Xen's own tool sees them.
fn domids_of_xl(node: &Node) -> anyhow::Result<BTreeSet<u32>> {
    let list = node.sh("xl list")?;
    let numbers = list.lines().skip(1).map(|line| {
        // A zombie's name is "(null)"; its number is in the second column all the same.
        line.split_whitespace()
            .nth(1)
            .and_then(|field| field.parse().ok())
            .with_context(|| format!("{line:?}"))
    });
    let mut domids: BTreeSet<u32> = numbers.collect::<anyhow::Result<_>>()?;
    domids.remove(&0);
    Ok(domids)
}
