//! Headers and records over a link: framing, numbering, checksums.

use std::{
    io::{self, ErrorKind, Read, Write},
    time::Duration,
};

use crate::{
    error::{MigrateError, Side},
    link::{LinkReader, LinkWriter},
    wire::{
        Breach, HEADER_LEN, ImageHeader, RECORD_HEADER_LEN, RecordHeader, RecordType, body_checksum,
        emit_text,
    },
};

/// Small records wait for each other until there is so much of them, or something to wait for.
const GATHER: usize = 32 << 10;

/// Writes one direction of a stream.
pub(crate) struct StreamWriter<W> {
    link: LinkWriter<W>,
    sequence: u64,
    pending: Vec<u8>,
    bytes: u64,
}

impl<W: Write> StreamWriter<W> {
    pub(crate) fn new(link: LinkWriter<W>) -> Self {
        Self { link, sequence: 0, pending: Vec::with_capacity(2 * GATHER), bytes: 0 }
    }

    pub(crate) fn link(&mut self) -> &mut LinkWriter<W> {
        &mut self.link
    }

    /// Bytes written so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes the header, and who writes it.
    pub(crate) fn header(&mut self, header: &ImageHeader) -> Result<(), MigrateError> {
        self.gather(&header.emit(), &[])?;
        let mut creator = Vec::new();
        emit_text(concat!("fcap ", env!("CARGO_PKG_VERSION")), &mut creator);
        self.record(RecordType::Creator, &creator)
    }

    pub(crate) fn record(&mut self, record_type: RecordType, body: &[u8]) -> Result<(), MigrateError> {
        let checksum = body_checksum(record_type as u32, body);
        self.emit(record_type, checksum, body, &[])
    }

    /// Writes a record whose body is in two pieces, with its checksum
    /// ([`split_body_checksum`](crate::wire::split_body_checksum)), which others can compute
    /// while this is busy.
    pub(crate) fn emit(
        &mut self,
        record_type: RecordType,
        checksum: u64,
        head: &[u8],
        rest: &[u8],
    ) -> Result<(), MigrateError> {
        let length = head.len() + rest.len();
        debug_assert!(record_type.lengths().contains(&length), "{record_type:?} of {length} bytes");
        let header = RecordHeader {
            record_type: record_type as u32,
            length: length as u32,
            sequence: self.sequence,
            checksum,
        };
        self.sequence += 1;
        self.pending.extend(header.emit());
        self.bytes += RECORD_HEADER_LEN as u64;
        self.gather(head, rest)
    }

    fn gather(&mut self, head: &[u8], rest: &[u8]) -> Result<(), MigrateError> {
        self.bytes += (head.len() + rest.len()) as u64;
        for piece in [head, rest] {
            if self.pending.len() + piece.len() > GATHER {
                self.write_pending()?;
            }
            if piece.len() > GATHER {
                self.link.write_all(piece)?;
            } else {
                self.pending.extend(piece);
            }
        }
        Ok(())
    }

    fn write_pending(&mut self) -> Result<(), MigrateError> {
        let written = self.link.write_all(&self.pending);
        self.pending.clear();
        written
    }

    /// Has everything on its way.
    pub(crate) fn flush(&mut self) -> Result<(), MigrateError> {
        self.write_pending()?;
        self.link.flush()
    }
}

/// What the end of a stream means before it is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnEnd {
    /// A file that is too short.
    Truncated,
    /// The other side, or the way to it, is gone.
    LinkLost,
}

/// Reads one direction of a stream.
pub(crate) struct StreamReader<R> {
    link: LinkReader<R>,
    /// Who writes what is read.
    writer: Side,
    on_end: OnEnd,
    sequence: u64,
}

impl<R: Read> StreamReader<R> {
    pub(crate) fn new(link: LinkReader<R>, writer: Side, on_end: OnEnd) -> Self {
        Self { link, writer, on_end, sequence: 0 }
    }

    pub(crate) fn link(&mut self) -> &mut LinkReader<R> {
        &mut self.link
    }

    /// An error of the side that writes.
    pub(crate) fn broken(&self, breach: Breach) -> MigrateError {
        MigrateError::Stream { side: self.writer, source: breach }
    }

    /// Reads the header.
    pub(crate) fn header(&mut self, patience: Duration) -> Result<ImageHeader, MigrateError> {
        let mut bytes = [0; HEADER_LEN];
        self.fill(&mut bytes, patience, "the header")?;
        ImageHeader::parse(&bytes).map_err(|breach| self.broken(breach))
    }

    /// Reads the next record that this engine knows; its body is in `body` up to the length that
    /// is returned. `body` never shrinks, so that it is cleared only once.
    pub(crate) fn next(
        &mut self,
        body: &mut Vec<u8>,
        patience: Duration,
    ) -> Result<(RecordType, usize), MigrateError> {
        loop {
            let mut bytes = [0; RECORD_HEADER_LEN];
            self.fill(&mut bytes, patience, "the header of a record")?;
            let header = RecordHeader::parse(&bytes).map_err(|breach| self.broken(breach))?;
            if header.sequence != self.sequence {
                let breach = Breach::Sequence { expected: self.sequence, found: header.sequence };
                return Err(self.broken(breach));
            }
            self.sequence += 1;
            let len = header.length as usize;
            if body.len() < len {
                body.resize(len, 0);
            }
            self.fill(&mut body[..len], Duration::ZERO, "a record")?;
            if body_checksum(header.record_type, &body[..len]) != header.checksum {
                let RecordHeader { sequence, record_type, .. } = header;
                return Err(self.broken(Breach::Checksum { sequence, record_type }));
            }
            match header.known() {
                None | Some(RecordType::Creator) => {}
                Some(known) => return Ok((known, len)),
            }
        }
    }

    /// Checks that nothing follows.
    pub(crate) fn end(&mut self) -> Result<(), MigrateError> {
        match self.link.fill(&mut [0], Duration::ZERO)? {
            0 => Ok(()),
            _ => Err(self.broken(Breach::TrailingBytes)),
        }
    }

    fn fill(
        &mut self,
        buffer: &mut [u8],
        patience: Duration,
        within: &'static str,
    ) -> Result<(), MigrateError> {
        if self.link.fill(buffer, patience)? == buffer.len() {
            return Ok(());
        }
        Err(match self.on_end {
            OnEnd::Truncated => self.broken(Breach::Truncated(within)),
            OnEnd::LinkLost => MigrateError::Link {
                side: match self.writer {
                    Side::Source => Side::Destination,
                    Side::Destination => Side::Source,
                },
                source: io::Error::new(
                    ErrorKind::UnexpectedEof,
                    format!("the {} closed the connection within {within}", self.writer),
                ),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        link::{Cancel, Patience},
        wire::split_body_checksum,
    };

    fn writer(output: &mut Vec<u8>) -> StreamWriter<&mut Vec<u8>> {
        StreamWriter::new(LinkWriter::new(output, Side::Source, Patience::default(), Cancel::default()))
    }

    fn reader(input: &[u8]) -> StreamReader<&[u8]> {
        let link = LinkReader::new(input, Side::Destination, Patience::default(), Cancel::default());
        StreamReader::new(link, Side::Source, OnEnd::Truncated)
    }

    fn breach<T: std::fmt::Debug>(result: Result<T, MigrateError>) -> Breach {
        match result {
            Err(MigrateError::Stream { side: Side::Source, source }) => source,
            other => panic!("{other:?}"),
        }
    }

    /// The records of a stream until it ends or breaks.
    fn records(stream: &[u8]) -> (Vec<(RecordType, Vec<u8>)>, Breach) {
        let mut reader = reader(stream);
        let (mut records, mut body) = (Vec::new(), Vec::new());
        loop {
            match reader.next(&mut body, Duration::ZERO) {
                Ok((record_type, len)) => records.push((record_type, body[..len].to_vec())),
                error => return (records, breach(error)),
            }
        }
    }

    fn bodies() -> impl Strategy<Value = Vec<Vec<u8>>> {
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..90), 1..20)
    }

    fn stream_of(bodies: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
        let (mut stream, mut borders) = (Vec::new(), vec![0]);
        let mut writer = writer(&mut stream);
        for body in bodies {
            let (head, rest) = body.split_at(body.len() / 2);
            let checksum = split_body_checksum(RecordType::Config as u32, head, rest);
            writer.emit(RecordType::Config, checksum, head, rest).unwrap();
            borders.push(writer.bytes() as usize);
        }
        writer.flush().unwrap();
        (stream, borders)
    }

    proptest! {
        #[test]
        fn records_come_back_as_written(bodies in bodies()) {
            let (stream, borders) = stream_of(&bodies);
            prop_assert_eq!(*borders.last().unwrap(), stream.len());
            let (read, end) = records(&stream);
            prop_assert_eq!(end, Breach::Truncated("the header of a record"));
            prop_assert_eq!(read, bodies.into_iter().map(|body| (RecordType::Config, body)).collect::<Vec<_>>());
        }

        #[test]
        fn a_stream_cut_anywhere_gives_the_records_before_the_cut(bodies in bodies(), at: prop::sample::Index) {
            let (stream, borders) = stream_of(&bodies);
            let at = at.index(stream.len());
            let whole = borders.iter().filter(|border| **border <= at).count() - 1;
            let (read, end) = records(&stream[..at]);
            prop_assert_eq!(read.len(), whole);
            prop_assert!(matches!(end, Breach::Truncated(_)));
        }

        #[test]
        fn a_flipped_bit_is_noticed(bodies in bodies(), at: prop::sample::Index, bit in 0u32..8) {
            let (mut stream, borders) = stream_of(&bodies);
            let at = at.index(stream.len());
            stream[at] ^= 1 << bit;
            let before = borders.iter().filter(|border| **border <= at).count() - 1;
            let (read, _) = records(&stream);
            // An optional type is skipped only if its checksum, which covers the type, is right.
            prop_assert_eq!(read.len(), before);
        }

        #[test]
        fn records_that_are_swapped_or_repeated_are_noticed(bodies in bodies(), at: prop::sample::Index) {
            let (stream, borders) = stream_of(&bodies);
            let at = at.index(bodies.len());
            let record = &stream[borders[at]..borders[at + 1]];
            let repeated = [&stream[..borders[at + 1]], record].concat();
            prop_assert_eq!(
                records(&repeated).1,
                Breach::Sequence { expected: at as u64 + 1, found: at as u64 }
            );
            let lost = [&stream[..borders[at]], &stream[borders[at + 1]..]].concat();
            if at + 1 < bodies.len() {
                prop_assert_eq!(
                    records(&lost).1,
                    Breach::Sequence { expected: at as u64, found: at as u64 + 1 }
                );
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = records(&bytes);
            let _ = reader(&bytes).header(Duration::ZERO);
        }
    }

    #[test]
    fn optional_records_are_skipped_and_others_refused() {
        let record = |record_type: u32, sequence, body: &[u8]| {
            let header = RecordHeader {
                record_type,
                length: body.len() as u32,
                sequence,
                checksum: body_checksum(record_type, body),
            };
            [&header.emit(), body].concat()
        };
        let optional = RecordType::OPTIONAL | 0x777;
        let stream = [record(optional, 0, b"later"), record(RecordType::End as u32, 1, b"")].concat();
        assert_eq!(records(&stream).0, [(RecordType::End, vec![])]);
        let stream = record(0x777, 0, b"later");
        assert_eq!(records(&stream).1, Breach::UnknownRecord(0x777));
        let stream = record(optional, 3, b"later");
        assert_eq!(records(&stream).1, Breach::Sequence { expected: 0, found: 3 });
    }

    #[test]
    fn a_length_that_lies_is_refused_before_memory_is_reserved() {
        for (record_type, length) in [
            (RecordType::Config as u32, u32::MAX),
            (RecordType::End as u32, 1),
            (RecordType::Pages as u32, 3),
            (RecordType::OPTIONAL | 9, 0x41_0001),
        ] {
            let header = RecordHeader { record_type, length, sequence: 0, checksum: 0 };
            let mut body = Vec::new();
            let error = reader(&header.emit()).next(&mut body, Duration::ZERO);
            assert_eq!(breach(error), Breach::Length { record_type, length: length.into() });
            assert_eq!(body.capacity(), 0);
        }
    }

    #[test]
    fn headers_come_back_and_damage_is_noticed() {
        let header = crate::negotiate::offer([9; 16], crate::wire::Reason::Clone);
        let bytes = header.emit();
        assert_eq!(ImageHeader::parse(&bytes), Ok(header));
        for at in 0..HEADER_LEN {
            for bit in 0..8 {
                let mut bytes = bytes;
                bytes[at] ^= 1 << bit;
                assert!(ImageHeader::parse(&bytes).is_err());
            }
        }
    }
}
