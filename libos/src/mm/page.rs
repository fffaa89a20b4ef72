//! Pages that another domain, or Xen, reads and writes at the same time.

use crate::{arch, start};
use alloc::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use core::{
    ops::{Deref, Range},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};
use xen_proto::frame::{Mfn, PAGE_SIZE, Pfn};

/// A page that others may change at any time.
///
/// There is never a reference to its bytes: words are read and written as atomics,
/// and bytes are copied. What was copied is then ours to check.
#[derive(Clone, Copy, Debug)]
pub struct SharedPage {
    address: NonNull<u8>,
}

impl SharedPage {
    /// The domain's frame `pfn`, which others share.
    pub(crate) fn of_frame(pfn: Pfn) -> Self {
        let address = core::ptr::with_exposed_provenance_mut(arch::address_of(pfn));
        // SAFETY: all frames of the domain are mapped; one that was not would be a broken promise of the builder.
        unsafe { Self::new(NonNull::new(address).expect("frames are not mapped at 0")) }
    }

    pub(crate) fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// The page at `address`.
    ///
    /// # Safety
    /// It must be a page, stay mapped as long as this or a copy is used, and
    /// nothing may hold references into it.
    pub(crate) unsafe fn new(address: NonNull<u8>) -> Self {
        Self { address }
    }

    fn at(&self, range: Range<usize>) -> NonNull<u8> {
        assert!(range.start <= range.end && range.end <= PAGE_SIZE, "inside of the page");
        // SAFETY: inside of the page, as just checked.
        unsafe { self.address.add(range.start) }
    }

    /// The word at byte `offset`.
    ///
    /// # Panics
    /// If it is misaligned or outside.
    pub fn u32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4));
        // SAFETY: an aligned word in the page, which others may change, as atomics allow.
        unsafe { self.at(offset..offset + 4).cast().as_ref() }
    }

    /// The double word at byte `offset`.
    ///
    /// # Panics
    /// If it is misaligned or outside.
    pub fn u64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8));
        // SAFETY: an aligned double word in the page, which others may change, as atomics allow.
        unsafe { self.at(offset..offset + 8).cast().as_ref() }
    }

    /// Copies the bytes from `offset` on into `bytes`.
    ///
    /// # Panics
    /// If they are not all inside of the page.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset..offset + bytes.len());
        // SAFETY: both places are valid. Should the other side write at the same
        // time, against the protocol, then what arrives is arbitrary, but ours.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Copies `bytes` into the page from `offset` on.
    ///
    /// # Panics
    /// If they do not all fit.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset..offset + bytes.len());
        // SAFETY: both places are valid, and nothing holds references into the page.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) }
    }
}

/// A page of our own, zeroed, to be shared with another domain.
#[derive(Debug)]
pub struct Page(SharedPage);

const PAGE: Layout = match Layout::from_size_align(PAGE_SIZE, PAGE_SIZE) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};

impl Page {
    /// Takes a page from the heap.
    pub fn new() -> Self {
        // SAFETY: the layout has a size.
        let page = NonNull::new(unsafe { alloc_zeroed(PAGE) }).unwrap_or_else(|| handle_alloc_error(PAGE));
        // SAFETY: it is a page and ours alone until it is dropped.
        Self(unsafe { SharedPage::new(page) })
    }

    /// The machine frame that it is in.
    pub fn mfn(&self) -> Mfn {
        start::machine_frame(self.frame())
    }

    /// The domain's frame that it is in.
    pub(crate) fn frame(&self) -> Pfn {
        arch::frame_at(self.address().addr().get())
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Page {
    type Target = SharedPage;

    fn deref(&self) -> &SharedPage {
        &self.0
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: it came from the heap with the same layout.
        unsafe { dealloc(self.address().as_ptr(), PAGE) }
    }
}

/// Pages of our own that follow each other, zeroed, to be shared with another domain.
#[derive(Debug)]
pub(crate) struct Pages {
    first: NonNull<u8>,
    layout: Layout,
}

impl Pages {
    /// Takes `count` pages from the heap, if it has them.
    pub(crate) fn new(count: usize) -> Option<Self> {
        let layout = Layout::from_size_align(count.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()?;
        assert!(count > 0);
        // SAFETY: the layout has a size.
        let first = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { first, layout })
    }

    /// The frames that they are in.
    pub(crate) fn frames(&self) -> Range<Pfn> {
        let first = arch::frame_at(self.first.addr().get());
        first..Pfn(first.0 + (self.layout.size() / PAGE_SIZE) as u64)
    }

    /// The page number `index`.
    pub(crate) fn page(&self, index: usize) -> SharedPage {
        assert!(index < self.layout.size() / PAGE_SIZE);
        // SAFETY: a page among ours.
        unsafe { SharedPage::new(self.first.add(index * PAGE_SIZE)) }
    }

    /// The bytes in `range`, counted from the first page on.
    ///
    /// # Safety
    /// Nobody may write them as long as the reference is used: neither we, nor who was told that
    /// it may.
    ///
    /// # Panics
    /// If they are not all inside of the pages.
    pub(crate) unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.layout.size());
        // SAFETY: inside of the pages; the caller vouches for the rest.
        unsafe { core::slice::from_raw_parts(self.first.add(range.start).as_ptr(), range.len()) }
    }

    /// The bytes in `range`, counted from the first page on, to be written.
    ///
    /// # Safety
    /// Nobody else may use them as long as the reference is used.
    ///
    /// # Panics
    /// If they are not all inside of the pages.
    pub(crate) unsafe fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.layout.size());
        // SAFETY: inside of the pages; the caller vouches for the rest.
        unsafe { core::slice::from_raw_parts_mut(self.first.add(range.start).as_ptr(), range.len()) }
    }

    /// `count` double words from the page number `index` on.
    pub(crate) fn words(&self, index: usize, count: usize) -> &[AtomicU64] {
        assert!(index * PAGE_SIZE + count * 8 <= self.layout.size());
        // SAFETY: inside of the pages, aligned, and atomics may be changed by others.
        unsafe { core::slice::from_raw_parts(self.first.add(index * PAGE_SIZE).cast().as_ptr(), count) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: they came from the heap with the same layout.
        unsafe { dealloc(self.first.as_ptr(), self.layout) }
    }
}
