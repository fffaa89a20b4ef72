//! Memory: the heap, and pages that others see.

pub(crate) mod heap;
mod page;

pub use page::{Page, SharedPage};
