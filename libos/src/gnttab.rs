//! Grants: letting another domain use a page.

use crate::{
    arch,
    hypercall::{self, Errno},
    mm::Page,
    single::Single,
};
use alloc::{vec, vec::Vec};
use core::{cell::RefCell, fmt, mem::ManuallyDrop, ops::Deref, sync::atomic::Ordering};
use xen_proto::{
    DomId,
    frame::Mfn,
    gnttab::{self, ENTRIES_PER_FRAME, ENTRY_LEN, Entry, FIRST_FREE, PERMIT_ACCESS, READ_ONLY},
};

pub use xen_proto::gnttab::GrantRef;

static TABLE: Single<RefCell<Table>> =
    Single::new(RefCell::new(Table { frames: Vec::new(), free: Vec::new() }));

struct Table {
    /// Pages in whose place the table's frames are mapped.
    frames: Vec<ManuallyDrop<Page>>,
    free: Vec<GrantRef>,
}

impl Table {
    fn take_free(&mut self) -> Result<GrantRef, Errno> {
        if self.free.is_empty() {
            self.grow()?;
        }
        Ok(self.free.pop().expect("a frame has entries"))
    }

    fn grow(&mut self) -> Result<(), Errno> {
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

    fn entry(&self, reference: GrantRef) -> &core::sync::atomic::AtomicU64 {
        let frame = &self.frames[(reference.0 / ENTRIES_PER_FRAME) as usize];
        frame.u64((reference.0 % ENTRIES_PER_FRAME) as usize * ENTRY_LEN)
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
        let mut table = TABLE.borrow_mut();
        let reference = table.take_free()?;
        let flags = match access {
            Access::ReadOnly => PERMIT_ACCESS | READ_ONLY,
            Access::ReadWrite => PERMIT_ACCESS,
        };
        let entry = Entry { domid: domain, frame: page.mfn() }.emit(flags).expect("a frame below 16 TiB");
        // One store for all of the entry: the other side sees nothing or everything.
        table.entry(reference).store(entry, Ordering::Release);
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
        let mut table = TABLE.borrow_mut();
        let ended = table.entry(self.reference).try_update(Ordering::AcqRel, Ordering::Acquire, |entry| {
            (!gnttab::in_use(gnttab::flags(entry))).then_some(0)
        });
        if ended.is_ok() {
            table.free.push(self.reference);
            // SAFETY: it is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.page) };
        }
    }
}
