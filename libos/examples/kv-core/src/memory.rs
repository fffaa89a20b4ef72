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
    /// All of its memory, of which the first `len` bytes are in use. Filled with something
    /// once, so that a read needs not fill it first.
    storage: Vec<u8>,
    len: usize,
    memory: Memory,
    overflowed: bool,
}

/// What an empty buffer keeps for the next time. There is one for each connection.
pub const SMALL: usize = 1024;

impl Buffer {
    /// An empty one, which takes nothing.
    pub fn new(memory: &Memory) -> Self {
        Self { storage: Vec::new(), len: 0, memory: memory.clone(), overflowed: false }
    }

    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        &self.storage[..self.len]
    }

    /// Appends `bytes`, if there is room for them or can be made.
    pub fn push(&mut self, bytes: &[u8]) {
        if bytes.len() > self.storage.len() - self.len {
            // Doubled, so that a thousand small pushes move little.
            let roomy = self.len.saturating_add(bytes.len()).max(self.storage.len() * 2).max(256);
            if self.grow(roomy).is_err() {
                self.overflowed = true;
                return;
            }
        }
        self.storage[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Room for `more` bytes at least. What of it is used is then to be told to
    /// [`advance`](Self::advance).
    ///
    /// # Errors
    /// If there is none.
    pub fn reserve(&mut self, more: usize) -> Result<&mut [u8], OutOfMemory> {
        if more > self.storage.len() - self.len {
            self.grow(self.len.checked_add(more).ok_or(OutOfMemory)?)?;
        }
        Ok(&mut self.storage[self.len..])
    }

    /// Takes the first `count` bytes of the room as appended.
    ///
    /// # Panics
    /// If there is not so much room.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.storage.len() - self.len, "there was room for what was appended");
        self.len += count;
    }

    /// Whether something was left out since the last [`truncate`](Self::truncate).
    pub fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    /// Forgets all but the first `len` bytes, and that something was left out.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.overflowed = false;
    }

    /// Forgets the first `count` bytes. Empty, it gives back what it holds beyond [`SMALL`].
    ///
    /// # Panics
    /// If there are fewer.
    pub fn consume(&mut self, count: usize) {
        self.storage.copy_within(count..self.len, 0);
        self.len -= count;
        if self.len == 0 && self.storage.len() > SMALL {
            self.memory.give(self.storage.len());
            self.storage = Vec::new();
        }
    }

    /// Grows to `new` bytes.
    fn grow(&mut self, new: usize) -> Result<(), OutOfMemory> {
        let old = self.storage.len();
        self.memory.take(new - old)?;
        if self.storage.try_reserve_exact(new - old).is_err() {
            self.memory.give(new - old);
            return Err(OutOfMemory);
        }
        self.storage.resize(new, 0);
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.give(self.storage.len());
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
                let (first, second) = bytes.split_at(bytes.len() / 2);
                buffer.push(first);
                let room = buffer.reserve(second.len() + 3).unwrap();
                room[..second.len()].copy_from_slice(second);
                buffer.advance(second.len());
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
