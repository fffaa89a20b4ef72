//! Pages of other domains, mapped into fcapd.
//!
//! What is mapped belongs to somebody else, who may change it at any moment. So there is never
//! a Rust reference to it: bytes are copied in and out with volatile accesses, every one of
//! them checked against the mapping's bounds.
//!
//! # Windows
//! The kernel maps 16 pages with each hypercall, and when it unmaps them Xen has to emulate its
//! write to each entry. So where pages are looked at in passing, as all of a domain's are when it
//! moves, the place stays, and Xen is asked to put the next frames there: 64 with each hypercall,
//! in one step with the removal of those before. The kernel keeps no account of such entries, which
//! are marked as special, and removes whatever it finds there in the end.

use std::{
    ffi::{c_int, c_void},
    io,
    marker::PhantomData,
    ops::Deref,
    ptr::{self, NonNull},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use xen_proto::frame::{PAGE_SHIFT, PAGE_SIZE};

use super::buffer::Calls;

/// Present, the user's, accessed, dirty, special (the kernel's bit for pages that are none of its
/// own), not to be executed: as the kernel maps foreign pages.
const ENTRY: u64 = 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 63;
/// In an entry: may be written to.
const WRITABLE: u64 = 1 << 1;
/// Frames have numbers below this, or would reach into an entry's other bits.
const FRAMES: u64 = 1 << 40;

#[repr(C)]
struct Handle {
    _opaque: [u8; 0],
    _not_ours: PhantomData<*mut u8>,
}

// xenforeignmemory.h
#[link(name = "xenforeignmemory")]
unsafe extern "C" {
    fn xenforeignmemory_open(logger: *mut c_void, open_flags: u32) -> *mut Handle;
    fn xenforeignmemory_close(handle: *mut Handle) -> c_int;
    fn xenforeignmemory_map(
        handle: *mut Handle,
        domid: u32,
        protection: c_int,
        pages: usize,
        frames: *const u64,
        errors: *mut c_int,
    ) -> *mut c_void;
    fn xenforeignmemory_unmap(handle: *mut Handle, address: *mut c_void, pages: usize) -> c_int;
}

/// The door to foreign memory.
#[derive(Debug)]
pub struct Foreign {
    handle: NonNull<Handle>,
    calls: Calls,
}

// SAFETY: the library keeps nothing in the handle but a file descriptor, set at opening; hypercalls
// come from any thread.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

impl Drop for Foreign {
    fn drop(&mut self) {
        // SAFETY: opened in `open`, closed only here; mappings hold an `Arc` of it.
        unsafe { xenforeignmemory_close(self.handle.as_ptr()) };
    }
}

impl Foreign {
    /// Opens the door.
    ///
    /// # Errors
    /// If this is no dom0 of Xen.
    pub fn open() -> io::Result<Arc<Self>> {
        // SAFETY: a null logger is documented to mean stderr.
        let handle = unsafe { xenforeignmemory_open(ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(io::Error::last_os_error)?;
        match Calls::open() {
            Ok(calls) => Ok(Arc::new(Self { handle, calls })),
            Err(error) => {
                // SAFETY: opened above, and nobody else has it.
                unsafe { xenforeignmemory_close(handle.as_ptr()) };
                Err(error)
            }
        }
    }

    /// Maps machine frames of a domain one behind the other, to read and write.
    ///
    /// As long as the mapping lives, the domain's pages stay: a domain that is destroyed
    /// meanwhile remains as a zombie.
    ///
    /// # Errors
    /// If one of the frames is not the domain's.
    pub fn map(self: &Arc<Self>, domid: u32, frames: &[u64]) -> io::Result<Mapping> {
        self.map_as(domid, frames, libc::PROT_READ | libc::PROT_WRITE, ptr::null_mut())
    }

    /// The same, to read only: so page tables can be mapped, too. Writing to it ends the daemon.
    ///
    /// # Errors
    /// If one of the frames is not the domain's.
    pub fn map_to_read(self: &Arc<Self>, domid: u32, frames: &[u64]) -> io::Result<Mapping> {
        self.map_as(domid, frames, libc::PROT_READ, ptr::null_mut())
    }

    /// Maps those of the frames that are the domain's, to read only, and says which are. Reading
    /// one of the others ends the daemon.
    ///
    /// # Errors
    /// If there is no room for the mapping.
    pub fn map_what_is_there(
        self: &Arc<Self>,
        domid: u32,
        frames: &[u64],
    ) -> io::Result<(Mapping, Vec<bool>)> {
        let mut errors = vec![0; frames.len()];
        let mapping = self.map_as(domid, frames, libc::PROT_READ, errors.as_mut_ptr())?;
        Ok((mapping, errors.into_iter().map(|error| error == 0).collect()))
    }

    /// `errors` is null or has room for as many as there are frames.
    fn map_as(
        self: &Arc<Self>,
        domid: u32,
        frames: &[u64],
        protection: c_int,
        errors: *mut c_int,
    ) -> io::Result<Mapping> {
        // SAFETY: the pointers are to as many frames and errors as said. Without an array of
        // errors the call fails as a whole if any frame cannot be mapped.
        let base = unsafe {
            xenforeignmemory_map(
                self.handle.as_ptr(),
                domid,
                protection,
                frames.len(),
                frames.as_ptr(),
                errors,
            )
        };
        let base = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        let room = frames.len();
        Ok(Mapping { base, room, len: room * PAGE_SIZE, from: From::Foreign(self.clone()) })
    }
}

/// Where pages of a domain are looked at in passing, each batch in the place of the one before.
///
/// What was looked at last may stay mapped until [`clear`](Self::clear).
#[derive(Debug)]
pub struct Windows {
    foreign: Arc<Foreign>,
    domid: u32,
    writable: bool,
    /// Those that nobody looks through.
    idle: Mutex<Vec<Mapping>>,
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Windows {
    /// Windows onto a domain, as many as are looked through at a time; to read only, or to write
    /// as well.
    pub fn new(foreign: &Arc<Foreign>, domid: u32, writable: bool) -> Self {
        Self { foreign: foreign.clone(), domid, writable, idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Mapping>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, frame: u64) -> u64 {
        let writable = if self.writable { WRITABLE } else { 0 };
        if frame < FRAMES { frame << PAGE_SHIFT | ENTRY | writable } else { 0 }
    }

    /// Shows machine frames one behind the other, as far as they are the domain's, and says which
    /// are. Looking at one of the others ends the daemon, or shows any page of the domain.
    ///
    /// # Errors
    /// If there is no room for the window.
    pub fn show(&self, frames: &[u64]) -> io::Result<(Window<'_>, Vec<bool>)> {
        let found = {
            let mut idle = self.idle();
            let index = idle.iter().position(|window| window.room >= frames.len());
            index.map(|index| idle.swap_remove(index))
        };
        let (mapping, there) = match found {
            None => {
                let protection = libc::PROT_READ | if self.writable { libc::PROT_WRITE } else { 0 };
                let mut errors = vec![0; frames.len()];
                let mapping = self.foreign.map_as(self.domid, frames, protection, errors.as_mut_ptr())?;
                (mapping, errors.into_iter().map(|error| error == 0).collect())
            }
            Some(mut mapping) => {
                let entries: Vec<u64> = frames.iter().map(|&frame| self.entry(frame)).collect();
                let mut there = self.set(&mapping, &entries)?;
                there.iter_mut().zip(entries).for_each(|(there, entry)| *there &= entry != 0);
                mapping.len = frames.len() * PAGE_SIZE;
                (mapping, there)
            }
        };
        Ok((Window { windows: self, mapping: Some(mapping) }, there))
    }

    fn set(&self, window: &Mapping, entries: &[u64]) -> io::Result<Vec<bool>> {
        debug_assert!(entries.len() <= window.room);
        // SAFETY: the window was mapped by the kernel with room for as many pages, and is nobody
        // else's: it was taken out of the list, or the list is locked.
        unsafe { self.foreign.calls.set_own_entries(window.base.as_ptr() as u64, self.domid, entries) }
    }

    /// Nothing that is not looked at just now stays mapped.
    pub fn clear(&self) {
        self.idle().retain_mut(|window| {
            // Nothing has been shown since it was cleared.
            if window.len == 0 {
                return true;
            }
            // One that cannot be cleared is unmapped.
            window.len = 0;
            self.set(window, &vec![0; window.room]).is_ok_and(|done| done.iter().all(|&done| done))
        });
    }
}

/// What is seen through a window; another look may follow when this is dropped.
#[derive(Debug)]
pub struct Window<'a> {
    windows: &'a Windows,
    /// There until it is dropped.
    mapping: Option<Mapping>,
}

impl Deref for Window<'_> {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        self.mapping.as_ref().expect("it is there until the drop")
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        self.windows.idle().extend(self.mapping.take());
    }
}

/// Mapped pages of another domain; unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    /// Pages that it has room for.
    room: usize,
    base: NonNull<u8>,
    /// Bytes of them that are in use.
    len: usize,
    from: From,
}

/// Where the pages came from.
#[derive(Debug)]
enum From {
    Foreign(Arc<Foreign>),
    /// Our own, to test with.
    #[cfg(test)]
    Heap,
}

// SAFETY: the memory is not tied to a thread, and all accesses are volatile copies.
unsafe impl Send for Mapping {}
// SAFETY: as above; the other domain writes at the same time in any case, so a torn value is
// something that callers have to reckon with.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        match &self.from {
            // SAFETY: mapped in `Foreign::map_as` with as many pages; nobody keeps a pointer.
            From::Foreign(foreign) => unsafe {
                xenforeignmemory_unmap(foreign.handle.as_ptr(), self.base.as_ptr().cast(), self.room);
            },
            #[cfg(test)]
            // SAFETY: leaked from a box of as many words in `for_test`.
            From::Heap => unsafe {
                let words = ptr::slice_from_raw_parts_mut(self.base.as_ptr().cast::<u64>(), self.len / 8);
                drop(Box::from_raw(words));
            },
        }
    }
}

impl Mapping {
    /// Pages of our own, zeroed, as if another domain had them too.
    #[cfg(test)]
    pub(crate) fn for_test(pages: usize) -> Self {
        let words = Box::leak(vec![0u64; pages * PAGE_SIZE / 8].into_boxed_slice());
        Self { base: NonNull::from(words).cast(), room: pages, len: pages * PAGE_SIZE, from: From::Heap }
    }

    /// Pointer to `len` bytes at `offset`.
    ///
    /// # Panics
    /// If they do not lie in the mapping: offsets never come from the other domain unchecked.
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {offset} lie outside of a mapping of {} bytes",
            self.len
        );
        // SAFETY: the offset is inside of the mapping, as just checked.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// As [`Self::at`], for a value that needs to be aligned.
    fn aligned<T>(&self, offset: usize) -> *mut T {
        assert!(offset.is_multiple_of(align_of::<T>()), "offset {offset} is not aligned");
        self.at(offset, size_of::<T>()).cast()
    }

    /// Reads a `u32`.
    pub fn read_u32(&self, offset: usize) -> u32 {
        // SAFETY: `aligned` checked bounds and alignment; any bits are a u32.
        unsafe { self.aligned::<u32>(offset).read_volatile() }
    }

    /// Reads a `u64`.
    pub fn read_u64(&self, offset: usize) -> u64 {
        // SAFETY: `aligned` checked bounds and alignment; any bits are a u64.
        unsafe { self.aligned::<u64>(offset).read_volatile() }
    }

    /// Writes a `u32`.
    pub fn write_u32(&self, offset: usize, value: u32) {
        // SAFETY: `aligned` checked bounds and alignment; the memory is nobody's Rust value.
        unsafe { self.aligned::<u32>(offset).write_volatile(value) }
    }

    /// Writes a `u64`.
    pub fn write_u64(&self, offset: usize, value: u64) {
        // SAFETY: `aligned` checked bounds and alignment; the memory is nobody's Rust value.
        unsafe { self.aligned::<u64>(offset).write_volatile(value) }
    }

    /// Copies bytes out.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // Words where they are aligned on our side of the border, which is the slow one.
        let head = from.align_offset(8).min(bytes.len());
        let (head, rest) = bytes.split_at_mut(head);
        let (words, tail) = rest.as_chunks_mut::<8>();
        let words_at = head.len();
        let tail_at = words_at + words.len() * 8;
        // SAFETY: `at` checked that all `bytes.len()` bytes from `from` on are in the mapping;
        // the three parts are that range, and the words begin aligned.
        unsafe {
            for (index, byte) in head.iter_mut().enumerate() {
                *byte = from.add(index).read_volatile();
            }
            for (index, word) in words.iter_mut().enumerate() {
                *word = from.add(words_at).cast::<u64>().add(index).read_volatile().to_ne_bytes();
            }
            for (index, byte) in tail.iter_mut().enumerate() {
                *byte = from.add(tail_at + index).read_volatile();
            }
        }
    }

    /// Copies bytes in.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        let head = to.align_offset(8).min(bytes.len());
        let (head, rest) = bytes.split_at(head);
        let (words, tail) = rest.as_chunks::<8>();
        let words_at = head.len();
        let tail_at = words_at + words.len() * 8;
        // SAFETY: as in `read`; the memory is nobody's Rust value.
        unsafe {
            for (index, &byte) in head.iter().enumerate() {
                to.add(index).write_volatile(byte);
            }
            for (index, &word) in words.iter().enumerate() {
                to.add(words_at).cast::<u64>().add(index).write_volatile(u64::from_ne_bytes(word));
            }
            for (index, &byte) in tail.iter().enumerate() {
                to.add(tail_at + index).write_volatile(byte);
            }
        }
    }

    /// Writes words at an aligned offset.
    pub fn write_words(&self, offset: usize, words: &[u64]) {
        let to = self.at(offset, size_of_val(words)).cast::<u64>();
        assert!(offset.is_multiple_of(8), "offset {offset} is not aligned");
        for (index, &word) in words.iter().enumerate() {
            // SAFETY: `at` checked that all of the words are in the mapping.
            unsafe { to.add(index).write_volatile(word) };
        }
    }

    /// Sets bytes to zero. For memory of a domain that does not run yet.
    pub fn zero(&self, offset: usize, len: usize) {
        let to = self.at(offset, len);
        // SAFETY: `at` checked the range; the memory is nobody's Rust value.
        unsafe { ptr::write_bytes(to, 0, len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_back_from_any_offset(offset in 0usize..4096, bytes: Vec<u8>) {
            let mapping = Mapping::for_test(2);
            mapping.write(offset, &bytes);
            let mut back = vec![0; bytes.len() + 2];
            mapping.read(offset, &mut back);
            prop_assert_eq!(&back[..bytes.len()], &bytes[..]);
            prop_assert_eq!(&back[bytes.len()..], &[0, 0]);
        }
    }

    #[test]
    #[should_panic(expected = "outside of a mapping")]
    fn nothing_behind_the_end_is_read() {
        Mapping::for_test(1).read(4090, &mut [0; 7]);
    }

    #[test]
    #[should_panic(expected = "outside of a mapping")]
    fn an_offset_that_overflows_is_refused() {
        Mapping::for_test(1).read(usize::MAX, &mut [0; 2]);
    }
}
