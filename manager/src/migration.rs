//! Capsules that move between nodes, and into and out of images.
//!
//! The engine is [`fcap_migrate`]; here it meets the toolstack, the disk and the network.
//!
//! | part | what it does |
//! |---|---|
//! | [`tls`] | how two nodes know each other |
//! | [`journal`] | what of a move must survive a daemon |
//! | [`leave`] | the source: moving, saving, asking what became of a capsule |
//! | [`arrive`] | the destination: from a connection, from an image |
//! | `kept` | connections that wait for the next capsule |
//! | `luggage` | what follows a capsule that has moved: its log, its image |
//! | [`listen`] | connections of other nodes |
//!
//! A client asks the destination for a ticket, and gives it to the source. The source connects to
//! the address in it. Nodes of one cluster know each other by their names; otherwise each side takes
//! only the certificate whose fingerprint the client has brought. A connection begins with one byte
//! that says what is wanted ([`MOVE`], [`ASK`]) and the number of the attempt. A capsule is first
//! bidden [`WELCOME`]; when it has come with all that belongs to it, the connection can begin anew.
//!
//! # After the death of a daemon
//! | found | then |
//! |---|---|
//! | the source's claim | its copy stays suspended; the destination is asked until it answers |
//! | no claim, and a suspended domain | it goes on: nobody else has it |
//! | the destination's claim | the capsule is taken up as if it had always been here |
//! | `begun` without a claim | the domain, which never ran, is destroyed |

pub mod arrive;
pub mod journal;
mod kept;
pub mod leave;
pub mod listen;
mod luggage;
pub mod records;
pub mod tls;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use fcap_api::ErrorBody;
use fcap_api::migrate::{Invitation, Ticket};
use fcap_tls::{Fingerprint, Subject};
use serde::{Deserialize, Serialize};

use crate::cluster::Membership;
use crate::error::{Error, Result};
use crate::id::CapsuleId;
use crate::store::{Saved, Store};
use crate::toolstack::Places;
use journal::{Attempt, Journal};
use kept::Kept;
use tls::{Identity, PeerId};

/// First byte of a connection: a capsule comes.
pub const MOVE: u8 = b'M';
/// First byte of a connection: what became of an attempt?
pub const ASK: u8 = b'A';
/// Answer to [`MOVE`]: the destination has expected it. Otherwise that is [`GONE`].
pub const WELCOME: u8 = b'W';
/// Answer to [`ASK`]: the destination has it, for good.
pub const TAKEN: u8 = b'T';
/// Answer to [`ASK`]: the destination has not got it, and never will from this attempt.
pub const GONE: u8 = b'G';
/// Answer to [`ASK`]: it is not decided yet.
pub const BUSY: u8 = b'B';
/// After [`TAKEN`]: the source's copy is gone.
pub const RELEASED: u8 = b'R';

/// How long a ticket is good.
const TICKET: Duration = Duration::from_secs(300);
/// Most tickets at a time.
const MAX_TICKETS: usize = 1024;

/// What travels with a capsule besides its memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Passport {
    /// What is kept of it.
    pub saved: Saved,
    /// Where the toolstack's pages are in it.
    pub places: Places,
}

/// The moves of this node.
pub struct Migrations {
    /// What of them is on disk.
    pub journal: Journal,
    /// The node's place in a cluster.
    pub membership: Arc<Membership>,
    identity: OnceLock<Arc<Identity>>,
    address: OnceLock<SocketAddr>,
    kept: Kept,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Who may come, and until when.
    tickets: HashMap<Attempt, (PeerId, Instant)>,
    /// Attempts that are under way here.
    arriving: HashSet<Attempt>,
    /// Saved capsules that are held until their images are said to be in safety.
    held: HashMap<CapsuleId, tokio::sync::oneshot::Sender<()>>,
    /// Why the last image of a capsule broke off.
    broken: HashMap<CapsuleId, ErrorBody>,
}

impl Migrations {
    /// Opens what is on disk.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn open(store: &Store, membership: Arc<Membership>) -> io::Result<Self> {
        Ok(Self {
            journal: Journal::open(store.migrations_dir())?,
            membership,
            identity: OnceLock::new(),
            address: OnceLock::new(),
            kept: Kept::default(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The certificate that the node has made for itself; made when it is first needed.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn identity(&self) -> io::Result<Arc<Identity>> {
        if let Some(identity) = self.identity.get() {
            return Ok(identity.clone());
        }
        let _one_at_a_time = self.state();
        if let Some(identity) = self.identity.get() {
            return Ok(identity.clone());
        }
        let identity = Arc::new(Identity::load(self.journal.directory())?);
        Ok(self.identity.get_or_init(|| identity).clone())
    }

    /// Says where other nodes reach this one.
    pub fn set_address(&self, address: SocketAddr) {
        let _ = self.address.set(address);
    }

    /// Forgets what is known of a capsule that is gone.
    pub fn forget(&self, capsule: CapsuleId) {
        self.state().broken.remove(&capsule);
    }

    /// Promises to take a capsule in.
    ///
    /// # Errors
    /// When this node does not listen for others, or the invitation is bad.
    pub fn invite(&self, node: String, invitation: &Invitation) -> Result<Ticket> {
        let ours = self.membership.authority();
        let same = invitation.member.as_ref().filter(|member| Some(&member.authority) == ours.as_ref());
        let source =
            match same {
                Some(member) => {
                    let subject = Subject::node(&member.node);
                    PeerId::Member(
                        subject.map_err(|error| Error::BadRequest(error.to_string()))?.name().to_owned(),
                    )
                }
                None => PeerId::Pinned(Fingerprint::parse(&invitation.source).ok_or_else(|| {
                    Error::BadRequest("source must be a fingerprint of 64 hex digits".into())
                })?),
            };
        let address = self.address.get().ok_or_else(|| {
            Error::WrongState(
                "this node takes no capsules in: fcapd was started without --migrate-listen".into(),
            )
        })?;
        let identity = self.identity().map_err(Error::disk("make the node's certificate"))?;
        let mut attempt = [0; 16];
        getrandom::fill(&mut attempt).expect("the kernel gives randomness");
        let now = Instant::now();
        let mut state = self.state();
        state.tickets.retain(|_, (_, until)| *until > now);
        if state.tickets.len() >= MAX_TICKETS {
            return Err(Error::WrongState("too many capsules are expected already; try again later".into()));
        }
        state.tickets.insert(attempt, (source, now + TICKET));
        Ok(Ticket {
            node,
            address: listen::reachable(*address).to_string(),
            fingerprint: identity.fingerprint().to_string(),
            authority: same.map(|member| member.authority.clone()),
            attempt: journal::name(&attempt),
        })
    }

    /// Uses up a ticket. Until the guard is dropped, the attempt is under way.
    fn admit(self: &Arc<Self>, attempt: Attempt, from: &PeerId) -> Option<UnderWay> {
        let mut state = self.state();
        let (source, until) = state.tickets.remove(&attempt)?;
        if source != *from || until < Instant::now() {
            return None;
        }
        state.arriving.insert(attempt);
        Some(UnderWay { migrations: self.clone(), attempt })
    }

    /// Makes sure that an attempt that is not under way never will be. Whether it is.
    fn is_under_way(&self, attempt: &Attempt) -> bool {
        let mut state = self.state();
        state.tickets.remove(attempt);
        state.arriving.contains(attempt)
    }
}

/// An attempt that is under way.
struct UnderWay {
    migrations: Arc<Migrations>,
    attempt: Attempt,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.migrations.state().arriving.remove(&self.attempt);
    }
}

/// An error with its causes, for people.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
