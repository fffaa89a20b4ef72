//! Suspending the capsule, and going on: here, in another domain, or in both.
//!
//! Somebody asks: fcapd through the console page ([`xen_proto::suspend`] has the protocol),
//! `xl` through xenstore. Then, in one task, while the others go on:
//!
//! 1. what needs time is waited for (`prepare`): the application's hooks, xenstore's answers;
//! 2. with nothing else running any more, each subsystem is brought to rest (`suspend`), from
//!    the application downwards;
//! 3. pages that have changed are collected for the last time, and the domain is suspended;
//! 4. the hypercall returns, and all go on (`resume`) in reverse order: by now shared info,
//!    ports, grants, clocks may be another domain's.
//!
//! Whoever asked may give up until step 3; then steps 2 and 4 are done without 3, and
//! everything is as it was.

use crate::{
    console, dirty, evtchn, evtchn::Id, hypercall, lifecycle::Where, mm::balloon, shared_info,
    single::Single, start, time, xenstore,
};
use alloc::{boxed::Box, string::String};
use core::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    sync::atomic::Ordering,
    task::Poll,
};
use xen_proto::{
    boot::{Kind, Records},
    console::{
        GUEST_BALLOONS, GUEST_FLAGS, GUEST_SUSPENDS, HOST_TRACK, MESSAGE, RESUME, RESUME_HEAD, RESUME_LEN,
    },
    frame::Pfn,
};

pub(crate) use xen_proto::suspend::Reason;

/// All that must be brought to rest, in that order: who uses something comes before it.
fn subsystems() -> impl DoubleEndedIterator<Item = &'static Subsystem> {
    let all = [
        optional(Slot::Hooks),
        optional(Slot::Net),
        optional(Slot::Random),
        Some(&xenstore::SUBSYSTEM),
        optional(Slot::Grants),
        Some(&console::SUBSYSTEM),
        Some(&evtchn::SUBSYSTEM),
        Some(&time::SUBSYSTEM),
        Some(&start::SUBSYSTEM),
        Some(&shared_info::SUBSYSTEM),
    ];
    all.into_iter().flatten()
}

/// What a part of the library OS does when the capsule is suspended. None of it may fail.
pub(crate) struct Subsystem {
    /// Begins what takes time, while all tasks go on; more may be asked of the subsystem meanwhile.
    pub(crate) prepare: fn(Reason) -> Option<BoxFuture>,
    /// Brings it to rest. Nobody else runs until `resume`.
    pub(crate) suspend: fn(),
    /// Goes on. May come without `prepare` being done.
    pub(crate) resume: fn(&Resume<'_>),
    /// Names pages that are not what they seem; see [`dirty`].
    pub(crate) mark: fn(&mut dyn FnMut(Mark, Pfn)),
}

pub(crate) type BoxFuture = Pin<Box<dyn Future<Output = ()>>>;

impl Subsystem {
    /// Does nothing; for what a subsystem has no use for.
    pub(crate) const NOTHING: Self = Self { prepare: |_| None, suspend: || (), resume: |_| (), mark: |_| () };
}

/// Subsystems that are not in every capsule, and register when they are first used.
#[derive(Clone, Copy)]
pub(crate) enum Slot {
    /// [`lifecycle`](crate::lifecycle).
    Hooks,
    /// The network.
    Net,
    /// [`random`](crate::random).
    Random,
    /// [`gnttab`](crate::gnttab).
    Grants,
}

static OPTIONAL: Single<[Cell<Option<&Subsystem>>; 4]> = Single::new([const { Cell::new(None) }; 4]);

/// Takes part from now on.
pub(crate) fn register(slot: Slot, subsystem: &'static Subsystem) {
    OPTIONAL[slot as usize].set(Some(subsystem));
}

fn optional(slot: Slot) -> Option<&'static Subsystem> {
    OPTIONAL[slot as usize].get()
}

/// What is particular about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Its content does not matter.
    Void,
    /// Others than this processor write it.
    Always,
    /// A page that is not the domain's own is mapped in its place.
    Replaced,
    /// There was such a page in its place.
    Remapped,
}

/// Calls `mark` for all pages that are particular.
pub(crate) fn marks(mark: &mut dyn FnMut(Mark, Pfn)) {
    subsystems().for_each(|subsystem| (subsystem.mark)(mark));
}

/// How the capsule goes on.
pub(crate) struct Resume<'a> {
    /// Where.
    pub(crate) place: Where,
    records: &'a [u8],
}

impl<'a> Resume<'a> {
    /// Whether the domain is another one.
    pub(crate) fn is_new(&self) -> bool {
        self.place != Where::Cancelled
    }

    /// What the host says, as in the boot module; nothing if the domain is not new.
    pub(crate) fn records(&self) -> Records<'a> {
        Records::new(self.records)
    }

    fn find(&self, wanted: Kind) -> Option<&'a [u8]> {
        self.records().find(|&(kind, _)| kind == wanted as u32).map(|(_, body)| body)
    }

    /// Nanoseconds that the capsule has stood still for, as far as the host knows.
    pub(crate) fn stood_ns(&self) -> u64 {
        self.find(Kind::Stood)
            .and_then(|body| body.first_chunk())
            .map_or(0, |&bytes| u64::from_le_bytes(bytes))
    }
}

/// What the host has given to this domain, if it is not the first.
struct Given {
    seed: Cell<[u8; 32]>,
    name: RefCell<Option<String>>,
}

static GIVEN: Single<Given> = Single::new(Given { seed: Cell::new([0; 32]), name: RefCell::new(None) });

/// Entropy for this domain alone; zeros if there is none.
pub(crate) fn seed() -> [u8; 32] {
    GIVEN.seed.get()
}

/// The capsule's name, if it has got a new one.
pub(crate) fn new_name() -> Option<String> {
    GIVEN.name.borrow().clone()
}

/// Does what the host asks for in the console page, as long as the capsule lives.
pub(crate) async fn serve() {
    let Some(page) = console::status_page() else { return };
    page.u32(GUEST_FLAGS).store(GUEST_SUSPENDS | GUEST_BALLOONS, Ordering::Release);
    loop {
        let reason = poll_fn(|cx| {
            let flags = console::host_flags();
            dirty::serve(flags & HOST_TRACK != 0);
            balloon::serve(flags);
            match Reason::requested(flags) {
                Some(reason) => Poll::Ready(reason),
                None => {
                    evtchn::wake_on(Id::Console, cx.waker());
                    Poll::Pending
                }
            }
        });
        suspend(reason.await, || Reason::requested(console::host_flags()).is_some()).await;
    }
}

/// Suspends the capsule, unless whoever wants it does not any more, or it is about to be anyway.
pub(crate) async fn suspend(reason: Reason, is_wanted: impl Fn() -> bool) {
    static BUSY: Single<Cell<bool>> = Single::new(Cell::new(false));
    if BUSY.replace(true) {
        return;
    }
    let is_prepared = prepare(reason, &is_wanted).await;
    freeze(|| is_prepared && is_wanted());
    BUSY.set(false);
}

/// Waits until everything is ready to be suspended; returns whether it is.
async fn prepare(reason: Reason, is_wanted: &impl Fn() -> bool) -> bool {
    for subsystem in subsystems() {
        let Some(mut ready) = (subsystem.prepare)(reason) else { continue };
        let is_ready = poll_fn(|cx| {
            if ready.as_mut().poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            if !is_wanted() {
                return Poll::Ready(false);
            }
            evtchn::wake_on(Id::Console, cx.waker());
            Poll::Pending
        });
        if !is_ready.await {
            return false;
        }
    }
    true
}

/// Brings everything to rest, suspends the domain if that is still wanted, and goes on.
fn freeze(is_wanted: impl Fn() -> bool) {
    for subsystem in subsystems() {
        (subsystem.suspend)();
    }
    let is_new = is_wanted() && {
        dirty::last_round();
        let start_info = start::machine_frame(start::info().frame());
        // SAFETY: everything has been brought to rest for this, and is set up anew below.
        unsafe { hypercall::suspend(start_info) }
    };
    let mut records = [0; RESUME_LEN];
    let place = match (is_new, Reason::from_flags(console::host_flags())) {
        (false, _) => Where::Cancelled,
        (true, Reason::Clone) => Where::Cloned,
        (true, _) => Where::NewHost,
    };
    if is_new && let Some(page) = console::status_page() {
        let (head, rest) = records.split_at_mut(RESUME_HEAD);
        page.read(RESUME, head);
        page.read(MESSAGE, rest);
    }
    let resume = Resume { place, records: &records };
    if let Some(seed) = resume.find(Kind::Seed).and_then(|body| body.first_chunk()) {
        GIVEN.seed.set(*seed);
    }
    if let Some(name) = resume.find(Kind::Name) {
        GIVEN.name.replace(Some(String::from_utf8_lossy(name).into_owned()));
    }
    dirty::resume(is_new);
    for subsystem in subsystems().rev() {
        (subsystem.resume)(&resume);
    }
}
