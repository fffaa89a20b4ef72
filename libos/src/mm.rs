//! Memory: the heap, pages that others see, and how much memory there is.

pub(crate) mod balloon;
pub(crate) mod heap;
mod page;

pub(crate) use page::Pages;
pub use page::{Page, SharedPage};
