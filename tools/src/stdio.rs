//! Standard input and output of a program that must stay responsive while they block.
//!
//! Both are served by a thread of their own with a short queue: a pager that does not read holds
//! the capsule back, not Ctrl-C.

use crate::terminal::Sanitizer;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use tokio::sync::{mpsc, oneshot};

/// Blocks that may wait in a queue.
const QUEUE: usize = 4;
/// Size of a block of input.
const BLOCK: usize = 256 * 1024;

/// Standard output, raw for pipes and files, made safe for terminals.
#[derive(Debug)]
pub struct Output {
    blocks: mpsc::Sender<Vec<u8>>,
    end: oneshot::Receiver<io::Result<()>>,
    sanitizer: Option<Sanitizer>,
}

impl Output {
    /// Standard output of this process; `colours` tells whether a terminal gets those that are in it.
    pub fn stdout(colours: bool) -> Self {
        let sanitizer = io::stdout().is_terminal().then(|| Sanitizer::new(colours));
        Self::new(sanitizer, |bytes| {
            let mut stdout = io::stdout().lock();
            stdout.write_all(bytes)?;
            stdout.flush()
        })
    }

    fn new(
        sanitizer: Option<Sanitizer>,
        mut write: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let (blocks, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
        let (result, end) = oneshot::channel();
        std::thread::spawn(move || {
            let mut outcome = Ok(());
            while let Some(block) = queue.blocking_recv() {
                outcome = write(&block);
                if outcome.is_err() {
                    break;
                }
            }
            // Nobody may be there any more to hear it.
            let _ = result.send(outcome);
        });
        Self { blocks, end, sanitizer }
    }

    /// Whether a person may be watching.
    pub fn is_terminal(&self) -> bool {
        self.sanitizer.is_some()
    }

    /// Queues bytes. False when nobody reads them any more; [`Output::finish`] tells why.
    pub async fn write(&mut self, bytes: Vec<u8>) -> bool {
        let bytes = match &mut self.sanitizer {
            Some(sanitizer) => sanitizer.push(&bytes).into_bytes(),
            None => bytes,
        };
        bytes.is_empty() || self.blocks.send(bytes).await.is_ok()
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// When writing failed.
    pub async fn finish(mut self) -> io::Result<()> {
        if let Some(sanitizer) = &mut self.sanitizer {
            let rest = sanitizer.finish();
            if !rest.is_empty() {
                // A failure is in the outcome.
                let _ = self.blocks.send(rest.into_bytes()).await;
            }
        }
        drop(self.blocks);
        self.end.await.unwrap_or_else(|_| Err(io::Error::other("the writer ended")))
    }
}

/// Standard input as the body of a request. Reading starts with the call, and blocks only its own
/// thread: a process that ends does not wait for it.
pub fn stdin_body() -> reqwest::Body {
    let (blocks, queue) = mpsc::channel::<io::Result<Vec<u8>>>(QUEUE);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        loop {
            let mut block = vec![0; BLOCK];
            let read = match stdin.read(&mut block) {
                Ok(0) => return,
                Ok(len) => {
                    block.truncate(len);
                    Ok(block)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            if blocks.blocking_send(read).is_err() || failed {
                return;
            }
        }
    });
    let stream = futures_util::stream::unfold(queue, |mut queue| async {
        let block = queue.recv().await?;
        Some((block, queue))
    });
    reqwest::Body::wrap_stream(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
    }

    #[test]
    fn everything_is_written_in_order() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&written);
        let mut output = Output::new(Some(Sanitizer::new(true)), move |bytes| {
            sink.lock().unwrap().extend_from_slice(bytes);
            Ok(())
        });
        block_on(async {
            assert!(output.write(b"one\n".to_vec()).await);
            assert!(output.write(b"two\x07\xc3".to_vec()).await);
            output.finish().await.unwrap();
        });
        assert_eq!(written.lock().unwrap().as_slice(), b"one\ntwo\\x07\\xc3");
    }

    #[test]
    fn a_closed_pipe_is_told() {
        let mut output = Output::new(None, |_| Err(io::ErrorKind::BrokenPipe.into()));
        block_on(async {
            while output.write(b"x".to_vec()).await {}
            assert_eq!(output.finish().await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        });
    }
}
