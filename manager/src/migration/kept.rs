//! Connections that wait for the next capsule.
//!
//! Until two nodes know each other, a good part of a small capsule's move is over. Moves come in
//! numbers: a node is emptied, and what went comes back. So a connection over which a capsule has
//! gone is kept for a while, and the next one to the same node takes it.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::records::{Reader, Writer};
use super::tls::PeerId;

/// How long the source keeps a connection.
pub(super) const KEPT: Duration = Duration::from_secs(120);
/// How long the destination does: longer, so that it is not taken in the moment in which it ends.
pub(super) const WAITED_FOR: Duration = Duration::from_secs(150);
/// Most connections that wait.
const MAX_KEPT: usize = 8;

/// Where a connection leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The other node's address.
    pub(super) address: SocketAddr,
    /// By what it is known.
    pub(super) id: PeerId,
    /// The authority of the cluster that this node is in.
    pub(super) authority: Option<String>,
}

struct Idle {
    to: Place,
    since: Instant,
    connection: (Reader, Writer),
}

/// Connections to other nodes.
#[derive(Default)]
pub(super) struct Kept(Mutex<Vec<Idle>>);

impl Kept {
    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that leads there and is whole, as far as can be seen from here.
    pub(super) fn take(&self, to: &Place) -> Option<(Reader, Writer)> {
        self.end_old();
        let mut idle = self.idle();
        let found = idle.extract_if(.., |idle| idle.to == *to);
        // The youngest; those that are seen to be broken are gone.
        let mut whole: Vec<_> =
            found.filter_map(|mut idle| idle.connection.0.is_silent().then_some(idle)).collect();
        let youngest = whole.pop();
        idle.append(&mut whole);
        youngest.map(|idle| idle.connection)
    }

    /// Keeps one. The oldest goes when there are too many.
    pub(super) fn keep(&self, to: Place, connection: (Reader, Writer)) {
        let mut idle = self.idle();
        if idle.len() == MAX_KEPT {
            idle.remove(0);
        }
        idle.push(Idle { to, since: Instant::now(), connection });
    }

    /// Forgets all that lead there.
    pub(super) fn forget(&self, to: &Place) {
        self.idle().retain(|idle| idle.to != *to);
    }

    /// Ends those that nobody has taken in time.
    pub(super) fn end_old(&self) {
        self.idle().retain(|idle| idle.since.elapsed() < KEPT);
    }
}
