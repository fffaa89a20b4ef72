//! A limit to how many connections there are.

use alloc::rc::Rc;
use core::cell::Cell;

/// Places for connections.
#[derive(Clone, Debug)]
pub struct Slots {
    taken: Rc<Cell<u32>>,
    all: u32,
}

impl Slots {
    /// So many places.
    pub fn new(all: u32) -> Self {
        Self { taken: Rc::default(), all }
    }

    /// Takes one, if one is left.
    pub fn take(&self) -> Option<Slot> {
        if self.taken.get() == self.all {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(Slot { taken: self.taken.clone() })
    }

    /// How many are taken.
    pub fn taken(&self) -> u32 {
        self.taken.get()
    }
}

/// A place, until it is dropped; from [`Slots::take`].
#[derive(Debug)]
pub struct Slot {
    taken: Rc<Cell<u32>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.taken.set(self.taken.get() - 1);
    }
}
