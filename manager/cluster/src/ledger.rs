//! What a cluster costs: from a record of which node ran when and for how much.
//!
//! A node costs from its start to its stop, to the millisecond. All is whole numbers: sums are
//! made in micros times milliseconds, and divided once.
//!
//! **What policies saved** is counted against a cluster that they had left alone: from the moment
//! a policy has stopped a node, its price is saved; from the moment it has started one, its price
//! is spent. That a node which a policy stopped would have run on is an assumption, so a saving
//! ends when the operator changes the set of nodes in a way that replaces it: who starts a node by
//! hand takes back the oldest saving of that price, who stops one takes back the oldest expense.

use fcap_api::cluster::{Bill, NodeCost};
use serde::{Deserialize, Serialize};

const HOUR_MS: i128 = 3_600_000;

/// Who started or stopped a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// People, or the controller for them.
    Operator,
    /// A policy.
    Policy,
}

/// A node's time in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Name of the node.
    pub node: String,
    /// Its flavor, if it has one.
    pub flavor: Option<String>,
    /// What an hour of it costs; nothing where nobody pays.
    pub price_micros: u64,
    /// When it was started, and by whom.
    pub started: (u64, Cause),
    /// When it was stopped, and by whom; nothing while it runs.
    pub stopped: Option<(u64, Cause)>,
}

impl Interval {
    /// What it has cost between two moments.
    fn cost(&self, since_ms: u64, until_ms: u64) -> i128 {
        let end = self.stopped.map_or(until_ms, |(stopped_ms, _)| stopped_ms.min(until_ms));
        let ran_ms = end.saturating_sub(self.started.0.max(since_ms));
        i128::from(self.price_micros).saturating_mul(ran_ms.into())
    }
}

/// Adds up what the nodes have cost from one moment to another.
pub fn bill(intervals: &[Interval], since_ms: u64, until_ms: u64) -> Bill {
    let mut ran: Vec<&Interval> = intervals
        .iter()
        .filter(|interval| {
            interval.started.0 < until_ms
                && interval.stopped.is_none_or(|(stopped_ms, _)| stopped_ms > since_ms)
        })
        .collect();
    ran.sort_by(|a, b| (a.started.0, &a.node).cmp(&(b.started.0, &b.node)));
    let runs = |interval: &&&Interval| interval.stopped.is_none_or(|(stopped_ms, _)| stopped_ms > until_ms);
    let (saved, saving_per_hour) = saved(intervals, since_ms, until_ms);
    Bill {
        since_ms,
        until_ms,
        per_hour_micros: ran
            .iter()
            .filter(runs)
            .fold(0, |sum, interval| sum.saturating_add(interval.price_micros)),
        cost_micros: micros(
            ran.iter().fold(0, |sum: i128, interval| sum.saturating_add(interval.cost(since_ms, until_ms))),
        ) as u64,
        saved_micros: micros(saved),
        saving_per_hour_micros: saving_per_hour.clamp(i64::MIN.into(), i64::MAX.into()) as i64,
        nodes: ran
            .iter()
            .map(|interval| NodeCost {
                node: interval.node.clone(),
                flavor: interval.flavor.clone(),
                price_micros: interval.price_micros,
                started_ms: interval.started.0,
                started_by_policy: interval.started.1 == Cause::Policy,
                stopped_ms: interval.stopped.map(|(stopped_ms, _)| stopped_ms),
                stopped_by_policy: interval.stopped.is_some_and(|(_, cause)| cause == Cause::Policy),
                cost_micros: micros(interval.cost(since_ms, until_ms)) as u64,
            })
            .collect(),
    }
}

/// The integral of what policies have changed in the price of an hour, in micros times
/// milliseconds an hour, and what an hour costs less in the end.
fn saved(intervals: &[Interval], since_ms: u64, until_ms: u64) -> (i128, i128) {
    // What happened, in order: by whom, and by how much the price of an hour rose.
    let mut changes: Vec<(u64, Cause, i128)> = Vec::new();
    for interval in intervals {
        let price = i128::from(interval.price_micros);
        changes.push((interval.started.0, interval.started.1, price));
        if let Some((stopped_ms, cause)) = interval.stopped {
            changes.push((stopped_ms, cause, -price));
        }
    }
    // By policies first: what an operator does at the same moment answers them.
    changes.sort_by_key(|&(at_ms, cause, price)| (at_ms, cause == Cause::Operator, price));
    // Changes by policies that hold, as they came.
    let mut held: Vec<i128> = Vec::new();
    let (mut sum, mut last_ms) = (0, since_ms);
    for (at_ms, cause, price) in changes {
        if at_ms >= until_ms {
            break;
        }
        let now_ms = at_ms.max(since_ms);
        sum = held_for(&held, now_ms - last_ms, sum);
        last_ms = now_ms;
        // Whoever does the opposite of what a policy did takes it back, a policy too.
        match held.iter().position(|other| *other == -price) {
            Some(taken_back) => drop(held.remove(taken_back)),
            None if cause == Cause::Policy => held.push(price),
            None => (),
        }
    }
    (held_for(&held, until_ms.saturating_sub(last_ms), sum), -held.iter().sum::<i128>())
}

/// What is saved once these changes have held for some time more.
fn held_for(held: &[i128], ms: u64, saved: i128) -> i128 {
    saved.saturating_sub(held.iter().sum::<i128>().saturating_mul(ms.into()))
}

/// Rounded to the nearest, and cut to what can be told.
fn micros(sum: i128) -> i64 {
    let half = if sum < 0 { -HOUR_MS / 2 } else { HOUR_MS / 2 };
    let rounded = sum.saturating_add(half) / HOUR_MS;
    rounded.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3_600_000;

    fn interval(
        node: &str,
        price_micros: u64,
        started: (u64, Cause),
        stopped: Option<(u64, Cause)>,
    ) -> Interval {
        Interval { node: node.into(), flavor: None, price_micros, started, stopped }
    }

    use Cause::{Operator, Policy};

    #[test]
    fn nodes_cost_from_start_to_stop() {
        let intervals = [
            interval("a", 40_000, (0, Operator), None),
            interval("b", 20_000, (HOUR, Operator), Some((HOUR + HOUR / 2, Operator))),
        ];
        let whole = bill(&intervals, 0, 2 * HOUR);
        assert_eq!((whole.cost_micros, whole.per_hour_micros, whole.saved_micros), (90_000, 40_000, 0));
        assert_eq!(whole.nodes.iter().map(|node| node.cost_micros).collect::<Vec<_>>(), [80_000, 10_000]);
        let part = bill(&intervals, HOUR, HOUR + HOUR / 4);
        assert_eq!((part.cost_micros, part.per_hour_micros), (15_000, 60_000));
        assert_eq!(bill(&intervals, 5 * HOUR, 6 * HOUR).nodes.len(), 1);
        assert_eq!(bill(&[], 0, HOUR), Bill { until_ms: HOUR, ..Bill::default() });
    }

    #[test]
    fn what_a_policy_stops_is_saved_until_it_is_started_again() {
        let mut intervals = vec![
            interval("a", 40_000, (0, Operator), Some((HOUR, Policy))),
            interval("b", 10_000, (HOUR, Policy), None),
        ];
        assert_eq!(bill(&intervals, 0, HOUR).saved_micros, 0);
        assert_eq!(bill(&intervals, 0, 2 * HOUR).saving_per_hour_micros, 30_000);
        assert_eq!(bill(&intervals, 0, 3 * HOUR).saved_micros, 60_000);
        assert_eq!(bill(&intervals, 2 * HOUR, 3 * HOUR).saved_micros, 30_000);
        // The load has risen: the policy splits again.
        intervals.push(interval("c", 40_000, (3 * HOUR, Policy), None));
        intervals[1].stopped = Some((3 * HOUR, Policy));
        assert_eq!(bill(&intervals, 0, 9 * HOUR).saved_micros, 60_000);
    }

    #[test]
    fn what_a_policy_starts_is_spent_until_somebody_stops_it() {
        let mut intervals = vec![interval("a", 10_000, (0, Policy), None)];
        assert_eq!(bill(&intervals, 0, 2 * HOUR).saved_micros, -20_000);
        intervals[0].stopped = Some((HOUR, Operator));
        assert_eq!(bill(&intervals, 0, 2 * HOUR).saved_micros, -10_000);
    }

    #[test]
    fn an_operator_who_starts_such_a_node_again_ends_the_saving() {
        let intervals = [
            interval("a", 40_000, (0, Operator), Some((HOUR, Policy))),
            interval("b", 40_000, (2 * HOUR, Operator), None),
        ];
        assert_eq!(bill(&intervals, 0, 5 * HOUR).saved_micros, 40_000);
    }

    #[test]
    fn clocks_that_ran_backwards_cost_nothing_and_break_nothing() {
        let intervals = [
            interval("a", 40_000, (5 * HOUR, Operator), Some((HOUR, Policy))),
            interval("b", u64::MAX, (0, Operator), None),
        ];
        let bill = bill(&intervals, 0, u64::MAX);
        assert_eq!(bill.nodes[0].cost_micros, i64::MAX as u64);
        assert_eq!(bill.nodes.len(), 2);
    }

    proptest! {
        #[test]
        fn no_millionth_is_lost_by_looking_often(
            nodes in prop::collection::vec((1u64..1_000_000, 0u64..100, 0u64..100), 0..20),
            cuts in prop::collection::vec(0u64..100, 0..10),
        ) {
            let intervals: Vec<Interval> = nodes.into_iter().enumerate().map(|(number, (price, start, length))| {
                // Whole hours, so that nothing is rounded.
                interval(&number.to_string(), price, (start * HOUR, Operator), Some(((start + length) * HOUR, Policy)))
            }).collect();
            let mut cuts: Vec<u64> = cuts.into_iter().map(|cut| cut * HOUR).chain([0, 300 * HOUR]).collect();
            cuts.sort_unstable();
            let parts: Vec<Bill> = cuts.windows(2).map(|pair| bill(&intervals, pair[0], pair[1])).collect();
            let whole = bill(&intervals, 0, 300 * HOUR);
            prop_assert_eq!(parts.iter().map(|part| part.cost_micros).sum::<u64>(), whole.cost_micros);
            prop_assert_eq!(parts.iter().map(|part| part.saved_micros).sum::<i64>(), whole.saved_micros);
        }
    }
}
