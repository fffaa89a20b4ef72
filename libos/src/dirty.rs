//! Telling the host which pages have changed, while it copies the capsule.
//!
//! The protocol, and what the bitmaps mean, is in [`xen_proto::dirty`]. Nothing is
//! allocated and nothing costs time before the host asks.

use crate::{
    arch::{self, Then},
    console,
    mm::{Pages, heap},
    single::Single,
    suspend::{self, Mark},
};
use core::{cell::RefCell, sync::atomic::Ordering};
use xen_proto::{
    console::{NO_TRACKING, TRACKING},
    dirty::{ANSWER, Bitmap, LAST, REQUEST, Tracking, bitmap_frames, bitmap_words},
    frame::Pfn,
};

static STATE: Single<RefCell<State>> = Single::new(RefCell::new(State::Off));

enum State {
    Off,
    /// There is no memory for it.
    Refused,
    On(Tracker),
}

/// Starts, ends, and answers, as the host's flag and the tracking page say.
pub(crate) fn serve(is_wanted: bool) {
    let mut state = STATE.borrow_mut();
    match (&*state, is_wanted) {
        (State::Off, true) => {
            *state = Tracker::new().map_or(State::Refused, State::On);
            announce(match &*state {
                State::On(tracker) => tracker.head().0 as u32,
                _ => NO_TRACKING,
            });
        }
        (State::On(tracker), true) => tracker.answer(),
        (State::On(_) | State::Refused, false) => {
            announce(0);
            *state = State::Off;
        }
        (State::Off, false) | (State::Refused, true) => {}
    }
}

/// Tells the host where the tracking page is.
fn announce(frame: u32) {
    if let Some(page) = console::status_page() {
        page.u32(TRACKING).store(frame, Ordering::Release);
        console::notify();
    }
}

/// Collects for the last time; the domain is suspended right after this.
pub(crate) fn last_round() {
    if let State::On(tracker) = &*STATE.borrow() {
        tracker.fill(Then::Leave);
        tracker.pages.page(0).u32(LAST).store(1, Ordering::Release);
    }
}

/// Goes on tracking if the domain is the same, and ends it in another.
pub(crate) fn resume(is_new: bool) {
    let mut state = STATE.borrow_mut();
    if let State::On(tracker) = &*state {
        tracker.pages.page(0).u32(LAST).store(0, Ordering::Release);
    }
    if is_new {
        *state = State::Off;
        if let Some(page) = console::status_page() {
            page.u32(TRACKING).store(0, Ordering::Release);
        }
    }
}

/// The tracking page, with the bitmaps behind it.
struct Tracker {
    pages: Pages,
    /// Pages that each bitmap takes.
    span: usize,
    /// Pages that are tracked.
    tracked: u64,
}

impl Tracker {
    fn new() -> Option<Self> {
        let tracked = arch::usable_frames();
        let span = bitmap_frames(tracked) as usize;
        let tracker = Self { pages: Pages::new(1 + 3 * span)?, span, tracked };
        let bitmap = |index: u64| Pfn(tracker.head().0 + 1 + index * span as u64);
        let head = Tracking { pages: tracked, dirty: bitmap(0), void: bitmap(1), always: bitmap(2) };
        tracker.pages.page(0).write(0, &head.emit());
        tracker.fill(Then::Clear);
        Some(tracker)
    }

    /// The tracking page.
    fn head(&self) -> Pfn {
        self.pages.frames().start
    }

    fn bitmap(&self, index: usize) -> Bitmap<'_> {
        Bitmap::new(self.pages.words(1 + index * self.span, bitmap_words(self.tracked)))
    }

    /// Answers the host, if it asks.
    fn answer(&self) {
        let page = self.pages.page(0);
        let request = page.u32(REQUEST).load(Ordering::Acquire);
        if request != page.u32(ANSWER).load(Ordering::Relaxed) {
            self.fill(Then::Clear);
            page.u32(ANSWER).store(request, Ordering::Release);
            console::notify();
        }
    }

    /// Fills the bitmaps.
    ///
    /// Pages that the last round finds must be whole when this returns, but for what is marked
    /// `Always`: what follows until the domain stands still writes the stack at most.
    fn fill(&self, then: Then) {
        let [dirty, void, always] = [0, 1, 2].map(|index| self.bitmap(index));
        [dirty, void, always].iter().for_each(Bitmap::clear);
        void.insert_range(self.pages.frames());
        heap::free_pages(&mut |pages| void.insert_range(pages));
        let is_remapped = arch::take_remapped();
        suspend::marks(&mut |mark, page| {
            match mark {
                Mark::Void | Mark::Replaced => void.insert(page),
                Mark::Always => always.insert(page),
                Mark::Remapped => {}
            }
            if is_remapped
                && matches!(mark, Mark::Replaced | Mark::Remapped)
                && let Some(table) = arch::table_of(page)
            {
                dirty.insert(table);
            }
        });
        arch::collect_dirty(heap::first_page(), then, |index, pages| {
            // What is void keeps its dirty bit: it counts when it is in use again.
            let pages = pages & !void.word(index);
            dirty.insert_word(index, pages);
            pages & !always.word(index)
        });
        let stack = arch::frame_at(arch::frame_pointer());
        dirty.insert_range(Pfn(stack.0.saturating_sub(1))..Pfn(stack.0 + 1));
    }
}
