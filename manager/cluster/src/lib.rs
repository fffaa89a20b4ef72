//! The controller of a cluster: it knows all nodes and capsules, and moves capsules so that the
//! cluster costs less and nobody notices.
//!
//! What decides, without clock, disk or network:
//!
//! | part | what it does |
//! |---|---|
//! | [`view`] | the cluster at one moment, checked and indexed |
//! | [`flavor`] | sizes of nodes and their prices |
//! | [`ledger`] | what nodes have cost, and what policies saved |
//! | [`room`] | what nodes would hold: capsules moved in thought |
//! | [`placement`] | where a capsule goes, and why |
//! | [`plan`] | from proposals to steps that never overfill a node, and why the rest is rejected |
//! | [`policy`] | scripts that look at a view and return proposals |
//! | [`simulate`] | policies over a day of made-up load |
//!
//! What does it:
//!
//! | part | what it does |
//! |---|---|
//! | [`controller`] | the whole |
//! | [`store`] | what must not be forgotten |
//! | [`provider`] | where nodes come from |
//! | [`nodes`] | which nodes there are, and how they are |
//! | [`members`] | who may join, and certificates |
//! | [`usage`] | what capsules used lately |
//! | [`execute`] | drains, replacements and plans: in steps that survive the controller |
//! | [`policies`] | which policies there are, when they run, and what came of it |
//! | [`book`] | which node ran when, for the bill |
//! | [`audit`] | who did what, and why |
//! | `metrics` | what it tells Prometheus |
//! | [`api`] | what it serves |
#![forbid(unsafe_code)]

pub mod flavor;
pub mod ledger;
pub mod placement;
pub mod plan;
pub mod policy;
pub mod room;
pub mod simulate;
pub mod view;

pub mod api;
pub mod audit;
pub mod book;
pub mod controller;
pub mod error;
pub mod execute;
pub mod members;
mod metrics;
pub mod nodes;
pub mod policies;
pub mod provider;
pub mod store;
pub mod usage;
