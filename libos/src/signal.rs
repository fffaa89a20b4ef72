//! Requests from the operator.
//!
//! `fcap stop` and `xl shutdown` write to `control/shutdown` in xenstore, and so do `xl save`
//! and `xl migrate`. The watch on it begins when `main` waits for the first time; a capsule
//! that never waits can only be killed.

use crate::{
    console, process,
    single::Single,
    suspend::{self, Reason},
    xenstore,
};
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
    // fcapd asks for nothing that we cannot do; other toolstacks look here first.
    if console::status_page().is_none() {
        let _ = xenstore::write("control/feature-poweroff", b"1").await;
        let _ = xenstore::write("control/feature-suspend", b"1").await;
    }
    loop {
        changes.next().await;
        let request = xenstore::read(REQUEST).await.unwrap_or_default();
        let is_end = matches!(&request[..], b"poweroff" | b"halt" | b"reboot");
        let is_suspend = request == b"suspend";
        if is_end || is_suspend {
            // The answer: the request was seen.
            let _ = xenstore::write(REQUEST, b"").await;
        }
        if is_suspend {
            suspend::suspend(Reason::Other, || true).await;
        }
        if is_end {
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
