//! Reads kernel images, which are hostile input.
//!
//! An image is a static 64-bit ELF file with Xen's notes (`xen/include/public/elfnote.h`).
//! Packed kernels, Linux's `bzImage`, are refused: who sends an image unpacks it, with his own
//! rights. [`parse`] checks whatever the domain builder relies on, so that nothing after it needs
//! to doubt a number:
//!
//! - all segments lie in the file, do not overlap, and end within [`MAX_LOADED`] of the start
//!   of the domain's memory;
//! - the entry point is inside an executable segment;
//! - `VIRT_BASE` is a page of an upper half (or of the lower one) that Xen leaves to guests,
//!   and [`MAX_LOADED`] bytes fit behind it.
//!
//! Addresses inside an [`Image`] are offsets from `VIRT_BASE`, which is where the domain's
//! first page is mapped.

use std::ops::Range;

use bytes::Bytes;
use elf::{ElfBytes, abi, endian::LittleEndian, file::Class, note::Note};
use fcap_api::ImageKind;
use xen_proto::{
    elfnote,
    frame::{PAGE_SHIFT, PAGE_SIZE},
};

/// Most bytes of a domain's memory that an image may reach to once it is loaded.
pub const MAX_LOADED: u64 = 512 << 20;

/// Most segments that are looked at; Linux has five.
const MAX_SEGMENTS: usize = 64;

/// Where Xen lives in the address space of every PV guest.
const HYPERVISOR: Range<u64> = 0xffff_8000_0000_0000..0xffff_8800_0000_0000;

/// Why a file cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("the image is empty; was its build interrupted?")]
    Empty,
    #[error("the image is cut off: {0}; copy or build it again")]
    Truncated(&'static str),
    #[error("the image is a 32-bit program; build it for x86_64")]
    NotSixtyFourBit,
    #[error("the image is for another processor; build it for x86_64")]
    OtherMachine,
    #[error("the image is position independent (ET_DYN); link it static and non-PIE, as `fcap build` does")]
    PositionIndependent,
    #[error("the image is no executable but an object file; link it, as `fcap build` does")]
    NotExecutable,
    #[error("the image needs a dynamic linker; link it static, as `fcap build` does")]
    Dynamic,
    #[error("the image's ELF headers are damaged: {0}; copy or build it again")]
    Damaged(String),
    #[error(
        "the image has no Xen notes, so it is no PV kernel; link the application with fcap's \
         library OS (`fcap build`)"
    )]
    NoNotes,
    #[error("the image's Xen notes lack {0}; link it with fcap's xen.lds")]
    MissingNote(&'static str),
    #[error("the image's Xen note {note} is not credible: {why}")]
    BadNote { note: &'static str, why: String },
    #[error("the image has nothing to load")]
    NoSegments,
    #[error("the image has more than {MAX_SEGMENTS} segments")]
    TooManySegments,
    #[error("segment {index} of the image {why}")]
    BadSegment { index: usize, why: &'static str },
    #[error("segments {0} and {1} of the image overlap")]
    Overlap(usize, usize),
    #[error(
        "the image is a packed Linux kernel (bzImage), and a node unpacks none; `fcap run` does \
         so before it sends one, and so does Linux's scripts/extract-vmlinux"
    )]
    Packed,
}

/// Section of capsules that are linked with the library OS's network.
const NETWORK_SECTION: &str = ".fcap.net";

/// A part of the image, to be copied into the domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in [`Image::file`] its content is.
    pub file: Range<usize>,
    /// Bytes in memory from `VIRT_BASE`; what the file does not fill is zero.
    pub memory: Range<u64>,
}

/// What the builder needs to know of a kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Virtual address of the domain's first page.
    pub virt_base: u64,
    /// Where to start, from `VIRT_BASE`.
    pub entry: u64,
    /// The page to fill with hypercall stubs, as a page number from `VIRT_BASE`.
    pub hypercall_page: Option<u64>,
    /// In the order of memory, not overlapping.
    pub segments: Vec<Segment>,
    /// Whether it is linked with our library OS, which takes all of its memory mapped.
    pub is_capsule: bool,
}

impl Kernel {
    /// Pages from `VIRT_BASE` that the kernel's segments touch.
    pub fn pages(&self) -> Range<u64> {
        let start = self.segments.first().map_or(0, |segment| segment.memory.start);
        let end = self.segments.last().map_or(0, |segment| segment.memory.end);
        start >> PAGE_SHIFT..end.div_ceil(PAGE_SIZE as u64)
    }
}

/// A checked image, shared by all the domains made of it.
#[derive(Debug)]
pub struct Image {
    /// The ELF file; empty for [`ImageKind::Data`].
    pub file: Bytes,
    /// None for [`ImageKind::Data`].
    pub kernel: Option<Kernel>,
    /// Size of the file as it came.
    pub file_size: u64,
    /// Whether it is a capsule with the section `.fcap.net`.
    pub wants_network: bool,
}

impl Image {
    /// What it is.
    pub fn kind(&self) -> ImageKind {
        match &self.kernel {
            None => ImageKind::Data,
            Some(kernel) if kernel.is_capsule => ImageKind::Capsule,
            Some(_) => ImageKind::Kernel,
        }
    }
}

/// Reads an image. Bytes that do not claim to be a kernel are data.
///
/// # Errors
/// If the file claims to be a kernel and cannot be run, or is empty.
pub fn parse(file: Bytes) -> Result<Image, Error> {
    let file_size = file.len() as u64;
    if file.is_empty() {
        return Err(Error::Empty);
    }
    if is_bzimage(&file) {
        return Err(Error::Packed);
    }
    if !file.starts_with(&abi::ELFMAGIC) {
        // Nobody needs the bytes; the caller has them.
        return Ok(Image { file: Bytes::new(), kernel: None, file_size, wants_network: false });
    }
    let kernel = parse_elf(&file)?;
    let wants_network = kernel.is_capsule && has_section(&file, NETWORK_SECTION);
    Ok(Image { file, kernel: Some(kernel), file_size, wants_network })
}

/// Whether it is a Linux kernel behind a boot loader's header (`Documentation/x86/boot.rst` in
/// Linux's sources).
fn is_bzimage(file: &[u8]) -> bool {
    file.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && file.get(0x202..0x206) == Some(b"HdrS")
}

fn parse_elf(bytes: &[u8]) -> Result<Kernel, Error> {
    match bytes.get(abi::EI_CLASS) {
        None => return Err(Error::Truncated("it ends within the ELF header")),
        Some(&abi::ELFCLASS64) => {}
        Some(&abi::ELFCLASS32) => return Err(Error::NotSixtyFourBit),
        Some(class) => return Err(Error::Damaged(format!("unknown class {class}"))),
    }
    if bytes.len() < 64 {
        return Err(Error::Truncated("it ends within the ELF header"));
    }
    let elf = ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(damaged)?;
    if elf.ehdr.class != Class::ELF64 {
        return Err(Error::NotSixtyFourBit);
    }
    if elf.ehdr.e_machine != abi::EM_X86_64 {
        return Err(Error::OtherMachine);
    }
    let headers = elf.segments().ok_or(Error::NoSegments)?;
    // The parser stops at the end of the file without a word.
    if headers.len() != usize::from(elf.ehdr.e_phnum) {
        return Err(Error::Truncated("it ends within the program headers"));
    }
    if headers.len() > MAX_SEGMENTS {
        return Err(Error::TooManySegments);
    }
    if headers.iter().any(|header| matches!(header.p_type, abi::PT_INTERP)) {
        return Err(Error::Dynamic);
    }
    match elf.ehdr.e_type {
        abi::ET_EXEC => {}
        abi::ET_DYN => return Err(Error::PositionIndependent),
        _ => return Err(Error::NotExecutable),
    }
    if headers.iter().any(|header| header.p_type == abi::PT_DYNAMIC) {
        return Err(Error::Dynamic);
    }

    let mut notes = Notes::default();
    for header in headers.iter().filter(|header| header.p_type == abi::PT_NOTE) {
        // Linux's note segment claims an alignment that some linkers set to 0.
        let range = file_range(bytes, header.p_offset, header.p_filesz)
            .ok_or(Error::Truncated("its notes lie beyond its end"))?;
        notes.read(&bytes[range])?;
    }
    if !notes.any {
        return Err(Error::NoNotes);
    }
    let mut segments = Vec::new();
    let layout = notes.check(elf.ehdr.e_entry)?;
    let mut entry_is_code = false;
    for (index, header) in headers.iter().enumerate().filter(|(_, header)| header.p_type == abi::PT_LOAD) {
        if header.p_memsz == 0 {
            continue;
        }
        let bad = |why| Error::BadSegment { index, why };
        if header.p_filesz > header.p_memsz {
            return Err(bad("has more bytes in the file than in memory"));
        }
        let file = file_range(bytes, header.p_offset, header.p_filesz)
            .ok_or(Error::Truncated("a segment lies beyond its end"))?;
        // As Xen's own loader: physical addresses count, virtual ones may be anything
        // (Linux's per-processor segment is linked at 0).
        let start = header
            .p_paddr
            .checked_sub(layout.paddr_offset)
            .ok_or_else(|| bad("begins before the start of the domain's memory"))?;
        let end = start
            .checked_add(header.p_memsz)
            .filter(|&end| end <= MAX_LOADED)
            .ok_or_else(|| bad("ends more than 512 MiB behind the start of the domain's memory"))?;
        if header.p_flags & abi::PF_X != 0 {
            entry_is_code |= (start..end).contains(&layout.entry);
        }
        segments.push((index, Segment { file, memory: start..end }));
    }
    if segments.is_empty() {
        return Err(Error::NoSegments);
    }
    segments.sort_by_key(|(_, segment)| segment.memory.start);
    for pair in segments.windows(2) {
        let [(first, low), (second, high)] = pair else { continue };
        if low.memory.end > high.memory.start {
            return Err(Error::Overlap(*first, *second));
        }
    }
    if !entry_is_code {
        return Err(Error::BadNote {
            note: "ENTRY",
            why: format!("{:#x} is in no executable segment", layout.virt_base.wrapping_add(layout.entry)),
        });
    }
    let kernel = Kernel {
        virt_base: layout.virt_base,
        entry: layout.entry,
        hypercall_page: layout.hypercall_page,
        segments: segments.into_iter().map(|(_, segment)| segment).collect(),
        is_capsule: notes.guest_os.as_deref() == Some(elfnote::GUEST_OS_FCAP.as_bytes()),
    };
    if kernel.hypercall_page.is_some_and(|page| !kernel.pages().contains(&page)) {
        return Err(Error::BadNote { note: "HYPERCALL_PAGE", why: "it lies outside of the image".into() });
    }
    Ok(kernel)
}

/// Whether there is a section of this name. Sections are not needed to run an image, so a table
/// of them that makes no sense has none.
fn has_section(bytes: &[u8], name: &str) -> bool {
    let Ok(elf) = ElfBytes::<LittleEndian>::minimal_parse(bytes) else { return false };
    matches!(elf.section_header_by_name(name), Ok(Some(_)))
}

fn damaged(error: elf::ParseError) -> Error {
    match error {
        elf::ParseError::SliceReadError(_) => Error::Truncated("its headers point beyond its end"),
        other => Error::Damaged(other.to_string()),
    }
}

fn file_range(bytes: &[u8], offset: u64, len: u64) -> Option<Range<usize>> {
    let end = offset.checked_add(len).filter(|&end| end <= bytes.len() as u64)?;
    Some(offset as usize..end as usize)
}

/// The Xen notes that matter here, as found.
#[derive(Debug, Default)]
struct Notes {
    any: bool,
    entry: Option<u64>,
    hypercall_page: Option<u64>,
    virt_base: Option<u64>,
    paddr_offset: Option<u64>,
    xen_version: Option<Vec<u8>>,
    guest_os: Option<Vec<u8>>,
    loader: Option<Vec<u8>>,
}

/// The notes, checked, and relative to `VIRT_BASE`.
struct Checked {
    virt_base: u64,
    paddr_offset: u64,
    entry: u64,
    hypercall_page: Option<u64>,
}

impl Notes {
    fn read(&mut self, area: &[u8]) -> Result<(), Error> {
        for note in elf::note::NoteIterator::new(LittleEndian, Class::ELF64, 4, area) {
            let Note::Unknown(note) = note else { continue };
            if note.name != elfnote::OWNER && note.name != b"Xen" {
                continue;
            }
            self.any = true;
            let number = || match *note.desc {
                [a, b, c, d] => Some(u64::from(u32::from_le_bytes([a, b, c, d]))),
                _ => note.desc.try_into().ok().map(u64::from_le_bytes),
            };
            let set = |slot: &mut Option<u64>, name| {
                let why = || format!("{} bytes are no number", note.desc.len());
                *slot = Some(number().ok_or_else(|| Error::BadNote { note: name, why: why() })?);
                Ok(())
            };
            let text = || Some(note.desc.split(|&byte| byte == 0).next().unwrap_or(&[]).to_vec());
            match u32::try_from(note.n_type).unwrap_or(u32::MAX) {
                elfnote::ENTRY => set(&mut self.entry, "ENTRY")?,
                elfnote::HYPERCALL_PAGE => set(&mut self.hypercall_page, "HYPERCALL_PAGE")?,
                elfnote::VIRT_BASE => set(&mut self.virt_base, "VIRT_BASE")?,
                elfnote::PADDR_OFFSET => set(&mut self.paddr_offset, "PADDR_OFFSET")?,
                elfnote::XEN_VERSION => self.xen_version = text(),
                elfnote::GUEST_OS => self.guest_os = text(),
                elfnote::LOADER => self.loader = text(),
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self, e_entry: u64) -> Result<Checked, Error> {
        let version = self.xen_version.as_deref().ok_or(Error::MissingNote("XEN_VERSION"))?;
        if !version.starts_with(b"xen-3.0") {
            let why = format!("\"{}\" is not xen-3.0", version.escape_ascii());
            return Err(Error::BadNote { note: "XEN_VERSION", why });
        }
        let starts =
            |text: &Option<Vec<u8>>, with: &[u8]| text.as_deref().is_some_and(|t| t.starts_with(with));
        if !starts(&self.loader, b"generic") && !starts(&self.guest_os, b"linux") {
            return Err(Error::MissingNote("LOADER"));
        }
        let virt_base = self.virt_base.ok_or(Error::MissingNote("VIRT_BASE"))?;
        let absurd = |why: &str| Error::BadNote { note: "VIRT_BASE", why: format!("{virt_base:#x} {why}") };
        if virt_base % PAGE_SIZE as u64 != 0 {
            return Err(absurd("is not the start of a page"));
        }
        let last = virt_base
            .checked_add(MAX_LOADED - 1)
            .ok_or_else(|| absurd("leaves no 512 MiB up to the end of the address space"))?;
        let canonical = |address: u64| matches!(address >> 47, 0 | 0x1_ffff);
        if !canonical(virt_base) || !canonical(last) || (virt_base >> 47) != (last >> 47) {
            return Err(absurd("is not in the processor's address space"));
        }
        if virt_base < HYPERVISOR.end && last >= HYPERVISOR.start {
            return Err(absurd("is where Xen lives"));
        }
        let relative = |address: u64, note: &'static str| {
            address.checked_sub(virt_base).filter(|&offset| offset < MAX_LOADED).ok_or_else(|| {
                Error::BadNote { note, why: format!("{address:#x} is not within 512 MiB of VIRT_BASE") }
            })
        };
        let entry = relative(self.entry.unwrap_or(e_entry), "ENTRY")?;
        let hypercall_page = self
            .hypercall_page
            .map(|address| relative(address, "HYPERCALL_PAGE").map(|offset| offset >> PAGE_SHIFT))
            .transpose()?;
        Ok(Checked { virt_base, paddr_offset: self.paddr_offset.unwrap_or(0), entry, hypercall_page })
    }
}

#[cfg(test)]
pub(crate) mod tests;
