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
    fn xencall4(handle: *mut Handle, op: u32, arg1: u64, arg2: u64, arg3: u64, arg4: u64) -> c_int;
    fn xencall_alloc_buffer_pages(handle: *mut Handle, pages: usize) -> *mut c_void;
    fn xencall_free_buffer_pages(handle: *mut Handle, pointer: *mut c_void, pages: usize);
}

/// `__HYPERVISOR_mmu_update`
const MMU_UPDATE: u32 = 1;

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
