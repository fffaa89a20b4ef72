//! Frames: how output travels in a response body (`application/x-fcap-frames`).
//!
//! A frame is `{ u8 kind, u32 length (big endian), body }`. Bodies are at most
//! [`MAX_BODY`] bytes. Kinds: [`Frame::Capsule`] 1 (JSON [`crate::Capsule`]),
//! [`Frame::Output`] 2 (`u64` big endian, nanoseconds since the Unix epoch, then
//! the bytes), [`Frame::End`] 3 (JSON [`crate::End`]), [`Frame::Lost`] 4 (`u64`
//! big endian: bytes that were dropped here because the log had been rotated).
//! Readers skip frames of other kinds.

/// Longest body of a frame.
pub const MAX_BODY: usize = 1 << 20;
/// Media type of a stream of frames.
pub const MEDIA_TYPE: &str = "application/x-fcap-frames";

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The capsule as it was made: the first frame of `POST /v1/run`.
    Capsule(Box<crate::Capsule>),
    /// Bytes that the capsule wrote, and when they arrived.
    Output {
        /// Nanoseconds since the Unix epoch.
        time_ns: u64,
        /// The bytes, raw: never pass them to a terminal as they are.
        bytes: Vec<u8>,
    },
    /// The run's end: the last frame.
    End(crate::End),
    /// So many bytes are missing here.
    Lost(u64),
}

/// A stream of frames is broken.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A body longer than [`MAX_BODY`] was announced.
    #[error("a frame of {0} bytes was announced, at most {MAX_BODY} are allowed")]
    TooLong(u32),
    /// A body is too short for its kind.
    #[error("a frame of kind {kind} has only {len} bytes")]
    TooShort {
        /// The frame's kind.
        kind: u8,
        /// Length of its body.
        len: usize,
    },
    /// A JSON body does not parse.
    #[error("a frame of kind {kind} does not parse")]
    Json {
        /// The frame's kind.
        kind: u8,
        /// What the parser said.
        source: serde_json::Error,
    },
}

impl Frame {
    /// Appends the frame's bytes. Output longer than [`MAX_BODY`] becomes several frames.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Capsule(capsule) => put(out, 1, &json(capsule)),
            Self::Output { time_ns, bytes } => {
                for chunk in bytes.chunks(MAX_BODY - 8) {
                    put_output(out, *time_ns, chunk);
                }
            }
            Self::End(end) => put(out, 3, &json(end)),
            Self::Lost(count) => put(out, 4, &count.to_be_bytes()),
        }
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("API types have string keys only, so they always serialize")
}

fn put(out: &mut Vec<u8>, kind: u8, body: &[u8]) {
    head(out, kind, body.len());
    out.extend_from_slice(body);
}

fn put_output(out: &mut Vec<u8>, time_ns: u64, bytes: &[u8]) {
    head(out, 2, 8 + bytes.len());
    out.extend_from_slice(&time_ns.to_be_bytes());
    out.extend_from_slice(bytes);
}

fn head(out: &mut Vec<u8>, kind: u8, len: usize) {
    out.push(kind);
    out.extend_from_slice(&u32::try_from(len).expect("bodies are bounded by MAX_BODY").to_be_bytes());
}

/// Takes bytes as they come and gives frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    read: usize,
}

impl Decoder {
    /// Adds bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// When the stream is broken; nothing that follows can be trusted.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let rest = &self.buffer[self.read..];
            let Some((&[kind, a, b, c, d], rest)) = rest.split_first_chunk::<5>() else { return Ok(None) };
            let len = u32::from_be_bytes([a, b, c, d]);
            if len as usize > MAX_BODY {
                return Err(FrameError::TooLong(len));
            }
            let Some(body) = rest.get(..len as usize) else { return Ok(None) };
            self.read += 5 + body.len();
            let number = || {
                body.split_first_chunk::<8>()
                    .map(|(number, rest)| (u64::from_be_bytes(*number), rest))
                    .ok_or(FrameError::TooShort { kind, len: body.len() })
            };
            let broken = |source| FrameError::Json { kind, source };
            return Ok(Some(match kind {
                1 => Frame::Capsule(serde_json::from_slice(body).map_err(broken)?),
                2 => {
                    let (time_ns, bytes) = number()?;
                    Frame::Output { time_ns, bytes: bytes.to_vec() }
                }
                3 => Frame::End(serde_json::from_slice(body).map_err(broken)?),
                4 => Frame::Lost(number()?.0),
                _ => continue,
            }));
        }
    }

    /// Whether bytes of an incomplete frame are left.
    pub fn is_empty(&self) -> bool {
        self.read == self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{End, EndReason};
    use proptest::prelude::*;

    fn frames(writes: &[Vec<u8>]) -> Vec<Frame> {
        let end = End {
            exit_code: 3,
            reason: EndReason::Exited,
            message: None,
            backtrace: Vec::new(),
            ended_ms: 7,
        };
        let output = writes
            .iter()
            .enumerate()
            .filter(|(_, bytes)| !bytes.is_empty())
            .map(|(i, bytes)| Frame::Output { time_ns: i as u64, bytes: bytes.clone() });
        output.chain([Frame::Lost(9), Frame::End(end)]).collect()
    }

    proptest! {
        #[test]
        fn frames_come_back_whatever_the_pieces(writes: Vec<Vec<u8>>, piece in 1usize..40) {
            let frames = frames(&writes);
            let mut bytes = Vec::new();
            frames.iter().for_each(|frame| frame.encode(&mut bytes));
            let mut decoder = Decoder::default();
            let mut read = Vec::new();
            for piece in bytes.chunks(piece) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    read.push(frame);
                }
            }
            prop_assert_eq!(read, frames);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }
}
