//! One bit for each page of a domain.

use xen_proto::frame::Pfn;

use crate::domain::PfnRange;

const BITS: u64 = u64::BITS as u64;

/// A set of pages.
#[doc(alias = "dirty bitmap")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageBitmap {
    words: Vec<u64>,
    nr_pages: u64,
}

impl PageBitmap {
    /// No pages, of a domain that has `nr_pages`.
    pub fn new(nr_pages: u64) -> Self {
        Self { words: vec![0; nr_pages.div_ceil(BITS) as usize], nr_pages }
    }

    /// Pages of the domain: the set's members are below.
    pub fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// Pages in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether no page is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// Whether `pfn` is in the set; a page beyond the domain is not.
    pub fn contains(&self, pfn: Pfn) -> bool {
        self.words.get((pfn.0 / BITS) as usize).is_some_and(|word| word >> (pfn.0 % BITS) & 1 != 0)
    }

    /// Whether all pages of a range are in the set.
    pub fn contains_range(&self, range: PfnRange) -> bool {
        let end = range.end().filter(|end| *end <= self.nr_pages);
        end.is_some_and(|end| self.next_gap(range.first.0) >= end)
    }

    /// Adds a page; one beyond the domain is ignored.
    pub fn insert(&mut self, pfn: Pfn) {
        if pfn.0 < self.nr_pages {
            self.words[(pfn.0 / BITS) as usize] |= 1 << (pfn.0 % BITS);
        }
    }

    /// Takes a page out.
    pub fn remove(&mut self, pfn: Pfn) {
        if pfn.0 < self.nr_pages {
            self.words[(pfn.0 / BITS) as usize] &= !(1 << (pfn.0 % BITS));
        }
    }

    /// Adds the pages of a range that the domain has.
    pub fn insert_range(&mut self, range: PfnRange) {
        self.for_range(range, |word, mask| *word |= mask);
    }

    /// Takes the pages of a range out.
    pub fn remove_range(&mut self, range: PfnRange) {
        self.for_range(range, |word, mask| *word &= !mask);
    }

    fn for_range(&mut self, range: PfnRange, change: impl Fn(&mut u64, u64)) {
        let end = range.first.0.saturating_add(range.count).min(self.nr_pages);
        let mut at = range.first.0;
        while at < end {
            let stop = (at / BITS + 1).saturating_mul(BITS).min(end);
            let mask = (u64::MAX >> (BITS - (stop - at))) << (at % BITS);
            change(&mut self.words[(at / BITS) as usize], mask);
            at = stop;
        }
    }

    /// Takes all pages out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Adds the pages of `other`.
    pub fn insert_all(&mut self, other: &Self) {
        self.insert_words(0, &other.words);
    }

    /// Keeps only pages that are also in `other`.
    pub fn retain_all(&mut self, other: &Self) {
        let others = other.words.iter().copied().chain(std::iter::repeat(0));
        self.words.iter_mut().zip(others).for_each(|(word, other)| *word &= other);
    }

    /// Takes the pages of `other` out.
    pub fn remove_all(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= !other);
    }

    /// Adds pages as words of 64 bits, the lowest bit first; `first_word` is the place of the
    /// first one. What is beyond the domain is ignored: the words may come from a guest.
    pub fn insert_words(&mut self, first_word: usize, words: &[u64]) {
        let Some(own) = self.words.get_mut(first_word..) else { return };
        own.iter_mut().zip(words).for_each(|(own, word)| *own |= word);
        let beyond = self.words.len() as u64 * BITS - self.nr_pages;
        if let Some(last) = self.words.last_mut() {
            *last &= u64::MAX >> beyond;
        }
    }

    /// The first page of the set that is `from` or above.
    fn next(&self, from: u64) -> Option<u64> {
        let mut at = (from / BITS) as usize;
        let mut word = self.words.get(at)? & (u64::MAX << (from % BITS));
        while word == 0 {
            at += 1;
            word = *self.words.get(at)?;
        }
        Some(at as u64 * BITS + u64::from(word.trailing_zeros()))
    }

    /// The first page that is `from` or above and not in the set; [`nr_pages`](Self::nr_pages) or
    /// above if there is none.
    fn next_gap(&self, from: u64) -> u64 {
        let mut at = (from / BITS) as usize;
        let mut shift = from % BITS;
        while let Some(word) = self.words.get(at) {
            let gaps = !word & (u64::MAX << shift);
            if gaps != 0 {
                return at as u64 * BITS + u64::from(gaps.trailing_zeros());
            }
            (at, shift) = (at + 1, 0);
        }
        self.nr_pages
    }

    /// The pages of the set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Pfn> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let pfn = self.next(from)?;
            from = pfn + 1;
            Some(Pfn(pfn))
        })
    }

    /// The pages of the set as ranges, ascending and never touching.
    pub fn ranges(&self) -> impl Iterator<Item = PfnRange> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = self.next(from)?;
            from = self.next_gap(first).min(self.nr_pages);
            Some(PfnRange { first: Pfn(first), count: from - first })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const NR_PAGES: u64 = 300;

    fn set(pages: &BTreeSet<u64>) -> PageBitmap {
        let mut bitmap = PageBitmap::new(NR_PAGES);
        pages.iter().for_each(|&pfn| bitmap.insert(Pfn(pfn)));
        bitmap
    }

    fn pages() -> impl Strategy<Value = BTreeSet<u64>> {
        proptest::collection::btree_set(0..NR_PAGES, 0..NR_PAGES as usize)
    }

    #[test]
    fn pages_beyond_the_domain_never_get_in() {
        let mut bitmap = PageBitmap::new(70);
        bitmap.insert(Pfn(70));
        bitmap.insert(Pfn(u64::MAX));
        bitmap.insert_words(1, &[u64::MAX, u64::MAX]);
        bitmap.insert_words(9, &[1]);
        bitmap.insert_range(PfnRange { first: Pfn(69), count: u64::MAX });
        assert_eq!(bitmap.ranges().collect::<Vec<_>>(), [PfnRange { first: Pfn(64), count: 6 }]);
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers(one in pages(), other in pages()) {
            let numbers = |bitmap: &PageBitmap| bitmap.iter().map(|pfn| pfn.0).collect::<BTreeSet<_>>();
            let (a, b) = (set(&one), set(&other));
            prop_assert_eq!(&numbers(&a), &one);
            prop_assert_eq!(a.count(), one.len() as u64);
            prop_assert_eq!(a.is_empty(), one.is_empty());
            prop_assert!((0..NR_PAGES + 9).all(|pfn| a.contains(Pfn(pfn)) == one.contains(&pfn)));
            let with = |change: fn(&mut PageBitmap, &PageBitmap)| {
                let mut a = a.clone();
                change(&mut a, &b);
                numbers(&a)
            };
            prop_assert_eq!(with(PageBitmap::insert_all), &one | &other);
            prop_assert_eq!(with(PageBitmap::retain_all), &one & &other);
            prop_assert_eq!(with(PageBitmap::remove_all), &one - &other);
        }

        #[test]
        fn ranges_say_the_same_as_single_pages(pages in pages(), first in 0..NR_PAGES, count in 1..NR_PAGES) {
            let bitmap = set(&pages);
            let mut again = PageBitmap::new(NR_PAGES);
            let mut last = None;
            for range in bitmap.ranges() {
                prop_assert!(range.count > 0 && last.is_none_or(|end| end < range.first.0));
                last = range.end();
                again.insert_range(range);
            }
            prop_assert_eq!(&again, &bitmap);
            let range = PfnRange { first: Pfn(first), count };
            let whole = (first..first + count).all(|pfn| pages.contains(&pfn));
            prop_assert_eq!(again.contains_range(range), whole);
            again.remove_range(range);
            let rest = pages.into_iter().filter(|pfn| !(first..first + count).contains(pfn)).collect();
            prop_assert_eq!(again, set(&rest));
        }
    }
}
