//! Moves with a fault in their midst: after each, exactly one copy lives, nothing is left on the
//! other side, and the next move works.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use fcap_api::migrate::{Precopy, Progress, Ticket};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::cli;
use crate::moves::{self, Diary};
use crate::rig::{self, Node};

/// The capsule that moves; it notices when something is wrong with it.
const NAME: &str = "guest";
/// Where the link with faults listens in the source's dom0.
const LINK: &str = "127.0.0.1:7999";
/// A move takes less, mostly.
const LONGEST_MS: u64 = 1500;
/// It sends less, mostly.
const MOST_BYTES: u64 = 2 << 20;

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillSource,
    KillDestination,
    KillBoth,
    Cut,
    Flip,
    Stall,
    NoMemory,
    Interrupt,
}

/// Each as often as it is named. A link that stands still takes the time of all others.
const FAULTS: [Fault; 16] = {
    use Fault::*;
    [
        KillSource,
        KillSource,
        KillSource,
        KillDestination,
        KillDestination,
        KillDestination,
        KillBoth,
        Cut,
        Cut,
        Cut,
        Cut,
        Flip,
        Flip,
        Stall,
        NoMemory,
        Interrupt,
    ]
};

/// So many moves with faults.
pub fn run(times: u32, seed: u64) -> anyhow::Result<()> {
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let nodes = Node::two(false)?;
    let probe = std::fs::read(rig::probe()).context("`cargo xtask build` makes fcap-probe")?;
    for node in &nodes {
        node.put("/tmp/fcap-probe", &probe)?;
        node.sh("chmod +x /tmp/fcap-probe")?;
        node.api().upload(&cli::image("clock")).map_err(anyhow::Error::msg)?;
    }
    moves::start(&nodes[0], NAME, &["-m", "16m", "--network", "default"], "guest-suspend", &["4", "20"])?;
    let mut at = 0;
    let mut counts: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for i in 1..=times {
        let fault = *FAULTS.choose(&mut random).context("there are faults")?;
        let (from, to) = (&nodes[at], &nodes[1 - at]);
        let delay = Duration::from_millis(random.random_range(0..LONGEST_MS));
        let bytes = random.random_range(0..MOST_BYTES);
        attempt(from, to, fault, delay, bytes)
            .and_then(|()| settle(&nodes))
            .and_then(|now| {
                let (moved, stayed) = counts.entry(format!("{fault:?}")).or_default();
                *(if now == at { stayed } else { moved }) += 1;
                at = 1 - now;
                moves::move_it(&nodes[now], &nodes[at], NAME).context("the next move")?;
                moves::nothing_left(&nodes[now])
            })
            .with_context(|| {
                let last = nodes.each_ref().map(|node| node.sh("xl dmesg | tail -n 40").unwrap_or_default());
                format!("move {i}: {fault:?} after {delay:?} or {bytes} bytes\n{}", last.join("\n"))
            })?;
        if i % 10 == 0 {
            // So that the log stays whole for the next look.
            moves::is_well(&nodes[at], NAME)?;
            println!("{i} faults");
        }
    }
    for (fault, (moved, stayed)) in counts {
        println!("{fault:<16} {moved:>4} moved all the same, {stayed:>4} stayed");
    }
    println!(
        "{times} moves with faults: one copy lived after each, nothing was left behind, the next one worked"
    );
    Ok(())
}

/// A move with this fault; how it ends does not matter.
fn attempt(from: &Node, to: &Node, fault: Fault, delay: Duration, bytes: u64) -> anyhow::Result<()> {
    let ticket = moves::ticket(from, to)?;
    let kind = match fault {
        Fault::Cut => "cut",
        Fault::Flip => "flip",
        Fault::Stall => "stall",
        Fault::NoMemory => return no_memory(from, to, ticket),
        _ => return with_kill(from, to, fault, ticket, delay),
    };
    from.sh(&format!(
        "/tmp/fcap-probe link {LINK} {} {kind} {bytes} >/tmp/link.log 2>&1 & echo $! >/tmp/link.pid
         until grep -q ready /tmp/link.log; do :; done",
        ticket.address
    ))?;
    let told = moves::migrate(from, NAME, Ticket { address: LINK.into(), ..ticket }, Precopy::default());
    // Whoever has to ask what became of the move asks over the same link.
    settle(&[from, to])?;
    from.sh("kill $(cat /tmp/link.pid)")?;
    told.map(drop)
}

fn no_memory(from: &Node, to: &Node, ticket: Ticket) -> anyhow::Result<()> {
    let free = to.api().node().map_err(anyhow::Error::msg)?.free_memory_kib;
    let most = format!("{}k", free.saturating_sub(8 << 10));
    moves::start(to, "large", &["-m", &most], "clock", &[])?;
    let told = moves::migrate(from, NAME, ticket, Precopy::default())?;
    ensure!(matches!(told.last(), Some(Progress::Failed { .. })), "{told:?}");
    to.fcap().ok(&["rm", "-f", "large"]);
    Ok(())
}

fn with_kill(from: &Node, to: &Node, fault: Fault, ticket: Ticket, delay: Duration) -> anyhow::Result<()> {
    let killed = match fault {
        Fault::KillSource => &[from][..],
        Fault::KillDestination => &[to],
        Fault::KillBoth => &[from, to],
        _ => &[],
    };
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| {
            if killed.is_empty() {
                interrupted(from, to, delay)
            } else {
                // What is told breaks off with the daemon.
                let _ = moves::migrate(from, NAME, ticket, Precopy::default());
                Ok(())
            }
        });
        if !killed.is_empty() {
            std::thread::sleep(delay);
        }
        for node in killed {
            node.sh("kill -9 $(pidof fcapd) || true")?;
        }
        moving.join().expect("no panic")
    })?;
    killed.iter().try_for_each(|node| moves::answers(node))
}

/// The client goes away.
fn interrupted(from: &Node, to: &Node, delay: Duration) -> anyhow::Result<()> {
    let mut client = from.cloud_fcap(&["migrate", "-q", NAME, to.name()]);
    let mut client =
        client.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?;
    std::thread::sleep(delay);
    client.kill()?;
    client.wait()?;
    Ok(())
}

/// Waits until all is decided and clean; returns which of the nodes has the capsule.
fn settle<N: std::borrow::Borrow<Node>>(nodes: &[N; 2]) -> anyhow::Result<usize> {
    let [one, two] = nodes.each_ref().map(|node| node.borrow());
    let mut last = String::new();
    let settled = rig::wait_until("one copy lives and nothing else is left", || {
        let found = [moves::find(one, NAME)?, moves::find(two, NAME)?];
        let traces = [moves::traces(one)?, moves::traces(two)?];
        let domains = traces.iter().flatten().filter(|trace| trace.starts_with("domain ")).count();
        last = format!("{found:?} {traces:?}");
        let clean = found.iter().zip(&traces).all(|(found, traces)| match found {
            Some(_) => !traces.iter().any(|trace| trace.starts_with("move ")),
            None => traces.is_empty(),
        });
        Ok(clean && domains == 1 && found.iter().flatten().count() == 1)
    });
    settled.with_context(|| last)?;
    let at = if moves::find(one, NAME)?.is_some() { 0 } else { 1 };
    let node = [one, two][at];
    moves::is_well(node, NAME)?;
    if Diary::read(node, NAME).clocks().is_empty() {
        bail!("it has no clock");
    }
    Ok(at)
}
