//! Numbers for Prometheus: what this node's capsules use, and how their moves went.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use fcap_api::{NetStats, State, Stats};
use fcap_http::metrics::{Counters, Distribution, Requests, Sheet};
use fcap_migrate::progress::MigrateStats;

use crate::daemon::Daemon;
use crate::error::Result;

/// A nanosecond, in seconds.
const NS: f64 = 1e-9;
const KIB: f64 = 1024.0;
/// All states, as they are called in the API.
const STATES: [(State, &str); 6] = [
    (State::Created, "created"),
    (State::Running, "running"),
    (State::Paused, "paused"),
    (State::Stopping, "stopping"),
    (State::Restarting, "restarting"),
    (State::Exited, "exited"),
];

/// What became of a move that this node had a part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// A capsule has gone to another node.
    Left,
    /// A capsule has stayed that was to go.
    Kept,
    /// The destination has not said whether it has it, and is asked; what it says is counted then.
    Unsettled,
    /// A capsule has come from another node.
    Arrived,
    /// A capsule did not come that was to.
    NotArrived,
}

impl Move {
    const ALL: [Self; 5] = [Self::Left, Self::Kept, Self::Unsettled, Self::Arrived, Self::NotArrived];

    fn labels(self) -> [(&'static str, &'static str); 2] {
        let (direction, outcome) = match self {
            Self::Left => ("out", "done"),
            Self::Kept => ("out", "failed"),
            Self::Unsettled => ("out", "unsettled"),
            Self::Arrived => ("in", "done"),
            Self::NotArrived => ("in", "failed"),
        };
        [("direction", direction), ("outcome", outcome)]
    }
}

/// What is counted as it happens.
pub struct Metrics {
    /// Requests to the API.
    pub requests: Requests,
    moves: Counters,
    /// Bytes of capsules that have gone.
    sent_bytes: AtomicU64,
    downtime: Distribution,
    duration: Distribution,
}

impl Default for Metrics {
    fn default() -> Self {
        let moves = Counters::default();
        Move::ALL.iter().for_each(|outcome| moves.add(&outcome.labels(), 0.0));
        Self {
            requests: Requests::default(),
            moves,
            sent_bytes: AtomicU64::new(0),
            downtime: Distribution::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]),
            duration: Distribution::new([0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0]),
        }
    }
}

impl Metrics {
    /// Counts a move.
    pub fn moved(&self, outcome: Move) {
        self.moves.add(&outcome.labels(), 1.0);
    }

    /// Counts a capsule that has gone, and how.
    pub fn left(&self, stats: &MigrateStats) {
        self.moved(Move::Left);
        self.sent_bytes.fetch_add(stats.bytes, Ordering::Relaxed);
        self.downtime.observe(stats.downtime.as_secs_f64());
        self.duration.observe(stats.total_time.as_secs_f64());
    }
}

/// All numbers of a node as they are now.
///
/// # Errors
/// When the hypervisor does not answer.
pub fn sheet(daemon: &Daemon) -> Result<Sheet> {
    let node = daemon.node()?;
    let stats = daemon.stats()?;
    let mut sheet = Sheet::default();
    let build = [("hypervisor", node.hypervisor.as_str()), ("version", env!("CARGO_PKG_VERSION"))];
    sheet.gauges("build_info", "Always 1; what runs here is in the labels", [(build, 1.0)]);
    sheet.gauge("uptime_seconds", "Time since the daemon's start", node.uptime_ms as f64 / 1e3);
    sheet.gauge("node_cpus", "Processors of the node", node.cpus.into());
    sheet.gauge("node_memory_bytes", "Memory of the node", node.memory_kib as f64 * KIB);
    let free = node.free_memory_kib as f64 * KIB;
    sheet.gauge("node_memory_free_bytes", "Memory that new capsules can have", free);
    let dom0 = node.dom0_cpu_time_ns as f64 * NS;
    sheet.total("node_dom0_cpu_seconds", "Processor time that dom0 has used", dom0);
    sheet.gauge("pool_size", "Pre-built capsules to hold ready for each image", node.pool_size.into());
    sheet.gauge("pool_ready", "Pre-built capsules that are ready", node.pool_ready.into());
    put_capsules(&mut sheet, daemon, &stats);
    let images = daemon.images.list();
    sheet.gauge("images", "Images that the node holds", images.len() as f64);
    let held: u64 = images.iter().map(|image| image.size).sum();
    sheet.gauge("image_store_bytes", "Size of all images", held as f64);
    let most = daemon.images.max_bytes() as f64;
    sheet.gauge("image_store_limit_bytes", "What all images may have together", most);
    let metrics = &daemon.metrics;
    sheet.counters("migrations", "Capsules that were to come or go, by outcome", &metrics.moves);
    let sent = metrics.sent_bytes.load(Ordering::Relaxed) as f64;
    sheet.total("migration_sent_bytes", "Bytes of capsules that have gone", sent);
    sheet.distribution(
        "migration_downtime_seconds",
        "Time that capsules that have gone stood still",
        &metrics.downtime,
    );
    sheet.distribution("migration_duration_seconds", "Time that capsules took to go", &metrics.duration);
    metrics.requests.put(&mut sheet);
    Ok(sheet)
}

fn put_capsules(sheet: &mut Sheet, daemon: &Daemon, stats: &[Stats]) {
    let mut counts: BTreeMap<&str, u32> = STATES.iter().map(|(_, name)| (*name, 0)).collect();
    for capsule in daemon.list() {
        let state = capsule.look(|record| record.state);
        if let Some((_, name)) = STATES.iter().find(|(other, _)| *other == state) {
            *counts.entry(name).or_default() += 1;
        }
    }
    let counts = counts.into_iter().map(|(state, count)| ([("state", state)], count.into()));
    sheet.gauges("capsules", "Capsules by state", counts);
    let cpu = each(stats, |stats| stats.cpu_time_ns as f64 * NS);
    sheet.totals("capsule_cpu_seconds", "Processor time since the capsule's start", cpu);
    let memory = each(stats, |stats| stats.memory_kib as f64 * KIB);
    sheet.gauges("capsule_memory_bytes", "Memory that the capsule holds", memory);
    let most = each(stats, |stats| stats.max_memory_kib as f64 * KIB);
    sheet.gauges("capsule_memory_limit_bytes", "Memory that the capsule may hold", most);
    let output = each(stats, |stats| stats.output_bytes as f64);
    sheet.totals("capsule_output_bytes", "What the capsule has written", output);
    let mut net = |name: &str, help: &str, value: fn(&NetStats) -> u64| {
        let known = stats.iter().filter_map(|stats| Some((stats, stats.net.as_ref()?)));
        let values = known.map(|(stats, net)| ([("capsule", stats.name.as_str())], value(net) as f64));
        sheet.totals(name, help, values);
    };
    net("capsule_network_receive_bytes", "Bytes that the capsule has received", |net| net.rx_bytes);
    net("capsule_network_receive_packets", "Packets that the capsule has received", |net| net.rx_packets);
    net("capsule_network_transmit_bytes", "Bytes that the capsule has sent", |net| net.tx_bytes);
    net("capsule_network_transmit_packets", "Packets that the capsule has sent", |net| net.tx_packets);
    net("capsule_network_denied_packets", "Packets that the capsule may not send", |net| net.denied);
}

/// A number of each capsule.
fn each(
    stats: &[Stats],
    value: impl Fn(&Stats) -> f64,
) -> impl Iterator<Item = ([(&'static str, &str); 1], f64)> {
    stats.iter().map(move |stats| ([("capsule", stats.name.as_str())], value(stats)))
}
