//! Pages of other domains, mapped into fcapd.
//!
//! What is mapped belongs to somebody else, who may change it at any moment. So there is never
//! a Rust reference to it: bytes are copied in and out with volatile accesses, every one of
//! them checked against the mapping's bounds.

use std::{
    ffi::{c_int, c_void},
    io,
    marker::PhantomData,
    ptr::{self, NonNull},
    sync::Arc,
};

use xen_proto::frame::PAGE_SIZE;

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
}

// SAFETY: the library keeps nothing in the handle but a file descriptor, set at opening.
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
        Ok(Arc::new(Self { handle }))
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
        Ok(Mapping { base, len: frames.len() * PAGE_SIZE, from: From::Foreign(self.clone()) })
    }
}

/// Mapped pages of another domain; unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
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
            // SAFETY: mapped in `Foreign::map` with this length; nobody keeps a pointer.
            From::Foreign(foreign) => unsafe {
                xenforeignmemory_unmap(
                    foreign.handle.as_ptr(),
                    self.base.as_ptr().cast(),
                    self.len / PAGE_SIZE,
                );
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
        Self { base: NonNull::from(words).cast(), len: pages * PAGE_SIZE, from: From::Heap }
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
