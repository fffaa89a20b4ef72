//! `fcap logs`.

use super::BROKEN_PIPE;
use super::capsules::locate;
use crate::client::{LogQuery, Reference};
use crate::human::{parse_since_ms, rfc3339_ns};
use crate::stdio::Output;
use crate::target::Globals;
use anyhow::Context as _;
use fcap_api::stream::Frame;

/// Shows what a capsule has written
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id, unique prefix of an id, or name
    #[arg(value_name = "CAPSULE")]
    capsule: Reference,
    /// Go on until the capsule ends
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end, or all
    #[arg(short = 'n', long, value_name = "LINES", value_parser = parse_tail, default_value = "all")]
    tail: Tail,
    /// Only from then on: 10m, 2026-01-31T12:00:00Z, or a Unix time
    #[arg(long, value_name = "TIME", value_parser = parse_since_ms)]
    since: Option<u64>,
    /// Start each line with the time it came
    #[arg(short, long)]
    timestamps: bool,
}

/// How many lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tail(Option<u64>);

fn parse_tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        number => {
            number.parse().map(|lines| Tail(Some(lines))).map_err(|_| "write a number or all".to_owned())
        }
    }
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let (node, id) = locate(&fleet, &self.capsule).await?;
        let query = LogQuery { follow: self.follow, tail: self.tail.0, since_ms: self.since };
        let mut frames = node.logs(&id, &query).await?;
        let mut output = Output::stdout(globals.colours());
        let mut stamps = Stamps { at_start: true };
        while let Some(frame) = frames.next().await? {
            match frame {
                Frame::Output { time_ns, bytes } => {
                    let bytes = if self.timestamps { stamps.apply(time_ns, &bytes) } else { bytes };
                    if !output.write(bytes).await {
                        break;
                    }
                }
                Frame::Lost(bytes) => eprintln!("fcap: {bytes} bytes are missing here: the log was rotated"),
                Frame::End(_) => break,
                Frame::Capsule(_) => {}
            }
        }
        match output.finish().await {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(BROKEN_PIPE),
            written => written.context("standard output").map(|()| 0),
        }
    }
}

/// Puts times before lines, however the lines are cut into pieces.
struct Stamps {
    at_start: bool,
}

impl Stamps {
    fn apply(&mut self, time_ns: u64, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 32);
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            if self.at_start {
                out.extend_from_slice(rfc3339_ns(time_ns).as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(line);
            self.at_start = line.ends_with(b"\n");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_has_the_time_of_its_first_piece() {
        let mut stamps = Stamps { at_start: true };
        let text = [(0, "a\nb"), (1_000_000_000, "c\n"), (2_000_000_000, "\nd\n")]
            .map(|(time, text)| String::from_utf8(stamps.apply(time, text.as_bytes())).unwrap())
            .concat();
        assert_eq!(
            text,
            "1970-01-01T00:00:00.000000000Z a\n\
             1970-01-01T00:00:00.000000000Z bc\n\
             1970-01-01T00:00:02.000000000Z \n\
             1970-01-01T00:00:02.000000000Z d\n"
        );
    }
}
