//! What a script finds when it begins: the view as tables, its settings, `print`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use fcap_api::cluster::{Setting, Use, Windows};
use mlua::{IntoLua, Lua, Table, Value, Variadic};

use super::Script;
use super::results::{printable, type_of};
use crate::plan::Limits;
use crate::room::state_name;
use crate::view::{Index, NodeState, expected_cpu_milli};

/// What there is of Luau's own. The rest could look outside (`require`), at another run's leavings
/// (`collectgarbage`), at chance, or round the limits.
const KEPT: [&str; 26] = [
    "_VERSION",
    "assert",
    "error",
    "ipairs",
    "next",
    "pairs",
    "pcall",
    "rawequal",
    "rawget",
    "rawlen",
    "rawset",
    "select",
    "setmetatable",
    "getmetatable",
    "tonumber",
    "tostring",
    "type",
    "typeof",
    "unpack",
    "xpcall",
    "table",
    "string",
    "utf8",
    "bit32",
    "math",
    "buffer",
];
/// Members of libraries that are left out: chance, and copying that no step is counted for.
const TAKEN: [(&str, &str); 4] =
    [("math", "random"), ("math", "randomseed"), ("math", "noise"), ("table", "move")];

/// Lines that a script may print; more are dropped, with a note.
const MOST_LINES: usize = 200;

type Column<'a> = (&'static str, Box<dyn Iterator<Item = Value> + 'a>);

/// Sets them.
pub(super) fn set(
    lua: &Lua,
    script: &Script,
    index: &Index<'_>,
    limits: &Limits,
    output: &Rc<RefCell<Vec<String>>>,
    asked: &Rc<RefCell<BTreeMap<String, ()>>>,
) -> mlua::Result<()> {
    let globals = lua.globals();
    // The prelude uses only what is kept, and sees nothing of the script.
    let cluster = cluster(lua, index, limits)?;
    let names: Vec<Value> =
        globals.pairs::<Value, Value>().map(|pair| Ok(pair?.0)).collect::<mlua::Result<_>>()?;
    for name in names {
        let kept = name.as_string().is_some_and(|name| KEPT.iter().any(|kept| name == kept));
        if !kept {
            globals.raw_set(name, Value::Nil)?;
        }
    }
    for (library, member) in TAKEN {
        globals.raw_get::<Table>(library)?.raw_set(member, Value::Nil)?;
    }
    globals.raw_set("cluster", cluster)?;
    let output = Rc::clone(output);
    let print = lua.create_function(move |_, values: Variadic<Value>| {
        let words = values.iter().map(|value| value.to_string()).collect::<mlua::Result<Vec<_>>>()?;
        let mut output = output.borrow_mut();
        match output.len() {
            0..MOST_LINES => output.push(printable(&words.join(" "))),
            MOST_LINES => output.push("more was printed".into()),
            _ => (),
        }
        Ok(())
    })?;
    globals.raw_set("print", print)?;
    globals.raw_set("setting", setting(lua, script, asked)?)
}

/// `setting(name, default)`: what the operator set, of the default's type.
fn setting(
    lua: &Lua,
    script: &Script,
    asked: &Rc<RefCell<BTreeMap<String, ()>>>,
) -> mlua::Result<mlua::Function> {
    let (settings, asked) = (script.settings.clone(), Rc::clone(asked));
    lua.create_function(move |lua, (name, default): (String, Value)| {
        if !matches!(default, Value::Boolean(_) | Value::Integer(_) | Value::Number(_) | Value::String(_)) {
            let is = type_of(&default);
            return Err(mlua::Error::runtime(format!("the default of setting {name} is a {is}")));
        }
        asked.borrow_mut().insert(name.clone(), ());
        let value = match settings.get(&name) {
            None => return Ok(default),
            // Text of digits looks like a number to those who cannot ask the script.
            Some(Setting::Number(value)) if default.is_string() => value.to_string().into_lua(lua)?,
            Some(Setting::Bool(value)) => Value::Boolean(*value),
            Some(Setting::Number(value)) => Value::Number(*value),
            Some(Setting::Text(value)) => value.as_str().into_lua(lua)?,
        };
        let (is, wanted) = (type_of(&value), type_of(&default));
        if is != wanted {
            return Err(mlua::Error::runtime(format!("setting {name} is a {is} and should be a {wanted}")));
        }
        if value.as_number().is_some_and(|number| !number.is_finite()) {
            return Err(mlua::Error::runtime(format!("setting {name} is no finite number")));
        }
        Ok(value)
    })
}

/// The view.
fn cluster(lua: &Lua, index: &Index<'_>, limits: &Limits) -> mlua::Result<Table> {
    let view = index.view;
    let prelude: Table = lua.load(include_str!("prelude.luau")).set_name("=prelude").eval()?;
    let none = lua.create_table()?;
    none.set_readonly(true);

    let nodes = || view.nodes.iter();
    let columns: Vec<Column<'_>> = vec![
        texts(lua, "name", nodes().map(|n| n.name.as_str()))?,
        texts(lua, "state", nodes().map(|n| state_name(n.state)))?,
        values("ready", nodes().map(|n| Value::Boolean(n.state == NodeState::Ready && !n.cordoned))),
        values("cordoned", nodes().map(|n| Value::Boolean(n.cordoned))),
        values("stoppable", (0..view.nodes.len()).map(|n| Value::Boolean(limits.may_stop(index, n).is_ok()))),
        labels(lua, &none, nodes().map(|n| &n.labels))?,
        values("price", nodes().map(|n| Value::Number(n.price_micros.unwrap_or(0) as f64 / 1e6))),
        numbers("age_s", nodes().map(|n| view.time_ms.saturating_sub(n.started_ms) / 1000)),
        numbers("cpu_milli", nodes().map(|n| n.capacity.cpu_milli)),
        numbers("memory_kib", nodes().map(|n| n.capacity.memory_kib)),
        numbers("free_memory_kib", nodes().map(|n| n.free_memory_kib)),
    ];
    let table = table_of(lua, columns, nodes().map(|n| &n.used))?;
    let flavors = nodes().map(|node| match &node.flavor {
        Some(flavor) => flavor.as_str().into_lua(lua),
        // A hole would end the column.
        None => Ok(Value::Boolean(false)),
    });
    table.raw_set("flavor", lua.create_sequence_from(flavors.collect::<mlua::Result<Vec<_>>>()?)?)?;
    let node_rows: Table = prelude.get::<mlua::Function>("nodes")?.call((table, view.nodes.len()))?;

    let capsules = || view.capsules.iter();
    let places = 0..view.capsules.len();
    let columns: Vec<Column<'_>> = vec![
        texts(lua, "id", capsules().map(|c| c.id.as_str()))?,
        texts(lua, "name", capsules().map(|c| c.name.as_str()))?,
        numbers("node", places.clone().map(|c| index.node_of(c) as u64 + 1)),
        texts(lua, "state", capsules().map(|c| state_of(c.state)))?,
        values("movable", places.map(|c| Value::Boolean(limits.may_move(index, c).is_ok()))),
        labels(lua, &none, capsules().map(|c| &c.labels))?,
        numbers("memory_kib", capsules().map(|c| c.memory_kib)),
        numbers("max_memory_kib", capsules().map(|c| c.max_memory_kib)),
        numbers("vcpus", capsules().map(|c| c.vcpus.into())),
        numbers("cpu_cap", capsules().map(|c| c.cpu_cap.into())),
        numbers("weight", capsules().map(|c| c.weight.into())),
        numbers("cpu_milli", capsules().map(expected_cpu_milli)),
    ];
    let table = table_of(lua, columns, capsules().map(|c| &c.used))?;
    let capsule_rows: Table =
        prelude.get::<mlua::Function>("capsules")?.call((table, view.capsules.len(), &node_rows))?;
    node_rows.set_readonly(true);

    let flavor_rows = lua.create_table()?;
    for flavor in &view.flavors {
        let row = lua.create_table()?;
        row.raw_set("name", flavor.name.as_str())?;
        row.raw_set("vcpus", flavor.vcpus)?;
        row.raw_set("memory_mib", flavor.memory_mib)?;
        row.raw_set("price", flavor.price_micros as f64 / 1e6)?;
        row.raw_set("cpu_milli", flavor.capacity.cpu_milli)?;
        row.raw_set("memory_kib", flavor.capacity.memory_kib)?;
        row.set_readonly(true);
        flavor_rows.raw_push(row)?;
    }
    flavor_rows.set_readonly(true);

    let cluster = lua.create_table()?;
    let (weekday, hour, minute) = civil(view.time_ms, view.utc_offset_minutes);
    cluster.raw_set("time_s", view.time_ms / 1000)?;
    cluster.raw_set("watched_s", view.time_ms.saturating_sub(view.watched_since_ms) / 1000)?;
    cluster.raw_set("weekday", weekday)?;
    cluster.raw_set("hour", hour)?;
    cluster.raw_set("minute", minute)?;
    cluster.raw_set("nodes", node_rows)?;
    cluster.raw_set("capsules", capsule_rows)?;
    cluster.raw_set("flavors", flavor_rows)?;
    cluster.set_readonly(true);
    Ok(cluster)
}

fn state_of(state: fcap_api::State) -> &'static str {
    match state {
        fcap_api::State::Created => "created",
        fcap_api::State::Running => "running",
        fcap_api::State::Paused => "paused",
        fcap_api::State::Stopping => "stopping",
        fcap_api::State::Restarting => "restarting",
        fcap_api::State::Exited => "exited",
    }
}

fn values<'a>(name: &'static str, values: impl Iterator<Item = Value> + 'a) -> Column<'a> {
    (name, Box::new(values))
}

/// Luau's numbers hold them exactly: the index bounds them.
fn numbers<'a>(name: &'static str, numbers: impl Iterator<Item = u64> + 'a) -> Column<'a> {
    values(name, numbers.map(|number| Value::Number(number as f64)))
}

fn texts<'a>(
    lua: &Lua,
    name: &'static str,
    texts: impl Iterator<Item = &'a str>,
) -> mlua::Result<Column<'a>> {
    let texts: Vec<Value> = texts.map(|text| text.into_lua(lua)).collect::<mlua::Result<_>>()?;
    Ok(values(name, texts.into_iter()))
}

fn labels<'a>(
    lua: &Lua,
    none: &Table,
    labels: impl Iterator<Item = &'a BTreeMap<String, String>>,
) -> mlua::Result<Column<'a>> {
    let table = |labels: &BTreeMap<String, String>| {
        if labels.is_empty() {
            return Ok(Value::Table(none.clone()));
        }
        let table = lua.create_table()?;
        for (key, value) in labels {
            table.raw_set(key.as_str(), value.as_str())?;
        }
        table.set_readonly(true);
        Ok(Value::Table(table))
    };
    let tables: Vec<Value> = labels.map(table).collect::<mlua::Result<_>>()?;
    Ok(values("labels", tables.into_iter()))
}

/// A table of columns, with those of the windows.
fn table_of<'a>(
    lua: &Lua,
    columns: Vec<Column<'a>>,
    used: impl Iterator<Item = &'a Windows> + Clone,
) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    for (name, column) in columns {
        table.raw_set(name, lua.create_sequence_from(column)?)?;
    }
    type Window = fn(&Windows) -> Use;
    let windows: [(&str, Window); 3] =
        [("minute", |w| w.minute), ("ten_minutes", |w| w.ten_minutes), ("hour", |w| w.hour)];
    for (name, window) in windows {
        type Part = fn(Use) -> u64;
        let parts: [(&str, Part); 3] =
            [("cpu", |u| u.cpu_milli), ("memory", |u| u.memory_kib), ("net", |u| u.net_kbit)];
        for (what, part) in parts {
            let column = used.clone().map(|used| part(window(used)) as f64);
            table.raw_set(format!("{what}_{name}"), lua.create_sequence_from(column)?)?;
        }
    }
    Ok(table)
}

/// Day of the week (1 is Monday), hour and minute.
fn civil(time_ms: u64, utc_offset_minutes: i32) -> (i64, i64, i64) {
    let minutes = (time_ms / 60_000) as i64 + i64::from(utc_offset_minutes);
    // The epoch was a Thursday.
    let weekday = (minutes.div_euclid(24 * 60) + 3).rem_euclid(7) + 1;
    (weekday, minutes.div_euclid(60).rem_euclid(24), minutes.rem_euclid(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_the_peoples() {
        assert_eq!(civil(0, 0), (4, 0, 0));
        assert_eq!(civil(0, -1), (3, 23, 59));
        assert_eq!(civil(4 * 86_400_000 + 3_600_000 * 10, 0), (1, 10, 0));
        assert_eq!(civil(4 * 86_400_000 + 3_600_000 * 23, 9 * 60), (2, 8, 0));
    }
}
