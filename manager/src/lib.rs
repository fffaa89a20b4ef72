//! `fcapd`: runs the capsules of one node.
//!
//! | part | what it does |
//! |---|---|
//! | [`toolstack`] | what the daemon asks of a hypervisor; the simulator |
//! | [`daemon`] | the capsules of the node: making, finding, recovering them |
//! | [`capsule`] | one capsule: its states, and the task that changes them |
//! | [`store`] | what survives a restart of the daemon |
//! | [`log`] | what capsules wrote |
//! | [`image`] | reads kernels |
//! | [`images`] | what capsules are made of |
//! | [`mapped`] | files as memory |
//! | [`migration`] | capsules that move between nodes, and into and out of images |
//! | [`net`] | what the daemon asks of dom0's network |
//! | [`events`] | what has happened lately |
//! | [`node`] | who this node is |
//! | [`cluster`] | who it is to the other machines of its cluster |
//! | [`http`] | the REST API |
//! | [`metrics`] | numbers for Prometheus |
//! | `xen` | the doors of dom0, and the domain builder (feature `xen`) |

pub mod capsule;
pub mod clock;
pub mod cluster;
pub mod daemon;
pub mod error;
pub mod events;
pub mod http;
pub mod id;
pub mod image;
pub mod images;
pub mod log;
pub mod mapped;
pub mod metrics;
pub mod migration;
pub mod names;
pub mod net;
pub mod node;
pub mod store;
pub mod toolstack;
#[cfg(feature = "xen")]
pub mod xen;
