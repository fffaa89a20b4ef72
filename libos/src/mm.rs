//! Memory: the heap, and pages that others see.

pub(crate) mod heap;
mod page;

pub(crate) use page::Pages;
pub use page::{Page, SharedPage};
