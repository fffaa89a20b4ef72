//! Policies, what they want and what they did, for people.

use std::time::Duration;

use fcap_api::cluster::{
    Change, OperationState, Policy, PolicyResult, PolicyRun, PolicyState, Proposal, Setting,
};
use fcap_cluster::plan::money;

use crate::human::{ago, duration, now_ms};
use crate::output::{self, Format, TextFormat, table};
use crate::terminal::one_line;

pub(super) fn list(format: Format, policies: &[Policy]) -> anyhow::Result<u8> {
    match format {
        Format::Json => output::json(&policies)?,
        Format::Yaml => output::yaml(&policies)?,
        Format::Name => {
            output::print(&policies.iter().map(|it| format!("{}\n", it.name)).collect::<String>())?
        }
        Format::Table | Format::Wide => {
            let wide = format == Format::Wide;
            let now = now_ms();
            let mut head = vec!["POLICY", "STATE", "EVERY", "LAST RUN", "NEXT RUN", "MESSAGE"];
            if wide {
                head.extend(["SETTINGS", "BY", "APPLIED"]);
            }
            let rows = policies.iter().map(|policy| row(policy, now, wide));
            output::print(&table(&head, rows))?;
        }
    }
    Ok(0)
}

fn row(policy: &Policy, now: u64, wide: bool) -> Vec<String> {
    let state = match policy.state {
        PolicyState::Active if policy.spec.dry_run => "active,dry-run",
        PolicyState::Active => "active",
        PolicyState::Disabled => "disabled",
        PolicyState::Suspended => "suspended",
    };
    let next = policy.next_run_ms.map_or("-".into(), |next_ms| in_time(next_ms, now));
    let mut row = vec![
        policy.name.clone(),
        state.to_owned(),
        duration(Duration::from_millis(policy.spec.interval_ms)),
        policy.last_run_ms.map_or("-".into(), |last_ms| ago(last_ms, now)),
        next,
        one_line(policy.message.as_deref().unwrap_or("")),
    ];
    if wide {
        let settings = policy.spec.settings.iter();
        let settings: Vec<String> = settings.map(|(key, value)| format!("{key}={}", said(value))).collect();
        row.extend([one_line(&settings.join(",")), one_line(&policy.by), ago(policy.applied_ms, now)]);
    }
    row
}

fn said(setting: &Setting) -> String {
    match setting {
        Setting::Bool(value) => value.to_string(),
        Setting::Number(value) => value.to_string(),
        Setting::Text(value) => value.clone(),
    }
}

fn in_time(time_ms: u64, now_ms: u64) -> String {
    match time_ms.saturating_sub(now_ms) {
        0..1000 => "now".into(),
        wait_ms => format!("in {}", duration(Duration::from_millis(wait_ms))),
    }
}

fn change(change: &Change) -> String {
    match change {
        Change::Migrate { capsule, to } => format!("move {capsule} to {to}"),
        Change::StartNode { flavor, name } => format!("start {name}, a {flavor} node"),
        Change::StopNode { node } => format!("stop {node}"),
        Change::Resize { capsule, memory_kib, cpu_cap, weight } => {
            let memory = memory_kib.map(|kib| format!("{} MiB", kib >> 10));
            let cap = cpu_cap.map(|cap| format!("a cap of {cap} %"));
            let weight = weight.map(|weight| format!("a weight of {weight}"));
            let parts: Vec<String> = [memory, cap, weight].into_iter().flatten().collect();
            format!("give {capsule} {}", parts.join(", "))
        }
    }
}

fn proposal(proposal: &Proposal) -> String {
    one_line(&format!("{}: {}", change(&proposal.change), proposal.reason))
}

/// What an hour costs less, or more.
fn saving(micros: i64) -> String {
    match micros {
        0 => "the cost stays the same".into(),
        1.. => format!("saves {} an hour", money(micros)),
        _ => format!("costs {} more an hour", money(micros.saturating_neg())),
    }
}

/// Says what a policy came to; and whether that happens, where it is applied.
pub(super) fn result(
    format: TextFormat,
    result: &PolicyResult,
    applied: Option<&Policy>,
) -> anyhow::Result<u8> {
    match format {
        TextFormat::Json => output::json(result)?,
        TextFormat::Yaml => output::yaml(result)?,
        TextFormat::Table => output::print(&text(result, applied, now_ms()))?,
    }
    Ok(0)
}

fn text(result: &PolicyResult, applied: Option<&Policy>, now: u64) -> String {
    let name = &result.policy;
    let mut text = match applied.map(|policy| (policy, policy.state)) {
        None => format!("policy {name} would do the following, and nothing is done now\n"),
        Some((policy, PolicyState::Active)) => {
            let next = policy.next_run_ms.map_or("later".into(), |next_ms| in_time(next_ms, now));
            let what = if policy.spec.dry_run { "records what it would do" } else { "does the following" };
            format!("policy {name} {what}, if nothing changes until its next run, {next}\n")
        }
        Some((_, PolicyState::Disabled)) => format!("policy {name} is disabled; it would do the following\n"),
        Some((policy, PolicyState::Suspended)) => format!(
            "policy {name} is suspended ({}); it would do the following\n",
            one_line(policy.message.as_deref().unwrap_or("it failed"))
        ),
    };
    for line in &result.output {
        text += &format!("  it says: {}\n", one_line(line));
    }
    if result.proposals.is_empty() {
        return text + "  nothing\n";
    }
    for (number, step) in result.plan.steps.iter().enumerate() {
        for one in &step.proposals {
            text += &format!("  step {}: {}\n", number + 1, proposal(one));
        }
    }
    if !result.plan.steps.is_empty() {
        text += &format!("  {}\n", saving(result.plan.saving_micros));
    }
    for rejected in &result.plan.rejected {
        let why = one_line(&rejected.why);
        text += &format!("  not {}; because {why}\n", proposal(&rejected.proposal));
    }
    text
}

/// How many changes of which kind.
fn counted(run: &PolicyRun) -> String {
    let (mut moves, mut starts, mut stops, mut resizes) = (0, 0, 0, 0);
    for proposal in run.plan.steps.iter().flat_map(|step| &step.proposals) {
        let count = match &proposal.change {
            Change::Migrate { .. } => &mut moves,
            Change::StartNode { .. } => &mut starts,
            Change::StopNode { .. } => &mut stops,
            Change::Resize { .. } => &mut resizes,
        };
        *count += 1;
    }
    let words = [(moves, "move"), (starts, "start"), (stops, "stop"), (resizes, "resize")];
    let parts = words.into_iter().filter(|(count, _)| *count > 0).map(|(count, word)| {
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {word}{plural}")
    });
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() { "-".into() } else { parts.join(", ") }
}

fn outcome(run: &PolicyRun) -> &'static str {
    match run.state {
        _ if run.error.is_some() => "error",
        Some(OperationState::Running) => "running",
        Some(OperationState::Undoing) => "undoing",
        Some(OperationState::Done) => "done",
        Some(OperationState::Failed) => "failed",
        Some(OperationState::Cancelled) => "cancelled",
        None if run.plan.steps.is_empty() => "rejected",
        None if run.dry_run => "dry-run",
        None => "-",
    }
}

/// The first reason, whatever became of it.
fn why(run: &PolicyRun) -> String {
    let done = run.plan.steps.iter().flat_map(|step| &step.proposals).map(|proposal| proposal.reason.clone());
    let rejected = run.plan.rejected.iter().map(|rejected| rejected.why.clone());
    let told = run.error.iter().chain(&run.message).cloned();
    one_line(&told.chain(done).chain(rejected).next().unwrap_or_default())
}

pub(super) fn history(format: TextFormat, runs: &[PolicyRun], full: bool) -> anyhow::Result<u8> {
    match format {
        TextFormat::Json => output::json(&runs)?,
        TextFormat::Yaml => output::yaml(&runs)?,
        TextFormat::Table if full => {
            let now = now_ms();
            output::print(&runs.iter().map(|run| whole(run, now)).collect::<String>())?;
        }
        TextFormat::Table => {
            let now = now_ms();
            let rows = runs.iter().map(|run| {
                vec![
                    run.id.clone(),
                    run.policy.clone(),
                    ago(run.last_ms, now),
                    run.times.to_string(),
                    counted(run),
                    run.rejected.to_string(),
                    money(run.plan.saving_micros),
                    run.operation.clone().unwrap_or_else(|| "-".into()),
                    outcome(run).to_owned(),
                    why(run),
                ]
            });
            let head = [
                "RUN",
                "POLICY",
                "WHEN",
                "TIMES",
                "CHANGES",
                "REJECTED",
                "SAVES/H",
                "OPERATION",
                "RESULT",
                "WHY",
            ];
            output::print(&table(&head, rows))?;
        }
    }
    Ok(0)
}

fn whole(run: &PolicyRun, now: u64) -> String {
    let operation = run.operation.as_ref().map(|id| format!(", operation {id}")).unwrap_or_default();
    let times = if run.times > 1 { format!(", {} times", run.times) } else { String::new() };
    let mut text = format!(
        "run {} of {}, {}{times}: {}{operation}\n",
        run.id,
        run.policy,
        ago(run.last_ms, now),
        outcome(run)
    );
    for told in run.error.iter().chain(&run.message) {
        text += &format!("  {}\n", one_line(told));
    }
    for one in run.plan.steps.iter().flat_map(|step| &step.proposals) {
        text += &format!("  {}\n", proposal(one));
    }
    if !run.plan.steps.is_empty() {
        text += &format!("  {}\n", saving(run.plan.saving_micros));
    }
    for rejected in &run.plan.rejected {
        text += &format!("  not {}; because {}\n", proposal(&rejected.proposal), one_line(&rejected.why));
    }
    if run.rejected > run.plan.rejected.len() {
        text += &format!("  and {} more were rejected\n", run.rejected - run.plan.rejected.len());
    }
    for line in &run.output {
        text += &format!("  it said: {}\n", one_line(line));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use fcap_api::cluster::{Plan, PlanStep, Rejected};

    fn stop(node: &str, reason: &str) -> Proposal {
        let change = Change::StopNode { node: node.into() };
        Proposal { change, reason: reason.into(), line: Some(3) }
    }

    fn came() -> PolicyResult {
        let (good, bad) = (stop("n1", "it is \u{1b}[31midle"), stop("n2", "it is idle"));
        let rejected = Rejected { number: 2, proposal: bad.clone(), why: "it is the last".into() };
        let steps = vec![PlanStep { proposals: vec![good.clone()] }];
        PolicyResult {
            policy: "mine".into(),
            settings: Default::default(),
            proposals: vec![good, bad],
            output: vec!["looked".into()],
            plan: Plan { steps, rejected: vec![rejected], saving_micros: 10_000 },
        }
    }

    #[test]
    fn what_would_be_done_and_what_not_is_told_with_reasons() {
        let text = text(&came(), None, 0);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "policy mine would do the following, and nothing is done now");
        assert_eq!(lines[1], "  it says: looked");
        assert!(lines[2].starts_with("  step 1: stop n1: it is ") && !lines[2].contains('\u{1b}'));
        assert_eq!(lines[3], "  saves 0.01 an hour");
        assert_eq!(lines[4], "  not stop n2: it is idle; because it is the last");
        let nothing = PolicyResult { proposals: vec![], output: vec![], ..came() };
        assert!(super::text(&nothing, None, 0).ends_with("\n  nothing\n"));
        assert_eq!(saving(-20_000), "costs 0.02 more an hour");
    }

    #[test]
    fn a_run_is_told_in_a_line_or_whole() {
        let mut run = PolicyRun {
            id: "7".into(),
            policy: "mine".into(),
            time_ms: 0,
            times: 3,
            last_ms: 0,
            dry_run: true,
            proposed: 200,
            rejected: 199,
            plan: came().plan,
            output: vec![],
            error: None,
            operation: None,
            state: None,
            message: None,
        };
        assert_eq!((counted(&run).as_str(), outcome(&run)), ("1 stop", "dry-run"));
        let text = whole(&run, 120_000);
        assert!(text.starts_with("run 7 of mine, 2 minutes ago, 3 times: dry-run\n"), "{text}");
        assert!(text.contains("and 198 more were rejected"), "{text}");
        run.state = Some(OperationState::Failed);
        run.message = Some("node n1 is not empty".into());
        assert_eq!((outcome(&run), why(&run).as_str()), ("failed", "node n1 is not empty"));
        run.error = Some("no good".into());
        assert_eq!((outcome(&run), why(&run).as_str()), ("error", "no good"));
    }
}
