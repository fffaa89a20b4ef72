//! What a peer has sent and nobody has understood yet.

use crate::{Ended, Patience};
use alloc::{vec, vec::Vec};
use libos::{net::TcpStream, time::Instant};

/// What an inbox has at first, and keeps.
const SMALL: usize = 2 * 1024;

/// Bytes received, up to a limit.
#[derive(Debug)]
pub struct Inbox {
    /// All of its memory, of which the first `len` bytes were received.
    storage: Vec<u8>,
    len: usize,
    limit: usize,
}

/// What came of receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// There are more bytes now.
    More,
    /// There are as many as there may be, and nobody has taken any.
    Full,
    /// The peer has sent all that it will.
    End,
}

impl Inbox {
    /// An empty one, for `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { storage: vec![0; SMALL.min(limit)], len: 0, limit }
    }

    /// What was received.
    pub fn bytes(&self) -> &[u8] {
        &self.storage[..self.len]
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the first `count` bytes.
    pub fn consume(&mut self, count: usize) {
        self.storage.copy_within(count..self.len, 0);
        self.len -= count;
        if self.len == 0 && self.storage.len() > SMALL {
            self.storage = vec![0; SMALL];
        }
    }

    /// Waits for more.
    ///
    /// # Errors
    /// If nothing comes by `deadline`, or the connection breaks.
    pub async fn receive(
        &mut self,
        stream: &mut TcpStream,
        patience: &mut Patience,
        deadline: Instant,
    ) -> Result<Received, Ended> {
        if self.len == self.storage.len() {
            if self.len == self.limit {
                return Ok(Received::Full);
            }
            self.storage.resize((self.len * 2).min(self.limit), 0);
        }
        let count = patience.until(deadline, stream.read(&mut self.storage[self.len..])).await??;
        self.len += count;
        Ok(if count == 0 { Received::End } else { Received::More })
    }
}
