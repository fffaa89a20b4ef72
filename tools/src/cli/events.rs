//! `fcap events`.

use crate::client::{ClientError, Events};
use crate::human::{now_ms, parse_since_ms, rfc3339_ns};
use crate::output::{self, short_id};
use crate::target::Globals;
use crate::terminal::one_line;
use fcap_api::Event;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use std::time::Duration;

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum EventFormat {
    /// A line of text for each.
    #[default]
    Table,
    /// A line of JSON for each.
    Json,
}

/// Shows what happens to capsules, until Ctrl-C
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Begin with those kept since then: 10m, 2026-01-31T12:00:00Z, or a Unix time
    #[arg(long, value_name = "TIME", value_parser = parse_since_ms)]
    since: Option<u64>,
    /// End with those up to then, which may be to come; a time as for --since
    #[arg(long, value_name = "TIME", value_parser = parse_since_ms)]
    until: Option<u64>,
    /// Show those that are kept, and end
    #[arg(long, conflicts_with = "follow")]
    no_follow: bool,
    /// Go on with what happens; so it does anyway
    #[arg(short, long)]
    follow: bool,
    /// Format of each event
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: EventFormat,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let fleet = globals.fleet().await?;
        let rest = self.until.map(|until| Duration::from_millis(until.saturating_sub(now_ms())));
        let follow = !self.no_follow && rest.is_none_or(|rest| !rest.is_zero());
        let (streams, complete) = fleet.ask(|node| node.events(self.since, follow)).await.noted()?;
        let whole = match rest {
            _ if !follow => self.print_kept(streams).await.map(|()| true)?,
            None => self.print_all(streams).await?,
            Some(rest) => tokio::time::timeout(rest, self.print_all(streams)).await.unwrap_or(Ok(true))?,
        };
        Ok(u8::from(!(whole && complete)))
    }

    /// Those that there are, in order.
    async fn print_kept(&self, streams: Vec<Events>) -> anyhow::Result<()> {
        let mut all = Vec::new();
        for mut stream in streams {
            while let Some(event) = stream.next().await? {
                all.push(event);
            }
        }
        // Nodes' clocks agree well enough for people.
        all.sort_by_key(|event| event.time_ms);
        all.iter().try_for_each(|event| self.print(event))
    }

    /// Each as it comes, until no node has more. Whether all nodes went on to their end.
    async fn print_all(&self, streams: Vec<Events>) -> anyhow::Result<bool> {
        let mut complete = true;
        let mut next: FuturesUnordered<_> = streams.into_iter().map(advance).collect();
        while let Some((event, stream)) = next.next().await {
            match event {
                Ok(Some(event)) => {
                    self.print(&event)?;
                    next.push(advance(stream));
                }
                Ok(None) => {}
                // The other nodes go on.
                Err(error) => {
                    eprintln!("fcap: {}", one_line(&error.to_string()));
                    complete = false;
                }
            }
        }
        Ok(complete)
    }

    fn print(&self, event: &Event) -> anyhow::Result<()> {
        if self.until.is_some_and(|until| event.time_ms > until) {
            return Ok(());
        }
        match self.output {
            EventFormat::Json => output::print(&(serde_json::to_string(event)? + "\n")),
            EventFormat::Table => output::print(&(line(event, self.no_trunc) + "\n")),
        }
    }
}

async fn advance(mut stream: Events) -> (Result<Option<Event>, ClientError>, Events) {
    let event = stream.next().await;
    (event, stream)
}

fn line(event: &Event, whole: bool) -> String {
    let word = |value| serde_json::to_value(value).ok().and_then(|word| word.as_str().map(str::to_owned));
    let action = word(event.action).unwrap_or_default();
    let mut line = format!(
        "{} {action} {} (name={}, node={}",
        rfc3339_ns(event.time_ms.saturating_mul(1_000_000)),
        short_id(&event.id, whole),
        one_line(&event.name),
        one_line(&event.node)
    );
    if let Some(end) = &event.end {
        line += &format!(", exitCode={}", end.exit_code);
        if let Some(message) = &end.message {
            line += &format!(", message={}", one_line(message));
        }
    }
    line + ")"
}

#[cfg(test)]
mod tests {
    use super::*;
    use fcap_api::{Action, End, EndReason};

    #[test]
    fn an_event_is_one_safe_line() {
        let end = End {
            exit_code: 101,
            reason: EndReason::Panicked,
            message: Some("at\x1b[2J\nnight".into()),
            backtrace: vec![],
            ended_ms: 0,
        };
        let event = Event {
            time_ms: 1500,
            action: Action::Die,
            id: "0123456789abcdef".into(),
            name: "web".into(),
            node: "node1".into(),
            end: Some(end),
        };
        assert_eq!(
            line(&event, false),
            "1970-01-01T00:00:01.500000000Z die 0123456789ab \
             (name=web, node=node1, exitCode=101, message=at\u{fffd}[2J\u{fffd}night)"
        );
    }
}
