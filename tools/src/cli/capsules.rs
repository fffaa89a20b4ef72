//! What verbs share that take several capsules.

use crate::client::{Client, Reference};
use crate::fleet::{FindError, Fleet};
use crate::output;
use crate::terminal::one_line;
use anyhow::Context as _;
use futures_util::StreamExt as _;

/// Capsules that are worked on at once.
const AT_ONCE: usize = 16;

/// The node that has the capsule, and what to call it there. A single node is not asked first: it
/// understands names and prefixes itself.
pub(super) async fn locate<'a>(
    fleet: &'a Fleet,
    reference: &Reference,
) -> Result<(&'a Client, String), FindError> {
    if let [only] = fleet.nodes() {
        return Ok((only, reference.to_string()));
    }
    let (node, capsule) = fleet.find(reference).await?;
    Ok((node, capsule.id))
}

/// Does something to each capsule and prints what it gives, in order. One that fails does not keep
/// the others from it; the exit code is then 1.
pub(super) async fn for_each(
    fleet: &Fleet,
    references: &[Reference],
    action: impl AsyncFn(&Client, &str, &Reference) -> anyhow::Result<String>,
) -> anyhow::Result<u8> {
    let action = &action;
    let mut outcomes = futures_util::stream::iter(references)
        .map(|reference| async move {
            let (node, id) = locate(fleet, reference).await?;
            action(node, &id, reference).await
        })
        .buffered(AT_ONCE);
    let mut code = 0;
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(line) => output::print(&(line + "\n"))?,
            Err(error) => {
                eprintln!("fcap: {}", one_line(&format!("{error:#}")));
                code = 1;
            }
        }
    }
    Ok(code)
}

/// Reads the answer to a question that only a clear yes answers.
pub(super) fn confirm(question: &str) -> anyhow::Result<bool> {
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("standard input")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
