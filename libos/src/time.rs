//! Time: a monotonic clock, the wall clock, and waiting.

pub(crate) mod timers;

use crate::{
    hypercall, shared_info,
    single::Single,
    suspend::{Resume, Subsystem},
};
use core::{
    cell::Cell,
    fmt,
    future::poll_fn,
    ops::{Add, AddAssign, Sub, SubAssign},
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};
use xen_proto::pvclock::Monotonic;

pub use core::time::Duration;

static CLOCK: Single<Cell<Monotonic>> = Single::new(Cell::new(Monotonic::new()));

/// Does something with the clock and system time now.
fn with_clock<T>(f: impl FnOnce(&mut Monotonic, u64) -> T) -> T {
    let mut clock = CLOCK.get();
    let result = f(&mut clock, shared_info::system_time_ns());
    CLOCK.set(clock);
    result
}

/// Time now on the monotonic clock, in nanoseconds; never less than it was.
pub(crate) fn now_ns() -> u64 {
    with_clock(Monotonic::now)
}

/// The system time at which the monotonic clock shows `time_ns`.
pub(crate) fn system_time_ns(time_ns: u64) -> u64 {
    CLOCK.get().system_time_ns(time_ns)
}

/// The clock, which in another domain goes on from where it was; system time there is another.
pub(crate) static SUBSYSTEM: Subsystem = Subsystem { suspend, resume, ..Subsystem::NOTHING };

fn suspend() {
    now_ns();
}

fn resume(resume: &Resume<'_>) {
    if resume.is_new() {
        hypercall::stop_periodic_timer();
        with_clock(|clock, system_ns| clock.rebase(system_ns, resume.stood_ns()));
    }
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A moment on the monotonic clock.
///
/// The clock goes on when the capsule moves to another node, and includes the time that it stood
/// still then, which both nodes measure. For the time in a file it goes by the wall clocks of the
/// nodes that wrote and read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant {
    ns: u64,
}

impl Instant {
    /// This moment.
    pub fn now() -> Self {
        Self { ns: now_ns() }
    }

    /// The moment at which [`now_ns`] is this.
    pub(crate) fn from_ns(ns: u64) -> Self {
        Self { ns }
    }

    /// Time since this moment.
    pub fn elapsed(&self) -> Duration {
        Self::now().duration_since(*self)
    }

    /// Time from `earlier` to this; zero if that was later.
    pub fn duration_since(&self, earlier: Self) -> Duration {
        Duration::from_nanos(self.ns.saturating_sub(earlier.ns))
    }

    /// `duration` later, or `None` if the clock does not reach that far.
    pub fn checked_add(&self, duration: Duration) -> Option<Self> {
        let ns = u64::try_from(duration.as_nanos()).ok()?;
        self.ns.checked_add(ns).map(|ns| Self { ns })
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// The end of the clock, some 580 years off, if it is beyond that.
    fn add(self, duration: Duration) -> Self {
        Self { ns: self.ns.saturating_add(ns(duration)) }
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    /// The beginning of the clock, if it is before that.
    fn sub(self, duration: Duration) -> Self {
        Self { ns: self.ns.saturating_sub(ns(duration)) }
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.duration_since(earlier)
    }
}

/// A moment on the wall clock, which can be set, and so may go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemTime {
    since_1970: Duration,
}

impl SystemTime {
    /// 1970-01-01 00:00:00 UTC.
    pub const UNIX_EPOCH: Self = Self { since_1970: Duration::ZERO };

    /// This moment, as the node knows it.
    pub fn now() -> Self {
        let (seconds, ns) = shared_info::wall_clock_base();
        let since_start = Duration::from_nanos(shared_info::system_time_ns());
        Self { since_1970: Duration::new(seconds, ns) + since_start }
    }

    /// Time from `earlier` to this, or `None` if that was later.
    pub fn duration_since(&self, earlier: Self) -> Option<Duration> {
        self.since_1970.checked_sub(earlier.since_1970)
    }

    /// Time since 1970.
    pub fn since_epoch(&self) -> Duration {
        self.since_1970
    }
}

/// Waits for `duration`.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(Instant::now() + duration)
}

/// Waits until `deadline`.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, timer: None }
}

/// Waits for a moment; from [`sleep`] and [`sleep_until`].
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    deadline: Instant,
    /// The timer that is set, and whom it wakes.
    timer: Option<(timers::Id, Waker)>,
}

impl Sleep {
    /// When it is over.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.deadline {
            return Poll::Ready(());
        }
        // Often polled beside something else that was woken.
        if self.timer.as_ref().is_none_or(|(_, woken)| !woken.will_wake(cx.waker())) {
            let timer = timers::set(self.deadline.ns, cx.waker().clone());
            if let Some((old, _)) = self.timer.replace((timer, cx.waker().clone())) {
                timers::cancel(old);
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((timer, _)) = self.timer.take() {
            timers::cancel(timer);
        }
    }
}

/// The time given to [`timeout`] was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("deadline has elapsed")
    }
}

impl core::error::Error for Elapsed {}

/// Waits for `future`, but not longer than `duration`.
///
/// # Errors
/// If it was not done by then; it is dropped.
pub async fn timeout<F: IntoFuture>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future.into_future());
    let mut sleep = pin!(sleep(duration));
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => sleep.as_mut().poll(cx).map(|()| Err(Elapsed)),
    })
    .await
}

/// Ticks every `period`, for the first time at once.
///
/// # Panics
/// If `period` is zero.
pub fn interval(period: Duration) -> Interval {
    assert!(!period.is_zero(), "an interval takes time");
    Interval { next: Instant::now(), period }
}

/// Ticks regularly; from [`interval`].
#[derive(Debug)]
pub struct Interval {
    next: Instant,
    period: Duration,
}

impl Interval {
    /// Waits for the next tick, and returns when it was due.
    ///
    /// Ticks that nobody waited for are left out; the rhythm stays.
    pub async fn tick(&mut self) -> Instant {
        sleep_until(self.next).await;
        let due = self.next;
        let late = Instant::now() - due;
        let periods = late.as_nanos() / self.period.as_nanos() + 1;
        let ahead = u64::try_from(periods).unwrap_or(u64::MAX).saturating_mul(ns(self.period));
        self.next = due + Duration::from_nanos(ahead);
        due
    }
}
