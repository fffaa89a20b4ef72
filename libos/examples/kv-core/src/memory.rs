//! An account of memory, so that what clients send and ask for cannot use all of it.
//!
//! Running out of memory ends a capsule. So everything whose size clients decide is
//! charged to one account first, which has a limit well below that.

use alloc::{rc::Rc, vec::Vec};
use core::cell::Cell;

/// The account is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory")]
pub struct OutOfMemory;

/// Who has taken how much; clones are the same account.
#[derive(Clone, Debug)]
pub struct Memory {
    used: Rc<Cell<usize>>,
    limit: usize,
}

impl Memory {
    /// An account of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { used: Rc::new(Cell::new(0)), limit }
    }

    /// Bytes taken.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Bytes that there are.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Takes `bytes`.
    ///
    /// # Errors
    /// If they are not there.
    pub fn take(&self, bytes: usize) -> Result<(), OutOfMemory> {
        let used = self.used.get().checked_add(bytes).filter(|&used| used <= self.limit);
        self.used.set(used.ok_or(OutOfMemory)?);
        Ok(())
    }

    /// Gives back `bytes` that were taken.
    pub fn give(&self, bytes: usize) {
        self.used.set(self.used.get() - bytes);
    }
}

/// Bytes of a connection that wait to be understood, or to be sent.
///
/// It grows as far as the account allows. A push that it cannot grow for is left out and
/// remembered, so that an answer is written without a check at each step.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    memory: Memory,
    /// The capacity, as far as it was taken from the account.
    taken: usize,
    overflowed: bool,
}

/// What an empty buffer may keep for the next time.
const KEPT: usize = 16 * 1024;

impl Buffer {
    /// An empty one, which takes nothing.
    pub fn new(memory: &Memory) -> Self {
        Self { bytes: Vec::new(), memory: memory.clone(), taken: 0, overflowed: false }
    }

    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends `bytes`, if there is room for them or can be made.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.reserve(bytes.len()).is_ok() {
            self.bytes.extend_from_slice(bytes);
        } else {
            self.overflowed = true;
        }
    }

    /// Makes room for `more` bytes.
    ///
    /// # Errors
    /// If there is none.
    pub fn reserve(&mut self, more: usize) -> Result<(), OutOfMemory> {
        let (len, capacity) = (self.bytes.len(), self.bytes.capacity());
        if more <= capacity - len {
            return Ok(());
        }
        // Doubled, so that a thousand small pushes move little.
        let wanted = len.checked_add(more).ok_or(OutOfMemory)?.max(capacity * 2).max(256);
        self.memory.take(wanted - capacity)?;
        self.taken += wanted - capacity;
        self.bytes.try_reserve_exact(wanted - len).map_err(|_| OutOfMemory)
    }

    /// Appends what `fill` puts into room for `more` bytes, as many as it says.
    ///
    /// # Errors
    /// If there is no room.
    pub fn fill<R>(
        &mut self,
        more: usize,
        fill: impl FnOnce(&mut [u8]) -> (usize, R),
    ) -> Result<R, OutOfMemory> {
        self.reserve(more)?;
        let len = self.bytes.len();
        self.bytes.resize(len + more, 0);
        let (count, result) = fill(&mut self.bytes[len..]);
        self.bytes.truncate(len + count.min(more));
        Ok(result)
    }

    /// Whether something was left out since the last [`truncate`](Self::truncate).
    pub fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    /// Forgets all but the first `len` bytes, and that something was left out.
    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
        self.overflowed = false;
    }

    /// Forgets the first `count` bytes. Empty, it gives back what it holds beyond a few KiB.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn consume(&mut self, count: usize) {
        if count < self.bytes.len() {
            self.bytes.drain(..count);
            return;
        }
        assert_eq!(count, self.bytes.len(), "what was consumed was there");
        self.bytes.clear();
        if self.bytes.capacity() > KEPT {
            self.release();
        }
    }

    /// Gives back all that an empty buffer holds; does nothing to another.
    pub fn release(&mut self) {
        if self.bytes.is_empty() {
            self.memory.give(core::mem::take(&mut self.taken));
            self.bytes = Vec::new();
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.give(self.taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn a_full_account_gives_nothing_more() {
        let memory = Memory::new(100);
        assert_eq!(memory.take(60), Ok(()));
        assert_eq!(memory.take(41), Err(OutOfMemory));
        assert_eq!(memory.take(usize::MAX), Err(OutOfMemory));
        memory.give(60);
        assert_eq!(memory.take(100), Ok(()));
    }

    #[test]
    fn a_buffer_leaves_out_what_has_no_room_and_says_so() {
        let memory = Memory::new(1000);
        let mut buffer = Buffer::new(&memory);
        buffer.push(&[1; 900]);
        buffer.push(&[2; 900]);
        assert!(buffer.has_overflowed());
        assert_eq!(buffer.bytes(), [1; 900]);
        buffer.truncate(0);
        assert!(!buffer.has_overflowed());
        drop(buffer);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn a_large_buffer_is_given_back_when_it_is_empty() {
        let memory = Memory::new(1 << 20);
        let mut buffer = Buffer::new(&memory);
        buffer.push(&vec![0; 100_000]);
        buffer.consume(99_999);
        assert!(memory.used() >= 100_000);
        buffer.consume(1);
        assert_eq!(memory.used(), 0);
    }

    proptest! {
        #[test]
        fn a_buffer_holds_what_was_pushed_and_not_consumed(steps: Vec<(Vec<u8>, usize)>) {
            let memory = Memory::new(usize::MAX);
            let mut buffer = Buffer::new(&memory);
            let mut model = vec![];
            for (bytes, consume) in steps {
                let filled = buffer.fill(bytes.len() + 3, |room| {
                    room[..bytes.len()].copy_from_slice(&bytes);
                    (bytes.len(), ())
                });
                prop_assert_eq!(filled, Ok(()));
                model.extend_from_slice(&bytes);
                let count = consume % (model.len() + 1);
                buffer.consume(count);
                model.drain(..count);
                prop_assert_eq!(buffer.bytes(), &model);
                prop_assert!(memory.used() >= model.len());
            }
        }
    }
}
