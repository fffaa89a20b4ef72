//! What the servers of fcap's REST API share: a node's daemon and a cluster's controller.
//!
//! | part | what it does |
//! |---|---|
//! | [`extract`] | parts of requests, bounded and checked |
//! | [`refusal`] | how a request is refused |
//! | [`token`] | who may ask |
//! | [`document`] | the OpenAPI document, and what is said where nothing is served |
//! | [`metrics`] | numbers for Prometheus |
//! | [`text`] | what others wrote, made safe to show |
#![forbid(unsafe_code)]

pub mod document;
pub mod extract;
pub mod metrics;
pub mod refusal;
pub mod text;
pub mod token;
