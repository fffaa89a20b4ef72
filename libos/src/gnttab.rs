//! Grants: letting another domain use a page.

use crate::{
    arch,
    hypercall::{self, Errno},
    mm::{Page, Pages},
    single::Single,
    start,
    suspend::{self, Mark, Resume, Slot, Subsystem},
};
use alloc::{vec, vec::Vec};
use core::{
    cell::RefCell,
    fmt,
    mem::ManuallyDrop,
    ops::{Deref, DerefMut, Range},
    sync::atomic::{AtomicU64, Ordering},
};
use xen_proto::{
    DomId,
    frame::{Mfn, Pfn},
    gnttab::{self, ENTRIES_PER_FRAME, ENTRY_LEN, Entry, FIRST_FREE, PERMIT_ACCESS, READ_ONLY},
};

pub use xen_proto::gnttab::GrantRef;

static TABLE: Single<RefCell<Table>> =
    Single::new(RefCell::new(Table { frames: Vec::new(), suspended: false, free: Vec::new() }));

struct Table {
    /// Pages in whose place the table's frames are mapped, but for when the capsule is
    /// suspended: then they hold a copy of the entries, with our own frame numbers.
    frames: Vec<ManuallyDrop<Page>>,
    suspended: bool,
    free: Vec<GrantRef>,
}

/// Content of a frame of the table.
type Entries = [u64; ENTRIES_PER_FRAME as usize];

impl Table {
    fn take_free(&mut self) -> Result<GrantRef, Errno> {
        if self.free.is_empty() {
            self.grow()?;
        }
        Ok(self.free.pop().expect("a frame has entries"))
    }

    fn grow(&mut self) -> Result<(), Errno> {
        suspend::register(Slot::Grants, &SUBSYSTEM);
        let count = self.frames.len();
        let mut mfns = vec![0; count + 1];
        hypercall::setup_grant_table(&mut mfns)?;
        let page = ManuallyDrop::new(Page::new());
        // SAFETY: the page was just made, holds nothing, and is never given back.
        unsafe { arch::map_at(page.address().addr().get(), Mfn(mfns[count])) };
        self.frames.push(page);
        let first = count as u32 * ENTRIES_PER_FRAME;
        let references = first.max(FIRST_FREE.0)..first + ENTRIES_PER_FRAME;
        self.free.extend(references.rev().map(GrantRef));
        Ok(())
    }

    /// Lets `domain` use a frame.
    fn allow(&mut self, frame: Mfn, domain: DomId, access: Access) -> Result<GrantRef, Errno> {
        let reference = self.take_free()?;
        let flags = match access {
            Access::ReadOnly => PERMIT_ACCESS | READ_ONLY,
            Access::ReadWrite => PERMIT_ACCESS,
        };
        let entry = Entry { domid: domain, frame }.emit(flags).expect("a frame below 16 TiB");
        // One store for all of the entry: the other side sees nothing or everything.
        self.entry(reference).store(entry, Ordering::Release);
        Ok(reference)
    }

    /// Ends that; `false` if the other domain still has the page mapped.
    fn end(&mut self, reference: GrantRef) -> bool {
        let ended = self.entry(reference).try_update(Ordering::AcqRel, Ordering::Acquire, |entry| {
            (!gnttab::in_use(gnttab::flags(entry))).then_some(0)
        });
        if ended.is_ok() {
            self.free.push(reference);
        }
        ended.is_ok()
    }

    fn entry(&self, reference: GrantRef) -> &AtomicU64 {
        let frame = &self.frames[(reference.0 / ENTRIES_PER_FRAME) as usize];
        frame.u64((reference.0 % ENTRIES_PER_FRAME) as usize * ENTRY_LEN)
    }

    /// The entries of a frame that are ours.
    fn entries(&self, frame: usize) -> impl Iterator<Item = &AtomicU64> {
        let first = frame as u32 * ENTRIES_PER_FRAME;
        let references = first.max(FIRST_FREE.0)..first + ENTRIES_PER_FRAME;
        references.map(|reference| self.entry(GrantRef(reference)))
    }

    fn suspend(&mut self) {
        for (at, page) in self.frames.iter().enumerate() {
            let mut entries: Entries = [0; _];
            for (copy, entry) in entries.iter_mut().zip(self.entries(at)) {
                *copy = translated(entry.load(Ordering::Relaxed), |mfn| arch::own_frame(Mfn(mfn)).0);
            }
            // SAFETY: nothing else refers to the place, which gets its own page back.
            unsafe { arch::map_at(page.address().addr().get(), page.mfn()) };
            for (entry, copy) in self.entries(at).zip(entries) {
                entry.store(copy, Ordering::Relaxed);
            }
        }
        self.suspended = true;
    }

    fn resume(&mut self, is_new: bool) {
        self.suspended = false;
        let mut mfns = vec![0; self.frames.len()];
        hypercall::setup_grant_table(&mut mfns).expect("the grant table has the size that it had");
        for (at, (page, mfn)) in self.frames.iter().zip(mfns).enumerate() {
            let mut entries: Entries = [0; _];
            for (copy, entry) in entries.iter_mut().zip(self.entries(at)) {
                *copy = entry.load(Ordering::Relaxed);
            }
            // SAFETY: as in `grow`; the content has been copied.
            unsafe { arch::map_at(page.address().addr().get(), Mfn(mfn)) };
            if is_new {
                for (entry, copy) in self.entries(at).zip(entries) {
                    entry.store(granted_again(copy), Ordering::Release);
                }
            }
        }
    }
}

/// The entry with another number for the frame, if it grants anything; otherwise nothing.
fn translated(entry: u64, frame: impl FnOnce(u64) -> u64) -> u64 {
    let flags = gnttab::flags(entry) & (PERMIT_ACCESS | READ_ONLY);
    if flags & PERMIT_ACCESS == 0 {
        return 0;
    }
    let Entry { domid, frame: Mfn(old) } = Entry::parse(entry);
    Entry { domid, frame: Mfn(frame(old)) }.emit(flags).expect("a frame below 16 TiB")
}

/// The entry for a new domain, from one with our own frame number: what dom0 could use, dom0 can
/// use again. Other domains are not the same ones there.
fn granted_again(copy: u64) -> u64 {
    if Entry::parse(copy).domid != DomId::DOM0 {
        return 0;
    }
    translated(copy, |own| start::machine_frame(Pfn(own)).0)
}

/// The table, which belongs to the domain and names machine frames.
static SUBSYSTEM: Subsystem = Subsystem { suspend, resume, mark, ..Subsystem::NOTHING };

fn suspend() {
    TABLE.borrow_mut().suspend();
}

fn resume(resume: &Resume<'_>) {
    TABLE.borrow_mut().resume(resume.is_new());
}

fn mark(mark: &mut dyn FnMut(Mark, Pfn)) {
    let table = TABLE.borrow();
    for (at, page) in table.frames.iter().enumerate() {
        let writable = |entry: u64| gnttab::flags(entry) & (PERMIT_ACCESS | READ_ONLY) == PERMIT_ACCESS;
        for entry in
            table.entries(at).map(|entry| entry.load(Ordering::Relaxed)).filter(|&entry| writable(entry))
        {
            let Mfn(frame) = Entry::parse(entry).frame;
            mark(Mark::Always, if table.suspended { Pfn(frame) } else { arch::own_frame(Mfn(frame)) });
        }
        mark(if table.suspended { Mark::Remapped } else { Mark::Replaced }, page.frame());
    }
}

/// What the other domain may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    ReadOnly,
    /// Read and write it.
    ReadWrite,
}

/// A page that another domain may use.
///
/// Dropping it ends that, and frees the page. Should the other domain still have
/// the page mapped then, the page is kept from being used for anything else, for
/// ever.
///
/// When the capsule goes on in another domain (see [`lifecycle`](crate::lifecycle)), dom0
/// may use the page as before, under the same number. Other domains may not: they are
/// not the same ones there.
pub struct Grant {
    reference: GrantRef,
    page: ManuallyDrop<Page>,
}

impl Grant {
    /// Lets `domain` use `page`.
    ///
    /// # Errors
    /// If the grant table is full and cannot grow.
    ///
    /// # Panics
    /// If the page is beyond 16 TiB of the machine's memory, which the table's
    /// format cannot name.
    pub fn new(page: Page, domain: DomId, access: Access) -> Result<Self, Errno> {
        let reference = TABLE.borrow_mut().allow(page.mfn(), domain, access)?;
        Ok(Self { reference, page: ManuallyDrop::new(page) })
    }

    /// The number by which the other domain finds the page.
    pub fn reference(&self) -> GrantRef {
        self.reference
    }
}

impl Deref for Grant {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.page
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grant").field(&self.reference).finish()
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if TABLE.borrow_mut().end(self.reference) {
            // SAFETY: it is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.page) };
        }
    }
}

/// Pages that follow each other and that dom0 may use; otherwise as [`Grant`].
pub(crate) struct GrantedPages {
    references: Vec<GrantRef>,
    pages: ManuallyDrop<Pages>,
}

impl GrantedPages {
    /// Lets dom0 use `pages`.
    ///
    /// # Errors
    /// If the grant table is full and cannot grow.
    pub(crate) fn new(pages: Pages, access: Access) -> Result<Self, Errno> {
        let Range { start, end } = pages.frames();
        // Dropped when one fails, which ends those before.
        let mut granted = Self { references: Vec::new(), pages: ManuallyDrop::new(pages) };
        for frame in start.0..end.0 {
            let frame = start::machine_frame(Pfn(frame));
            granted.references.push(TABLE.borrow_mut().allow(frame, DomId::DOM0, access)?);
        }
        Ok(granted)
    }

    /// The number by which dom0 finds page `index`.
    pub(crate) fn reference(&self, index: usize) -> GrantRef {
        self.references[index]
    }
}

impl Deref for GrantedPages {
    type Target = Pages;

    fn deref(&self) -> &Pages {
        &self.pages
    }
}

impl DerefMut for GrantedPages {
    fn deref_mut(&mut self) -> &mut Pages {
        &mut self.pages
    }
}

impl Drop for GrantedPages {
    fn drop(&mut self) {
        let mut table = TABLE.borrow_mut();
        let in_use = self.references.iter().filter(|&&reference| !table.end(reference)).count();
        if in_use == 0 {
            // SAFETY: they are not used after this.
            unsafe { ManuallyDrop::drop(&mut self.pages) };
        }
    }
}
