//! Long runs. Each has a short form, which is part of the end-to-end tests.

pub mod churn;
pub mod control;
pub mod faults;
pub mod memory;
pub mod net;
pub mod restart;
pub mod serve;
