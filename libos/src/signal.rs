//! Requests from the operator.
//!
//! `fcap stop` and `xl shutdown` write to `control/shutdown` in xenstore. The
//! watch on it begins when `main` waits for the first time; a capsule that never
//! waits can only be killed.

use crate::{process, single::Single, xenstore};
use core::{
    cell::{Cell, RefCell},
    future::poll_fn,
    task::{Poll, Waker},
};

static HANDLED: Single<Cell<bool>> = Single::new(Cell::new(false));
static REQUESTED: Single<Cell<bool>> = Single::new(Cell::new(false));
static WAITING: Single<RefCell<Option<Waker>>> = Single::new(RefCell::new(None));

/// Waits until the operator asks the capsule to stop.
///
/// From the first time on that this is awaited, the application decides what
/// happens then: it should finish and return from `main`, before the operator
/// loses patience. An application that never awaits this ends at once when asked
/// to, with exit code 143.
///
/// Meant for one task; of several, the last to wait is woken.
pub async fn shutdown() {
    HANDLED.set(true);
    poll_fn(|cx| {
        if REQUESTED.get() {
            return Poll::Ready(());
        }
        WAITING.replace(Some(cx.waker().clone()));
        Poll::Pending
    })
    .await;
}

/// Watches for requests, as long as the capsule lives.
pub(crate) async fn serve() {
    const REQUEST: &str = "control/shutdown";
    let Ok(mut changes) = xenstore::watch(REQUEST).await else { return };
    // For toolstacks that ask first. Others give us no right to write it.
    let _ = xenstore::write("control/feature-poweroff", b"1").await;
    loop {
        changes.next().await;
        let request = xenstore::read(REQUEST).await.unwrap_or_default();
        if matches!(&request[..], b"poweroff" | b"halt" | b"reboot") {
            // The answer: the request was seen.
            let _ = xenstore::write(REQUEST, b"").await;
            if !HANDLED.get() {
                process::stop()
            }
            REQUESTED.set(true);
            if let Some(waker) = WAITING.take() {
                waker.wake();
            }
        }
    }
}
