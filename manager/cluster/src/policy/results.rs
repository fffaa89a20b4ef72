//! Reads what a script returned, field by field.

use fcap_api::cluster::{Change, Proposal};
use mlua::{Table, Value};

use crate::view::Index;

/// Longest name or id in a proposal, in bytes.
const MAX_WORD: usize = 200;
/// Longest text for people, in bytes; more is cut.
const MAX_TEXT: usize = 500;

/// What is wrong with it.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Which of the proposals, counted from 1.
    pub(super) proposal: Option<usize>,
    /// Line that made it, if it is known.
    pub(super) line: Option<usize>,
    /// What.
    pub(super) message: String,
}

/// Reads the list of proposals.
pub(super) fn read(value: &Value, index: &Index<'_>) -> Result<Vec<Proposal>, Wrong> {
    let whole = |message: String| Wrong { proposal: None, line: None, message };
    let list = match value {
        Value::Table(list) => list,
        Value::Nil => {
            return Err(whole(
                "it returned nothing; end it with `return fleet.proposals()`, or `return {}`".into(),
            ));
        }
        other => {
            return Err(whole(format!("it returned a {}, not a list of proposals", type_of(other))));
        }
    };
    // More than this can only be contradictions.
    let most = 2 * index.view.capsules.len() + 2 * index.view.nodes.len() + 100;
    let count = list.raw_len();
    if count > most {
        return Err(whole(format!("it returned {count} proposals; at most {most} make sense here")));
    }
    // A list has nothing beside its entries; what has is more likely a proposal that was returned alone.
    let mut keys = 0;
    for pair in list.pairs::<Value, Value>() {
        let (key, _) = pair.map_err(|error| whole(error.to_string()))?;
        let within = match &key {
            Value::Integer(number) => usize::try_from(*number).is_ok_and(|n| (1..=count).contains(&n)),
            Value::Number(number) => number.fract() == 0.0 && (1.0..=count as f64).contains(number),
            _ => false,
        };
        if !within {
            let key = word(&key).unwrap_or_else(|| type_of(&key).to_owned());
            return Err(whole(format!("it returned a table with the key {key}, not a list of proposals")));
        }
        keys += 1;
    }
    if keys != count {
        return Err(whole("it returned a list with holes".into()));
    }
    let mut proposals = Vec::with_capacity(count);
    for number in 1..=count {
        let wrong = |line, message| Wrong { proposal: Some(number), line, message };
        let entry: Value = list.raw_get(number).map_err(|error| wrong(None, error.to_string()))?;
        let Value::Table(entry) = entry else {
            return Err(wrong(None, format!("it is a {}, not a table", type_of(&entry))));
        };
        let line = entry.raw_get::<Option<u32>>("line").unwrap_or(None);
        proposals.push(proposal(&entry, line).map_err(|message| wrong(line.map(|l| l as usize), message))?);
    }
    Ok(proposals)
}

fn proposal(entry: &Table, line: Option<u32>) -> Result<Proposal, String> {
    let kind = text(entry, "kind")?;
    let fields: &[&str] = match kind.as_str() {
        "migrate" => &["capsule", "to"],
        "start_node" => &["flavor", "name"],
        "stop_node" => &["node"],
        "resize" => &["capsule", "memory_kib", "cpu_cap", "weight"],
        _ => {
            return Err(format!(
                "there is no kind {kind:?}; there are \"migrate\", \"start_node\", \"stop_node\" and \"resize\""
            ));
        }
    };
    for pair in entry.pairs::<Value, Value>() {
        let (key, _) = pair.map_err(|error| error.to_string())?;
        let known = word(&key).is_some_and(|key| {
            ["kind", "reason", "line"].contains(&key.as_str()) || fields.contains(&key.as_str())
        });
        if !known {
            let key = word(&key).unwrap_or_else(|| type_of(&key).to_owned());
            return Err(format!("{kind} has no field {key}; it has {} and reason", fields.join(", ")));
        }
    }
    let change = match kind.as_str() {
        "migrate" => Change::Migrate { capsule: text(entry, "capsule")?, to: text(entry, "to")? },
        "start_node" => Change::StartNode { flavor: text(entry, "flavor")?, name: text(entry, "name")? },
        "stop_node" => Change::StopNode { node: text(entry, "node")? },
        _ => {
            let memory_kib = number(entry, "memory_kib", 1 << 40)?;
            // Both are bounded by what they are read as.
            let cpu_cap = number(entry, "cpu_cap", u16::MAX.into())?.map(|cap| cap as u16);
            let weight = number(entry, "weight", u16::MAX.into())?.map(|weight| weight as u16);
            if memory_kib.is_none() && cpu_cap.is_none() && weight.is_none() {
                return Err("resize changes nothing: give memory_kib, cpu_cap or weight".into());
            }
            Change::Resize { capsule: text(entry, "capsule")?, memory_kib, cpu_cap, weight }
        }
    };
    let reason = match entry.raw_get::<Value>("reason") {
        Ok(Value::String(reason)) => printable(&reason.to_string_lossy()),
        _ => return Err(format!("{kind} has no reason: say in `reason` why, for people")),
    };
    if reason.is_empty() {
        return Err(format!("{kind} has an empty reason: say in `reason` why, for people"));
    }
    Ok(Proposal { change, reason, line })
}

fn text(entry: &Table, field: &str) -> Result<String, String> {
    let value: Value = entry.raw_get(field).map_err(|error| error.to_string())?;
    match &value {
        Value::Nil => Err(format!("it has no {field}")),
        Value::String(text) if text.as_bytes().len() > MAX_WORD => {
            Err(format!("its {field} has {} bytes; {MAX_WORD} are the most", text.as_bytes().len()))
        }
        Value::String(text) => match text.to_str() {
            Ok(text) if text.chars().any(char::is_control) => {
                Err(format!("its {field} has characters that no name has"))
            }
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(format!("its {field} is no text")),
        },
        Value::Table(_) => Err(format!("its {field} is a table; give the name: {field}.name")),
        other => Err(format!("its {field} is a {}, not a name", type_of(other))),
    }
}

fn number(entry: &Table, field: &str, most: u64) -> Result<Option<u64>, String> {
    let value: Value = entry.raw_get(field).map_err(|error| error.to_string())?;
    let number = match value {
        Value::Nil => return Ok(None),
        Value::Integer(number) => number as f64,
        Value::Number(number) => number,
        other => return Err(format!("its {field} is a {}, not a number", type_of(&other))),
    };
    // Written so that NaN is refused too.
    if !(number.fract() == 0.0 && (0.0..=most as f64).contains(&number)) {
        return Err(format!("its {field} is {number}; it takes whole numbers from 0 to {most}"));
    }
    Ok(Some(number as u64))
}

fn word(key: &Value) -> Option<String> {
    match key {
        Value::String(key) => Some(printable(&key.to_string_lossy())),
        Value::Integer(number) => Some(number.to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What a value is; Luau has one kind of number.
pub(super) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Integer(_) => "number",
        other => other.type_name(),
    }
}

/// Text of a script as it may be shown: nothing that drives a terminal, and not too much.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.trim_end().chars() {
        let before = out.len();
        // Marks that reorder what follows mislead as control characters do.
        if c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        if out.len() > MAX_TEXT {
            out.truncate(before);
            break;
        }
    }
    out
}
