//! What follows a capsule that has moved: its log, and the files that it was made of where the
//! other node has not got them.
//!
//! Both go over the connection that it came over, once it runs at its new place: nobody waits for
//! them. If the connection breaks, its log begins anew, and it cannot be started again after its end
//! before its image is uploaded there; it runs all the same.
//!
//! ```text
//! source                                destination
//! count (1), then for each segment:
//!   start (8) length (4) bytes
//!                                       FETCH, index of a file (1)     }  any number
//! length (8) bytes                                                     }
//!                                       END
//! ```

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use fcap_migrate::domain::state;
use futures_util::stream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::listen::{read_exact, write_all};
use super::records::{Reader, Writer};
use crate::capsule::Capsule;
use crate::capsule::config::Config;
use crate::daemon::Daemon;
use crate::log::Log;

/// Kind of the piece of state that says where the log ends: 8 bytes.
pub(super) const LOG_END: u16 = state::MANAGER + 1;

/// The destination wants a file.
const FETCH: u8 = b'F';
/// The destination wants no more.
const END: u8 = b'E';
/// How long the other side may take for a word, or a piece.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the destination may take to put a file away.
const PUT_AWAY: Duration = Duration::from_secs(60);
/// Bytes moved at a time.
const PIECE: usize = 256 << 10;
/// Most segments of a log.
const MAX_SEGMENTS: u8 = 8;

/// The files that a capsule is made of, by their digests.
fn files(config: &Config) -> impl Iterator<Item = &String> {
    std::iter::once(&config.image).chain(&config.initrd)
}

/// Sends it: the segments of the log, and what of the files the destination asks for.
pub(super) fn send(
    daemon: &Daemon,
    config: &Config,
    segments: &[(u64, Vec<u8>)],
    reader: &mut Reader,
    writer: &mut Writer,
) -> io::Result<()> {
    let segments = &segments[segments.len().saturating_sub(usize::from(MAX_SEGMENTS))..];
    write_all(writer, &[segments.len() as u8], PATIENCE)?;
    for (start, bytes) in segments {
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        write_all(writer, &[&start.to_le_bytes()[..], &len.to_le_bytes()].concat(), PATIENCE)?;
        send_pieces(writer, bytes)?;
    }
    loop {
        let mut word = [0];
        read_exact(reader, &mut word, PUT_AWAY)?;
        match word[0] {
            END => return Ok(()),
            FETCH => {}
            _ => return Err(io::Error::other("the other node wants what nobody knows")),
        }
        read_exact(reader, &mut word, PATIENCE)?;
        let digest = files(config).nth(usize::from(word[0]));
        let digest = digest.ok_or_else(|| io::Error::other("the other node wants a file that is none"))?;
        let bytes = daemon.images.bytes(digest).map_err(|error| io::Error::other(error.body().message))?;
        write_all(writer, &(bytes.len() as u64).to_le_bytes(), PATIENCE)?;
        send_pieces(writer, &bytes)?;
    }
}

fn send_pieces(writer: &mut Writer, bytes: &[u8]) -> io::Result<()> {
    bytes.chunks(PIECE).try_for_each(|piece| write_all(writer, piece, PATIENCE))
}

/// Takes it for a capsule that has come.
pub(super) fn receive(
    daemon: &Arc<Daemon>,
    runtime: &Handle,
    capsule: &Capsule,
    reader: &mut Reader,
    writer: &mut Writer,
) -> io::Result<()> {
    receive_log(&capsule.log, daemon.log_bytes(), reader)?;
    let config = capsule.look(|record| record.config.clone());
    for (index, digest) in (0..).zip(files(&config)) {
        if daemon.images.get(digest).is_err() {
            write_all(writer, &[FETCH, index], PATIENCE)?;
            fetch(daemon, runtime, digest, reader)?;
        }
    }
    write_all(writer, &[END], PATIENCE)
}

/// A log that has grown larger than this node allows is read and left out.
fn receive_log(log: &Log, max_bytes: u64, reader: &mut Reader) -> io::Result<()> {
    let mut room = usize::try_from(max_bytes.saturating_mul(2)).unwrap_or(usize::MAX);
    let mut count = [0];
    read_exact(reader, &mut count, PATIENCE)?;
    if count[0] > MAX_SEGMENTS {
        return Err(io::Error::other("a log of too many pieces"));
    }
    let mut segments = Vec::new();
    for _ in 0..count[0] {
        let (mut start, mut len) = ([0; 8], [0; 4]);
        read_exact(reader, &mut start, PATIENCE)?;
        read_exact(reader, &mut len, PATIENCE)?;
        let len = u32::from_le_bytes(len) as usize;
        room = room.checked_sub(len).ok_or_else(|| io::Error::other("a log that is too long"))?;
        let mut bytes = vec![0; len];
        for piece in bytes.chunks_mut(PIECE) {
            read_exact(reader, piece, PATIENCE)?;
        }
        segments.push((u64::from_le_bytes(start), bytes));
    }
    log.put_before(&segments)
}

fn fetch(daemon: &Arc<Daemon>, runtime: &Handle, digest: &str, reader: &mut Reader) -> io::Result<()> {
    let mut len = [0; 8];
    read_exact(reader, &mut len, PATIENCE)?;
    let len = u64::from_le_bytes(len);
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(4);
    let put = {
        let (daemon, digest) = (daemon.clone(), digest.to_owned());
        runtime.spawn(async move {
            let body = stream::unfold(receiver, |mut receiver| async move {
                let piece = receiver.recv().await?;
                Some((piece, receiver))
            });
            let in_use = |digest: &str| daemon.uses_image(digest);
            daemon.images.put(&digest, Some(len), Box::pin(body), in_use).await
        })
    };
    let mut left = len;
    while left > 0 {
        let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
        read_exact(reader, &mut piece, PATIENCE)?;
        left -= piece.len() as u64;
        if sender.blocking_send(Ok(piece.into())).is_err() {
            // It is refused, and the reason is in what comes of it.
            break;
        }
    }
    drop(sender);
    let put = runtime.block_on(put).map_err(io::Error::other)?;
    put.map(drop).map_err(|error| io::Error::other(error.body().message))
}
