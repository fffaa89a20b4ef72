//! Sums of what was last read of each page, for dirty sources that do not see all writes.
//!
//! Such a source tells which pages to send while the domain runs. Once it is suspended, a page is
//! the same as at the destination exactly if it still has the sum of what was sent of it.

use std::sync::atomic::{AtomicU64, Ordering};

use twox_hash::XxHash64;
use xen_proto::frame::Pfn;

use crate::{domain::Page, page::PageType};

/// A page of which nothing is known, or nothing that its content would tell.
const NONE: u64 = 0;

/// A sum for each page of a domain.
#[derive(Debug, Default)]
pub struct Sums(Box<[AtomicU64]>);

impl Sums {
    /// Those of a domain with so many pages, none of which has been read.
    pub fn new(nr_pages: u64) -> Self {
        Self((0..nr_pages).map(|_| AtomicU64::new(NONE)).collect())
    }

    fn of(&self, pfn: Pfn) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(pfn.0).ok()?)
    }

    /// Notes what was read of a page to be sent.
    pub fn note(&self, pfn: Pfn, page_type: PageType, content: &Page) {
        // A page that was something else must be sent again even if its content stays.
        let sum = if page_type == PageType::Data { sum(content) } else { NONE };
        if let Some(of) = self.of(pfn) {
            // Whoever compares has joined the threads that read.
            of.store(sum, Ordering::Relaxed);
        }
    }

    /// Whether a page that holds data now was last noted as data with the same content.
    pub fn is_same(&self, pfn: Pfn, content: &Page) -> bool {
        let noted = self.of(pfn).map_or(NONE, |of| of.load(Ordering::Relaxed));
        noted != NONE && noted == sum(content)
    }
}

fn sum(content: &Page) -> u64 {
    XxHash64::oneshot(0, content)
}

#[cfg(test)]
mod tests {
    use xen_proto::frame::PAGE_SIZE;

    use super::*;
    use crate::page::Level;

    const TABLE: PageType = PageType::Table { level: Level::L1, pinned: false };

    #[test]
    fn a_page_is_the_same_until_a_bit_of_it_changes() {
        let sums = Sums::new(2);
        let mut page = [0; PAGE_SIZE];
        assert!(!sums.is_same(Pfn(1), &page), "nothing was read of it");
        sums.note(Pfn(1), PageType::Data, &page);
        assert!(sums.is_same(Pfn(1), &page));
        assert!(!sums.is_same(Pfn(0), &page));
        page[PAGE_SIZE - 1] ^= 0x80;
        assert!(!sums.is_same(Pfn(1), &page));
        sums.note(Pfn(1), PageType::Data, &page);
        assert!(sums.is_same(Pfn(1), &page));
    }

    #[test]
    fn a_page_that_was_a_table_or_absent_is_not_the_same_as_data() {
        let sums = Sums::new(1);
        let page = [7; PAGE_SIZE];
        for other in [TABLE, PageType::Absent] {
            sums.note(Pfn(0), PageType::Data, &page);
            sums.note(Pfn(0), other, &page);
            assert!(!sums.is_same(Pfn(0), &page), "{other:?}");
        }
    }

    #[test]
    fn pages_beyond_the_last_one_are_never_the_same() {
        let sums = Sums::new(1);
        let page = [0; PAGE_SIZE];
        sums.note(Pfn(1), PageType::Data, &page);
        assert!(!sums.is_same(Pfn(1), &page));
    }
}
