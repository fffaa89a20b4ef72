//! A capsule that moves to another node and back: ours against `xl migrate`, the same kernel
//! between the same two nodes, alternately; and ours alone on the stock hypervisor.
//!
//! How long a guest stands still is told by itself and by a client on the first node. Both
//! toolstacks' guests look at the same clock, the wall clock, which goes on meanwhile; that of the
//! other node may be ahead or behind, so what counts is the mean of both directions.
//!
//! The speed of the machine underneath varies by half within minutes. So whatever is compared is
//! measured alternately: with xl, the smallest size with the largest, moves with plain copies.

mod plot;
mod xl;

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use fcap_api::Capsule;
use fcap_api::migrate::{DirtyTracking, Moved, Precopy, Progress, Round};
use serde_json::json;

use crate::api::Api;
use crate::cli;
use crate::rig::{self, Node};
use crate::stats::{median, ms};
use plot::{Line, Plot};
use xl::Xl;

/// The kernel of all guests.
const KERNEL: &str = "guest-move";
/// Memory sizes in MiB.
const SIZES: [u64; 4] = [16, 64, 256, 512];
/// Memory of a client in MiB.
const CLIENT_MIB: u64 = 16;
/// What a small guest fills of its memory in MiB: with the kernel and its heap that makes 8.
const SMALL_FILL: u64 = 7;
/// Trips of the smallest and of the largest size, one after the other, that are compared.
const TRIPS: usize = 5;
/// Moves that are compared with plain copies.
const TRANSFERS: usize = 9;
/// Memory in MiB of the capsule whose transfer is compared with plain copies; half of it is full.
const TRANSFER_MIB: u64 = 256;
/// What a plain copy copies in MiB.
const COPY_MIB: u32 = 64;
/// Attempts that are looked at for what tracking costs.
const ATTEMPTS: usize = 9;
/// How far apart the wall clocks of nodes may be, by which guests tell of moves and silences.
const CLOCKS: Duration = Duration::from_millis(500);

/// How much of it to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Everything.
    All,
    /// The smallest size, once.
    Quick,
}

/// What a guest is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    /// Its memory.
    mib: u64,
    /// What of it is full.
    fill: u64,
    /// Of what: "words", or "noise" that cannot be packed.
    content: &'static str,
    /// Whether it has a network interface.
    vif: bool,
}

impl Load {
    fn small(mib: u64) -> Self {
        Self { mib, fill: SMALL_FILL, content: "words", vif: false }
    }

    fn full(mib: u64) -> Self {
        Self { mib, fill: mib / 2, content: "noise", vif: false }
    }

    fn with_vif(mib: u64) -> Self {
        Self { vif: true, ..Self::small(mib) }
    }

    fn is_full(&self) -> bool {
        self.content == "noise"
    }
}

/// One way to the other node and back, means.
#[derive(Clone, Debug)]
struct Trip {
    /// From the request until it was done.
    total_ms: f64,
    /// How long the guest stood still by its wall clock.
    app_ms: f64,
    /// How long a client had no answer.
    client_ms: Option<f64>,
    /// What the daemon says of each way.
    moves: Vec<(Vec<Round>, Moved)>,
}

fn mean(samples: impl IntoIterator<Item = f64>) -> f64 {
    let samples: Vec<f64> = samples.into_iter().collect();
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// Nanoseconds since 1970.
fn now_ns() -> u128 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos()
}

/// The largest figure, in milliseconds, of a guest's lines that begin with `word` and were written
/// since then: at `word TIME FIGURE`.
fn longest(log: &str, word: &str, since: u128) -> Option<f64> {
    let figures = log.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == word).then_some(())?;
        let at: u128 = words.next()?.parse().ok()?;
        let ns: f64 = words.next()?.parse().ok()?;
        (at + CLOCKS.as_nanos() >= since).then_some(ns / 1e6)
    });
    figures.max_by(f64::total_cmp)
}

/// Two nodes of one kind.
struct Pair {
    nodes: [Node; 2],
    apis: [Api; 2],
}

impl Pair {
    fn new(nodes: [Node; 2]) -> anyhow::Result<Self> {
        let apis = [nodes[0].api(), nodes[1].api()];
        for node in &nodes {
            node.put("/tmp/fcap-probe", &std::fs::read(rig::probe())?)?;
            node.put("/tmp/image", &std::fs::read(cli::image(KERNEL))?)?;
            node.sh("chmod +x /tmp/fcap-probe")?;
        }
        // xl is several times slower in the first minute of dom0's life.
        let up: f64 = nodes[1].sh("cut -d' ' -f1 /proc/uptime")?.trim().parse()?;
        let rest = (75.0 - up).max(0.0);
        eprintln!("dom0 is up for {up:.0} s, waiting {rest:.0} s before timing");
        std::thread::sleep(Duration::from_secs_f64(rest));
        Ok(Self { nodes, apis })
    }

    /// Waits until both nodes have done what came before.
    fn quiet(&self, load: Load) -> anyhow::Result<()> {
        if load.vif {
            // Questions and answers keep dom0 from ever being quiet.
            std::thread::sleep(Duration::from_secs(3));
            return Ok(());
        }
        self.apis.iter().try_for_each(rig::quiet)
    }

    fn log(&self, node: usize, capsule: &str) -> String {
        let output = self.nodes[node].fcap().call(&["logs", capsule]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn wait_for(&self, node: usize, capsule: &str, line: &str) -> anyhow::Result<()> {
        rig::wait_until(&format!("{capsule} says {line:?}"), || {
            Ok(self.log(node, capsule).lines().any(|found| found == line))
        })
    }

    /// Starts a capsule on a node and waits until it is ready.
    fn start(&self, node: usize, name: &str, mib: u64, vif: bool, args: &[&str]) -> anyhow::Result<Capsule> {
        let image = cli::image(KERNEL);
        let image = image.to_str().context("the tree's path is text")?;
        let memory = format!("{mib}m");
        let mut command = vec!["run", "-d", "--name", name, "-m", &memory];
        // Without a word it would be in the default network.
        command.extend(["--network", if vif { "default" } else { "none" }]);
        command.push(image);
        command.extend(args);
        let output = self.nodes[node].fcap().call(&command);
        ensure!(output.code == 0, "fcap {command:?}: {output:?}");
        self.wait_for(node, name, "ready")?;
        self.apis[node].get(&format!("/v1/capsules/{name}")).map_err(anyhow::Error::msg)
    }

    fn remove(&self, node: usize, name: &str) {
        self.nodes[node].fcap().call(&["rm", "-f", name]);
    }

    /// Moves one of ours to the other node and back.
    fn ours(&self, load: Load, dirty: DirtyTracking) -> anyhow::Result<Trip> {
        let guest =
            self.start(0, "moving", load.mib, load.vif, &["rest", &load.fill.to_string(), load.content])?;
        if load.vif {
            let address = guest.networks.first().context("it has no address")?.ipv4.to_string();
            self.start(0, "asking", CLIENT_MIB, true, &["ask", &address])?;
        }
        let mut ways = Vec::new();
        for (from, to) in [(0, 1), (1, 0)] {
            self.quiet(load)?;
            let since = now_ns();
            let start = Instant::now();
            let told = self.go(from, to, dirty)?;
            let total_ms = ms(start.elapsed());
            let app_ms = self.figure(to, "moving", "moved", since)?;
            let client_ms = load.vif.then(|| self.figure(0, "asking", "silence", since)).transpose()?;
            ways.push((total_ms, app_ms, client_ms, told));
        }
        self.remove(0, "moving");
        self.remove(0, "asking");
        Ok(trip(ways))
    }

    /// Moves the capsule "moving" from one node to the other; what the daemon says of it.
    fn go(&self, from: usize, to: usize, dirty: DirtyTracking) -> anyhow::Result<(Vec<Round>, Moved)> {
        let how = Precopy { dirty, ..Precopy::default() };
        let told = self.apis[from].migrate(&self.apis[to], "moving", &how).map_err(anyhow::Error::msg)?;
        let rounds = told.iter().filter_map(|step| match step {
            Progress::Round(round) => Some(round.clone()),
            _ => None,
        });
        let rounds = rounds.collect();
        match told.last() {
            Some(Progress::Done(moved)) => Ok((rounds, moved.clone())),
            other => bail!("the move ended with {other:?}"),
        }
    }

    fn figure(&self, node: usize, capsule: &str, word: &str, since: u128) -> anyhow::Result<f64> {
        let mut figure = None;
        rig::wait_until(&format!("{capsule} says how long its {word} was"), || {
            figure = longest(&self.log(node, capsule), word, since);
            Ok(figure.is_some())
        })?;
        figure.context("there was one just now")
    }

    /// The rate of a capsule's first round, whose pages cannot be packed, against that of a plain copy
    /// over TCP the same way, right before and right after it: the median of several moves.
    fn against_copies(&self, transfers: usize) -> anyhow::Result<f64> {
        let half = (TRANSFER_MIB / 2).to_string();
        self.start(0, "moving", TRANSFER_MIB, false, &["hold", &half, "noise"])?;
        let mut ratios = Vec::new();
        for (from, to) in [(0, 1), (1, 0)].into_iter().cycle().take(transfers) {
            self.apis.iter().try_for_each(rig::quiet)?;
            let before = self.copy(from, to)?;
            let (rounds, _) = self.go(from, to, DirtyTracking::Best)?;
            let copied = (before + self.copy(from, to)?) / 2.0;
            let first = rounds.first().context("a move has a round")?;
            let rate = first.bytes as f64 / (first.ms / 1e3);
            println!("transfer: {:.1} MB/s, plain copies over TCP: {:.1} MB/s", rate / 1e6, copied / 1e6);
            ratios.push(rate / copied);
        }
        self.remove(transfers % 2, "moving");
        Ok(median(&ratios))
    }

    /// Bytes per second of a plain copy over TCP.
    fn copy(&self, from: usize, to: usize) -> anyhow::Result<f64> {
        let address = lan_address(&self.nodes[to])?;
        self.nodes[to].sh("setsid /tmp/fcap-probe drain 9998 >/dev/null 2>&1 &")?;
        wait_for_port(&self.nodes[to], 9998)?;
        let seconds = self.nodes[from].sh(&format!("/tmp/fcap-probe pour {address}:9998 {COPY_MIB}"))?;
        let seconds: f64 = seconds.trim().parse().with_context(|| format!("no figure in {seconds:?}"))?;
        Ok(f64::from(COPY_MIB << 20) / seconds)
    }

    /// Trips of a small capsule in the least and in the most memory.
    fn across_sizes(&self, [least, most]: [u64; 2]) -> anyhow::Result<[Compared; 2]> {
        let mut both = [least, most].map(|mib| Compared { load: Load::small(mib), ours: vec![], xl: vec![] });
        for _ in 0..TRIPS {
            for it in &mut both {
                it.ours.push(self.ours(it.load, DirtyTracking::Best)?);
            }
        }
        Ok(both)
    }

    /// What tracking costs a capsule that writes to all of 4 MiB every 5 ms: by how much the processor
    /// time of its own grows that a page takes, for each of these ways to track. One that wrote without
    /// a pause would hide it: it comes to each page thousands of times between two rounds, and the
    /// processor's speed varies by more.
    ///
    /// The median of several attempts to move it, one way after the other, each against a plain copy
    /// right before it, because each switch between dom0 and the guest costs the guest as well.
    fn slowdown<const N: usize>(&self, ways: [&str; N]) -> anyhow::Result<[f64; N]> {
        self.start(0, "writing", 16, false, &["write", "4"])?;
        self.wait_for_written("writing", 0)?;
        let mut looks = ways.map(|_| Vec::new());
        for _ in 0..ATTEMPTS {
            for (dirty, looks) in ways.iter().zip(&mut looks) {
                let start = self.look("writing")?;
                self.copy(0, 1)?;
                let untracked = self.look("writing")?;
                // All rounds of an attempt that comes to nothing.
                let hopeless = ["--max-downtime", "1", "-q"];
                let moving =
                    [&["migrate", "--dirty", dirty], &hopeless[..], &["writing", self.nodes[1].name()]]
                        .concat();
                let output = self.nodes[0].cloud_fcap(&moving).output()?;
                looks.push((start, untracked, self.look("writing")?));
                let told = String::from_utf8_lossy(&output.stderr);
                ensure!(
                    told.contains("further rounds gain nothing"),
                    "it has not stayed for its writing: {told}"
                );
            }
        }
        let last = self.look("writing")?;
        self.wait_for_written("writing", last.0)?;
        let log = self.log(0, "writing");
        self.remove(0, "writing");
        let cost = |from: (u128, u64), to: (u128, u64)| {
            Ok::<_, anyhow::Error>((to.1 - from.1) as f64 / (written(&log, to.0)? - written(&log, from.0)?))
        };
        let mut slower = [0.0; N];
        for (slower, looks) in slower.iter_mut().zip(looks) {
            let each = looks.into_iter().map(|(start, untracked, tracked)| {
                Ok::<_, anyhow::Error>(cost(untracked, tracked)? / cost(start, untracked)? - 1.0)
            });
            *slower = median(&each.collect::<anyhow::Result<Vec<f64>>>()?).max(0.0);
        }
        Ok(slower)
    }

    /// The time, and what processor time a capsule has used by then.
    fn look(&self, capsule: &str) -> anyhow::Result<(u128, u64)> {
        let found: Capsule =
            self.apis[0].get(&format!("/v1/capsules/{capsule}")).map_err(anyhow::Error::msg)?;
        Ok((now_ns(), found.cpu_time_ns))
    }

    /// Waits until a guest has said what it had written by then.
    fn wait_for_written(&self, capsule: &str, until: u128) -> anyhow::Result<()> {
        rig::wait_until(&format!("{capsule} says what it has written"), || {
            Ok(written(&self.log(0, capsule), until).is_ok())
        })
    }
}

/// Pages written until then, by what a guest says of them: `pages TIME COUNT NANOSECONDS`, count and
/// duration since the line before.
fn written(log: &str, until: u128) -> anyhow::Result<f64> {
    let mut total = 0.0;
    for line in log.lines() {
        let ["pages", at, count, took] = line.split_whitespace().collect::<Vec<_>>()[..] else { continue };
        let (at, count, took): (u128, f64, f64) = (at.parse()?, count.parse()?, took.parse()?);
        let lacking = at.saturating_sub(until) as f64 / took;
        if lacking >= 1.0 {
            return Ok(total);
        }
        total += count * (1.0 - lacking);
    }
    bail!("the guest does not say what it has written until {until}: {log:?}")
}

/// Milliseconds in all, without the application, and without an answer to a client; what was told.
type Way = (f64, f64, Option<f64>, (Vec<Round>, Moved));

/// The mean of both ways.
fn trip(ways: Vec<Way>) -> Trip {
    let client: Option<Vec<f64>> = ways.iter().map(|way| way.2).collect();
    Trip {
        total_ms: mean(ways.iter().map(|way| way.0)),
        app_ms: mean(ways.iter().map(|way| way.1)),
        client_ms: client.map(mean),
        moves: ways.into_iter().map(|way| way.3).collect(),
    }
}

/// The node's address among nodes.
fn lan_address(node: &Node) -> anyhow::Result<String> {
    let address = node.sh("ip -4 -o addr show dev eth1 | sed 's/.*inet //;s,/.*,,'")?;
    Ok(address.lines().next().context("it has no address among nodes")?.trim().to_owned())
}

fn wait_for_port(node: &Node, port: u16) -> anyhow::Result<()> {
    let open = format!("grep -q ':{port:04X} 00000000:0000 0A' /proc/net/tcp && echo yes || echo no");
    rig::wait_until(&format!("port {port} listens"), || Ok(node.sh(&open)?.trim() == "yes"))
}

/// Trips of both with one load.
struct Compared {
    load: Load,
    ours: Vec<Trip>,
    xl: Vec<Trip>,
}

impl Compared {
    fn median(trips: &[Trip], figure: impl Fn(&Trip) -> f64) -> f64 {
        median(&trips.iter().map(figure).collect::<Vec<_>>())
    }

    fn ours(&self, figure: impl Fn(&Trip) -> f64) -> f64 {
        Self::median(&self.ours, figure)
    }

    fn xl(&self, figure: impl Fn(&Trip) -> f64) -> f64 {
        Self::median(&self.xl, figure)
    }

    fn ratio(&self, figure: impl Fn(&Trip) -> f64) -> f64 {
        self.ours(&figure) / self.xl(&figure)
    }

    fn print(&self) {
        let Load { mib, fill, vif, content } = self.load;
        let side = |name: &str, trips: &[Trip]| {
            let figure = |figure: fn(&Trip) -> f64| Self::median(trips, figure);
            let client = match trips[0].client_ms {
                Some(_) => format!("{:9.1}", figure(|trip| trip.client_ms.unwrap_or_default())),
                None => "        -".into(),
            };
            println!(
                "{mib:>4} MiB, {fill:>3} {content}, {:<6} {name:<5} total {:>9.1} ms   down: guest {:>8.1} ms, client {client} ms   n={}",
                if vif { "vif" } else { "no vif" },
                figure(|trip| trip.total_ms),
                figure(|trip| trip.app_ms),
                trips.len()
            );
        };
        side("ours", &self.ours);
        if !self.xl.is_empty() {
            side("xl", &self.xl);
        }
    }
}

fn client(trip: &Trip) -> f64 {
    trip.client_ms.unwrap_or_default()
}

fn worst(compared: &[Compared], loads: impl Fn(&Load) -> bool, figure: impl Fn(&Trip) -> f64) -> f64 {
    let ratios = compared.iter().filter(|it| loads(&it.load)).map(|it| it.ratio(&figure));
    ratios.fold(f64::NEG_INFINITY, f64::max)
}

/// Runs the benchmark and returns its line of JSON.
pub fn run(extent: Extent) -> anyhow::Result<serde_json::Value> {
    let sizes = match extent {
        Extent::All => &SIZES[..],
        Extent::Quick => &SIZES[..1],
    };
    let mut figures = serde_json::Map::from_iter([("bench".to_owned(), json!("migrate"))]);
    let compared = against_xl(sizes, extent, &mut figures)?;
    figures.extend(on_stock(sizes)?);
    let path = cli::tree().join("target/migrate.svg");
    std::fs::write(&path, plot(&compared))?;
    println!("the plot is {}", path.display());
    Ok(figures.into())
}

type Figures = serde_json::Map<String, serde_json::Value>;

/// On the hypervisor where xl can do it.
fn against_xl(sizes: &[u64], extent: Extent, figures: &mut Figures) -> anyhow::Result<Vec<Compared>> {
    let pair = Pair::new(Node::two_log_dirty()?)?;
    let xl = Xl::new(&pair)?;
    let loads = sizes.iter().flat_map(|&mib| [Load::small(mib), Load::full(mib), Load::with_vif(mib)]);
    let mut compared = Vec::new();
    // One of each that does not count: pages of programs and libraries come in.
    pair.ours(Load::with_vif(sizes[0]), DirtyTracking::Best)?;
    xl.trip(Load::with_vif(sizes[0]))?;
    for load in loads {
        let mut it = Compared { load, ours: vec![], xl: vec![] };
        let rounds = if load.mib <= 64 && extent == Extent::All { 2 } else { 1 };
        for _ in 0..rounds {
            it.ours.push(pair.ours(load, DirtyTracking::Best)?);
            it.xl.push(xl.trip(load)?);
        }
        it.print();
        compared.push(it);
    }
    print_steps(&compared);

    let (no_vif, vif) = (|load: &Load| !load.vif, |load: &Load| load.vif);
    let is_small = |load: &Load| !load.vif && !load.is_full();
    let is_full = |load: &Load| load.is_full();
    let app = |trip: &Trip| trip.app_ms;
    let total = |trip: &Trip| trip.total_ms;
    let least = compared.iter().find(|it| is_small(&it.load)).context("nothing was small")?;
    let on_wire = least.ours.iter().flat_map(|trip| &trip.moves);
    let on_wire = on_wire
        .filter_map(|(rounds, moved)| Some(moved.bytes as f64 / (rounds.first()?.pages as f64 * 4096.0)));
    println!("the smallest and the largest alternately:");
    let [smallest, largest] = pair.across_sizes([SIZES[0], SIZES[SIZES.len() - 1]])?;
    smallest.print();
    largest.print();
    let link_ratio = pair.against_copies(if extent == Extent::All { TRANSFERS } else { 2 })?;
    let slowdown = pair.slowdown(["guest", "log"])?;
    println!(
        "a page written takes {:.2} times as long of the guest's processor time with tracking, {:.2} with log-dirty",
        1.0 + slowdown[0],
        1.0 + slowdown[1]
    );
    figures.extend(
        [
            ("total_ratio", worst(&compared, is_small, total)),
            ("total_ratio_full", worst(&compared, is_full, total)),
            ("downtime_ratio", worst(&compared, no_vif, app)),
            ("downtime_ratio_vif", worst(&compared, vif, app).max(worst(&compared, vif, client))),
            ("downtime_ms", least.ours(app)),
            ("downtime_vif_ms", compared.iter().find(|it| vif(&it.load)).map_or(0.0, |it| it.ours(client))),
            ("xl_downtime_ms", least.xl(app)),
            ("total_ms", least.ours(total)),
            ("xl_total_ms", least.xl(total)),
            ("downtime_512_over_16", largest.ours(app) / smallest.ours(app)),
            ("total_512_over_16", largest.ours(total) / smallest.ours(total)),
            ("wire_ratio", on_wire.fold(0.0, f64::max)),
            ("link_ratio", link_ratio),
            ("tracking_ratio", slowdown[0] / slowdown[1].max(1e-3)),
        ]
        .map(|(name, figure)| (name.to_owned(), json!(figure))),
    );
    Ok(compared)
}

/// On the hypervisor that Debian has now, with both ways to find what was written; xl fails there.
fn on_stock(sizes: &[u64]) -> anyhow::Result<Figures> {
    let pair = Pair::new(Node::two(false)?)?;
    let xl = Xl::new(&pair)?;
    let mut figures = Figures::new();
    for (name, dirty) in [("guest", DirtyTracking::Guest), ("dbits", DirtyTracking::Dbits)] {
        pair.ours(Load::small(sizes[0]), dirty)?;
        println!("stock hypervisor, {name}:");
        for (index, &mib) in sizes.iter().enumerate() {
            let it = Compared {
                load: Load::small(mib),
                ours: vec![pair.ours(Load::small(mib), dirty)?],
                xl: vec![],
            };
            it.print();
            if index == 0 {
                figures.insert(format!("stock_{name}_total_ms"), json!(it.ours(|trip| trip.total_ms)));
                figures.insert(format!("stock_{name}_downtime_ms"), json!(it.ours(|trip| trip.app_ms)));
            }
        }
    }
    let refusal = xl.refusal()?;
    println!("xl migrate on the stock hypervisor: {refusal}");
    figures.insert("stock_xl".into(), json!(refusal));
    Ok(figures)
}

/// Where the time of our moves went, by the daemon's own account.
fn print_steps(compared: &[Compared]) {
    for it in compared {
        let moves: Vec<&Moved> =
            it.ours.iter().flat_map(|trip| trip.moves.iter().map(|(_, moved)| moved)).collect();
        let Load { mib, fill, vif, content } = it.load;
        println!("{mib} MiB, {fill} {content}, vif {vif}: steps of our moves (means; * standing still)");
        for (index, step) in moves[0].steps.iter().enumerate() {
            let figure = mean(moves.iter().filter_map(|moved| Some(moved.steps.get(index)?.ms)));
            println!("  {} {:<32} {figure:>8.2} ms", if step.suspended { '*' } else { ' ' }, step.name);
        }
    }
}

fn plot(compared: &[Compared]) -> String {
    let line = |name: &str, loads: fn(&Load) -> bool, figure: &dyn Fn(&Compared) -> f64| {
        let points = compared.iter().filter(|it| loads(&it.load)).map(|it| (it.load.mib as f64, figure(it)));
        Line { name: name.into(), points: points.collect() }
    };
    let small = |load: &Load| !load.vif && !load.is_full();
    let full = |load: &Load| load.is_full();
    let vif = |load: &Load| load.vif;
    let (total, app) = (|trip: &Trip| trip.total_ms, |trip: &Trip| trip.app_ms);
    plot::draw(&[
        Plot {
            title: "Total time",
            lines: vec![
                line("xl, half full", full, &|it| it.xl(total)),
                line("xl, 8 MiB used", small, &|it| it.xl(total)),
                line("fcap, half full", full, &|it| it.ours(total)),
                line("fcap, 8 MiB used", small, &|it| it.ours(total)),
            ],
        },
        Plot {
            title: "Downtime",
            lines: vec![
                line("xl, with vif", vif, &|it| it.xl(client)),
                line("xl", small, &|it| it.xl(app)),
                line("fcap, with vif", vif, &|it| it.ours(client)),
                line("fcap", small, &|it| it.ours(app)),
            ],
        },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_counted_up_to_a_moment_within_a_line() {
        let log = "ready\npages 1000 10 500\npages 2000 20 1000\npages 3000 40 1000";
        assert_eq!(written(log, 1000).unwrap(), 10.0);
        assert_eq!(written(log, 1250).unwrap(), 15.0);
        assert_eq!(written(log, 2000).unwrap(), 30.0);
        assert!(written(log, 3001).is_err());
    }

    #[test]
    fn the_longest_pause_since_then_counts() {
        let log = "ready\nmoved 1000000000 90000000 1\nmoved 5000000000 -20000000 3\nsilence 5000000000 70000000\nmoved 6000000000 30000000 3\nmoved x";
        assert_eq!(longest(log, "moved", 5_000_000_000), Some(30.0));
        assert_eq!(longest(log, "silence", 0), Some(70.0));
        assert_eq!(longest(log, "moved", 7_000_000_000), None);
    }
}
