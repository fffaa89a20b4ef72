//! `fcap ps`.

use super::port::summary;
use crate::human::{ago, cpu_time, duration, now_ms, size_kib};
use crate::output::{self, Format, short_id, table, truncated};
use crate::target::{Globals, NoCloud};
use crate::terminal::one_line;
use fcap_api::{Capsule, EndReason, RestartPolicy, State};
use std::time::Duration;

/// Longest image name and argument list in the table.
const SHORT: usize = 24;

/// Longest list of ports in the table.
const PORTS: usize = 40;

/// Lists capsules: those that run, or all with -a
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Also those that have ended or were not started
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Only those that fit: id=, name=, label=, state=, exited=, node=, image=
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_filter)]
    filter: Vec<Filter>,
    /// Format of the list
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
    /// Print ids and texts in full
    #[arg(long)]
    no_trunc: bool,
    /// Only so many that were made last, in any state
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// Only the one that was made last, in any state
    #[arg(short, long, conflicts_with = "last")]
    latest: bool,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Id(String),
    Name(String),
    Label(String, Option<String>),
    State(State),
    Exited(i32),
    Node(String),
    Image(String),
}

impl Filter {
    fn fits(&self, capsule: &Capsule) -> bool {
        match self {
            Self::Id(start) => capsule.id.starts_with(start),
            Self::Name(part) => capsule.name.contains(part.as_str()),
            Self::Label(key, value) => {
                capsule.labels.get(key).is_some_and(|label| value.as_ref().is_none_or(|value| value == label))
            }
            Self::State(state) => capsule.state == *state,
            Self::Exited(code) => {
                capsule.state == State::Exited
                    && capsule.end.as_ref().is_some_and(|end| end.exit_code == *code)
            }
            Self::Node(node) => capsule.node == *node,
            Self::Image(image) => {
                let digest = capsule.image.strip_prefix("sha256:").unwrap_or(&capsule.image);
                capsule.image_name == *image || capsule.image == *image || digest.starts_with(image.as_str())
            }
        }
    }

    /// Conditions of one kind are alternatives, except labels: those must all be there.
    fn same_kind(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && !matches!(self, Self::Label(..))
    }

    /// Whether it asks for capsules that do not run.
    fn wants_all(&self) -> bool {
        matches!(self, Self::State(_) | Self::Exited(_))
    }
}

fn parse_filter(text: &str) -> Result<Filter, String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, such as name=web")?;
    let value = value.to_owned();
    match key {
        "id" => Ok(Filter::Id(value)),
        "name" => Ok(Filter::Name(value)),
        "label" => Ok(match value.split_once('=') {
            Some((key, value)) => Filter::Label(key.into(), Some(value.into())),
            None => Filter::Label(value, None),
        }),
        "state" | "status" => serde_json::from_value(serde_json::Value::String(value))
            .map(Filter::State)
            .map_err(|_| "states are created, running, paused, stopping, restarting, exited".into()),
        "exited" => value.parse().map(Filter::Exited).map_err(|_| "exited= takes an exit code".into()),
        "node" => Ok(Filter::Node(value)),
        "image" | "ancestor" => Ok(Filter::Image(value)),
        _ => Err("filters are id, name, label, state, exited, node and image".into()),
    }
}

fn chosen(capsule: &Capsule, filters: &[Filter]) -> bool {
    filters.iter().all(|filter| {
        filters.iter().any(|other| (other == filter || other.same_kind(filter)) && other.fits(capsule))
    })
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let last = if self.latest { Some(1) } else { self.last };
        let all = self.all || last.is_some() || self.filter.iter().any(Filter::wants_all);
        let (mut capsules, several, complete) = match globals.fleet().await {
            Ok(fleet) => {
                let (lists, complete) = fleet.ask(|node| node.capsules(all)).await.noted()?;
                (lists.concat(), fleet.nodes().len() > 1, complete)
            }
            Err(error) if error.is::<NoCloud>() => {
                eprintln!("fcap: {error}");
                (Vec::new(), false, true)
            }
            Err(error) => return Err(error),
        };
        capsules.retain(|capsule| chosen(capsule, &self.filter));
        capsules.sort_by(|a, b| b.created_ms.cmp(&a.created_ms).then_with(|| a.name.cmp(&b.name)));
        capsules.truncate(last.unwrap_or(usize::MAX));
        self.print(&capsules, several)?;
        Ok(u8::from(!complete))
    }

    fn print(&self, capsules: &[Capsule], several: bool) -> anyhow::Result<()> {
        let lines = |text: fn(&Args, &Capsule) -> String| -> String {
            capsules.iter().map(|capsule| text(self, capsule) + "\n").collect()
        };
        match self.output {
            _ if self.quiet => output::print(&lines(|args, it| short_id(&it.id, args.no_trunc))),
            Format::Name => output::print(&lines(|_, it| it.name.clone())),
            Format::Json => output::json(&capsules),
            Format::Yaml => output::yaml(&capsules),
            Format::Table | Format::Wide => output::print(&self.table(capsules, several)),
        }
    }

    fn table(&self, capsules: &[Capsule], several: bool) -> String {
        let wide = self.output == Format::Wide;
        let mut head = vec!["CAPSULE ID", "IMAGE", "ARGS", "CREATED", "STATUS", "MEM"];
        if wide {
            head.extend([
                "MAX MEM",
                "VCPUS",
                "CPU CAP",
                "WEIGHT",
                "CPU TIME",
                "RESTART",
                "LABELS",
                "ADDRESSES",
            ]);
        }
        if wide || several {
            head.push("NODE");
        }
        head.extend(["PORTS", "NAMES"]);
        let now = now_ms();
        let whole = self.no_trunc;
        let rows = capsules.iter().map(|capsule| {
            let mut row = vec![
                short_id(&capsule.id, whole),
                truncated(&one_line(&capsule.image_name), SHORT, whole),
                truncated(&one_line(&capsule.args.join(" ")), SHORT, whole),
                ago(capsule.created_ms, now),
                status(capsule, now),
                size_kib(capsule.memory_kib),
            ];
            if wide {
                let labels: Vec<String> = capsule
                    .labels
                    .iter()
                    .map(|(key, value)| if value.is_empty() { key.clone() } else { format!("{key}={value}") })
                    .collect();
                row.extend([
                    size_kib(capsule.max_memory_kib),
                    capsule.vcpus.to_string(),
                    if capsule.cpu_cap == 0 { "-".into() } else { format!("{}%", capsule.cpu_cap) },
                    capsule.weight.to_string(),
                    cpu_time(capsule.cpu_time_ns),
                    policy(capsule),
                    truncated(&one_line(&labels.join(",")), SHORT, whole),
                    addresses(capsule),
                ]);
            }
            if wide || several {
                row.push(one_line(&capsule.node));
            }
            row.extend([truncated(&summary(capsule), PORTS, whole), one_line(&capsule.name)]);
            row
        });
        table(&head, rows)
    }
}

/// "Up 5 minutes", "Exited (3) 2 minutes ago".
fn status(capsule: &Capsule, now_ms: u64) -> String {
    let up = || {
        let since = capsule.started_ms.unwrap_or(capsule.created_ms);
        format!("Up {}", duration(Duration::from_millis(now_ms.saturating_sub(since))).to_lowercase())
    };
    let ended = |word: &str| match &capsule.end {
        Some(end) => format!("{word} ({}) {}", end.exit_code, ago(end.ended_ms, now_ms).to_lowercase()),
        None => word.to_owned(),
    };
    match capsule.state {
        State::Created => "Created".into(),
        State::Running => up(),
        State::Paused => up() + " (Paused)",
        State::Stopping => up() + " (Stopping)",
        State::Restarting => ended("Restarting"),
        State::Exited => match capsule.end.as_ref().map(|end| end.reason) {
            Some(EndReason::Panicked) => ended("Exited") + " (panicked)",
            Some(EndReason::OutOfMemory) => ended("Exited") + " (out of memory)",
            Some(EndReason::Crashed) => ended("Exited") + " (crashed)",
            Some(EndReason::Lost) => ended("Exited") + " (lost)",
            _ => ended("Exited"),
        },
    }
}

/// IPv4 addresses, the first network's first.
fn addresses(capsule: &Capsule) -> String {
    capsule.networks.iter().map(|it| it.ipv4.to_string()).collect::<Vec<_>>().join(", ")
}

/// The restart policy and how often it was used.
fn policy(capsule: &Capsule) -> String {
    let word = match capsule.restart {
        RestartPolicy::No => return "no".into(),
        RestartPolicy::OnFailure { max_retries: None } => "on-failure".to_owned(),
        RestartPolicy::OnFailure { max_retries: Some(most) } => format!("on-failure:{most}"),
        RestartPolicy::Always => "always".into(),
        RestartPolicy::UnlessStopped => "unless-stopped".into(),
    };
    format!("{word} ({})", capsule.restarts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fcap_api::End;

    fn capsule() -> Capsule {
        serde_json::from_value(serde_json::json!({
            "id": "0123456789abcdef0123456789abcdef", "name": "web", "node": "node1",
            "image": "sha256:feed", "image_name": "hello", "args": ["a", "b"], "env": {},
            "labels": {"tier": "front", "x": ""}, "state": "running", "domid": 3,
            "created_ms": 1_000, "started_ms": 2_000, "memory_kib": 16384, "vcpus": 1,
            "cpu_cap": 0, "weight": 256, "cpu_time_ns": 0, "restart": "no", "restarts": 0,
            "remove": false, "stdin": false, "end": null
        }))
        .unwrap()
    }

    fn end(exit_code: i32, reason: EndReason) -> Option<End> {
        Some(End { exit_code, reason, message: None, backtrace: vec![], ended_ms: 10_000 })
    }

    #[test]
    fn statuses_read_like_dockers() {
        let mut it = capsule();
        assert_eq!(status(&it, 302_000), "Up 5 minutes");
        it.state = State::Paused;
        assert_eq!(status(&it, 2_000), "Up less than a second (Paused)");
        it.state = State::Exited;
        it.end = end(3, EndReason::Exited);
        assert_eq!(status(&it, 130_000), "Exited (3) 2 minutes ago");
        it.end = end(101, EndReason::Panicked);
        assert_eq!(status(&it, 70_000), "Exited (101) about a minute ago (panicked)");
    }

    #[test]
    fn filters_of_one_kind_are_alternatives_and_labels_are_not() {
        let fits = |texts: &[&str]| {
            let filters: Vec<Filter> = texts.iter().map(|text| parse_filter(text).unwrap()).collect();
            chosen(&capsule(), &filters)
        };
        for yes in [
            &[][..],
            &["name=we"],
            &["name=no", "name=web"],
            &["label=tier"],
            &["label=tier=front", "label=x"],
            &["state=running", "node=node1", "image=hello"],
            &["image=fee"],
            &["id=0123"],
            &["state=exited", "status=running"],
        ] {
            assert!(fits(yes), "{yes:?}");
        }
        for no in [
            &["name=no"][..],
            &["label=tier=back"],
            &["label=tier", "label=none"],
            &["state=exited"],
            &["exited=0"],
            &["node=node2"],
            &["name=web", "image=other"],
        ] {
            assert!(!fits(no), "{no:?}");
        }
        for bad in ["", "name", "colour=red", "state=happy", "exited=x"] {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
    }
}
