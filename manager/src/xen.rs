//! Doors of dom0: hypercalls, foreign memory, event channels, xenstore; and what is built on
//! them.
//!
//! | module | what it does |
//! |---|---|
//! | [`sys`] | libxenctrl, foreign memory, event channels: the only unsafe code of the daemon |
//! | [`xenstore`] | requests and watches over xenstored's socket |
//! | [`layout`] | where everything goes in a new domain's memory; its page tables |
//! | [`builder`] | makes a domain, step by step |
//! | [`console`] | the console page of a running domain, whose content is hostile |
//! | [`vif`] | network interfaces in xenstore |
//! | [`events`] | waits for event channels and for domains that end |

pub mod builder;
pub mod console;
pub mod events;
pub mod layout;
pub mod sys;
pub mod vif;
pub mod xenstore;
