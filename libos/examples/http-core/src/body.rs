//! Where the body of a message ends (RFC 9112, sections 6 and 7).

/// How long a body is, as the head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many bytes.
    Known(u64),
    /// In chunks, each of which says how long it is.
    Chunked,
    /// Until the other side closes the connection.
    UntilClose,
}

/// Bytes that the trailers behind the chunks, or one chunk's extension, may have.
const MAX_EXTRA: u32 = 4096;

/// The chunks are broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed chunk of a body")]
pub struct ChunkError;

/// Follows a body to its end.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes of a body of known length.
    Left(u64),
    UntilClose,
    /// The size of a chunk, with so many digits seen.
    Size {
        size: u64,
        digits: u8,
    },
    /// What may follow the size up to the end of the line.
    Extension {
        size: u64,
        seen: u32,
    },
    /// The line feed that ends the line with the size.
    SizeEnd {
        size: u64,
    },
    /// So many bytes of a chunk.
    Data(u64),
    /// The line end behind a chunk.
    DataCr,
    DataLf,
    /// The start of a line behind the last chunk: a trailer, or the end.
    TrailerStart {
        seen: u32,
    },
    Trailer {
        seen: u32,
    },
    /// The line feed of the empty line.
    LastLf,
    Done,
}

impl Body {
    /// The beginning of a body.
    pub fn new(length: Length) -> Self {
        let state = match length {
            Length::Known(0) => State::Done,
            Length::Known(bytes) => State::Left(bytes),
            Length::Chunked => State::Size { size: 0, digits: 0 },
            Length::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// Whether all of it was there.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether it may end where the connection ends.
    pub fn may_end_here(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// Tells how many of `bytes` belong to the body, and remembers how far it came.
    ///
    /// # Errors
    /// When chunks are not as they should be: their end cannot be found.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            at += self.step(&bytes[at..])?;
        }
        Ok(at)
    }

    /// As much of `bytes`, which are some, as one state takes.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, ChunkError> {
        let byte = bytes[0];
        let all = bytes.len() as u64;
        self.state = match self.state {
            State::UntilClose => return Ok(bytes.len()),
            State::Left(left) => {
                let taken = left.min(all);
                self.state = if taken == left { State::Done } else { State::Left(left - taken) };
                return Ok(taken as usize);
            }
            State::Data(left) => {
                let taken = left.min(all);
                self.state = if taken == left { State::DataCr } else { State::Data(left - taken) };
                return Ok(taken as usize);
            }
            State::Size { size, digits } => match (byte, digits) {
                (_, 0..15) if byte.is_ascii_hexdigit() => {
                    let digit = char::from(byte).to_digit(16).unwrap_or(0);
                    State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
                }
                (_, 0) => return Err(ChunkError),
                (b'\r', _) => State::SizeEnd { size },
                (b';' | b' ' | b'\t', _) => State::Extension { size, seen: 0 },
                _ => return Err(ChunkError),
            },
            State::Extension { size, seen } => match byte {
                b'\r' => State::SizeEnd { size },
                b'\n' => return Err(ChunkError),
                _ if seen == MAX_EXTRA => return Err(ChunkError),
                _ => State::Extension { size, seen: seen + 1 },
            },
            State::SizeEnd { size } => match (byte, size) {
                (b'\n', 0) => State::TrailerStart { seen: 0 },
                (b'\n', _) => State::Data(size),
                _ => return Err(ChunkError),
            },
            State::DataCr if byte == b'\r' => State::DataLf,
            State::DataLf if byte == b'\n' => State::Size { size: 0, digits: 0 },
            State::TrailerStart { seen } => match byte {
                b'\r' => State::LastLf,
                _ => State::Trailer { seen: seen + 1 },
            },
            State::Trailer { seen } => match byte {
                b'\n' => State::TrailerStart { seen },
                _ if seen >= MAX_EXTRA => return Err(ChunkError),
                _ => State::Trailer { seen: seen + 1 },
            },
            State::LastLf if byte == b'\n' => State::Done,
            State::DataCr | State::DataLf | State::LastLf => return Err(ChunkError),
            State::Done => return Ok(0),
        };
        Ok(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec::Vec};
    use proptest::prelude::*;

    fn chunked(bytes: &[u8]) -> Result<(usize, bool), ChunkError> {
        let mut body = Body::new(Length::Chunked);
        body.take(bytes).map(|taken| (taken, body.is_done()))
    }

    #[test]
    fn chunks_end_behind_the_empty_line() {
        assert_eq!(chunked(b"5\r\nhello\r\n0\r\n\r\nGET"), Ok((15, true)));
        assert_eq!(chunked(b"5;name=value\r\nhello\r\n0\r\nTrailer: x\r\n\r\nGET"), Ok((38, true)));
        assert_eq!(chunked(b"5\r\nhel"), Ok((6, false)));
    }

    #[test]
    fn broken_chunks_are_refused() {
        for bytes in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"5\n",
            b"5\r\nhello0\r\n",
            b"5\r\nhello\n",
            b"1234567890abcdef0\r\n",
            b"0\r\n\rx",
            b"5;a\nhello",
        ] {
            assert_eq!(chunked(bytes), Err(ChunkError), "{bytes:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_without_end_are_refused() {
        assert_eq!(chunked(&[b"5;", &[b'x'; 5000][..]].concat()), Err(ChunkError));
        assert_eq!(chunked(&[b"0\r\n", &b"A: b\r\n".repeat(1000)[..]].concat()), Err(ChunkError));
    }

    #[test]
    fn a_body_of_known_length_leaves_what_follows() {
        let mut body = Body::new(Length::Known(3));
        assert_eq!(body.take(b"ab"), Ok(2));
        assert!(!body.may_end_here());
        assert_eq!(body.take(b"cGET"), Ok(1));
        assert!(body.is_done());
        assert!(Body::new(Length::Known(0)).is_done());
    }

    proptest! {
        #[test]
        fn the_end_is_found_whatever_the_pieces(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            rest in proptest::collection::vec(any::<u8>(), 0..20),
            piece in 1usize..50,
        ) {
            let mut whole = Vec::new();
            for chunk in &chunks {
                whole.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                whole.extend_from_slice(chunk);
                whole.extend_from_slice(b"\r\n");
            }
            whole.extend_from_slice(b"0\r\n\r\n");
            let end = whole.len();
            whole.extend_from_slice(&rest);
            let mut body = Body::new(Length::Chunked);
            let taken: usize = whole.chunks(piece).map(|piece| body.take(piece).unwrap()).sum();
            prop_assert_eq!(taken, end);
            prop_assert!(body.is_done());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'f'), Just(b';'), any::<u8>()], 0..200
        )) {
            let mut body = Body::new(Length::Chunked);
            if let Ok(taken) = body.take(&bytes) {
                prop_assert!(taken <= bytes.len());
                prop_assert!(taken == bytes.len() || body.is_done());
            }
        }
    }
}
