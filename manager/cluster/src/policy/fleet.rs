//! `fleet`: what a script asks about its ideas, and the proposals that come of them.
//!
//! The nodes and capsules of [`crate::room`], moved in thought by the script. Each change becomes
//! a proposal with the line that made it; [`Fleet::undo`] takes back all since a mark, so that
//! a script can try to empty a node and give up.

use std::cell::RefCell;
use std::collections::HashMap;

use fcap_api::cluster::{Change, Proposal};
use mlua::{Lua, Scope, Table, Value};

use crate::placement::{Aim, best};
use crate::plan::Limits;
use crate::room::{Refusal, Room};
use crate::view::Index;

use super::results::type_of;

/// The cluster as the script would have it.
pub(super) struct Fleet<'a> {
    index: &'a Index<'a>,
    limits: &'a Limits,
    room: Room<'a>,
    names: HashMap<String, usize>,
    /// Where each capsule would be.
    place: Vec<usize>,
    /// How many capsules would have come to each node.
    entered: Vec<usize>,
    proposals: Vec<Proposal>,
    done: Vec<Done>,
}

/// What can be taken back.
enum Done {
    Moved { capsule: usize, from: usize, to: usize },
    Started,
    Closed { node: usize, was: Option<Refusal> },
    Resized { capsule: usize, was_kib: u64 },
    Proposed,
}

impl<'a> Fleet<'a> {
    pub(super) fn new(index: &'a Index<'a>, limits: &'a Limits) -> Self {
        let view = index.view;
        Self {
            index,
            limits,
            room: Room::new(index),
            names: view.nodes.iter().enumerate().map(|(place, node)| (node.name.clone(), place)).collect(),
            place: (0..view.capsules.len()).map(|capsule| index.node_of(capsule)).collect(),
            entered: vec![0; view.nodes.len()],
            proposals: Vec::new(),
            done: Vec::new(),
        }
    }

    fn propose(&mut self, change: Change, reason: String, line: Option<u32>) {
        self.proposals.push(Proposal { change, reason, line });
        self.done.push(Done::Proposed);
    }

    fn find(&self, capsule: usize, aim: Aim, cpu_percent: u64) -> Option<usize> {
        let here = self.place[capsule];
        best(&self.room, self.room.needs(capsule), aim, cpu_percent, |node| node != here)
    }

    /// Whether it may be moved, and has not been.
    fn movable(&self, capsule: usize) -> Result<(), String> {
        self.limits.may_move(self.index, capsule)?;
        if self.place[capsule] != self.index.node_of(capsule) {
            let name = &self.index.view.capsules[capsule].name;
            return Err(format!("capsule {name} is to be moved already"));
        }
        Ok(())
    }

    fn shift(&mut self, capsule: usize, to: usize, reason: String, line: Option<u32>) {
        let from = self.place[capsule];
        self.room.put(capsule, to);
        self.room.lift(capsule, from);
        self.place[capsule] = to;
        self.entered[to] += 1;
        self.done.push(Done::Moved { capsule, from, to });
        let change = Change::Migrate {
            capsule: self.index.handle(capsule).to_owned(),
            to: self.room.nodes()[to].name.clone(),
        };
        self.propose(change, reason, line);
    }

    fn close(&mut self, node: usize) {
        let was = self.room.nodes()[node].closed.clone();
        self.room.close(node, Some(Refusal::Cordoned));
        self.done.push(Done::Closed { node, was });
    }

    /// Moves everything away from a node, or nothing.
    fn empty(&mut self, node: usize, aim: Aim, cpu_percent: u64, reason: &str, line: Option<u32>) -> bool {
        if node >= self.index.view.nodes.len() || self.entered[node] > 0 {
            return false;
        }
        let mark = self.done.len();
        self.close(node);
        let mut capsules: Vec<usize> =
            self.index.on_node(node).iter().copied().filter(|&capsule| self.place[capsule] == node).collect();
        // The largest first: small ones still fit into what is left.
        let size = |capsule: &usize| {
            let (cpu, memory) = self.room.part(self.room.needs(*capsule), node);
            cpu.max(memory)
        };
        capsules.sort_by(|a, b| size(b).total_cmp(&size(a)));
        for capsule in capsules {
            let to = self.movable(capsule).ok().and_then(|()| self.find(capsule, aim, cpu_percent));
            match to {
                Some(to) => self.shift(capsule, to, reason.to_owned(), line),
                None => {
                    self.undo(mark);
                    return false;
                }
            }
        }
        true
    }

    fn start(&mut self, flavor: &str, reason: String, line: Option<u32>) -> Result<String, String> {
        let known = self.index.flavor(flavor).ok_or_else(|| format!("there is no flavor {flavor}"))?;
        if self.room.nodes().len() >= self.limits.nodes {
            return Err(format!("the cluster may have {} nodes", self.limits.nodes));
        }
        let name = (1..).map(|number| format!("new-{number}")).find(|name| !self.names.contains_key(name));
        let name = name.expect("numbers do not end");
        let place = self.room.start(name.clone(), known);
        self.names.insert(name.clone(), place);
        self.entered.push(0);
        self.done.push(Done::Started);
        self.propose(Change::StartNode { flavor: flavor.to_owned(), name: name.clone() }, reason, line);
        Ok(name)
    }

    fn undo(&mut self, mark: usize) {
        while self.done.len() > mark {
            match self.done.pop() {
                Some(Done::Moved { capsule, from, to }) => {
                    self.room.lift(capsule, to);
                    self.room.put(capsule, from);
                    self.place[capsule] = from;
                    self.entered[to] -= 1;
                }
                Some(Done::Started) => {
                    let name = self.room.nodes().last().map(|node| node.name.clone());
                    self.names.remove(&name.unwrap_or_default());
                    self.room.unstart();
                    self.entered.pop();
                }
                Some(Done::Closed { node, was }) => self.room.close(node, was),
                Some(Done::Resized { capsule, was_kib }) => {
                    self.room.resize(capsule, self.place[capsule], was_kib);
                }
                Some(Done::Proposed) => drop(self.proposals.pop()),
                None => break,
            }
        }
    }

    fn node(&self, value: &Value) -> mlua::Result<usize> {
        let name = match value {
            Value::String(name) => name.to_string_lossy(),
            Value::Table(row) => row
                .raw_get::<String>("name")
                .map_err(|_| wrong("a node is a row of cluster.nodes, or a name"))?,
            other => {
                return Err(wrong(format!(
                    "a node is a row of cluster.nodes, or a name, and no {}",
                    type_of(other)
                )));
            }
        };
        self.names.get(&name).copied().ok_or_else(|| wrong(format!("there is no node {name}")))
    }

    fn capsule(&self, value: &Value) -> mlua::Result<usize> {
        match value {
            Value::String(name) => {
                let name = name.to_string_lossy();
                self.index.capsule(&name).map_err(|_| wrong(format!("there is no one capsule {name}")))
            }
            Value::Table(row) => {
                let number = row.raw_get::<usize>("number").unwrap_or(0);
                match number.checked_sub(1) {
                    Some(place) if place < self.place.len() => Ok(place),
                    _ => Err(wrong("a capsule is a row of cluster.capsules, or a name")),
                }
            }
            other => Err(wrong(format!(
                "a capsule is a row of cluster.capsules, or a name, and no {}",
                type_of(other)
            ))),
        }
    }
}

fn wrong(message: impl Into<String>) -> mlua::Error {
    mlua::Error::runtime(message.into())
}

fn aim(name: &str) -> mlua::Result<Aim> {
    match name {
        "pack" => Ok(Aim::Pack),
        "spread" => Ok(Aim::Spread),
        _ => Err(wrong(format!("there is \"pack\" and \"spread\", and no {name:?}"))),
    }
}

fn percent(value: f64) -> mlua::Result<u64> {
    // Written so that NaN is refused too.
    if !(0.0..=1000.0).contains(&value) {
        return Err(wrong(format!("a part of a node's processors is 0 to 1000 percent, and not {value}")));
    }
    Ok(value as u64)
}

/// The line of the script that called.
fn line(lua: &Lua) -> Option<u32> {
    lua.inspect_stack(1, |debug| debug.current_line())?.and_then(|line| line.try_into().ok())
}

/// Makes the functions.
pub(super) fn functions<'s, 'e>(
    lua: &Lua,
    scope: &'s Scope<'s, 'e>,
    fleet: &'e RefCell<Fleet<'e>>,
) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    // How full a node would be: processor time, memory, capsules.
    table.raw_set(
        "use",
        scope.create_function(move |_, node: Value| {
            let fleet = fleet.borrow();
            let node = &fleet.room.nodes()[fleet.node(&node)?];
            let memory = node.capacity.memory_kib.saturating_sub(node.free_memory_kib);
            Ok((node.cpu_milli() as f64, memory as f64, node.capsules))
        })?,
    )?;
    // Whether a node can take a capsule; why not.
    table.raw_set(
        "fits",
        scope.create_function(move |_, (capsule, node, cpu): (Value, Value, f64)| {
            let fleet = fleet.borrow();
            let (capsule, node) = (fleet.capsule(&capsule)?, fleet.node(&node)?);
            let fits = fleet.room.fits(fleet.room.needs(capsule), node, percent(cpu)?);
            Ok((fits.is_ok(), fits.err().map(|why| why.to_string())))
        })?,
    )?;
    // The best node for a capsule other than its own, or nil.
    table.raw_set(
        "find",
        scope.create_function(move |_, (capsule, how, cpu): (Value, String, f64)| {
            let fleet = fleet.borrow();
            let found = fleet.find(fleet.capsule(&capsule)?, aim(&how)?, percent(cpu)?);
            Ok(found.map(|node| fleet.room.nodes()[node].name.clone()))
        })?,
    )?;
    table.raw_set(
        "migrate",
        scope.create_function(move |lua, (capsule, node, reason): (Value, Value, String)| {
            let mut fleet = fleet.borrow_mut();
            let (capsule, node) = (fleet.capsule(&capsule)?, fleet.node(&node)?);
            fleet.movable(capsule).map_err(wrong)?;
            if fleet.place[capsule] == node {
                return Err(wrong("it is on that node already"));
            }
            fleet.shift(capsule, node, reason, line(lua));
            Ok(())
        })?,
    )?;
    table.raw_set(
        "empty",
        scope.create_function(move |lua, (node, how, cpu, reason): (Value, String, f64, String)| {
            let mut fleet = fleet.borrow_mut();
            let node = fleet.node(&node)?;
            Ok(fleet.empty(node, aim(&how)?, percent(cpu)?, &reason, line(lua)))
        })?,
    )?;
    table.raw_set(
        "close",
        scope.create_function(move |_, node: Value| {
            let mut fleet = fleet.borrow_mut();
            let node = fleet.node(&node)?;
            fleet.close(node);
            Ok(())
        })?,
    )?;
    // The name of the node to be, or nil where the cluster may have no more.
    table.raw_set(
        "start",
        scope.create_function(move |lua, (flavor, reason): (String, String)| {
            let started = fleet.borrow_mut().start(&flavor, reason, line(lua));
            Ok(match started {
                Ok(name) => (Some(name), None),
                Err(why) => (None, Some(why)),
            })
        })?,
    )?;
    table.raw_set(
        "stop",
        scope.create_function(move |lua, (node, reason): (Value, String)| {
            let mut fleet = fleet.borrow_mut();
            let node = fleet.node(&node)?;
            fleet.close(node);
            let name = fleet.room.nodes()[node].name.clone();
            fleet.propose(Change::StopNode { node: name }, reason, line(lua));
            Ok(())
        })?,
    )?;
    table.raw_set(
        "resize",
        scope.create_function(move |lua, (capsule, wanted, reason): (Value, Table, String)| {
            let mut fleet = fleet.borrow_mut();
            let capsule = fleet.capsule(&capsule)?;
            let memory_kib: Option<u64> = wanted.raw_get("memory_kib")?;
            if let Some(memory_kib) = memory_kib {
                let (node, was_kib) = (fleet.place[capsule], fleet.room.needs(capsule).memory_kib);
                fleet.room.resize(capsule, node, memory_kib);
                fleet.done.push(Done::Resized { capsule, was_kib });
            }
            let change = Change::Resize {
                capsule: fleet.index.handle(capsule).to_owned(),
                memory_kib,
                cpu_cap: wanted.raw_get("cpu_cap")?,
                weight: wanted.raw_get("weight")?,
            };
            fleet.propose(change, reason, line(lua));
            Ok(())
        })?,
    )?;
    table.raw_set("mark", scope.create_function(move |_, ()| Ok(fleet.borrow().done.len()))?)?;
    table.raw_set(
        "undo",
        scope.create_function(move |_, mark: usize| {
            fleet.borrow_mut().undo(mark);
            Ok(())
        })?,
    )?;
    table.raw_set(
        "proposals",
        scope.create_function(move |lua, ()| proposals(lua, &fleet.borrow().proposals))?,
    )?;
    table.set_readonly(true);
    Ok(table)
}

/// The proposals as a script writes them itself.
fn proposals(lua: &Lua, proposals: &[Proposal]) -> mlua::Result<Table> {
    let list = lua.create_table_with_capacity(proposals.len(), 0)?;
    for proposal in proposals {
        let entry = lua.create_table()?;
        match &proposal.change {
            Change::Migrate { capsule, to } => {
                entry.raw_set("kind", "migrate")?;
                entry.raw_set("capsule", capsule.as_str())?;
                entry.raw_set("to", to.as_str())?;
            }
            Change::StartNode { flavor, name } => {
                entry.raw_set("kind", "start_node")?;
                entry.raw_set("flavor", flavor.as_str())?;
                entry.raw_set("name", name.as_str())?;
            }
            Change::StopNode { node } => {
                entry.raw_set("kind", "stop_node")?;
                entry.raw_set("node", node.as_str())?;
            }
            Change::Resize { capsule, memory_kib, cpu_cap, weight } => {
                entry.raw_set("kind", "resize")?;
                entry.raw_set("capsule", capsule.as_str())?;
                entry.raw_set("memory_kib", memory_kib.map(|memory| memory as f64))?;
                entry.raw_set("cpu_cap", *cpu_cap)?;
                entry.raw_set("weight", *weight)?;
            }
        }
        entry.raw_set("reason", proposal.reason.as_str())?;
        entry.raw_set("line", proposal.line)?;
        list.raw_push(entry)?;
    }
    Ok(list)
}
