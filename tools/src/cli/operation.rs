//! `fcap operation`: what the controller does in several steps.

use crate::client::Client;
use crate::human::{ago, now_ms};
use crate::output::{self, DataFormat, Format, table};
use crate::target::Globals;
use crate::terminal::one_line;
use fcap_api::cluster::{Operation, OperationKind, OperationState, Step, StepState, Work};
use std::collections::HashMap;

/// Shows, follows, stops and resumes what the controller does
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Lists what is being done and was done
    #[command(alias = "list")]
    Ls {
        /// Format of the list
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Format,
    },
    /// Shows all steps
    #[command(alias = "show")]
    Inspect {
        #[command(flatten)]
        which: Which,
        /// Format of the answer
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: DataFormat,
    },
    /// Waits for the end, and says how it goes
    Follow(Which),
    /// Stops it; what it has done is undone where that is its way
    Cancel(Which),
    /// Goes on with one that has failed or was cancelled
    Resume(Which),
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Number of the operation
    #[arg(value_name = "OPERATION", value_parser = number)]
    operation: String,
}

/// How a command that begins an operation waits for its end.
#[derive(Debug, clap::Args)]
pub(super) struct Waiting {
    /// Do not wait for it, and print its number
    #[arg(short, long)]
    detach: bool,
    /// Say nothing but the result
    #[arg(short, long)]
    quiet: bool,
}

impl Waiting {
    /// To the end, with nothing said but the result.
    pub(super) const SILENTLY: Self = Self { detach: false, quiet: true };

    /// Waits, or not, and gives an exit code.
    pub(super) async fn wait(&self, controller: &Client, operation: &Operation) -> anyhow::Result<u8> {
        if self.detach {
            output::print(&format!("{}\n", operation.id))?;
            return Ok(0);
        }
        follow(controller, &operation.id, self.quiet).await
    }
}

fn number(text: &str) -> Result<String, String> {
    text.parse::<u64>().map(|number| number.to_string()).map_err(|_| "the number of an operation".to_owned())
}

impl Args {
    pub(super) async fn call(self, globals: &Globals) -> anyhow::Result<u8> {
        let controller = globals.controller().await?;
        match self.verb {
            Verb::Ls { output } => {
                let operations = controller.operations().await?;
                output::list(output, &operations, |operation| &operation.id, |_| listed(&operations))?;
                Ok(0)
            }
            Verb::Inspect { which: Which { operation }, output } => {
                output::data(output, &controller.operation(&operation).await?)?;
                Ok(0)
            }
            Verb::Follow(Which { operation }) => follow(&controller, &operation, false).await,
            Verb::Cancel(Which { operation }) => {
                controller.cancel_operation(&operation).await?;
                // That it was cancelled is what was wanted.
                follow(&controller, &operation, false).await.map(|_| 0)
            }
            Verb::Resume(Which { operation }) => {
                controller.resume_operation(&operation).await?;
                follow(&controller, &operation, false).await
            }
        }
    }
}

fn listed(operations: &[Operation]) -> String {
    let now = now_ms();
    let rows = operations.iter().map(|it| {
        let done = it.steps.iter().filter(|step| step.state == StepState::Done).count();
        vec![
            it.id.clone(),
            what(&it.kind),
            state(it.state).into(),
            format!("{done}/{}", it.steps.len()),
            one_line(&it.by),
            ago(it.started_ms, now),
            one_line(it.message.as_deref().unwrap_or("")),
        ]
    });
    table(&["OPERATION", "WHAT", "STATE", "STEPS", "BY", "BEGUN", "MESSAGE"], rows)
}

fn state(state: OperationState) -> &'static str {
    match state {
        OperationState::Running => "running",
        OperationState::Undoing => "undoing",
        OperationState::Done => "done",
        OperationState::Failed => "failed",
        OperationState::Cancelled => "cancelled",
    }
}

fn what(kind: &OperationKind) -> String {
    match kind {
        OperationKind::Add { flavor, .. } => format!("add a {flavor} node"),
        OperationKind::Remove { node, .. } => format!("remove {node}"),
        OperationKind::Drain { node, .. } => format!("drain {node}"),
        OperationKind::Replace { node, flavor, .. } => format!("replace {node} by a {flavor} one"),
        OperationKind::Plan { groups, .. } => {
            format!("plan of {} changes", groups.iter().map(Vec::len).sum::<usize>())
        }
    }
}

fn work(work: &Work) -> String {
    match work {
        Work::Cordon { node } => format!("{node} is cordoned"),
        Work::Uncordon { node } => format!("{node} takes capsules"),
        Work::Create { node, flavor } => format!("{node} ({flavor}) starts"),
        Work::Move { name, from, to, .. } => format!("{name} moves from {from} to {to}"),
        Work::Resize { name, .. } => format!("{name} is resized"),
        Work::Destroy { node } => format!("{node} is destroyed"),
    }
}

/// Says how an operation goes until its end, and gives an exit code: 0 only if all was done.
async fn follow(controller: &Client, id: &str, quiet: bool) -> anyhow::Result<u8> {
    let mut operations = controller.follow_operation(id).await?;
    let mut told: HashMap<usize, (StepState, Option<u64>)> = HashMap::new();
    let mut last = None;
    loop {
        let next = tokio::select! {
            next = operations.next() => next,
            _ = tokio::signal::ctrl_c() => {
                eprintln!("fcap: operation {id} goes on; `fcap operation follow {id}` shows it, `fcap operation cancel {id}` stops it");
                return Ok(super::INTERRUPTED);
            }
        };
        let operation = match next {
            Ok(Some(operation)) => operation,
            Ok(None) => break,
            Err(error) => {
                let gone = format!("the controller has gone; `fcap operation follow {id}` starts it again");
                return Err(anyhow::Error::new(error).context(gone));
            }
        };
        for (at, step) in operation.steps.iter().enumerate() {
            let now = (step.state, step.ended_ms);
            if told.insert(at, now) != Some(now) && !quiet {
                say(step);
            }
        }
        last = Some(operation);
    }
    let Some(operation) = last else {
        anyhow::bail!("the controller does not say what becomes of operation {id}")
    };
    let message = operation.message.as_deref().map(one_line);
    match operation.state {
        OperationState::Done => {
            if let Some(message) = message {
                output::print(&(message + "\n"))?;
            }
            Ok(0)
        }
        OperationState::Cancelled => {
            anyhow::bail!("operation {id} was cancelled: {}", message.unwrap_or_default())
        }
        _ => anyhow::bail!("operation {id} failed: {}", message.unwrap_or_default()),
    }
}

fn say(step: &Step) {
    let note = step.note.as_deref().map(|note| format!(": {}", one_line(note))).unwrap_or_default();
    match step.state {
        // Moves are told of once they are over.
        StepState::Running if matches!(step.work, Work::Move { .. }) => {}
        StepState::Running => eprintln!("fcap: {}", work(&step.work)),
        StepState::Done if matches!(step.work, Work::Move { .. } | Work::Resize { .. }) => {
            eprintln!("fcap: {}{note}", work(&step.work));
        }
        StepState::Done => {}
        StepState::Failed => eprintln!("fcap: {}: failed{note}", work(&step.work)),
    }
}
