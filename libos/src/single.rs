//! State of which there is one.

use core::ops::Deref;

/// A value for a `static` that need not be shared between threads, because there are none.
pub(crate) struct Single<T>(T);

// SAFETY: a capsule has one vCPU and takes no interrupts, so that one flow of
// control sees the value. A trap handler may interrupt it, but never returns.
unsafe impl<T> Sync for Single<T> {}

impl<T> Single<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for Single<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
