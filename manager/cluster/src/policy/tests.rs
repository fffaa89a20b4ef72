use fcap_api::cluster::{CapsuleView, Change, View};

use super::*;
use crate::view::NodeState;
use crate::view::tests::{capsule, node, view};

fn script(source: &str) -> Script {
    Script { name: "mine".into(), source: source.into(), settings: BTreeMap::new() }
}

/// Two nodes of four processors with a capsule each.
fn two() -> View {
    view(vec![node("n1"), node("n2")], vec![capsule("a", "n1", 16, 100), capsule("b", "n2", 16, 100)])
}

fn decided_on(view: &View, script: &Script) -> Result<Decision, PolicyError> {
    decide(script, &Index::new(view).unwrap(), &Limits::default(), &Budget::default())
}

fn decided(source: &str) -> Result<Decision, PolicyError> {
    decided_on(&two(), &script(source))
}

#[track_caller]
fn fails(source: &str, message: &str) {
    let error = decided(source).unwrap_err().to_string();
    assert_eq!(error, message);
}

fn shipped(name: &str, settings: &[(&str, Setting)]) -> Script {
    let shipped = Shipped::named(name).unwrap();
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Script { name: name.into(), source: shipped.source.into(), settings }
}

/// Steps of the plan that comes of it, as text.
#[track_caller]
fn steps(view: &View, script: &Script) -> Vec<String> {
    let index = Index::new(view).unwrap();
    let result = test(script, &index, &Limits::default(), &Budget::default()).unwrap();
    assert_eq!(result.plan.rejected, [], "shipped policies propose what can be done");
    let word = |proposal: &Proposal| {
        assert!(proposal.line.is_some() && !proposal.reason.is_empty());
        match &proposal.change {
            Change::Migrate { capsule, to } => format!("{capsule}>{to}"),
            Change::StartNode { flavor, name } => format!("+{name}:{flavor}"),
            Change::StopNode { node } => format!("-{node}"),
            Change::Resize { capsule, .. } => format!("={capsule}"),
        }
    };
    result.plan.steps.iter().map(|s| s.proposals.iter().map(word).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn a_script_sees_the_view_and_proposes() {
    let decision = decided(
        r#"
        print(#cluster.nodes, cluster.nodes[1].capsules[1].name, cluster.weekday, cluster.hour)
        print(cluster.capsules[2].cpu_hour, cluster.nodes[1].price, cluster.flavors[3].name)
        local c = cluster.capsules[1]
        fleet.migrate(c, "n2", "because")
        fleet.stop(cluster.nodes[1], "it is empty")
        return fleet.proposals()
        "#,
    )
    .unwrap();
    assert_eq!(decision.output, ["2 a 1 10", "100 0.04 large"]);
    let migrate = Change::Migrate { capsule: "a".into(), to: "n2".into() };
    assert_eq!(decision.proposals[0], Proposal { change: migrate, reason: "because".into(), line: Some(5) });
    assert_eq!(decision.proposals[1].change, Change::StopNode { node: "n1".into() });
}

#[test]
fn a_script_may_write_its_proposals_itself() {
    let decision = decided(
        r#"return {
            { kind = "resize", capsule = "a", memory_kib = 8192, weight = 10, reason = "less" },
            { kind = "start_node", flavor = "small", name = "x", reason = "more" },
        }"#,
    )
    .unwrap();
    let resize =
        Change::Resize { capsule: "a".into(), memory_kib: Some(8192), cpu_cap: None, weight: Some(10) };
    assert_eq!(decision.proposals[0], Proposal { change: resize, reason: "less".into(), line: None });
    assert_eq!(decided("return {}").unwrap(), Decision::default());
}

#[test]
fn errors_name_script_and_line() {
    fails(
        "local x =\n\nreturn",
        "policy mine, line 3: Expected identifier when parsing expression, got 'return'",
    );
    fails("\nlocal x = nil\nreturn x.y", "policy mine, line 3: attempt to index nil with 'y'");
    fails("\n\nerror('no good')", "policy mine, line 3: no good");
    fails("\nfleet.migrate('a', 'n9', 'x')", "policy mine, line 2: there is no node n9");
    fails("fleet.migrate('z', 'n1', 'x')", "policy mine, line 1: there is no one capsule z");
    fails(
        "fleet.find('a', 'heap', 80)",
        "policy mine, line 1: there is \"pack\" and \"spread\", and no \"heap\"",
    );
    let error = decided("fleet.migrate('a', 'n2')").unwrap_err().to_string();
    assert!(error.starts_with("policy mine, line 1: "), "{error}");
    let error = decided(&" ".repeat(MAX_SOURCE + 1)).unwrap_err().to_string();
    assert_eq!(error, "policy mine has 262145 bytes; 262144 are the most");
    assert_eq!(check(&script("return {}")), Ok(()));
    assert!(matches!(check(&script("return {")), Err(PolicyError::Syntax { line: Some(1), .. })));
}

#[test]
fn endless_loops_are_stopped_where_they_are() {
    let budget = Budget { steps: 100_000, ..Budget::default() };
    let view = two();
    let index = Index::new(&view).unwrap();
    for (source, line) in [
        ("\nwhile true do end", 2),
        ("\nlocal function f() return f() end f()", 2),
        // Whoever catches the error is stopped again.
        ("\nwhile true do pcall(function() while true do end end) end", 2),
        ("local t = setmetatable({}, { __index = function(t, k) return t[k + 1] end })\nreturn t[1]", 1),
        ("string.find(string.rep('a', 100), string.rep('a?', 100) .. string.rep('a', 100) .. 'b')", 1),
    ] {
        let error = decide(&script(source), &index, &Limits::default(), &budget).unwrap_err();
        let message = error.to_string();
        let stopped = message
            == format!("policy mine, line {line}: it was stopped after 100000 steps; does it loop for ever?")
            || message.contains("stack overflow")
            || message.contains("C stack");
        assert!(stopped, "{source}: {message}");
    }
    // Even when it then returns something, the answer is void.
    let sly = "pcall(function() while true do end end) return {}";
    let error = decide(&script(sly), &index, &Limits::default(), &budget).unwrap_err();
    assert!(matches!(error, PolicyError::TooLong { .. }), "{error}");
}

#[test]
fn time_is_limited_where_steps_are_slow() {
    let budget = Budget { time: Duration::from_millis(50), ..Budget::default() };
    let view = two();
    let index = Index::new(&view).unwrap();
    let source = "local s = string.rep('a', 1e6) while true do local x = string.reverse(s) end";
    let begun = Instant::now();
    let error = decide(&script(source), &index, &Limits::default(), &budget).unwrap_err().to_string();
    assert!(error.contains("stopped after 0.05 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn memory_is_limited() {
    let budget = Budget { steps: 1_000_000, ..Budget::default() };
    let view = two();
    let index = Index::new(&view).unwrap();
    for source in [
        "local t = {} while true do table.insert(t, string.rep('x', 1000) .. #t) end",
        "local s = 'x' while true do s = s .. s end",
        "return string.rep('x', 1e9)",
        "return buffer.create(1e9)",
        "local t = {} for i = 1, 1e9 do t[i] = i end",
        "local t = {} while true do pcall(function() while true do table.insert(t, {t}) end end) end",
    ] {
        let error = decide(&script(source), &index, &Limits::default(), &budget).unwrap_err();
        let limited = matches!(error, PolicyError::TooMuchMemory { .. } | PolicyError::TooLong { .. });
        assert!(limited, "{source}: {error}");
    }
    fails(
        "return buffer.create(1e9)",
        "policy mine: it needs more than the 64 MiB of memory that it may have",
    );
}

#[test]
fn nothing_takes_long_without_counting() {
    let budget = Budget { steps: 1000, ..Budget::default() };
    let view = two();
    let index = Index::new(&view).unwrap();
    for source in [
        "string.rep('', 2 ^ 31 - 1)",
        "table.concat({}, '', 1, 2 ^ 31 - 1)",
        "table.unpack({}, 1, 2 ^ 31 - 1)",
    ] {
        let begun = Instant::now();
        let _ = decide(&script(source), &index, &Limits::default(), &budget);
        assert!(begun.elapsed() < Duration::from_secs(60), "{source}: {:?}", begun.elapsed());
    }
}

#[test]
fn a_script_reaches_nothing_outside_and_changes_nothing() {
    for name in [
        "os",
        "io",
        "require",
        "loadstring",
        "debug",
        "collectgarbage",
        "getfenv",
        "setfenv",
        "newproxy",
        "coroutine",
        "gcinfo",
        "load",
        "dofile",
    ] {
        let decision = decided(&format!("print({name}) return {{}}")).unwrap();
        assert_eq!(decision.output, ["nil"], "{name}");
    }
    for (library, name) in [("math", "random"), ("table", "move")] {
        assert_eq!(decided(&format!("print({library}.{name}) return {{}}")).unwrap().output, ["nil"]);
    }
    for change in [
        "cluster.nodes[1].name = 'x'",
        "cluster.nodes[1].capsules[1] = nil",
        "cluster.capsules[1].labels.x = 'y'",
        "cluster.nodes[3] = {}",
        "cluster.x = 1",
        "fleet.x = 1",
        "string.rep = nil",
        "table.insert(cluster.flavors, {})",
        "rawset(cluster, 'x', 1)",
        "setmetatable(cluster, {})",
        "getmetatable('').__index = nil",
    ] {
        let error = decided(change).unwrap_err().to_string();
        assert!(
            error.contains("readonly")
                || error.contains("protected")
                || error.contains("attempt to index nil"),
            "{change}: {error}"
        );
    }
    // Nor is anything left for the next run.
    decided("kept = 1 return {}").unwrap();
    assert_eq!(decided("print(kept) return {}").unwrap().output, ["nil"]);
}

#[test]
fn nonsense_is_refused_and_named() {
    fails("", "policy mine: it returned nothing; end it with `return fleet.proposals()`, or `return {}`");
    fails("return 5", "policy mine: it returned a number, not a list of proposals");
    fails("return print", "policy mine: it returned a function, not a list of proposals");
    fails(
        "return { kind = 'migrate' }",
        "policy mine: it returned a table with the key kind, not a list of proposals",
    );
    fails(
        "return { [1.5] = {} }",
        "policy mine: it returned a table with the key 1.5, not a list of proposals",
    );
    fails("return { {}, 7 }", "policy mine, proposal 1: it has no kind");
    fails("return { 7 }", "policy mine, proposal 1: it is a number, not a table");
    fails(
        "return { { kind = 'reboot' } }",
        "policy mine, proposal 1: there is no kind \"reboot\"; there are \"migrate\", \"start_node\", \"stop_node\" and \"resize\"",
    );
    fails(
        "return { { kind = 'migrate', capsule = 'a', dest = 'n2', reason = 'x' } }",
        "policy mine, proposal 1: migrate has no field dest; it has capsule, to and reason",
    );
    fails(
        "return { { kind = 'migrate', capsule = 'a', reason = 'x' } }",
        "policy mine, proposal 1: it has no to",
    );
    fails(
        "return { { kind = 'stop_node', node = cluster.nodes[1], reason = 'x' } }",
        "policy mine, proposal 1: its node is a table; give the name: node.name",
    );
    fails(
        "return { { kind = 'stop_node', node = 'a\\n', reason = 'x' } }",
        "policy mine, proposal 1: its node has characters that no name has",
    );
    fails(
        "return { { kind = 'stop_node', node = '\\255', reason = 'x' } }",
        "policy mine, proposal 1: its node is no text",
    );
    fails(
        "return { { kind = 'stop_node', node = 'n1' } }",
        "policy mine, proposal 1: stop_node has no reason: say in `reason` why, for people",
    );
    for (number, shown) in
        [("0 / 0", "NaN"), ("1 / 0", "inf"), ("-1", "-1"), ("1.5", "1.5"), ("1e300", "1000000")]
    {
        let source =
            format!("return {{ {{ kind = 'resize', capsule = 'a', memory_kib = {number}, reason = 'x' }} }}");
        let error = decided(&source).unwrap_err().to_string();
        let part = format!("policy mine, proposal 1: its memory_kib is {shown}");
        assert!(error.starts_with(&part) || error.replace("-NaN", "NaN").starts_with(&part), "{error}");
    }
    let error =
        decided("return { { kind = 'resize', capsule = 'a', weight = 70000, reason = 'x' } }").unwrap_err();
    assert_eq!(
        error.to_string(),
        "policy mine, proposal 1: its weight is 70000; it takes whole numbers from 0 to 65535"
    );
    fails(
        "fleet.migrate('a', 'n2', '')\nlocal p = fleet.proposals()\nreturn p",
        "policy mine, proposal 1, line 1: migrate has an empty reason: say in `reason` why, for people",
    );
    let many = "local t = {} for i = 1, 1000 do t[i] = {} end return t";
    fails(many, "policy mine: it returned 1000 proposals; at most 108 make sense here");
    fails(
        "return setmetatable({}, { __len = function() return 1e9 end, __index = error })"
            .replace("return set", "local t = set")
            .as_str(),
        "policy mine: it returned nothing; end it with `return fleet.proposals()`, or `return {}`",
    );
}

#[test]
fn what_a_script_says_drives_no_terminal_and_has_an_end() {
    let decision =
        decided("print('\\27[31mred', ('x'):rep(10000)) for i = 1, 1000 do print(i) end return {}").unwrap();
    assert!(decision.output[0].starts_with("\\u{1b}[31mred x"), "{}", decision.output[0]);
    assert!(decision.output[0].len() <= 500);
    assert_eq!(decision.output.len(), 201);
    let decision = decided("fleet.stop('n1', 'a\\nb' .. ('x'):rep(10000)) return fleet.proposals()").unwrap();
    assert!(decision.proposals[0].reason.starts_with("a\\nb") && decision.proposals[0].reason.len() <= 500);
}

#[test]
fn settings_are_read_with_their_defaults_and_checked() {
    let with = |settings: &[(&str, Setting)]| {
        let mut script =
            script("print(setting('limit', 5), setting('on', true), setting('who', 'me')) return {}");
        script.settings = settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        decided_on(&two(), &script)
    };
    assert_eq!(with(&[]).unwrap().output, ["5 true me"]);
    let set =
        [("limit", Setting::Number(7.5)), ("on", Setting::Bool(false)), ("who", Setting::Text("you".into()))];
    assert_eq!(with(&set).unwrap().output, ["7.5 false you"]);
    assert_eq!(with(&[("who", Setting::Number(12345.0))]).unwrap().output, ["5 true 12345"]);
    let error = with(&[("limit", Setting::Text("many".into()))]).unwrap_err().to_string();
    assert_eq!(error, "policy mine, line 1: setting limit is a string and should be a number");
    let error = with(&[("limt", Setting::Number(1.0))]).unwrap_err().to_string();
    assert_eq!(error, "policy mine has no setting limt; it has limit, on, who");
    assert!(with(&[("limit", Setting::Number(f64::NAN))]).is_err());
}

#[test]
fn what_was_tried_can_be_taken_back() {
    let decision = decided(
        r#"
        local mark = fleet.mark()
        fleet.start("small", "x")
        fleet.migrate("a", "new-1", "x")
        fleet.stop("n1", "x")
        fleet.resize("b", { memory_kib = 1 }, "x")
        print(fleet.use("new-1"))
        fleet.undo(mark)
        print(fleet.use("n1"))
        print(fleet.empty("n1", "pack", 80, "y"), fleet.empty("n2", "pack", 80, "z"))
        print(fleet.fits("b", "n1", 80))
        return fleet.proposals()
        "#,
    )
    .unwrap();
    assert_eq!(decision.output, ["100 16384 1", "100 16384 1", "true false", "false it is cordoned"]);
    assert_eq!(decision.proposals.len(), 1, "{:?}", decision.proposals);
    assert_eq!(decision.proposals[0].reason, "y");
}

#[test]
fn consolidate_packs_idle_nodes_and_replaces_large_ones() {
    let half_idle = view(
        vec![node("n1"), node("n2")],
        vec![capsule("a", "n1", 512, 700), capsule("b", "n1", 512, 700), capsule("c", "n2", 512, 1500)],
    );
    assert_eq!(steps(&half_idle, &shipped("consolidate", &[])), ["a>n2 b>n2", "-n1"]);
    let busy = view(
        vec![node("n1"), node("n2")],
        vec![capsule("a", "n1", 512, 2500), capsule("c", "n2", 512, 2500)],
    );
    assert_eq!(steps(&busy, &shipped("consolidate", &[])), [""; 0]);
    let alone = view(vec![node("n1")], vec![capsule("a", "n1", 512, 500)]);
    assert_eq!(steps(&alone, &shipped("consolidate", &[])), ["+new-1:small", "a>new-1", "-n1"]);
}

#[test]
fn idle_for_how_long_can_be_said_and_is_not_guessed() {
    let mut view =
        view(vec![node("n1"), node("n2")], vec![capsule("a", "n1", 512, 100), capsule("b", "n2", 600, 200)]);
    // Busy until ten minutes ago.
    view.capsules[0].used.hour.cpu_milli = 3000;
    view.nodes[0].used.hour.cpu_milli = 3000;
    let idle_for = |window: &str| [("window", Setting::Text(window.into()))];
    let stops = |steps: Vec<String>| steps.last().cloned().unwrap_or_default();
    assert_eq!(stops(steps(&view, &shipped("consolidate", &idle_for("ten_minutes")))), "-n1");
    assert_eq!(stops(steps(&view, &shipped("consolidate", &idle_for("hour")))), "-n2");
    assert_eq!(stops(steps(&view, &shipped("scale", &idle_for("hour")))), "-n2");
    // A controller that has just come up has seen nobody do anything.
    view.watched_since_ms = view.time_ms - 90_000;
    for name in ["consolidate", "scale"] {
        assert_eq!(stops(steps(&view, &shipped(name, &[]))), "", "{name}");
        assert_eq!(stops(steps(&view, &shipped(name, &idle_for("minute")))), "-n1", "{name}");
        let error = decided_on(&view, &shipped(name, &idle_for("week"))).unwrap_err().to_string();
        assert!(
            error.ends_with(r#"setting window is "week"; there are minute, ten_minutes and hour"#),
            "{error}"
        );
    }
}

#[test]
fn spread_relieves_busy_nodes_and_only_those() {
    let load = |name: &str, node: &str, cpu| capsule(name, node, 16, cpu);
    let uneven = view(
        vec![node("n1"), node("n2")],
        vec![load("a", "n1", 1500), load("b", "n1", 1000), load("c", "n1", 1000), load("d", "n2", 500)],
    );
    assert_eq!(steps(&uneven, &shipped("spread", &[])), ["a>n2"]);
    let high = [("high_percent", Setting::Number(90.0))];
    assert_eq!(steps(&uneven, &shipped("spread", &high)), [""; 0]);
}

#[test]
fn scale_starts_what_is_needed_and_stops_what_is_not() {
    let load = |name: &str, node: &str, cpu| capsule(name, node, 16, cpu);
    let busy =
        view(vec![node("n1")], vec![load("a", "n1", 1900), load("b", "n1", 700), load("c", "n1", 1300)]);
    assert_eq!(steps(&busy, &shipped("scale", &[])), ["+new-1:large", "a>new-1"]);
    let less =
        view(vec![node("n1")], vec![load("a", "n1", 600), load("b", "n1", 600), load("c", "n1", 2500)]);
    assert_eq!(steps(&less, &shipped("scale", &[])), ["+new-1:large", "c>new-1"]);
    let idle = view(vec![node("n1"), node("n2")], vec![load("a", "n1", 300), load("b", "n2", 200)]);
    assert_eq!(steps(&idle, &shipped("scale", &[])), ["b>n1", "-n2"]);
    let alone = view(vec![node("n1")], vec![load("a", "n1", 300), load("b", "n1", 200)]);
    assert_eq!(steps(&alone, &shipped("scale", &[])), ["+new-1:small", "a>new-1 b>new-1", "-n1"]);
    let fine = view(vec![node("n1")], vec![load("a", "n1", 1500), load("b", "n1", 1400)]);
    assert_eq!(steps(&fine, &shipped("scale", &[])), [""; 0]);
}

#[test]
fn scale_starts_no_node_for_those_who_cannot_come() {
    let mut bound = capsule("edge", "n1", 16, 3000);
    bound.labels.insert("fcap.nodes".into(), "role=edge".into());
    bound.affinity = crate::view::affinity(&bound.labels).unwrap();
    let mut one = node("n1");
    one.labels.insert("role".into(), "edge".into());
    let busy = view(vec![one.clone()], vec![bound.clone(), capsule("web", "n1", 16, 800)]);
    // The larger one has to stay, so the other one goes.
    assert_eq!(steps(&busy, &shipped("scale", &[])), ["+new-1:medium", "web>new-1"]);
    let alone = view(
        vec![one],
        vec![bound.clone(), CapsuleView { name: "edge2".into(), id: "2".repeat(32), ..bound }],
    );
    assert_eq!(steps(&alone, &shipped("scale", &[])), [""; 0]);
}

#[test]
fn business_hours_come_and_go() {
    let load = |name: &str, node: &str| capsule(name, node, 16, 800);
    let mut view = view(vec![node("n1")], vec![load("a", "n1"), load("b", "n1"), load("c", "n1")]);
    let large = shipped("business-hours", &[("flavor", Setting::Text("large".into()))]);
    assert_eq!(steps(&view, &large), ["+new-1:large", "a>new-1"]);
    let hour = 3_600_000;
    view.time_ms = view.time_ms - 10 * hour + 7 * hour;
    assert_eq!(steps(&view, &large), [""; 0]);
    view.time_ms += 50 * 60_000;
    assert_eq!(steps(&view, &large).len(), 2, "they come soon");
    view.time_ms += 5 * 24 * hour;
    assert_eq!(steps(&view, &large), [""; 0], "Saturday");
    view.nodes.push(node("n2"));
    assert_eq!(steps(&view, &large), ["-n2"]);
    view.utc_offset_minutes = 48 * 60;
    assert_eq!(steps(&view, &large), ["a>n2"], "Monday, where they are");
}

#[test]
fn maintenance_empties_what_is_labelled() {
    let mut view = view(
        vec![node("n1"), node("n2"), node("n3")],
        vec![capsule("a", "n1", 3 << 10, 100), capsule("b", "n3", 3 << 10, 100)],
    );
    view.nodes[0].labels.insert("maintenance".into(), "retire".into());
    view.nodes[1].labels.insert("maintenance".into(), String::new());
    assert_eq!(steps(&view, &shipped("maintenance", &[])), [""; 0], "they are not cordoned");
    view.nodes[0].cordoned = true;
    view.nodes[1].cordoned = true;
    assert_eq!(steps(&view, &shipped("maintenance", &[])), ["+new-1:large", "a>new-1", "-n1"]);
    let at_night = [("from_hour", Setting::Number(22.0)), ("to_hour", Setting::Number(5.0))];
    assert_eq!(steps(&view, &shipped("maintenance", &at_night)), [""; 0]);
    view.time_ms += 13 * 3_600_000;
    assert_eq!(steps(&view, &shipped("maintenance", &at_night)).len(), 3);
    view.nodes[0].flavor = None;
    let index = Index::new(&view).unwrap();
    let result = test(&shipped("maintenance", &[]), &index, &Limits::default(), &Budget::default()).unwrap();
    assert_eq!(result.proposals, []);
    assert!(result.output[0].contains("node n1 cannot be emptied"), "{:?}", result.output);
}

#[test]
fn shipped_policies_take_any_state_of_affairs() {
    let mut odd = two();
    odd.nodes[0].state = NodeState::Lost;
    odd.nodes[1].capacity.cpu_milli = 0;
    odd.nodes[1].price_micros = None;
    odd.nodes.push(node("empty"));
    odd.nodes[2].flavor = None;
    odd.flavors.clear();
    let empty = view(vec![], vec![]);
    for shipped in SHIPPED {
        let script =
            Script { name: shipped.name.into(), source: shipped.source.into(), settings: BTreeMap::new() };
        for view in [&odd, &empty, &two()] {
            let index = Index::new(view).unwrap();
            let result = test(&script, &index, &Limits::default(), &Budget::default()).unwrap();
            assert!(result.plan.rejected.len() <= 1, "{}: {:?}", shipped.name, result.plan.rejected);
        }
    }
}

#[test]
fn the_example_of_the_page_about_policies_does_what_it_says() {
    let page = include_str!("../../../../docs/policies.md");
    let example = page.split("```lua\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let idle =
        view(vec![node("n1"), node("n2")], vec![capsule("a", "n1", 16, 2000), capsule("b", "n2", 16, 100)]);
    assert_eq!(steps(&idle, &script(example)), ["b>n1", "-n2"]);
    assert!(SHIPPED.iter().all(|shipped| page.contains(&format!("| `{}` |", shipped.name))));
}
