//! Arithmetic of byte rings with free-running indexes, as console and xenstore use them.

use core::ops::Range;

/// Bytes between consumer and producer of a ring of `len` bytes; `None` if there
/// can not be that many, so that one of the indexes is wrong.
pub fn used(prod: u32, cons: u32, len: usize) -> Option<usize> {
    let used = prod.wrapping_sub(cons) as usize;
    (used <= len).then_some(used)
}

/// Where the `count` bytes from `index` on begin in a ring of `len` bytes, and how
/// far they go before the ring's end.
///
/// # Panics
/// If `len` is not a power of two: free-running indexes need that.
pub fn span(index: u32, count: usize, len: usize) -> Range<usize> {
    assert!(len.is_power_of_two(), "a ring's length is a power of two");
    let start = index as usize & (len - 1);
    start..len.min(start + count)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn indexes_run_through_their_end() {
        assert_eq!(used(3, u32::MAX - 1, 1024), Some(5));
        assert_eq!(used(u32::MAX, 3, 1024), None);
        assert_eq!(used(1024, 0, 1024), Some(1024));
        assert_eq!(used(1025, 0, 1024), None);
    }

    proptest! {
        #[test]
        fn two_spans_cover_everything(index: u32, count in 0usize..=1024) {
            let first = span(index, count, 1024);
            let second = span(index.wrapping_add(first.len() as u32), count - first.len(), 1024);
            prop_assert_eq!(first.len() + second.len(), count);
            prop_assert!(first.end <= 1024 && second.end <= 1024);
            prop_assert!(second.is_empty() || second.start == 0);
        }
    }
}
