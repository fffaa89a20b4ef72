//! Policies: Luau scripts that look at a cluster and say what they would change.
//!
//! A script is given a view that it cannot change, and what-if functions (docs/policies.md tells
//! which), and returns proposals. It can do nothing else: no files, no network, no clock, no
//! chance, nothing kept from one run to the next. So one view and one script give one answer,
//! and `fcap policy test` shows what the controller would do.
//!
//! Scripts are not trusted. Each run has a Lua state of its own, with a limit on memory, on steps
//! and on time, and what comes back is checked field by field.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fcap_api::cluster::{PolicyResult, Proposal, Setting};
use mlua::{Lua, LuaOptions, StdLib, Value, VmState};

use crate::plan::{Limits, plan};
use crate::view::Index;

mod fleet;
mod globals;
mod results;
mod shipped;

pub use shipped::{SHIPPED, Shipped};

/// Longest script.
pub const MAX_SOURCE: usize = 256 * 1024;

/// A policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// Its name.
    pub name: String,
    /// Its text.
    pub source: String,
    /// What the operator sets.
    pub settings: BTreeMap<String, Setting>,
}

/// What a run may use at most.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Memory beside the view.
    pub memory_bytes: usize,
    /// Turns of loops and calls of functions.
    pub steps: u64,
    /// Time, for what the steps do not count. Generous: a slow machine should not decide.
    pub time: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { memory_bytes: 64 << 20, steps: 20_000_000, time: Duration::from_secs(10) }
    }
}

/// What a script said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// What it proposes.
    pub proposals: Vec<Proposal>,
    /// What it printed.
    pub output: Vec<String>,
}

/// A script that gave no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PolicyError {
    /// Too long to be read.
    #[error("policy {script} has {bytes} bytes; {MAX_SOURCE} are the most")]
    TooLarge {
        /// The policy.
        script: String,
        /// Its length.
        bytes: usize,
    },
    /// It is no Luau.
    #[error("policy {script}{}: {message}", at(*.line))]
    Syntax {
        /// The policy.
        script: String,
        /// Where.
        line: Option<usize>,
        /// What.
        message: String,
    },
    /// It failed.
    #[error("policy {script}{}: {message}", at(*.line))]
    Failed {
        /// The policy.
        script: String,
        /// Where.
        line: Option<usize>,
        /// What.
        message: String,
    },
    /// It loops, or has too much to do.
    #[error("policy {script}{}: it was stopped after {limit}; does it loop for ever?", at(*.line))]
    TooLong {
        /// The policy.
        script: String,
        /// Where it was stopped.
        line: Option<usize>,
        /// What it exceeded.
        limit: String,
    },
    /// It ate its memory.
    #[error("policy {script}: it needs more than the {} MiB of memory that it may have", .limit_bytes >> 20)]
    TooMuchMemory {
        /// The policy.
        script: String,
        /// What it may have.
        limit_bytes: usize,
    },
    /// What it returned is not a list of proposals.
    #[error("policy {script}{}: {message}", proposal_at(*.proposal, *.line))]
    Result {
        /// The policy.
        script: String,
        /// Which of the proposals, counted from 1.
        proposal: Option<usize>,
        /// Line that made it, if it is known.
        line: Option<usize>,
        /// What is wrong.
        message: String,
    },
    /// The operator set what the script has not.
    #[error("policy {script} has no setting {name}; {}", has(.known))]
    NoSuchSetting {
        /// The policy.
        script: String,
        /// What was set.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The interpreter could not be set up.
    #[error("policy {script} could not be started: {message}")]
    Start {
        /// The policy.
        script: String,
        /// Why.
        message: String,
    },
}

fn at(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(", line {line}"))
}

fn proposal_at(proposal: Option<usize>, line: Option<usize>) -> String {
    proposal.map_or_else(String::new, |number| format!(", proposal {number}")) + &at(line)
}

fn has(known: &[String]) -> String {
    if known.is_empty() { "it has none".into() } else { format!("it has {}", known.join(", ")) }
}

/// Runs a policy and makes a plan of what it proposes; changes nothing.
///
/// # Errors
/// When the script gives no answer.
pub fn test(
    script: &Script,
    index: &Index<'_>,
    limits: &Limits,
    budget: &Budget,
) -> Result<PolicyResult, PolicyError> {
    let decision = decide(script, index, limits, budget)?;
    let plan = plan(index, &decision.proposals, limits);
    Ok(PolicyResult {
        policy: script.name.clone(),
        settings: script.settings.clone(),
        proposals: decision.proposals,
        output: decision.output,
        plan,
    })
}

/// Checks that a script is Luau, without running it.
///
/// # Errors
/// Says in which line it is not.
pub fn check(script: &Script) -> Result<(), PolicyError> {
    let lua = Lua::new_with(StdLib::NONE, LuaOptions::new());
    let lua = lua.map_err(|error| start(script, &error))?;
    load(&lua, script).map(drop)
}

/// Runs a policy.
///
/// # Errors
/// When the script gives no answer, or one that makes no sense.
pub fn decide(
    script: &Script,
    index: &Index<'_>,
    limits: &Limits,
    budget: &Budget,
) -> Result<Decision, PolicyError> {
    let libraries =
        StdLib::TABLE | StdLib::STRING | StdLib::UTF8 | StdLib::BIT | StdLib::MATH | StdLib::BUFFER;
    let lua = Lua::new_with(libraries, LuaOptions::new()).map_err(|error| start(script, &error))?;
    let output = Rc::new(RefCell::new(Vec::new()));
    let asked = Rc::new(RefCell::new(BTreeMap::new()));
    globals::set(&lua, script, index, limits, &output, &asked).map_err(|error| start(script, &error))?;
    let fleet = RefCell::new(fleet::Fleet::new(index, limits));

    let exceeded = Rc::new(RefCell::new(None));
    let result = lua.scope(|scope| {
        let functions = fleet::functions(&lua, scope, &fleet)?;
        lua.globals().raw_set("fleet", functions)?;
        lua.sandbox(true)?;
        let limit_bytes = lua.used_memory() + budget.memory_bytes;
        lua.set_memory_limit(limit_bytes)?;
        watch(&lua, budget, &exceeded);
        let run = || -> Result<Vec<Proposal>, PolicyError> {
            let chunk = load(&lua, script)?;
            let value = chunk.call::<Value>(()).map_err(|error| failed(script, &error, budget, &exceeded))?;
            // A script can catch the error that stops it, but not for long, and not to its gain.
            if let Some(Exceeded { limit, line }) = exceeded.borrow_mut().take() {
                return Err(PolicyError::TooLong { script: script.name.clone(), line, limit });
            }
            results::read(&value, index).map_err(|wrong| PolicyError::Result {
                script: script.name.clone(),
                proposal: wrong.proposal,
                line: wrong.line,
                message: wrong.message,
            })
        };
        Ok(run())
    });
    let proposals = result.map_err(|error| start(script, &error))??;
    let asked = asked.borrow();
    if let Some(name) = script.settings.keys().find(|name| !asked.contains_key(*name)) {
        let known = asked.keys().cloned().collect();
        return Err(PolicyError::NoSuchSetting { script: script.name.clone(), name: name.clone(), known });
    }
    let output = output.take();
    Ok(Decision { proposals, output })
}

fn start(script: &Script, error: &mlua::Error) -> PolicyError {
    PolicyError::Start { script: script.name.clone(), message: error.to_string() }
}

/// Reads a script.
fn load(lua: &Lua, script: &Script) -> Result<mlua::Function, PolicyError> {
    let name = script.name.clone();
    if script.source.len() > MAX_SOURCE {
        return Err(PolicyError::TooLarge { script: name, bytes: script.source.len() });
    }
    // As text only: what looks like compiled code is not trusted to be such.
    let chunk = lua.load(script.source.as_str()).set_mode(mlua::chunk::ChunkMode::Text);
    // "=" keeps the name in messages as it is.
    chunk.set_name(format!("={CHUNK}")).into_function().map_err(|error| {
        let (line, message) = place(&error);
        PolicyError::Syntax { script: name, line, message }
    })
}

/// What messages of Luau call the script; without characters that could confuse their reader.
const CHUNK: &str = "policy";

/// A limit that was exceeded, and where.
struct Exceeded {
    limit: String,
    line: Option<usize>,
}

/// Has the script stopped when it has used its steps or its time.
fn watch(lua: &Lua, budget: &Budget, exceeded: &Rc<RefCell<Option<Exceeded>>>) {
    /// Looking at the clock takes longer than a step.
    const STEPS_A_LOOK: u64 = 16;
    let (steps, most, time) = (Cell::new(0u64), budget.steps, budget.time);
    let (begun, exceeded) = (Instant::now(), Rc::clone(exceeded));
    lua.set_interrupt(move |lua| {
        steps.set(steps.get() + 1);
        let limit = if steps.get() > most {
            format!("{most} steps")
        } else if steps.get().is_multiple_of(STEPS_A_LOOK) && begun.elapsed() > time {
            format!("{} s", time.as_secs_f64())
        } else {
            return Ok(VmState::Continue);
        };
        // Where a function of Luau's own runs, the script is some levels above.
        let line = (0..4).find_map(|level| lua.inspect_stack(level, |debug| debug.current_line())?);
        *exceeded.borrow_mut() = Some(Exceeded { limit, line });
        Err(mlua::Error::runtime("stopped"))
    });
}

fn failed(
    script: &Script,
    error: &mlua::Error,
    budget: &Budget,
    exceeded: &RefCell<Option<Exceeded>>,
) -> PolicyError {
    let name = script.name.clone();
    let (line, message) = place(error);
    if let Some(Exceeded { limit, line }) = exceeded.borrow_mut().take() {
        return PolicyError::TooLong { script: name, line, limit };
    }
    if out_of_memory(error) {
        return PolicyError::TooMuchMemory { script: name, limit_bytes: budget.memory_bytes };
    }
    PolicyError::Failed { script: name, line, message }
}

fn out_of_memory(error: &mlua::Error) -> bool {
    match error {
        mlua::Error::MemoryError(_) => true,
        mlua::Error::CallbackError { cause, .. } => out_of_memory(cause),
        mlua::Error::RuntimeError(message) => message.contains("not enough memory"),
        _ => false,
    }
}

/// Line of the script and message of an error.
fn place(error: &mlua::Error) -> (Option<usize>, String) {
    let (message, traceback) = match error {
        mlua::Error::SyntaxError { message, .. } | mlua::Error::RuntimeError(message) => {
            (message.clone(), "")
        }
        mlua::Error::CallbackError { traceback, cause } => {
            let mut cause = cause.as_ref();
            while let mlua::Error::CallbackError { cause: inner, .. }
            | mlua::Error::BadArgument { cause: inner, .. } = cause
            {
                cause = inner;
            }
            let message = match cause {
                mlua::Error::RuntimeError(message) => message.clone(),
                other => other.to_string(),
            };
            (message, traceback.as_str())
        }
        other => (other.to_string(), ""),
    };
    // Luau writes "policy:12: message", and lines of a traceback in the same way.
    let prefix = format!("{CHUNK}:");
    let line_in = |text: &str| {
        let digits = text.split(&prefix).nth(1)?;
        digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let first = message.lines().next().unwrap_or_default();
    let line = line_in(first).or_else(|| line_in(traceback));
    let text = match first.strip_prefix(&prefix) {
        Some(rest) => rest.split_once(": ").map_or(rest, |(_, text)| text),
        None => first,
    };
    (line, results::printable(text))
}

#[cfg(test)]
mod tests;
