//! `fcap migrate`.

use crate::client::{Client, Reference};
use crate::fleet::Fleet;
use crate::forwards::Forwards;
use crate::human;
use crate::target::Globals;
use crate::terminal::one_line;
use anyhow::{Context as _, bail};
use fcap_api::migrate::{
    DirtyTracking, Invitation, Migrate, MigrationIdentity, Moved, Precopy, Progress, Round,
};
use fcap_api::{Capsule, Node};

/// Moves running capsules to another node
///
/// The capsule goes on while its memory is copied, round after round, and stands still only for the
/// last pages. Its name, addresses and connections stay. Whatever fails, exactly one copy lives on.
/// Ctrl-C ends the attempt as long as the capsule is where it was.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ids, unique prefixes of ids, or names; the last argument is the name of the node to move to
    #[arg(required = true, num_args = 2.., value_names = ["CAPSULE", "NODE"])]
    capsules_and_node: Vec<Reference>,
    /// Longest time to stand still in milliseconds; without it 100 is aimed at, with it the capsule
    /// stays if it cannot be had
    #[arg(long, value_name = "MS")]
    max_downtime: Option<u64>,
    /// Most rounds of copying while it runs
    #[arg(long, value_name = "COUNT")]
    max_rounds: Option<u32>,
    /// Most bytes a second (k, m, g: KiB, MiB, GiB)
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    rate: Option<u64>,
    /// Stop it first, then copy
    #[arg(long)]
    stop_copy: bool,
    /// Who tells which pages it writes to: best, guest, dbits, log
    #[arg(long, value_name = "WHO", default_value = "best", value_parser = dirty)]
    dirty: DirtyTracking,
    /// Only say whether it could move, and what that would take
    #[arg(long)]
    dry_run: bool,
    /// Say nothing but the result
    #[arg(short, long)]
    quiet: bool,
    /// Print the progress as JSON, one object a line
    #[arg(long)]
    json: bool,
}

fn dirty(text: &str) -> Result<DirtyTracking, String> {
    match text {
        "best" => Ok(DirtyTracking::Best),
        "guest" => Ok(DirtyTracking::Guest),
        "dbits" => Ok(DirtyTracking::Dbits),
        "log" => Ok(DirtyTracking::Log),
        _ => Err("it can be best, guest, dbits or log".into()),
    }
}

fn rate(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err("a number of bytes a second, such as 500k or 10m".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "a number of bytes a second, such as 500k or 10m")?;
    number.checked_mul(1 << shift).filter(|&rate| rate > 0).ok_or_else(|| "that is no rate".into())
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let Some((node, capsules)) = self.capsules_and_node.split_last() else {
            bail!("no capsule is given")
        };
        let fleet = globals.fleet().await?;
        let sources = capsules.iter().map(|reference| source_of(&fleet, reference));
        let (destination, sources) =
            tokio::join!(find_node(&fleet, node.as_str()), futures_util::future::join_all(sources));
        let (destination, to) = destination?;
        let forwards = globals.forwards()?;
        let moves = capsules.iter().zip(sources).map(async |(reference, source)| {
            let moved = tokio::select! {
                moved = async { self.one(source?, reference, destination, &to, &forwards).await } => moved,
                // Nobody reads the progress any more then, which ends the attempt.
                _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted; it stays where it was unless it had moved already")),
            };
            moved.with_context(|| format!("capsule {reference}"))
        });
        let mut code = 0;
        for result in futures_util::future::join_all(moves).await {
            if let Err(error) = result {
                code = super::report(&error);
            }
        }
        Ok(code)
    }

    async fn one(
        &self,
        (source, capsule, identity): (&Client, Capsule, MigrationIdentity),
        reference: &Reference,
        destination: &Client,
        to: &Node,
        forwards: &Forwards,
    ) -> anyhow::Result<()> {
        if capsule.node == to.name {
            bail!("it is on node {} already", to.name);
        }
        let ticket = destination.invite(&Invitation::from(identity)).await?;
        let how = Precopy {
            max_downtime_ms: self.max_downtime,
            max_rounds: self.max_rounds,
            rate: self.rate,
            stop_copy: self.stop_copy,
            dirty: self.dirty,
            dry_run: self.dry_run,
        };
        let mut moving = source.migrate(&capsule.id, &Migrate { ticket, how }).await?;
        while let Some(progress) = moving.next().await? {
            if self.json {
                println!("{}", serde_json::to_string(&progress)?);
            }
            match progress {
                Progress::Failed { error } => {
                    bail!("it stays on node {}: {}", capsule.node, one_line(&error.message))
                }
                Progress::Possible => {
                    if !self.json {
                        println!("{}", possible(&capsule, to));
                    }
                    return Ok(());
                }
                Progress::Done(moved) => {
                    if !self.json {
                        println!("{}", tell(&capsule.name, &moved));
                    }
                    if forwards.any() && !capsule.ports.is_empty() && !moved.unsettled {
                        let here = destination.capsule(reference).await?;
                        forwards.add(&here).await.context("it has moved, but its ports have not")?;
                    }
                    return Ok(());
                }
                progress if !self.quiet && !self.json => {
                    eprintln!("fcap: {}: {}", capsule.name, describe(&progress))
                }
                _ => {}
            }
        }
        bail!("node {} does not say what became of it; `fcap ps` shows where it is", capsule.node)
    }
}

/// Where a capsule is, and by what its node is known to others.
async fn source_of<'a>(
    fleet: &'a Fleet,
    reference: &Reference,
) -> anyhow::Result<(&'a Client, Capsule, MigrationIdentity)> {
    let (source, capsule) = fleet.find(reference).await?;
    let identity = source.migration_identity().await?;
    Ok((source, capsule, identity))
}

/// The node of this name.
async fn find_node<'a>(fleet: &'a Fleet, name: &str) -> anyhow::Result<(&'a Client, Node)> {
    let mut names = Vec::new();
    for client in fleet.nodes() {
        let node = client.node().await?;
        if node.name == name {
            return Ok((client, node));
        }
        names.push(node.name);
    }
    bail!("no such node: {name}; there are {}", names.join(", "))
}

fn possible(capsule: &Capsule, to: &Node) -> String {
    format!(
        "{} can move from {} to {}: {} of {} free memory",
        capsule.name,
        capsule.node,
        to.name,
        human::size(capsule.memory_kib << 10),
        human::size(to.free_memory_kib << 10)
    )
}

fn describe(progress: &Progress) -> String {
    match progress {
        Progress::Started { pages, tracking } => {
            format!("{} of memory, tracked by {tracking}", human::size(pages << 12))
        }
        Progress::Round(Round {
            round,
            pages,
            skipped,
            bytes,
            ms,
            dirty,
            dirty_rate,
            expected_downtime_ms,
        }) => format!(
            "round {round}: {pages} pages in {ms:.0} ms ({}), {skipped} left out; {dirty} written meanwhile \
             ({dirty_rate:.0}/s), {expected_downtime_ms:.0} ms to go",
            human::size(*bytes)
        ),
        Progress::Suspending { why } => format!("stops: {why}"),
        Progress::Possible => "it can move".into(),
        Progress::Done(moved) => tell("it", moved),
        Progress::Failed { error } => error.message.clone(),
    }
}

fn tell(name: &str, moved: &Moved) -> String {
    if moved.unsettled {
        return format!(
            "{name} was handed over to {}, which has not said yet that it runs there",
            moved.node
        );
    }
    format!(
        "{name} runs on {}: {:.0} ms in all, {:.1} ms of downtime, {} rounds, {} pages, {} sent",
        moved.node,
        moved.total_ms,
        moved.downtime_ms,
        moved.rounds,
        moved.pages,
        human::size(moved.bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units() {
        assert_eq!((rate("500"), rate("2k"), rate("10M")), (Ok(500), Ok(2048), Ok(10 << 20)));
        for bad in ["", "0", "x", "10q", "99999999999g", "-1"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
