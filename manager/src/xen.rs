//! Doors of dom0: hypercalls, foreign memory, event channels, xenstore; and what is built on
//! them.
//!
//! | module | what it does |
//! |---|---|
//! | [`sys`] | libxenctrl, foreign memory, event channels: the only unsafe code of the daemon |
//! | [`xenstore`] | requests and watches over xenstored's socket |
//! | [`layout`] | where everything goes in a new domain's memory; its page tables |
//! | [`builder`] | makes a domain, step by step |
//! | [`shell`] | a domain without memory, with a network interface, for a capsule to come |
//! | [`console`] | the console page of a running domain, whose content is hostile |
//! | [`vif`] | network interfaces in xenstore |
//! | [`events`] | waits for event channels and for domains that end |
//! | [`m2p`], [`p2m`] | which page of which domain a machine frame is, and the other way round |
//! | [`context`], [`shared_info`] | state of vCPUs on its way to another machine |
//! | [`dirty`] | three ways to know which pages a running domain has written to |

pub mod builder;
pub mod console;
pub mod context;
pub mod dirty;
pub mod events;
pub mod layout;
pub mod m2p;
pub mod p2m;
pub mod shared_info;
pub mod shell;
pub mod sys;
pub mod vif;
pub mod xenstore;
