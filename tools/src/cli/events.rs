//! `fcap events`.

use crate::client::{ClientError, Lines};
use crate::filter::{self, Filter};
use crate::fleet::Fleet;
use crate::human::{now_ms, parse_since_ms, rfc3339_ns};
use crate::output::{self, short_id};
use crate::target::Globals;
use crate::terminal::one_line;
use fcap_api::Event;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use std::time::Duration;

/// What events can be chosen by.
const KEYS: [&str; 3] = ["capsule", "event", "node"];

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
    /// Only those that fit: capsule=, event=, node=
    #[arg(short = 'F', long, value_name = "KEY=VALUE", value_parser = filter::parser(&KEYS))]
    filter: Vec<Filter>,
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
        // It hears of nodes that are still to come, too.
        let fleet = match globals.local_controller(&fleet).await? {
            Some(controller) => Fleet::new(vec![controller]),
            None => fleet,
        };
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
    async fn print_kept(&self, streams: Vec<Lines<Event>>) -> anyhow::Result<()> {
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
    async fn print_all(&self, streams: Vec<Lines<Event>>) -> anyhow::Result<bool> {
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
        let fits = filter::all_hold(&self.filter, |key, value| holds(event, key, value));
        if !fits || self.until.is_some_and(|until| event.time_ms > until) {
            return Ok(());
        }
        match self.output {
            EventFormat::Json => output::print(&(serde_json::to_string(event)? + "\n")),
            EventFormat::Table => output::print(&(line(event, self.no_trunc) + "\n")),
        }
    }
}

async fn advance(mut stream: Lines<Event>) -> (Result<Option<Event>, ClientError>, Lines<Event>) {
    let event = stream.next().await;
    (event, stream)
}

fn action(event: &Event) -> String {
    let word = serde_json::to_value(event.action).ok();
    word.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

fn holds(event: &Event, key: &str, value: &str) -> bool {
    match key {
        "capsule" => event.name == value || !value.is_empty() && event.id.starts_with(value),
        "event" => action(event) == value,
        _ => event.node == value,
    }
}

/// Time, node, what, capsule, and what more there is to say.
fn line(event: &Event, whole: bool) -> String {
    let mut line = format!(
        "{} {} {} {} (name={}",
        rfc3339_ns(event.time_ms.saturating_mul(1_000_000)),
        one_line(&event.node),
        action(event),
        short_id(&event.id, whole),
        one_line(&event.name)
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
    fn events_are_chosen_by_capsule_kind_and_node() {
        let event = Event {
            time_ms: 0,
            action: Action::Die,
            id: "0123456789abcdef".into(),
            name: "web".into(),
            node: "node1".into(),
            end: None,
        };
        let parse = filter::parser(&KEYS);
        for (filters, fits) in [
            (&[][..], true),
            (&["capsule=web"], true),
            (&["capsule=0123"], true),
            (&["capsule=we"], false),
            (&["capsule="], false),
            (&["event=die", "event=start", "node=node1"], true),
            (&["event=die", "node=node2"], false),
        ] {
            let all: Vec<Filter> = filters.iter().map(|text| parse(text).unwrap()).collect();
            assert_eq!(filter::all_hold(&all, |key, value| holds(&event, key, value)), fits, "{filters:?}");
        }
    }

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
            "1970-01-01T00:00:01.500000000Z node1 die 0123456789ab \
             (name=web, exitCode=101, message=at\u{fffd}[2J\u{fffd}night)"
        );
    }
}
