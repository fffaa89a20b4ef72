//! Numbers for Prometheus: the cluster as a whole.

use fcap_api::State;
use fcap_api::cluster::{NodeState, OperationKind, PolicyState};
use fcap_http::metrics::Sheet;

use crate::controller::Controller;

const MICRO: f64 = 1e-6;
const NODE_STATES: [(NodeState, &str); 5] = [
    (NodeState::Starting, "starting"),
    (NodeState::Ready, "ready"),
    (NodeState::Suspect, "suspect"),
    (NodeState::Lost, "lost"),
    (NodeState::Stopping, "stopping"),
];
const CAPSULE_STATES: [(State, &str); 6] = [
    (State::Created, "created"),
    (State::Running, "running"),
    (State::Paused, "paused"),
    (State::Stopping, "stopping"),
    (State::Restarting, "restarting"),
    (State::Exited, "exited"),
];
const POLICY_STATES: [(PolicyState, &str); 3] = [
    (PolicyState::Active, "active"),
    (PolicyState::Disabled, "disabled"),
    (PolicyState::Suspended, "suspended"),
];
/// What operations are to do.
pub(crate) const OPERATION_KINDS: [&str; 5] = ["add", "remove", "drain", "replace", "plan"];

/// What an operation is to do, in a word.
pub(crate) fn kind(kind: &OperationKind) -> &'static str {
    match kind {
        OperationKind::Add { .. } => "add",
        OperationKind::Remove { .. } => "remove",
        OperationKind::Drain { .. } => "drain",
        OperationKind::Replace { .. } => "replace",
        OperationKind::Plan { .. } => "plan",
    }
}

/// How many there are of each.
fn counted<T: PartialEq, const N: usize>(
    label: &'static str,
    words: [(T, &'static str); N],
    all: &[T],
) -> impl Iterator<Item = ([(&'static str, &'static str); 1], f64)> {
    words.into_iter().map(move |(state, word)| {
        ([(label, word)], all.iter().filter(|other| **other == state).count() as f64)
    })
}

/// All numbers of the cluster as they are now.
pub(crate) fn sheet(controller: &Controller) -> Sheet {
    let mut sheet = Sheet::default();
    let build = [("version", env!("CARGO_PKG_VERSION"))];
    sheet.gauges("build_info", "Always 1; what runs here is in the labels", [(build, 1.0)]);
    let uptime = controller.nodes.uptime().as_secs_f64();
    sheet.gauge("uptime_seconds", "Time since the controller's start", uptime);
    put_nodes(&mut sheet, controller);
    put_operations(&mut sheet, controller);
    put_policies(&mut sheet, controller);
    put_costs(&mut sheet, controller);
    controller.requests.put(&mut sheet);
    sheet
}

fn put_nodes(sheet: &mut Sheet, controller: &Controller) {
    let nodes = controller.nodes.list();
    let states: Vec<NodeState> = nodes.iter().map(|node| node.state).collect();
    sheet.gauges("cluster_nodes", "Nodes by state", counted("state", NODE_STATES, &states));
    let cordoned = nodes.iter().filter(|node| node.cordoned).count();
    sheet.gauge("cluster_cordoned_nodes", "Nodes to which nothing new may come", cordoned as f64);
    let silent = controller.nodes.silent_for();
    let silent = silent.iter().map(|(node, silent)| ([("node", node.as_str())], silent.as_secs_f64()));
    sheet.gauges("cluster_node_silence_seconds", "Time since the node answered last", silent);
    let prices = nodes.iter().filter_map(|node| {
        let labels = [("flavor", node.flavor.as_deref().unwrap_or_default()), ("node", node.name.as_str())];
        Some((labels, node.price_micros? as f64 * MICRO))
    });
    sheet.gauges("cluster_node_price_per_hour", "What an hour of the node costs", prices);
    let capsules = controller.nodes.capsule_states();
    sheet.gauges("cluster_capsules", "Capsules by state", counted("state", CAPSULE_STATES, &capsules));
}

fn put_operations(sheet: &mut Sheet, controller: &Controller) {
    let under_way = controller.executor.under_way();
    let words = OPERATION_KINDS.map(|kind| (kind, kind));
    let under_way = counted("kind", words, &under_way);
    sheet.gauges("cluster_operations_under_way", "Operations that are not over", under_way);
    let counts = controller.executor.counts();
    sheet.counters("cluster_operations", "Operations that are over, by outcome", &counts.operations);
    sheet.counters(
        "cluster_moves",
        "Capsules that this controller had move; `policy` is empty where people wanted it",
        &counts.moves,
    );
}

fn put_policies(sheet: &mut Sheet, controller: &Controller) {
    let policies = controller.policies.list();
    let states: Vec<PolicyState> = policies.iter().map(|policy| policy.state).collect();
    sheet.gauges("cluster_policies", "Policies by state", counted("state", POLICY_STATES, &states));
    let failures = policies.iter().map(|it| ([("policy", it.name.as_str())], it.failures.into()));
    sheet.gauges("cluster_policy_failures", "Failures of the policy in a row", failures);
    sheet.counters(
        "cluster_policy_runs",
        "Runs of policies, by what came of them",
        controller.policies.runs(),
    );
}

fn put_costs(sheet: &mut Sheet, controller: &Controller) {
    let bill = controller.nodes.bill(None);
    let per_hour = bill.per_hour_micros as f64 * MICRO;
    sheet.gauge("cluster_cost_per_hour", "What an hour costs now, in the unit of the prices", per_hour);
    let cost = bill.cost_micros as f64 * MICRO;
    sheet.total("cluster_cost", "What the cluster has cost, in the unit of the prices", cost);
    let saved = bill.saved_micros as f64 * MICRO;
    sheet.gauge("cluster_savings", "What policies have saved; negative when they cost something", saved);
    let saving = bill.saving_per_hour_micros as f64 * MICRO;
    sheet.gauge("cluster_savings_per_hour", "What an hour costs less now because of policies", saving);
}
