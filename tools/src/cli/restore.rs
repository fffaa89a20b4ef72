//! `fcap restore`.

use crate::client::{Client, Reference};
use crate::fleet::Fleet;
use crate::output;
use crate::target::Globals;
use anyhow::{Context as _, bail};
use fcap_migrate::wire::{self, RecordType};
use std::io::{Cursor, Read};

/// Bytes of an image in which its capsule's name is.
const HEAD: u64 = 256 << 10;
/// Bytes read at a time.
const PIECE: usize = 256 << 10;

/// Lets a saved capsule go on
///
/// Prints the capsule's id. With --name it becomes a capsule beside the one that was saved: with that
/// name, its own addresses and randomness.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// File to read, - for standard input
    #[arg(value_name = "FILE")]
    file: String,
    /// Name of its own
    #[arg(long, value_name = "NAME")]
    name: Option<Reference>,
    /// Node to restore it on; otherwise the one with the most free memory
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet_or_start().await?;
        let node = choose(&fleet, self.node.as_deref()).await?;
        let mut input: Box<dyn Read + Send> = match self.file.as_str() {
            "-" => Box::new(std::io::stdin()),
            file => Box::new(std::fs::File::open(file).with_context(|| file.to_owned())?),
        };
        let name = self.name.as_ref().map(Reference::as_str);
        let mut head = Vec::new();
        input.by_ref().take(HEAD).read_to_end(&mut head).with_context(|| self.file.clone())?;
        // A node knows of its own capsules only. What does not parse is the node's to refuse.
        if let Some(bears) = name.map(str::to_owned).or_else(|| name_in(&head)) {
            fleet.check_name(&bears, node).await?;
        }
        let input = Box::new(Cursor::new(head).chain(input));
        let capsule = node.restore(name, body(input)).await?;
        globals.forwards()?.add(&capsule).await?;
        output::print(&(capsule.id + "\n"))?;
        Ok(0)
    }
}

/// The name of the capsule in an image that begins like this.
fn name_in(head: &[u8]) -> Option<String> {
    let (header, mut rest) = head.split_first_chunk()?;
    wire::ImageHeader::parse(header).ok()?;
    loop {
        let (header, after) = rest.split_first_chunk()?;
        let header = wire::RecordHeader::parse(header).ok()?;
        let (body, after) = after.split_at_checked(header.length as usize)?;
        if header.known() == Some(RecordType::Config) {
            let passport: serde_json::Value = serde_json::from_slice(body).ok()?;
            return passport.pointer("/saved/config/name")?.as_str().map(str::to_owned);
        }
        rest = after;
    }
}

/// The node of this name, or that with the most room.
pub(super) async fn choose<'a>(fleet: &'a Fleet, name: Option<&str>) -> anyhow::Result<&'a Client> {
    let mut best: Option<(&Client, u64)> = None;
    for client in fleet.nodes() {
        let node = client.node().await?;
        if name.is_some_and(|name| name == node.name) {
            return Ok(client);
        }
        if best.is_none_or(|(_, free)| node.free_memory_kib > free) {
            best = Some((client, node.free_memory_kib));
        }
    }
    match (name, best) {
        (None, Some((client, _))) => Ok(client),
        (Some(name), _) => bail!("no such node: {name}; `fcap cloud ls` shows them"),
        (None, None) => bail!("there is no node"),
    }
}

/// What a reader gives, as the body of a request. It is read by a thread of its own: files and
/// pipes may block.
fn body(mut input: Box<dyn Read + Send>) -> reqwest::Body {
    let (sender, receiver) = tokio::sync::mpsc::channel::<std::io::Result<Vec<u8>>>(4);
    std::thread::spawn(move || {
        loop {
            let mut piece = vec![0; PIECE];
            let sent = match input.read(&mut piece) {
                Ok(0) => return,
                Ok(len) => {
                    piece.truncate(len);
                    sender.blocking_send(Ok(piece))
                }
                Err(error) => sender.blocking_send(Err(error)),
            };
            if sent.is_err() {
                return;
            }
        }
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    });
    reqwest::Body::wrap_stream(pieces)
}
