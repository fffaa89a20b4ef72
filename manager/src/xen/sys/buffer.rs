//! Memory that hypercalls may work on, and hypercalls that libxenctrl does not offer.

use std::{
    ffi::{c_int, c_void},
    io,
    marker::PhantomData,
    ptr::NonNull,
    slice,
};

use xen_proto::frame::PAGE_SIZE;
use xenctrl_sys as xc;

#[repr(C)]
struct Handle {
    _opaque: [u8; 0],
    _not_ours: PhantomData<*mut u8>,
}

// xencall.h
#[link(name = "xencall")]
unsafe extern "C" {
    fn xencall_open(logger: *mut c_void, open_flags: u32) -> *mut Handle;
    fn xencall_close(handle: *mut Handle) -> c_int;
    fn xencall2(handle: *mut Handle, op: u32, arg1: u64, arg2: u64) -> c_int;
    fn xencall4(handle: *mut Handle, op: u32, arg1: u64, arg2: u64, arg3: u64, arg4: u64) -> c_int;
    fn xencall_alloc_buffer_pages(handle: *mut Handle, pages: usize) -> *mut c_void;
    fn xencall_free_buffer_pages(handle: *mut Handle, pointer: *mut c_void, pages: usize);
}

/// `__HYPERVISOR_mmu_update`
const MMU_UPDATE: u32 = 1;
/// `__HYPERVISOR_multicall`
const MULTICALL: u32 = 13;
/// `__HYPERVISOR_update_va_mapping_otherdomain`
const UPDATE_VA_MAPPING: u64 = 22;
/// `UVMF_TLB_FLUSH | UVMF_ALL`: no processor remembers what was there.
const FLUSH: u64 = 1 | 1 << 2;
/// Words of a `multicall_entry`: operation, result, six arguments.
const CALL_WORDS: usize = 8;
/// Calls that fill a page, of which the library keeps some ready.
const CALLS: usize = PAGE_SIZE / 8 / CALL_WORDS;

/// The door to hypercalls that have no binding.
#[derive(Debug)]
pub(super) struct Calls {
    handle: NonNull<Handle>,
}

// SAFETY: xencall.h: calls on one handle may come from any thread.
unsafe impl Send for Calls {}
// SAFETY: as above; the library locks its cache of buffers.
unsafe impl Sync for Calls {}

impl Drop for Calls {
    fn drop(&mut self) {
        // SAFETY: opened in `open`, closed only here; buffers borrow it.
        unsafe { xencall_close(self.handle.as_ptr()) };
    }
}

impl Calls {
    /// Opens the door.
    ///
    /// # Errors
    /// If this is no dom0 of Xen.
    pub(super) fn open() -> io::Result<Self> {
        // SAFETY: a null logger is documented to mean stderr.
        let handle = unsafe { xencall_open(std::ptr::null_mut(), 0) };
        NonNull::new(handle).map(|handle| Self { handle }).ok_or_else(io::Error::last_os_error)
    }

    /// Zeroed words in memory that stays where it is, so that Xen can work on it.
    ///
    /// # Errors
    /// If there is no memory.
    pub(super) fn buffer(&self, words: usize) -> io::Result<Buffer<'_>> {
        let pages = (words * 8).div_ceil(PAGE_SIZE).max(1);
        // SAFETY: the handle is open.
        let base = unsafe { xencall_alloc_buffer_pages(self.handle.as_ptr(), pages) };
        let base = NonNull::new(base.cast::<u64>()).ok_or_else(io::Error::last_os_error)?;
        let mut buffer = Buffer { calls: self, base, words, pages };
        buffer.fill(0);
        Ok(buffer)
    }

    /// Makes requests `mmu_update`, each two words, to do with pages of a domain. Page tables that
    /// they name are the domain's, too, or else our own.
    ///
    /// # Errors
    /// If Xen refuses one of them; those before it are done.
    pub(super) fn mmu_update(&self, domid: u32, own_tables: bool, updates: &[(u64, u64)]) -> io::Result<()> {
        let mut buffer = self.buffer(updates.len() * 2)?;
        for (slot, &(ptr, val)) in buffer.as_chunks_mut::<2>().0.iter_mut().zip(updates) {
            *slot = [ptr, val];
        }
        // Who owns the tables is the upper half, plus one; who owns the pages is the lower one.
        let tables = if own_tables { 0 } else { domid + 1 };
        let owner = u64::from(domid) | u64::from(tables) << 16;
        // SAFETY: the buffer has `updates.len()` structures `mmu_update`, two u64 each.
        let result = unsafe {
            xencall4(
                self.handle.as_ptr(),
                MMU_UPDATE,
                buffer.base.as_ptr() as u64,
                updates.len() as u64,
                0,
                owner,
            )
        };
        super::check(result).map(drop)
    }

    /// Sets entries of this process's own page tables, one for each page from the virtual address
    /// `base` on, to frames of a domain; says which of them Xen has set.
    ///
    /// # Errors
    /// If nothing can be asked of Xen.
    ///
    /// # Safety
    /// The addresses belong to one mapping of foreign memory, to which nobody has a reference, and
    /// whose page tables the kernel has made.
    pub(super) unsafe fn set_own_entries(
        &self,
        base: u64,
        domid: u32,
        entries: &[u64],
    ) -> io::Result<Vec<bool>> {
        let mut done = Vec::with_capacity(entries.len());
        let address = |index: usize| base + (index * PAGE_SIZE) as u64;
        for chunk in entries.chunks(CALLS) {
            let first = done.len();
            let mut buffer = self.buffer(chunk.len() * CALL_WORDS)?;
            for (index, (call, &entry)) in buffer.as_chunks_mut().0.iter_mut().zip(chunk).enumerate() {
                let flush = if first + index + 1 == entries.len() { FLUSH } else { 0 };
                *call = own_entry(address(first + index), entry, flush, domid);
            }
            // SAFETY: what is changed is the caller's.
            unsafe { self.multicall(&mut buffer) }?;
            done.extend(buffer.as_chunks::<CALL_WORDS>().0.iter().map(|call| call[1] == 0));
        }
        // Where the last one was refused, processors still remember what was there before.
        if let (Some(false), Some(index)) = (done.last(), done.iter().rposition(|&done| done)) {
            let mut buffer = self.buffer(CALL_WORDS)?;
            buffer.copy_from_slice(&own_entry(address(index), entries[index], FLUSH, domid));
            // SAFETY: as above; the entry is what it was.
            unsafe { self.multicall(&mut buffer) }?;
        }
        Ok(done)
    }

    /// Makes several hypercalls; each leaves its result in its second word.
    ///
    /// # Safety
    /// Whatever the calls name is the caller's to change.
    unsafe fn multicall(&self, calls: &mut Buffer<'_>) -> io::Result<()> {
        let (address, count) = (calls.base.as_ptr() as u64, calls.len() / CALL_WORDS);
        // SAFETY: the buffer has as many structures `multicall_entry`.
        super::check(unsafe { xencall2(self.handle.as_ptr(), MULTICALL, address, count as u64) }).map(drop)
    }
}

/// The call that sets an entry of our own page tables to a frame of a domain.
fn own_entry(address: u64, entry: u64, flush: u64, domid: u32) -> [u64; CALL_WORDS] {
    [UPDATE_VA_MAPPING, 0, address, entry, flush, domid.into(), 0, 0]
}

/// Words that a hypercall can read and write; given back on drop.
#[derive(Debug)]
pub(super) struct Buffer<'a> {
    calls: &'a Calls,
    base: NonNull<u64>,
    words: usize,
    pages: usize,
}

impl Buffer<'_> {
    /// Where it is, for a hypercall's argument.
    pub(super) fn pointer(&mut self) -> *mut u64 {
        self.base.as_ptr()
    }

    /// For libxenctrl's calls that want a description of the buffer.
    pub(super) fn describe(&mut self) -> xc::xc_hypercall_buffer {
        xc::xc_hypercall_buffer { hbuf: self.base.as_ptr().cast(), sz: self.words * 8, ..Default::default() }
    }
}

impl std::ops::Deref for Buffer<'_> {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        // SAFETY: as many words were allocated, page-aligned and zeroed; Xen writes to them only
        // during calls, which borrow the buffer mutably.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl std::ops::DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u64] {
        // SAFETY: as in `deref`.
        unsafe { slice::from_raw_parts_mut(self.base.as_ptr(), self.words) }
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated from this handle with as many pages.
        unsafe {
            xencall_free_buffer_pages(self.calls.handle.as_ptr(), self.base.as_ptr().cast(), self.pages);
        }
    }
}
