//! Waiting for a peer, but not for ever.

use core::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
};
use libos::time::{Duration, Elapsed, Instant, Sleep, sleep, sleep_until};

/// Patience with one peer.
///
/// Does what [`libos::time::timeout`] does, for waits that follow one another closely and
/// are seldom long: the timer of an earlier wait stays set. If it goes off too early, it is
/// set again, which is rarer than setting it for each wait.
#[derive(Debug)]
pub struct Patience {
    timer: Sleep,
}

impl Patience {
    /// Patience that was not used yet.
    pub fn new() -> Self {
        Self { timer: sleep(Duration::ZERO) }
    }

    /// Waits for `future`, until `deadline` at most. What is ready at once is never too late.
    ///
    /// # Errors
    /// If it was not done by then; it is dropped.
    pub async fn until<F: Future>(&mut self, deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            if self.timer.deadline() > deadline {
                self.timer = sleep_until(deadline);
            }
            while Pin::new(&mut self.timer).poll(cx).is_ready() {
                if self.timer.deadline() >= deadline {
                    return Poll::Ready(Err(Elapsed));
                }
                self.timer = sleep_until(deadline);
            }
            Poll::Pending
        })
        .await
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::new()
    }
}
