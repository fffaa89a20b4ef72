//! Tasks, and the loop that runs them.
//!
//! Everything is cooperative on one processor: a task runs until it awaits
//! something that is not there yet. When no task can run, the capsule sleeps until
//! an event or the next timer.

use crate::{
    evtchn, signal,
    single::Single,
    suspend,
    time::{self, timers},
};
use alloc::{boxed::Box, collections::VecDeque, sync::Arc, task::Wake};
use async_task::{Runnable, Task};
use core::{
    cell::RefCell,
    future::poll_fn,
    pin::{Pin, pin},
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll, Waker},
};

static READY: Single<RefCell<VecDeque<Runnable>>> = Single::new(RefCell::new(VecDeque::new()));

/// Runs `future` beside all other tasks, from the next await on.
///
/// The task goes on when the handle is dropped; the capsule ends with `main`,
/// whatever tasks there are.
///
/// # Examples
/// ```no_run
/// # async fn example() {
/// let answer = libos::spawn(async { 6 * 7 });
/// assert_eq!(answer.await, 42);
/// # }
/// ```
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    spawn_boxed(Box::pin(future))
}

/// As [`spawn`]: all that tasks of the same result have in common is in the image once.
fn spawn_boxed<T: 'static>(future: Pin<Box<dyn Future<Output = T>>>) -> JoinHandle<T> {
    fn schedule(runnable: Runnable) {
        READY.borrow_mut().push_back(runnable);
    }
    // SAFETY: future and output live as long as needed. They need not be `Send`, nor
    // need the schedule function, because a capsule has a single thread.
    let (runnable, task) = unsafe { async_task::spawn_unchecked(future, schedule) };
    runnable.schedule();
    JoinHandle { task: Some(task) }
}

/// Waits for a task, as a future of its result.
#[derive(Debug)]
pub struct JoinHandle<T> {
    /// Taken out at the end alone.
    task: Option<Task<T>>,
}

impl<T> JoinHandle<T> {
    /// Whether the result is there.
    pub fn is_finished(&self) -> bool {
        self.task.as_ref().is_some_and(Task::is_finished)
    }

    /// Drops the task where it is waiting.
    pub fn abort(mut self) {
        drop(self.task.take());
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(self.task.as_mut().expect("the handle has its task until it is dropped")).poll(cx)
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.detach();
        }
    }
}

/// Lets all other tasks that can run do so first.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Whether the main future has been woken.
struct MainReady(AtomicBool);

impl Wake for MainReady {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `main` and all tasks until `main` is done.
pub(crate) fn block_on<F: Future>(main: F) -> F::Output {
    let mut main = pin!(main);
    // Most programs print something before they wait for the first time, and some
    // never wait: what serves the others is not in their way.
    if let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        return output;
    }
    spawn(suspend::serve());
    spawn(signal::serve());

    let main_ready = Arc::new(MainReady(AtomicBool::new(true)));
    let waker = Waker::from(main_ready.clone());
    let mut cx = Context::from_waker(&waker);
    loop {
        if main_ready.0.swap(false, Ordering::Relaxed)
            && let Poll::Ready(output) = main.as_mut().poll(&mut cx)
        {
            return output;
        }
        // One round: who is woken meanwhile comes after events and timers.
        let round = READY.borrow().len();
        for _ in 0..round {
            let runnable = READY.borrow_mut().pop_front();
            runnable.expect("only this loop takes from the queue").run();
        }
        evtchn::dispatch();
        let deadline = timers::fire();
        if !main_ready.0.load(Ordering::Relaxed) && READY.borrow().is_empty() {
            evtchn::sleep(deadline.map(time::system_time_ns));
        }
    }
}
