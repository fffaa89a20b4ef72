//! The daemon is killed at every step of what it does, and must come back in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A step at which the daemon can be stopped: once its time has come, neither it nor any
/// later one is done.
#[derive(Clone)]
pub(crate) struct Failpoint(Arc<AtomicI64>);

impl Default for Failpoint {
    fn default() -> Self {
        Self(Arc::new(AtomicI64::new(i64::MAX)))
    }
}

impl Failpoint {
    /// Panics, which ends the task that wants to do the step, when the steps are used up.
    pub(crate) fn hit(&self) {
        assert!(self.0.fetch_sub(1, Ordering::Relaxed) > 0, "killed here");
    }
}
