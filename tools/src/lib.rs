//! `fcap`, the command line, and the local cloud.
//!
//! ```text
//! cli      one file a verb: arguments, help, what it does
//!  ├ target     whom to speak to: a named server, this machine's daemon, the local cloud
//!  ├ fleet      several nodes as one: ask all, find a capsule      placement   which node gets a new one
//!  ├ client     one node's REST API                                image       files to images on a node
//!  ├ stdio      standard streams that do not block the rest        terminal    guests' bytes made safe
//!  ├ output     tables, JSON, YAML        human   sizes and times  progress    slow steps
//!  ├ cloud      nodes as QEMU machines
//!  └ project    `fcap new`, `fcap build`
//! ```
#![forbid(unsafe_code)]

pub mod cli;
pub mod cloud;
pub mod filter;
pub mod fleet;
pub mod forwards;
pub mod human;
pub mod image;
pub mod output;
pub mod placement;
pub mod progress;
pub mod project;
pub mod stdio;
pub mod target;
pub mod terminal;

pub use fcap_client as client;
