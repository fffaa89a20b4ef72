//! Benchmarks: ours and the peer's alternately in one run, medians, one line of JSON at the end.

pub mod cloud;
pub mod density;
pub mod drain;
pub mod guest;
pub mod http;
pub mod kv;
pub mod migrate;
pub mod net;
pub mod policy;
pub mod ps;
pub mod run;
pub mod tcp;
