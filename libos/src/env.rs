//! Arguments and environment.
//!
//! fcapd sends them in a boot module. A capsule that another toolstack starts takes
//! them from its kernel command line, split as a shell would: first variables
//! (`NAME=value`), then arguments.

use crate::{process, start, suspend};
use alloc::{
    string::{String, ToString},
    vec::{self, Vec},
};
use core::{fmt, iter};
use xen_proto::{
    boot::{Kind, Records},
    cmdline,
};

/// The command line's words.
fn words() -> impl Iterator<Item = String> {
    let mut rest = start::info().command_line();
    iter::from_fn(move || {
        let mut word = Vec::new();
        rest = cmdline::word(rest, |byte| word.push(byte))?;
        Some(text(&word))
    })
}

/// The boot module's records of a kind.
fn records(kind: Kind) -> impl Iterator<Item = &'static [u8]> {
    Records::new(start::module()).filter(move |&(found, _)| found == kind as u32).map(|(_, body)| body)
}

fn has_module() -> bool {
    Records::new(start::module()).next().is_some()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Name and value, if the word is a variable.
fn variable(word: &str) -> Option<(&str, &str)> {
    word.split_once('=').filter(|(name, _)| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

/// The arguments; the first is the program's name.
pub fn args() -> Args {
    let args: Vec<String> = if has_module() {
        records(Kind::Arg).map(text).collect()
    } else {
        let arguments = words().skip_while(|word| variable(word).is_some());
        iter::once(process::name().to_string()).chain(arguments).collect()
    };
    Args { args: args.into_iter() }
}

/// The arguments; from [`args`].
#[derive(Clone, Debug)]
pub struct Args {
    args: vec::IntoIter<String>,
}

impl Iterator for Args {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.args.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.args.size_hint()
    }
}

impl ExactSizeIterator for Args {}

impl DoubleEndedIterator for Args {
    fn next_back(&mut self) -> Option<String> {
        self.args.next_back()
    }
}

/// The environment variables; from [`vars`].
#[derive(Clone, Debug)]
pub struct Vars {
    vars: vec::IntoIter<(String, String)>,
}

impl Iterator for Vars {
    type Item = (String, String);

    fn next(&mut self) -> Option<(String, String)> {
        self.vars.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.vars.size_hint()
    }
}

/// All environment variables, names and values.
pub fn vars() -> Vars {
    let owned = |(name, value): (&str, &str)| (name.to_string(), value.to_string());
    let vars: Vec<_> = if has_module() {
        records(Kind::Env).filter_map(|body| text(body).split_once('=').map(owned)).collect()
    } else {
        words().map_while(|word| variable(&word).map(owned)).collect()
    };
    Vars { vars: vars.into_iter() }
}

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VarError {
    /// The variable is not set.
    NotPresent,
}

impl fmt::Display for VarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("environment variable not found")
    }
}

impl core::error::Error for VarError {}

/// The value of the environment variable `name`.
///
/// # Errors
/// If it is not set.
pub fn var(name: &str) -> Result<String, VarError> {
    vars().find_map(|(found, value)| (found == name).then_some(value)).ok_or(VarError::NotPresent)
}

/// The name under which the capsule is known to the operator, if fcapd has started it.
///
/// A copy of a running capsule has a name of its own.
pub fn capsule_name() -> Option<String> {
    suspend::new_name().or_else(|| records(Kind::Name).next().map(text))
}
