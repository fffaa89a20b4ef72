//! Which node ran when, and for how much: what the bill is made of.
//!
//! What runs is the provider's to say. The book is compared with that whenever it is asked, and what
//! has come or gone since is written down; so a controller that was killed anywhere misses nothing
//! that still runs, and counts nothing that has ended. Who wanted a machine, its tag says; who had it
//! destroyed, and when, the operation that did it.

use std::sync::{Arc, Mutex, MutexGuard};

use fcap_api::cluster::{Bill, Flavor, Operation, Work};

use crate::error::{Error, Result};
use crate::execute;
use crate::ledger::{Cause, Interval, bill};
use crate::nodes::now_ms;
use crate::policies;
use crate::provider::Machine;
use crate::store::{Store, Transaction, Write};

/// Begins the keys of intervals; the start follows, so that they are in its order.
const PREFIX: &str = "ledger/";
/// Nodes that have ended and are still in the book.
const KEPT: usize = 10_000;

/// When each node ran.
pub struct Book {
    store: Arc<dyn Store>,
    intervals: Mutex<Vec<Interval>>,
    /// Held while the book is compared with what runs.
    turn: tokio::sync::Mutex<()>,
}

fn key(interval: &Interval) -> String {
    format!("{PREFIX}{:016}-{}", interval.started.0, interval.node)
}

fn cause(operation: Option<&Operation>) -> Cause {
    match operation {
        Some(operation) if policies::is_policy(&operation.by) => Cause::Policy,
        _ => Cause::Operator,
    }
}

impl Book {
    /// Reads what is kept.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self> {
        let mut intervals = Vec::new();
        for entry in store.range(PREFIX).await?.entries {
            let interval = serde_json::from_slice(&entry.value);
            intervals.push(interval.map_err(|error| Error::Corrupt(entry.key, error.to_string()))?);
        }
        Ok(Self { store, intervals: Mutex::new(intervals), turn: tokio::sync::Mutex::default() })
    }

    fn intervals(&self) -> MutexGuard<'_, Vec<Interval>> {
        self.intervals.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Notes which machines have come and gone.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn update(&self, machines: &[Machine], flavors: &[Flavor]) -> Result<()> {
        let _turn = self.turn.lock().await;
        let mut intervals = self.intervals().clone();
        let mut writes = Vec::new();
        let is = |interval: &Interval, machine: &Machine| {
            interval.node == machine.name && interval.started.0 == machine.started_ms
        };
        for machine in machines {
            match intervals.iter_mut().find(|interval| is(interval, machine)) {
                Some(interval) if interval.stopped.is_none() => {}
                Some(interval) => {
                    // It was only not to be seen.
                    interval.stopped = None;
                    writes.push(Write::json(key(interval), interval));
                }
                None => {
                    let wanted = match &machine.tag {
                        Some(operation) => execute::kept(&*self.store, operation).await?,
                        None => None,
                    };
                    let price = flavors.iter().find(|flavor| Some(&flavor.name) == machine.flavor.as_ref());
                    let interval = Interval {
                        node: machine.name.clone(),
                        flavor: machine.flavor.clone(),
                        price_micros: price.map_or(0, |flavor| flavor.price_micros),
                        started: (machine.started_ms, cause(wanted.as_ref())),
                        stopped: None,
                    };
                    writes.push(Write::json(key(&interval), &interval));
                    intervals.push(interval);
                }
            }
        }
        for interval in intervals.iter_mut().filter(|interval| interval.stopped.is_none()) {
            if !machines.iter().any(|machine| is(interval, machine)) {
                interval.stopped = Some(self.end_of(interval).await?);
                writes.push(Write::json(key(interval), interval));
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        let ended = intervals.iter().filter(|interval| interval.stopped.is_some()).count();
        let mut old = ended.saturating_sub(KEPT);
        intervals.retain(|interval| {
            let goes = old > 0 && interval.stopped.is_some();
            if goes {
                old -= 1;
                writes.retain(|write| !matches!(write, Write::Put { key: put, .. } if *put == key(interval)));
                writes.push(Write::Delete(key(interval)));
            }
            !goes
        });
        self.store.commit(Transaction::of(writes)).await?;
        *self.intervals() = intervals;
        Ok(())
    }

    /// When a machine that is gone was destroyed, and by whom.
    async fn end_of(&self, interval: &Interval) -> Result<(u64, Cause)> {
        for operation in execute::all_kept(&*self.store).await? {
            let destroyed = operation.steps.iter().rev().find(|step| {
                matches!(&step.work, Work::Destroy { node } if *node == interval.node)
                    && step.started_ms >= interval.started.0
            });
            if let Some(step) = destroyed {
                return Ok((step.ended_ms.unwrap_or_else(now_ms), cause(Some(&operation))));
            }
        }
        Ok((now_ms(), Cause::Operator))
    }

    /// What the nodes have cost since then, or since the first of them was started.
    pub fn bill(&self, since_ms: Option<u64>, until_ms: u64) -> Bill {
        let intervals = self.intervals();
        let first = intervals.iter().map(|interval| interval.started.0).min();
        bill(&intervals, since_ms.or(first).unwrap_or(until_ms).min(until_ms), until_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Local;
    use crate::view::tests::flavor;
    use fcap_api::cluster::{OperationKind, OperationState, Step, StepState};

    fn machine(name: &str, started_ms: u64, tag: Option<&str>) -> Machine {
        Machine {
            name: name.into(),
            flavor: Some("small".into()),
            url: String::new(),
            token: String::new(),
            started_ms,
            tag: tag.map(str::to_owned),
        }
    }

    fn operation(id: &str, by: &str, destroyed: Option<(&str, u64)>) -> Write {
        let steps = destroyed.map(|(node, ended_ms)| Step {
            work: Work::Destroy { node: node.into() },
            state: StepState::Done,
            started_ms: ended_ms - 1,
            ended_ms: Some(ended_ms),
            note: None,
        });
        let operation = Operation {
            id: id.into(),
            kind: OperationKind::Add { flavor: "small".into(), labels: Default::default() },
            state: OperationState::Done,
            cancelled: false,
            by: by.into(),
            reason: String::new(),
            started_ms: 0,
            ended_ms: None,
            steps: steps.into_iter().collect(),
            message: None,
        };
        Write::json(format!("operations/{id:0>12}"), &operation)
    }

    #[tokio::test]
    async fn what_comes_and_goes_is_billed_to_whom_it_is_due_and_kept() {
        let store = Arc::new(Local::in_memory());
        let flavors = [flavor("small", 1, 1024, 10_000)];
        let hour = 3_600_000;
        store.commit(Transaction::of(vec![operation("1", "policy scale", None)])).await.unwrap();
        let book = Book::open(store.clone()).await.unwrap();
        let (a, b) = (machine("a", hour, None), machine("b", 2 * hour, Some("1")));
        book.update(&[a.clone(), b.clone()], &flavors).await.unwrap();
        let bill = book.bill(None, 3 * hour);
        assert_eq!((bill.since_ms, bill.per_hour_micros, bill.cost_micros), (hour, 20_000, 30_000));
        assert_eq!((bill.saved_micros, bill.nodes[1].started_by_policy), (-10_000, true));

        // A policy has a node destroyed while nobody keeps the book.
        let destroy = operation("2", "policy scale", Some(("a", 4 * hour)));
        store.commit(Transaction::of(vec![destroy])).await.unwrap();
        let book = Book::open(store.clone()).await.unwrap();
        book.update(std::slice::from_ref(&b), &flavors).await.unwrap();
        let bill = book.bill(None, 6 * hour);
        assert_eq!((bill.per_hour_micros, bill.cost_micros), (10_000, 70_000));
        assert_eq!((bill.nodes[0].stopped_ms, bill.nodes[0].stopped_by_policy), (Some(4 * hour), true));

        // Another machine of the same name is another node; one that was not seen for a while is not.
        book.update(&[], &flavors).await.unwrap();
        book.update(&[machine("a", 5 * hour, None), b], &flavors).await.unwrap();
        let bill = Book::open(store).await.unwrap().bill(None, 6 * hour);
        assert_eq!((bill.per_hour_micros, bill.cost_micros, bill.nodes.len()), (20_000, 80_000, 3));
    }

    #[tokio::test]
    async fn a_book_that_is_none_is_refused() {
        let store = Arc::new(Local::in_memory());
        let write = Write::json("ledger/1-a", &"nothing");
        store.commit(Transaction::of(vec![write])).await.unwrap();
        let error = Book::open(store).await.err().unwrap().to_string();
        assert!(error.starts_with("ledger/1-a of the store does not parse"), "{error}");
    }
}
