//! Images of all kinds that cannot be run, each made from one that can.

use proptest::prelude::*;

use super::*;

const BASE: u64 = 0xffff_ffff_8000_0000;

/// One program header, as the file has it.
#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u32,
    flags: u32,
    offset: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
}

/// A kernel of one code segment, one data segment and its notes, to be spoiled.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    class: u8,
    machine: u16,
    kind: u16,
    entry: u64,
    headers: Vec<Header>,
    notes: Vec<(u32, Vec<u8>)>,
    content: Vec<u8>,
}

impl Default for Builder {
    fn default() -> Self {
        let load = |flags, offset, paddr, memsz| Header {
            kind: abi::PT_LOAD,
            flags,
            offset,
            paddr,
            filesz: 0x1000,
            memsz,
        };
        Self {
            class: abi::ELFCLASS64,
            machine: abi::EM_X86_64,
            kind: abi::ET_EXEC,
            entry: BASE + 0x10,
            headers: vec![
                load(abi::PF_R | abi::PF_X, 0x1000, BASE, 0x1000),
                load(abi::PF_R | abi::PF_W, 0x2000, BASE + 0x1000, 0x3800),
            ],
            notes: vec![
                (elfnote::XEN_VERSION, b"xen-3.0\0".to_vec()),
                (elfnote::LOADER, b"generic\0".to_vec()),
                (elfnote::GUEST_OS, b"fcap\0".to_vec()),
                (elfnote::VIRT_BASE, BASE.to_le_bytes().to_vec()),
                (elfnote::PADDR_OFFSET, BASE.to_le_bytes().to_vec()),
                (elfnote::ENTRY, (BASE + 0x10).to_le_bytes().to_vec()),
            ],
            content: (0..0x2000).map(|index| index as u8).collect(),
        }
    }
}

impl Builder {
    fn note(mut self, kind: u32, value: &[u8]) -> Self {
        self.notes.retain(|(other, _)| *other != kind);
        self.notes.push((kind, value.to_vec()));
        self
    }

    fn without(mut self, kind: u32) -> Self {
        self.notes.retain(|(other, _)| *other != kind);
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut notes = Vec::new();
        for (kind, value) in &self.notes {
            notes.extend(4u32.to_le_bytes());
            notes.extend((value.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(elfnote::OWNER);
            notes.extend(value);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        let mut headers = self.headers.clone();
        if !notes.is_empty() {
            let (offset, filesz) = (0x800, notes.len() as u64);
            headers.push(Header {
                kind: abi::PT_NOTE,
                flags: abi::PF_R,
                offset,
                paddr: 0,
                filesz,
                memsz: filesz,
            });
        }
        let mut file = vec![0x7f, b'E', b'L', b'F', self.class, abi::ELFDATA2LSB, 1, 0];
        file.resize(16, 0);
        file.extend(self.kind.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(self.entry.to_le_bytes());
        // Program headers right behind this one; no section headers.
        file.extend(64u64.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, headers.len() as u16, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for header in &headers {
            file.extend(header.kind.to_le_bytes());
            file.extend(header.flags.to_le_bytes());
            for word in [header.offset, header.paddr, header.paddr, header.filesz, header.memsz, 0x1000] {
                file.extend(word.to_le_bytes());
            }
        }
        file.resize(0x800, 0);
        file.extend(notes);
        file.resize(0x1000, 0);
        file.extend(&self.content);
        file
    }

    fn error(&self) -> Error {
        parse(self.build().into()).unwrap_err()
    }
}

/// The file with a table of sections behind it: one of this name, and that of the names.
fn with_section(mut file: Vec<u8>, name: &str) -> Vec<u8> {
    let names = [b"\0.shstrtab\0", name.as_bytes(), b"\0"].concat();
    let names_offset = file.len() as u64;
    file.extend(&names);
    file.resize(file.len().next_multiple_of(8), 0);
    let table_offset = file.len() as u64;
    for (name, kind, offset, size) in [
        (0u32, abi::SHT_NULL, 0, 0),
        (1, abi::SHT_STRTAB, names_offset, names.len() as u64),
        (11, abi::SHT_PROGBITS, 0, 0),
    ] {
        file.extend(name.to_le_bytes());
        file.extend(kind.to_le_bytes());
        for word in [0, 0, offset, size, 0, 1, 0] {
            file.extend(word.to_le_bytes());
        }
    }
    file[40..48].copy_from_slice(&table_offset.to_le_bytes());
    file[60..64].copy_from_slice(&[3, 0, 1, 0]);
    file
}

#[test]
fn only_capsules_with_the_section_for_it_want_a_network() {
    let capsule = Builder::default();
    let wants = |file: Vec<u8>| parse(file.into()).unwrap().wants_network;
    assert!(!wants(capsule.build()));
    assert!(wants(with_section(capsule.build(), ".fcap.net")));
    assert!(!wants(with_section(capsule.build(), ".fcap.nets")));
    let linux = capsule.note(elfnote::GUEST_OS, b"linux\0");
    assert!(!wants(with_section(linux.build(), ".fcap.net")));
}

proptest! {
    #[test]
    fn any_table_of_sections_is_read_without_panic(at in 40usize..64, byte: u8, cut in 0usize..200) {
        let mut file = with_section(Builder::default().build(), ".fcap.net");
        file[at] = byte;
        file.truncate(file.len() - cut);
        if let Ok(image) = parse(file.into()) {
            prop_assert_eq!(image.kind(), fcap_api::ImageKind::Capsule);
        }
    }
}

fn bad_note(error: &Error) -> Option<&'static str> {
    match error {
        Error::BadNote { note, .. } => Some(note),
        _ => None,
    }
}

#[test]
fn a_capsule_is_read() {
    let image = parse(Builder::default().build().into()).unwrap();
    assert_eq!(image.kind(), ImageKind::Capsule);
    let kernel = image.kernel.unwrap();
    assert_eq!((kernel.virt_base, kernel.entry), (BASE, 0x10));
    assert_eq!(kernel.pages(), 0..5);
    let expected = [
        Segment { file: 0x1000..0x2000, memory: 0..0x1000 },
        Segment { file: 0x2000..0x3000, memory: 0x1000..0x4800 },
    ];
    assert_eq!(kernel.segments, expected);
}

#[test]
fn a_kernel_of_others_is_read() {
    let builder = Builder::default()
        .note(elfnote::GUEST_OS, b"linux\0")
        .without(elfnote::LOADER)
        .note(elfnote::PADDR_OFFSET, &0u64.to_le_bytes())
        .note(elfnote::HYPERCALL_PAGE, &(BASE + 0x100_1000).to_le_bytes())
        .note(elfnote::ENTRY, &(BASE + 0x100_0010).to_le_bytes());
    let mut builder = builder;
    for (header, paddr) in builder.headers.iter_mut().zip([0x100_0000, 0x100_1000]) {
        header.paddr = paddr;
    }
    let image = parse(builder.build().into()).unwrap();
    assert_eq!(image.kind(), ImageKind::Kernel);
    let kernel = image.kernel.unwrap();
    assert_eq!(kernel.pages(), 0x1000..0x1005);
    assert_eq!(kernel.hypercall_page, Some(0x1001));
}

#[test]
fn what_claims_nothing_is_data() {
    for bytes in [&b"#!/bin/sh\n"[..], &[0; 4096], b"\x7fEL", b"\x7f"] {
        assert_eq!(parse(bytes.into()).unwrap().kind(), ImageKind::Data);
    }
    assert_eq!(parse(Bytes::new()).unwrap_err(), Error::Empty);
}

#[test]
fn a_cut_off_image_is_refused_wherever_it_ends() {
    let whole = Builder::default().build();
    for len in 4..whole.len() {
        let error = parse(Bytes::copy_from_slice(&whole[..len])).unwrap_err();
        assert!(matches!(error, Error::Truncated(_)), "{len}: {error}");
    }
}

#[test]
fn other_programs_are_refused_by_what_they_are() {
    let with = |change: fn(&mut Builder)| {
        let mut builder = Builder::default();
        change(&mut builder);
        builder.error()
    };
    assert_eq!(with(|b| b.class = abi::ELFCLASS32), Error::NotSixtyFourBit);
    assert_eq!(with(|b| b.machine = abi::EM_AARCH64), Error::OtherMachine);
    assert_eq!(with(|b| b.kind = abi::ET_DYN), Error::PositionIndependent);
    assert_eq!(with(|b| b.kind = abi::ET_REL), Error::NotExecutable);
    assert_eq!(with(|b| b.notes.clear()), Error::NoNotes);
    assert_eq!(with(|b| b.headers.clear()), Error::NoSegments);
    assert_eq!(with(|b| b.headers = vec![b.headers[0]; 65]), Error::TooManySegments);
    let add = |kind| {
        let mut builder = Builder::default();
        builder.headers.push(Header { kind, ..builder.headers[0] });
        builder.error()
    };
    assert_eq!(add(abi::PT_INTERP), Error::Dynamic);
    assert_eq!(add(abi::PT_DYNAMIC), Error::Dynamic);
    let mut own = Builder::default().build();
    own[4] = 9;
    assert!(matches!(parse(own.into()), Err(Error::Damaged(_))));
}

/// The test program itself is an ordinary program of the host.
#[test]
fn a_program_of_the_host_is_refused() {
    let bytes = std::fs::read("/proc/self/exe").unwrap();
    assert_eq!(parse(bytes.into()).unwrap_err(), Error::Dynamic);
}

#[test]
fn notes_that_lie_are_refused() {
    let lie = |kind, value: u64| Builder::default().note(kind, &value.to_le_bytes()).error();
    for base in
        [1, BASE + 1, 0xffff_ffff_f000_0000, 0x8000_0000_0000, 0xffff_8000_0000_0000, 0x7fff_f000_0000]
    {
        assert_eq!(bad_note(&lie(elfnote::VIRT_BASE, base)), Some("VIRT_BASE"), "{base:#x}");
    }
    for entry in [0, BASE - 1, BASE + 0x1000, BASE + 0x4800, u64::MAX] {
        assert_eq!(bad_note(&lie(elfnote::ENTRY, entry)), Some("ENTRY"), "{entry:#x}");
    }
    for page in [0, BASE + 0x5000, BASE - 1, 1] {
        assert_eq!(bad_note(&lie(elfnote::HYPERCALL_PAGE, page)), Some("HYPERCALL_PAGE"), "{page:#x}");
    }
    let version = Builder::default().note(elfnote::XEN_VERSION, b"xen-2.0\0").error();
    assert_eq!(bad_note(&version), Some("XEN_VERSION"));
    let number = Builder::default().note(elfnote::VIRT_BASE, b"12345").error();
    assert_eq!(bad_note(&number), Some("VIRT_BASE"));
    for (kind, name) in [
        (elfnote::XEN_VERSION, "XEN_VERSION"),
        (elfnote::LOADER, "LOADER"),
        (elfnote::VIRT_BASE, "VIRT_BASE"),
    ] {
        assert_eq!(Builder::default().without(kind).error(), Error::MissingNote(name));
    }
}

#[test]
fn segments_that_lie_are_refused() {
    let second = |change: fn(&mut Header)| {
        let mut builder = Builder::default();
        change(&mut builder.headers[1]);
        builder.error()
    };
    assert!(matches!(second(|h| h.memsz = 0xfff), Error::BadSegment { index: 1, .. }));
    assert!(matches!(second(|h| h.paddr = BASE - 1), Error::BadSegment { index: 1, .. }));
    assert!(matches!(second(|h| h.memsz = MAX_LOADED), Error::BadSegment { index: 1, .. }));
    assert!(matches!(second(|h| h.memsz = u64::MAX), Error::BadSegment { index: 1, .. }));
    assert!(matches!(second(|h| h.offset = u64::MAX), Error::Truncated(_)));
    assert_eq!(second(|h| h.paddr = BASE + 0xfff), Error::Overlap(0, 1));
    assert_eq!(second(|h| h.paddr = BASE), Error::Overlap(0, 1));
}

#[test]
fn a_packed_kernel_is_refused_with_the_remedy() {
    let mut file = vec![0; 1024];
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    let error = parse(file.clone().into()).unwrap_err();
    assert_eq!(error, Error::Packed);
    assert!(error.to_string().contains("extract-vmlinux"), "{error}");
    file.truncate(0x205);
    assert_eq!(parse(file.into()).unwrap().kind(), ImageKind::Data);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        let _ = parse([&abi::ELFMAGIC[..], &bytes].concat().into());
    }

    /// Whatever is changed in a good image, what comes out holds what the builder relies on.
    #[test]
    fn a_changed_image_is_refused_or_sound(
        changes in proptest::collection::vec((0usize..0xa00, any::<u8>()), 1..6),
    ) {
        let mut bytes = Builder::default().build();
        for (at, value) in changes {
            bytes[at] = value;
        }
        let Ok(image) = parse(bytes.into()) else { return Ok(()) };
        let (bytes, Some(kernel)) = (&image.file, &image.kernel) else { return Ok(()) };
        let mut end = 0;
        for segment in &kernel.segments {
            prop_assert!(segment.memory.start >= end);
            end = segment.memory.end;
            prop_assert!(end <= MAX_LOADED && segment.file.end <= bytes.len());
            prop_assert!(segment.file.len() as u64 <= segment.memory.end - segment.memory.start);
        }
        prop_assert!(kernel.entry < end);
        prop_assert!(kernel.virt_base.checked_add(MAX_LOADED - 1).is_some());
    }
}
