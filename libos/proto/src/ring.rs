//! Arithmetic of rings with free-running indexes: byte rings, as console and xenstore use
//! them, and rings of requests and responses, as devices do (`xen/include/public/io/ring.h`).

use core::ops::Range;

/// The page of a device's ring: byte offsets of its fields.
pub mod device {
    /// Requests produced, written by the frontend.
    pub const REQ_PROD: usize = 0;
    /// The backend wants an event when requests are produced up to here.
    pub const REQ_EVENT: usize = 4;
    /// Responses produced, written by the backend.
    pub const RSP_PROD: usize = 8;
    /// The frontend wants an event when responses are produced up to here.
    pub const RSP_EVENT: usize = 12;
    /// The first entry.
    pub const ENTRIES: usize = 64;
}

/// The frontend's private part of a device's ring: how far both sides are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    entries: u32,
    /// Requests written, of which the backend may not know the last.
    produced: u32,
    /// Requests of which the backend has been told.
    published: u32,
    /// Responses taken.
    consumed: u32,
}

/// The backend claims to have answered more than it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jumped;

impl Front {
    /// A ring of which neither side has used anything.
    ///
    /// # Panics
    /// If the number of entries is not a power of two.
    pub const fn new(entries: u32) -> Self {
        assert!(entries.is_power_of_two(), "a ring's length is a power of two");
        Self { entries, produced: 0, published: 0, consumed: 0 }
    }

    /// How many more requests fit.
    pub fn free(&self) -> u32 {
        self.entries - self.produced.wrapping_sub(self.consumed)
    }

    /// Takes the place of the next request; returns its index.
    ///
    /// # Panics
    /// If the ring is full.
    pub fn produce(&mut self) -> u32 {
        assert!(self.free() > 0, "the ring has room");
        let index = self.produced;
        self.produced = index.wrapping_add(1);
        index
    }

    /// How many responses can be taken, when the backend has produced up to `rsp_prod`.
    ///
    /// # Errors
    /// If that is more than requests are open, or less than before.
    pub fn available(&self, rsp_prod: u32) -> Result<u32, Jumped> {
        let available = rsp_prod.wrapping_sub(self.consumed);
        let open = self.published.wrapping_sub(self.consumed);
        if available <= open { Ok(available) } else { Err(Jumped) }
    }

    /// Takes the next response; returns its index. To be called as often as
    /// [`available`](Self::available) has said.
    ///
    /// # Panics
    /// If no request is open.
    pub fn consume(&mut self) -> u32 {
        assert!(self.consumed != self.published, "a request is open");
        let index = self.consumed;
        self.consumed = index.wrapping_add(1);
        index
    }

    /// The index of the next response.
    pub fn next_response(&self) -> u32 {
        self.consumed
    }

    /// What to publish as the number of requests, and from where on; `None` if nothing is new.
    ///
    /// Between storing it and looking at the backend's wish with [`wants_event`], a full
    /// barrier is needed.
    pub fn publish(&mut self) -> Option<(u32, u32)> {
        let before = self.published;
        self.published = self.produced;
        (before != self.produced).then_some((before, self.produced))
    }

    /// Byte offset of the entry for an index, with entries of `len` bytes.
    pub fn offset(&self, index: u32, len: usize) -> usize {
        device::ENTRIES + (index & (self.entries - 1)) as usize * len
    }
}

/// Whether the other side wants an event, when the producer has gone from `before` to `now`
/// and it has asked for one at `event`.
pub fn wants_event(before: u32, now: u32, event: u32) -> bool {
    now.wrapping_sub(event) < now.wrapping_sub(before)
}

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

    #[test]
    fn events_are_wanted_when_their_index_is_passed() {
        assert!(wants_event(0, 1, 1));
        assert!(wants_event(u32::MAX, 1, 0));
        assert!(!wants_event(1, 5, 1));
        assert!(!wants_event(1, 5, 6));
        assert!(wants_event(1, 5, 5));
    }

    #[test]
    fn a_backend_cannot_answer_what_was_not_asked() {
        let mut ring = Front::new(4);
        assert_eq!(ring.available(0), Ok(0));
        assert_eq!(ring.available(1), Err(Jumped));
        assert_eq!((ring.produce(), ring.produce()), (0, 1));
        // Not told yet.
        assert_eq!(ring.available(1), Err(Jumped));
        assert_eq!(ring.publish(), Some((0, 2)));
        assert_eq!(ring.publish(), None);
        assert_eq!(ring.available(2), Ok(2));
        assert_eq!(ring.available(3), Err(Jumped));
        assert_eq!((ring.consume(), ring.consume()), (0, 1));
        assert_eq!(ring.available(1), Err(Jumped));
        assert_eq!(ring.free(), 4);
        assert_eq!(ring.offset(5, 12), 64 + 12);
    }

    proptest! {
        #[test]
        fn no_index_of_a_backend_breaks_a_ring(steps: std::vec::Vec<(u8, u32)>) {
            let mut ring = Front::new(16);
            for (requests, rsp_prod) in steps {
                for _ in 0..u32::from(requests).min(ring.free()) {
                    ring.produce();
                }
                ring.publish();
                let open = 16 - ring.free();
                // Mostly near what may be.
                let rsp_prod = ring.next_response().wrapping_add(rsp_prod % 20);
                match ring.available(rsp_prod) {
                    Ok(available) => {
                        prop_assert!(available <= open);
                        for _ in 0..available {
                            ring.consume();
                        }
                    }
                    Err(Jumped) => prop_assert!(rsp_prod.wrapping_sub(ring.next_response()) > open),
                }
            }
        }

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
