//! `kill -9` of the controller and of daemons while nodes are emptied and replaced, and while a policy
//! starts and stops nodes: in the end every capsule lives once, every machine is known, and the
//! controller says what the nodes say.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use fcap_api::{Capsule, State};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;

use crate::cli;
use crate::moves;
use crate::rig::{self, Node};

const CAPSULES: usize = 6;
/// An operation takes less, mostly.
const LONGEST_MS: u64 = 4000;
/// With all the waiting for daemons that were killed it takes less than this.
const LONGEST: Duration = Duration::from_secs(600);

/// A policy that is never content: of two nodes it stops one, and one alone gets a second.
const POLICY: &str = r#"
local ready = {}
for _, node in cluster.nodes do
    if node.ready then table.insert(ready, node) end
end
if #ready > 1 then
    if fleet.empty(ready[1], "pack", 100, "there are two nodes") then
        fleet.stop(ready[1], "it is empty")
    end
else
    local second = fleet.start("small", "there is one node")
    for number, capsule in cluster.capsules do
        if second and capsule.movable and number % 2 == 0 then
            fleet.migrate(capsule, second, "half of all go to the new node")
        end
    end
end
return fleet.proposals()
"#;
/// Its name.
const NAME: &str = "restless";
/// A controller has to measure for a minute before policies run.
const PATIENCE: Duration = Duration::from_secs(180);

/// Kills so many times.
pub fn run(kills: u32, seed: u64) -> anyhow::Result<()> {
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let [first, _second] = Node::two(false)?;
    let image = cli::image("clock");
    let image = image.to_str().context("the tree's path is text")?;
    let names: Vec<String> = (1..=CAPSULES).map(|number| format!("clock{number}")).collect();
    for name in &names {
        first.cloud_ok(&["run", "-d", "--name", name, "-m", "4m", image])?;
    }
    let script = tempfile::Builder::new().suffix(".luau").tempfile()?;
    std::fs::write(&script, POLICY)?;
    let file = script.path().to_str().context("its path is text")?;
    let apply = ["policy", "apply", file, "--name", NAME, "--disabled", "--every", "1s"];
    let rules = ["--rule", "cooldown=0s", "--rule", "node_age=0s", "--rule", "gain_percent=0"];
    first.cloud_ok(&[&apply[..], &rules].concat())?;
    let (mut killed, mut ends) = (0, BTreeMap::<String, u32>::new());
    while killed < kills {
        let nodes = first.all()?;
        let node = nodes.choose(&mut random).context("there are nodes")?;
        // Policies are waited for longer than all else takes.
        let operation = match random.random_range(0..8) {
            0 => by_policy(&first)?,
            1..=3 => first.cloud_ok(&["node", "drain", "-d", node.name()])?,
            _ => first.cloud_ok(&["node", "replace", "-d", "--flavor", "small", node.name()])?,
        };
        for _ in 0..random.random_range(1..=3) {
            std::thread::sleep(Duration::from_millis(random.random_range(0..LONGEST_MS)));
            if random.random_bool(0.5) {
                first.kill_controller()?;
            } else {
                // It may be one that goes, or comes.
                let nodes = first.all()?;
                let victim = nodes.choose(&mut random).context("there are nodes")?;
                let _ = victim.sh("kill -9 $(pidof fcapd)");
            }
            killed += 1;
            // Whoever asks has the controller come up again.
            first.cloud_ok(&["operation", "ls"])?;
        }
        let ended = over(&first, &operation)?;
        *ends.entry(format!("{} {}", kind(&ended), text(&ended["state"]))).or_default() += 1;
        agree(&first, &names).with_context(|| format!("after {killed} kills, at {ended:#}"))?;
        if killed % 20 < 3 {
            println!("{killed} kills");
        }
    }
    for (end, times) in ends {
        println!("{times:>4} times {end}");
    }
    println!("{killed} kills: every capsule lives once, every machine is known, all say the same");
    Ok(())
}

/// Waits until the policy has begun something; the operation.
fn by_policy(first: &Node) -> anyhow::Result<String> {
    first.cloud_ok(&["policy", "enable", NAME])?;
    let mut begun = None;
    rig::wait_for("the policy begins something", PATIENCE, || {
        let operations = first.cloud_json(&["operation", "ls"])?;
        let running = operations.as_array().context("a list")?.iter().find(|it| it["state"] == "running");
        begun = running.map(|it| text(&it["id"]).to_owned());
        Ok(begun.is_some())
    })?;
    // This one is enough.
    first.cloud_ok(&["policy", "disable", NAME])?;
    begun.context("it was just seen")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn kind(operation: &Value) -> &str {
    text(&operation["kind"]["kind"])
}

/// Waits until an operation is over.
fn over(node: &Node, operation: &str) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    rig::wait_for(&format!("operation {operation} is over"), LONGEST, || {
        last = node.cloud_json(&["operation", "inspect", operation])?;
        Ok(!["running", "undoing"].contains(&text(&last["state"])))
    })
    .with_context(|| format!("{last:#}"))?;
    Ok(last)
}

/// Waits until nodes and controller say the same, and it is right.
fn agree(first: &Node, names: &[String]) -> anyhow::Result<()> {
    let mut why = String::new();
    let agreed = rig::wait_until("all say the same", || {
        let checked = check(first, names);
        why = checked.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        Ok(checked.is_ok())
    });
    agreed.with_context(|| why)
}

fn check(first: &Node, names: &[String]) -> anyhow::Result<()> {
    let nodes = first.all()?;
    let known = first.cloud_json(&["node", "ls"])?;
    let known = known.as_array().context("a list")?;
    ensure!(
        known.len() == nodes.len()
            && known
                .iter()
                .all(|it| it["state"] == "ready" && nodes.iter().any(|node| it["name"] == node.name())),
        "the controller knows {known:?}, and {} machines run",
        nodes.len()
    );
    for cordoned in known.iter().filter(|node| node["cordoned"] == true) {
        first.cloud_ok(&["node", "uncordon", text(&cordoned["name"])])?;
    }
    let mut places = BTreeMap::new();
    for node in &nodes {
        let capsules: Vec<Capsule> = node.api().get("/v1/capsules?all=true").map_err(anyhow::Error::msg)?;
        let traces = moves::traces(node)?;
        let domains = traces.iter().filter(|trace| trace.starts_with("domain ")).count();
        ensure!(domains == capsules.len(), "{} has {capsules:?} and {traces:?}", node.name());
        for capsule in capsules {
            ensure!(capsule.state == State::Running, "{capsule:?}");
            let other = places.insert(capsule.name.clone(), node.name().to_owned());
            ensure!(other.is_none(), "{} is on {} and on {other:?}", capsule.name, node.name());
        }
    }
    ensure!(names.iter().all(|name| places.contains_key(name)), "{places:?} are not {names:?}");
    let listed = first.cloud_json(&["ps", "-a"])?;
    let listed: BTreeMap<String, String> = (listed.as_array().context("a list")?.iter())
        .map(|it| (text(&it["name"]).to_owned(), text(&it["node"]).to_owned()))
        .collect();
    ensure!(listed == places, "`fcap ps` says {listed:?}, the nodes say {places:?}");
    Ok(())
}
