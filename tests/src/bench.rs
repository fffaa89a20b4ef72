//! Benchmarks: ours and the peer's alternately in one run, medians, one line of JSON at the end.

pub mod cloud;
pub mod density;
pub mod run;
