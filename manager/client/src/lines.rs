//! Answers of JSON, one value a line, as they come.

use super::{Client, Result};
use reqwest::Response;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;

/// Longest line.
const MAX_LINE: usize = 1 << 20;

/// Values as they come.
#[derive(Debug)]
pub struct Lines<T> {
    answer: Response,
    client: Client,
    buffer: Vec<u8>,
    /// Where in the buffer the next line begins.
    next: usize,
    value: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(super) fn new(answer: Response, client: &Client) -> Self {
        Self { answer, client: client.clone(), buffer: Vec::new(), next: 0, value: PhantomData }
    }

    /// The next value; none at the answer's end. Loses nothing when it is dropped while it waits.
    ///
    /// # Errors
    /// When the connection breaks off, or a line is no such value.
    pub async fn next(&mut self) -> Result<Option<T>> {
        loop {
            let rest = &self.buffer[self.next..];
            if let Some(len) = rest.iter().position(|&byte| byte == b'\n') {
                let line = &rest[..len];
                self.next += len + 1;
                if line.is_empty() {
                    continue;
                }
                let value = serde_json::from_slice(line);
                return value
                    .map(Some)
                    .map_err(|error| self.client.protocol(format!("a line does not parse: {error}")));
            }
            if rest.len() > MAX_LINE {
                return Err(self.client.protocol(format!("a line is longer than {MAX_LINE} bytes")));
            }
            self.buffer.drain(..std::mem::take(&mut self.next));
            match self.answer.chunk().await.map_err(|error| self.client.failed(&error))? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}
