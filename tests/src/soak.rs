//! Long runs. Each has a short form, which is part of the end-to-end tests.

pub mod churn;
pub mod net;
pub mod restart;
