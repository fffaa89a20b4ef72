//! Policies: what they do to nodes, what they cannot do to the controller, and what is left of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fcap_api::cluster::{Change, OperationState, PolicySpec, PolicyState, Rules, Setting, TestPolicy, Work};
use fcap_api::{ErrorCode, UpdateCapsule};
use fcap_client::Client;
use fcap_cluster::store::Local;

use crate::rig::{Cut, Server, SimCloud, check_whole, cloud, cluster, until};

/// Rules that do not let a test wait.
fn quick() -> Rules {
    Rules { cooldown_s: Some(0), node_age_s: Some(0), ..Rules::default() }
}

fn spec(settings: &[(&str, Setting)], rules: Rules) -> PolicySpec {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    PolicySpec { settings, rules, interval_ms: 200, ..PolicySpec::default() }
}

fn script(source: &str) -> PolicySpec {
    PolicySpec { source: Some(source.into()), interval_ms: 100, ..spec(&[], quick()) }
}

/// Empties the idlest node onto the others, and stops it, as soon as somebody has looked for a moment.
const CONSOLIDATE: &str = r#"
    local nodes = table.clone(cluster.nodes)
    table.sort(nodes, function(a, b) return a.cpu_minute < b.cpu_minute end)
    for _, node in nodes do
        if node.ready and node.stoppable and fleet.empty(node, "pack", 80, node.name .. " is idle") then
            fleet.stop(node, node.name .. " is idle")
            break
        end
    end
    return fleet.proposals()
"#;

/// `scale`, without what it waits for.
fn scale(high: f64, fill: f64, rules: Rules) -> PolicySpec {
    let source = fcap_cluster::policy::Shipped::named("scale").unwrap().source;
    let source = source.replace("cluster.watched_s < seconds[window]", "cluster.watched_s < 1");
    assert!(source.contains("cluster.watched_s < 1"));
    let settings = [("high_percent", Setting::Number(high)), ("fill_percent", Setting::Number(fill))];
    PolicySpec { source: Some(source), ..spec(&settings, rules) }
}

async fn runs(client: &Client) -> Vec<fcap_api::cluster::PolicyRun> {
    client.policy_history(None, 500).await.unwrap()
}

async fn until_seen(server: &Server, capsules: usize) {
    let seen = async || server.client.view().await.unwrap().capsules.len() == capsules;
    until("all capsules are seen", seen).await;
}

async fn set_load(cloud: &SimCloud, name: &str, cpu_percent: u16) {
    let node = cloud.whereabouts().await[name][0].clone();
    let update = UpdateCapsule { cpu_cap: Some(cpu_percent), ..UpdateCapsule::default() };
    cloud.client(&node).update(name, &update).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_nodes_become_one_and_busy_ones_two_again() {
    let (cloud, server) = cluster(2).await;
    for (node, name) in [("node1", "a"), ("node1", "b"), ("node2", "c")] {
        cloud.spin(node, name, 16, 10).await;
    }
    until_seen(&server, 3).await;
    let wanted = scale(50.0, 40.0, quick());
    let policy = server.client.apply_policy("scale", &wanted).await.unwrap();
    assert_eq!((policy.state, policy.by.as_str()), (PolicyState::Active, "operator"));
    until("one node is left", async || cloud.names().len() == 1).await;
    until("the plan is done", async || {
        runs(&server.client).await.iter().any(|run| run.state == Some(OperationState::Done))
    })
    .await;
    check_whole(&cloud, &server, &["a", "b", "c"]).await;

    let bill = server.client.cost(None).await.unwrap();
    assert_eq!((bill.per_hour_micros, bill.saving_per_hour_micros, bill.nodes.len()), (10_000, 10_000, 2));
    assert!(bill.nodes.iter().any(|node| node.stopped_by_policy), "{bill:?}");
    let run = runs(&server.client).await.pop().unwrap();
    assert_eq!((run.policy.as_str(), run.plan.saving_micros, run.rejected), ("scale", 10_000, 0));
    let reasons: Vec<&str> =
        run.plan.steps.iter().flat_map(|step| &step.proposals).map(|it| it.reason.as_str()).collect();
    assert!(reasons.iter().all(|reason| reason.contains("full, and the others have room")), "{reasons:?}");
    let operation = server.client.operation(run.operation.as_ref().unwrap()).await.unwrap();
    assert_eq!(operation.by, "policy scale");
    assert!(operation.reason.contains("the others have room"), "{operation:?}");
    let audit = server.client.audit().await.unwrap();
    let entry = audit.iter().find(|entry| entry.by == "policy scale").unwrap();
    assert!(entry.what.starts_with("stop node node") && entry.operation == run.operation, "{entry:?}");

    // The load rises, and the capsules part again.
    for name in ["a", "b"] {
        set_load(&cloud, name, 60).await;
    }
    until("there are two nodes", async || cloud.names().len() == 2).await;
    until("both have capsules", async || {
        let places = cloud.whereabouts().await;
        let nodes: std::collections::BTreeSet<&String> = places.values().map(|nodes| &nodes[0]).collect();
        nodes.len() == 2
    })
    .await;
    until("nothing is under way", async || {
        let operations = server.client.operations().await.unwrap();
        operations.iter().all(|operation| operation.state == OperationState::Done)
    })
    .await;
    check_whole(&cloud, &server, &["a", "b", "c"]).await;
    let bill = server.client.cost(None).await.unwrap();
    assert_eq!((bill.per_hour_micros, bill.saving_per_hour_micros), (20_000, 0), "{bill:?}");
    assert!(bill.saved_micros >= 0 && bill.cost_micros > 0, "{bill:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shipped_consolidate_empties_a_node_and_destroys_it() {
    let (cloud, server) = cluster(2).await;
    for (node, name) in [("node1", "a"), ("node1", "b"), ("node2", "c")] {
        cloud.run(node, name, 16).await;
    }
    // Not before it has been watched.
    let policy = spec(&[("window", Setting::Text("minute".into()))], quick());
    server.client.apply_policy("consolidate", &policy).await.unwrap();
    let mut view = server.client.view().await.unwrap();
    assert!(view.time_ms - view.watched_since_ms < 60_000);
    let test = |view| TestPolicy { view: Some(view), ..TestPolicy::default() };
    let now = server.client.test_policy("consolidate", &test(view.clone())).await.unwrap();
    assert!(now.proposals.is_empty() && now.output[0].starts_with("use has been measured for"), "{now:?}");
    until("the view has all", async || {
        view = server.client.view().await.unwrap();
        view.capsules.len() == 3
    })
    .await;
    view.time_ms += 120_000;
    let later = server.client.test_policy("consolidate", &test(view)).await.unwrap();
    assert_eq!((later.plan.rejected.len(), later.plan.saving_micros), (0, 10_000), "{later:?}");
    // Nothing of that was done.
    assert_eq!(server.client.operations().await.unwrap(), []);
    assert_eq!(runs(&server.client).await, []);

    let source = fcap_cluster::policy::Shipped::named("consolidate").unwrap().source;
    let source = Some(source.replace("cluster.watched_s < seconds[window]", "false"));
    server.client.apply_policy("consolidate", &PolicySpec { source, ..policy }).await.unwrap();
    until("one node is left", async || cloud.names().len() == 1).await;
    check_whole(&cloud, &server, &["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_loop_eat_or_rave_are_suspended_and_disturb_nobody() {
    let (cloud, server) = cluster(1).await;
    let client = &server.client;
    // Each behaves until there is a capsule.
    let bad = [
        ("loop", "while true do end", "does it loop for ever?"),
        ("eat", "local t = {} while true do t[#t + 1] = string.rep('x', 1000) .. #t end", "MiB of memory"),
        ("rave", "return { { kind = 'explode' } }", "there is no kind \"explode\""),
        ("fall", "return nothing.at.all", "attempt to index nil"),
    ];
    for (name, source, message) in bad {
        let error = client.apply_policy(name, &script(source)).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::BadRequest));
        assert!(error.to_string().contains(message), "{error}");
        let later = format!("if #cluster.capsules == 0 then return {{}} end {source}");
        client.apply_policy(name, &script(&later)).await.unwrap();
    }
    cloud.run("node1", "web", 16).await;
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    until("all are suspended", async || {
        let asked = Instant::now();
        let policies = client.policies().await.unwrap();
        slowest = slowest.max(asked.elapsed());
        policies.iter().all(|policy| policy.state == PolicyState::Suspended)
    })
    .await;
    assert!(slowest < Duration::from_secs(5), "{slowest:?} of {:?}", begun.elapsed());
    for (name, _, message) in bad {
        let policy = client.policy(name).await.unwrap();
        assert_eq!((policy.failures, policy.next_run_ms), (5, None));
        assert!(policy.message.as_ref().unwrap().contains(message), "{policy:?}");
        // Five times the same is told once.
        let runs = client.policy_history(Some(name), 9).await.unwrap();
        assert_eq!((runs.len(), runs[0].times), (1, 5), "{runs:?}");
        assert!(runs[0].error.as_ref().unwrap().contains(message));
    }
    check_whole(&cloud, &server, &["web"]).await;
    // What is applied again has another chance.
    let policy = client.apply_policy("rave", &script("return {}")).await.unwrap();
    assert_eq!((policy.state, policy.failures, policy.message), (PolicyState::Active, 0, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_and_says_why() {
    let (_cloud, server) = cluster(1).await;
    let client = &server.client;
    let refused = async |name: &str, spec: PolicySpec, part: &str| {
        let error = client.apply_policy(name, &spec).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::BadRequest), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    let none = || spec(&[], Rules::default());
    refused("mine", none(), "no policy mine comes with fcap: give its script, or take one of business-hours")
        .await;
    refused("a%20b", script("return {}"), "is no name for a policy").await;
    refused("mine", script("return {"), "policy mine, line 1: ").await;
    refused(
        "scale",
        spec(&[("fil", Setting::Bool(true))], quick()),
        "has no setting fil; it has fill_percent",
    )
    .await;
    let text = Setting::Text("much".into());
    refused("scale", spec(&[("fill_percent", text)], quick()), "is a string and should be a number").await;
    refused("scale", PolicySpec { interval_ms: 1, ..none() }, "cannot run every 0.001 s").await;
    refused("scale", PolicySpec { interval_ms: u64::MAX, ..none() }, "to every 7 days").await;
    let rules = Rules { parallel: Some(100), ..quick() };
    refused("scale", spec(&[], rules), "rule parallel is 100; it can be 1 to 64").await;
    refused("long", script(&" ".repeat(300 << 10)), "262144 are the most").await;
    for error in [
        client.policy("mine").await.unwrap_err(),
        client.remove_policy("mine").await.unwrap_err(),
        client.test_policy("mine", &TestPolicy::default()).await.unwrap_err(),
    ] {
        assert_eq!(error.code(), Some(ErrorCode::NoSuchPolicy), "{error}");
        assert_eq!(error.to_string(), "no such policy: mine; `fcap policy ls` shows all");
    }
    let mut view = client.view().await.unwrap();
    view.nodes.push(view.nodes[0].clone());
    let test = TestPolicy { view: Some(view), ..TestPolicy::default() };
    let error = client.test_policy("scale", &test).await.unwrap_err();
    assert_eq!(error.to_string(), "the view has two nodes node1");
    assert_eq!(client.policies().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_and_dry_runs_are_recorded_and_not_done() {
    let (cloud, server) = cluster(2).await;
    cloud.run("node1", "web", 16).await;
    let client = &server.client;
    until_seen(&server, 1).await;
    let swarm = r#"return {
        { kind = "migrate", capsule = "web", to = "node9", reason = "there is more room" },
        { kind = "start_node", flavor = "huge", name = "x", reason = "more is better" },
        { kind = "stop_node", node = "node1", reason = "less is better" },
    }"#;
    client.apply_policy("swarm", &script(swarm)).await.unwrap();
    let dry = PolicySpec { dry_run: true, ..script(CONSOLIDATE) };
    client.apply_policy("careful", &dry).await.unwrap();
    let off = PolicySpec { enabled: false, ..script("error('never')") };
    assert!(client.apply_policy("off", &off).await.is_err());
    let off = PolicySpec { enabled: false, ..script(CONSOLIDATE) };
    let off = client.apply_policy("off", &off).await.unwrap();
    assert_eq!((off.state, off.next_run_ms), (PolicyState::Disabled, None));
    until("both ran several times", async || {
        let runs = runs(client).await;
        runs.len() == 2 && runs.iter().all(|run| run.times > 2)
    })
    .await;
    let rejected = client.policy_history(Some("swarm"), 9).await.unwrap().remove(0);
    assert_eq!((rejected.proposed, rejected.rejected, rejected.plan.steps.len()), (3, 3, 0));
    let why: Vec<&str> = rejected.plan.rejected.iter().map(|rejected| rejected.why.as_str()).collect();
    assert_eq!(
        why,
        [
            "there is no node node9",
            "there is no flavor huge; there are small, large",
            "node node1 would still have 1 capsule"
        ]
    );
    let dry = client.policy_history(Some("careful"), 9).await.unwrap().remove(0);
    assert!(dry.dry_run && dry.operation.is_none() && dry.plan.saving_micros == 10_000, "{dry:?}");
    assert_eq!(client.operations().await.unwrap(), []);
    assert_eq!(cloud.names().len(), 2);
    client.remove_policy("careful").await.unwrap();
    let names: Vec<String> = client.policies().await.unwrap().into_iter().map(|policy| policy.name).collect();
    assert_eq!(names, ["off", "swarm"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_that_fail_are_undone_and_suspend_their_policy() {
    let (cloud, server) = cluster(1).await;
    cloud.run("node1", "web", 16).await;
    let client = &server.client;
    until_seen(&server, 1).await;
    cloud.is_full.store(true, std::sync::atomic::Ordering::Relaxed);
    let grow = r#"
        local name = fleet.start("large", "more room")
        if name then fleet.migrate("web", name, "more room") end
        return fleet.proposals()
    "#;
    client.apply_policy("grow", &script(grow)).await.unwrap();
    until("it is suspended", async || client.policy("grow").await.unwrap().state == PolicyState::Suspended)
        .await;
    let message = client.policy("grow").await.unwrap().message.unwrap();
    assert!(message.contains("operation 5: ") && message.contains("the quota is used up"), "{message}");
    let runs = runs(client).await;
    assert_eq!(runs.len(), 5);
    assert!(runs.iter().all(|run| run.state == Some(OperationState::Failed)), "{runs:?}");
    assert_eq!(client.cluster_nodes().await.unwrap().len(), 1);
    check_whole(&cloud, &server, &["web"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_could_not_be_stopped_is_as_open_as_before() {
    let (cloud, server) = cluster(2).await;
    // It does not suspend, and so does not move.
    cloud.stubborn("node1", "held", 16).await;
    until_seen(&server, 1).await;
    let client = &server.client;
    let source = r#"return {
        { kind = "migrate", capsule = "held", to = "node2", reason = "to try" },
        { kind = "stop_node", node = "node1", reason = "to try" },
    }"#;
    let policy = PolicySpec { interval_ms: 600_000, ..script(source) };
    for (id, cordoned) in [("1", false), ("2", true)] {
        client.cordon("node1", cordoned).await.unwrap();
        client.apply_policy("try", &policy).await.unwrap();
        until("it is tried", async || client.operation(id).await.is_ok()).await;
        let failed = server.ended(id).await;
        assert_eq!(failed.state, OperationState::Failed, "{failed:#?}");
        assert!(failed.message.as_ref().unwrap().contains("held stays on node node1"), "{failed:#?}");
        assert_eq!(server.node("node1").await.unwrap().cordoned, cordoned, "{failed:#?}");
    }
    assert_eq!(cloud.names().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_somebody_cancels_suspends_its_policy() {
    let (cloud, server) = cluster(2).await;
    let names = ["a", "b", "c", "d"];
    for name in names {
        cloud.run("node1", name, 16).await;
    }
    let client = &server.client;
    until_seen(&server, 4).await;
    let rules = Rules { parallel: Some(1), parallel_per_node: Some(1), ..quick() };
    let source = r#"
        if fleet.empty("node1", "pack", 80, "it is to go") then fleet.stop("node1", "it is to go") end
        return fleet.proposals()
    "#;
    client.apply_policy("leave", &PolicySpec { rules, ..script(source) }).await.unwrap();
    until("the first moves", async || {
        let operations = client.operations().await.unwrap();
        let moving = |work: &Work| matches!(work, Work::Move { .. });
        operations.iter().any(|operation| operation.steps.iter().any(|step| moving(&step.work)))
    })
    .await;
    client.cancel_operation("1").await.unwrap();
    server.ended("1").await;
    until("it is suspended", async || client.policy("leave").await.unwrap().state == PolicyState::Suspended)
        .await;
    let message = client.policy("leave").await.unwrap().message.unwrap();
    assert_eq!(message, "its plan, operation 1, was cancelled; `fcap policy enable leave` goes on");
    assert!(!server.node("node1").await.unwrap().cordoned);
    check_whole(&cloud, &server, &names).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_moves_to_and_fro_not_even_under_another_controller() {
    let cloud = cloud(2).await;
    cloud.run("node1", "web", 16).await;
    let store = Arc::new(Local::in_memory());
    let server = Server::start(store.clone(), cloud.clone());
    server.until_ready(&["node1", "node2"]).await;
    until_seen(&server, 1).await;
    // Wants it to be elsewhere, wherever it is.
    let restless = r#"
        for _, capsule in cluster.capsules do
            if capsule.name == "web" then
                local other = capsule.node == "node1" and "node2" or "node1"
                return { { kind = "migrate", capsule = "web", to = other, reason = "restless" } }
            end
        end
        return {}
    "#;
    let rules = Rules { cooldown_s: Some(600), gain_percent: Some(0), ..quick() };
    // So that it gains something at first.
    cloud.spin("node1", "busy", 16, 80).await;
    until("the other is busy", async || {
        let view = server.client.view().await.unwrap();
        view.nodes.iter().any(|node| node.name == "node1" && node.used.minute.cpu_milli > 500)
    })
    .await;
    server.client.apply_policy("restless", &PolicySpec { rules, ..script(restless) }).await.unwrap();
    until("it has moved", async || cloud.whereabouts().await["web"] == ["node2"]).await;
    let is_held = async |server: &Server| {
        let runs = runs(&server.client).await;
        runs.first().is_some_and(|run| {
            run.times > 2 && run.plan.rejected.iter().any(|it| it.why.contains("ago and stays for 600 s"))
        })
    };
    until("it is to move back, and may not", async || is_held(&server).await).await;
    let before = runs(&server.client).await.len();
    server.kill();
    let server = Server::start(store, cloud.clone());
    let times = runs(&server.client).await[0].times;
    until("the next controller has tried, too", async || runs(&server.client).await[0].times > times + 2)
        .await;
    assert!(is_held(&server).await);
    assert_eq!(runs(&server.client).await.len(), before);
    assert_eq!(server.client.operations().await.unwrap().len(), 1);
    assert_eq!(cloud.whereabouts().await["web"], ["node2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_wait_while_an_operation_is_under_way() {
    let (cloud, server) = cluster(2).await;
    let names = ["a", "b", "c", "d", "e", "f"];
    for name in names {
        cloud.run("node1", name, 16).await;
    }
    let client = &server.client;
    until_seen(&server, 6).await;
    let drain = fcap_api::cluster::Drain { parallel: Some(1), ..Default::default() };
    let drain = client.drain("node1", &drain).await.unwrap();
    let stop = r#"
        if fleet.empty("node1", "pack", 100, "it is drained") then fleet.stop("node1", "it is drained") end
        return fleet.proposals()
    "#;
    client.apply_policy("eager", &script(stop)).await.unwrap();
    let drained = server.done(drain).await;
    until("the policy has had its turn", async || cloud.names().len() == 1).await;
    let plan = client.operations().await.unwrap().remove(0);
    assert_eq!(plan.by, "policy eager");
    assert!(plan.started_ms >= drained.ended_ms.unwrap(), "{plan:?}");
    check_whole(&cloud, &server, &names).await;
}

/// Kills the controller at each of its writes, before it or after it, while a policy has two nodes
/// become one; the next one has to come to the same.
async fn at_each_write(silently: bool) {
    const NAMES: [&str; 3] = ["a", "b", "c"];
    for writes in 3..80 {
        let cloud = cloud(2).await;
        for (node, name) in [("node1", "a"), ("node1", "b"), ("node2", "c")] {
            cloud.run(node, name, 16).await;
        }
        let store = Arc::new(Local::in_memory());
        let cut = Cut::after(store.clone(), writes, silently);
        let first = Server::start(cut.clone(), cloud.clone());
        first.until_ready(&["node1", "node2"]).await;
        let all_done = async |server: &Server| {
            cloud.names().len() == 1
                && server.client.operations().await.unwrap().iter().all(|it| it.state.is_over())
        };
        let work = async {
            until_seen(&first, 3).await;
            match first.client.apply_policy("consolidate", &script(CONSOLIDATE)).await {
                Ok(_) => until("it is done", async || all_done(&first).await).await,
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = work => {}
            () = until("the store is cut", async || cut.is_cut()) => {}
        }
        let was_cut = cut.is_cut();
        first.kill();
        let second = Server::start(store, cloud.clone());
        let is_applied = !second.client.policies().await.unwrap().is_empty();
        if is_applied {
            until("it is done by the next", async || all_done(&second).await).await;
        } else {
            assert_eq!(cloud.names().len(), 2);
        }
        check_whole(&cloud, &second, &NAMES).await;
        // Each plan has its record, and each record of something that was done its plan.
        let operations = second.client.operations().await.unwrap();
        let mut recorded: Vec<String> =
            runs(&second.client).await.into_iter().filter_map(|run| run.operation).collect();
        recorded.reverse();
        let mut ids: Vec<String> = operations.iter().map(|operation| operation.id.clone()).collect();
        ids.reverse();
        assert_eq!(recorded, ids, "{operations:#?}");
        let bill = second.client.cost(None).await.unwrap();
        let stopped = bill.nodes.iter().filter(|node| node.stopped_by_policy).count();
        assert_eq!((bill.nodes.len(), stopped), (2, usize::from(is_applied)), "{bill:#?}");
        assert_eq!(bill.saving_per_hour_micros, if is_applied { 10_000 } else { 0 });
        let left = second.client.cluster_nodes().await.unwrap();
        assert!(left.iter().all(|node| !node.cordoned && node.operation.is_none()), "{left:?}");
        if !was_cut {
            assert!(writes > 10, "a plan takes some writes");
            return;
        }
    }
    panic!("a plan takes more than 80 writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_run_survives_death_before_each_write() {
    at_each_write(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_run_survives_death_after_each_write() {
    at_each_write(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsaved_script_is_tried_on_a_view_and_settings() {
    let (cloud, server) = cluster(2).await;
    cloud.run("node1", "web", 16).await;
    let client = &server.client;
    until_seen(&server, 1).await;
    let source = "print(setting('word', 'none'), #cluster.nodes) return {}";
    let settings = BTreeMap::from([("word".to_owned(), Setting::Text("some".into()))]);
    let test = TestPolicy { source: Some(source.into()), settings: Some(settings), ..TestPolicy::default() };
    assert_eq!(client.test_policy("mine", &test).await.unwrap().output, ["some 2"]);
    let mut view = client.view().await.unwrap();
    view.nodes.retain(|node| node.name == "node1");
    let test = TestPolicy { view: Some(view.clone()), ..test };
    assert_eq!(client.test_policy("mine", &test).await.unwrap().output, ["some 1"]);
    // One of a large cluster is taken, too.
    let capsule = view.capsules[0].clone();
    view.capsules.extend((0..10_000).map(|number| {
        let (id, name) = (format!("{number:032x}"), format!("c{number}"));
        fcap_api::cluster::CapsuleView { id, name, ..capsule.clone() }
    }));
    let test = TestPolicy { view: Some(view), ..test };
    assert_eq!(client.test_policy("mine", &test).await.unwrap().output, ["some 1"]);
    // A test of what comes with fcap needs nothing.
    let result = client.test_policy("spread", &TestPolicy::default()).await.unwrap();
    assert_eq!((result.policy.as_str(), result.proposals.len()), ("spread", 0));
    let migrate = |to: &str| Change::Migrate { capsule: "web".into(), to: to.into() };
    let source = "fleet.migrate('web', 'node2', 'to try') return fleet.proposals()";
    let test = TestPolicy { source: Some(source.into()), ..TestPolicy::default() };
    let result = client.test_policy("mine", &test).await.unwrap();
    assert_eq!(result.proposals[0].change, migrate("node2"));
    assert_eq!(client.operations().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_policy_gives_more_memory_than_its_node_has_moves_first() {
    let (cloud, server) = cluster(2).await;
    cloud.grows("node1", "a", 16, 180).await;
    cloud.run("node1", "b", 96).await;
    until_seen(&server, 2).await;
    let source = r#"
        for _, capsule in cluster.capsules do
            if capsule.name == "a" and capsule.memory_kib < 150 * 1024 then
                fleet.resize(capsule, { memory_kib = 150 * 1024 }, "it is about to need it")
            end
        end
        return fleet.proposals()
    "#;
    server.client.apply_policy("give", &script(source)).await.unwrap();
    until("it is done", async || {
        runs(&server.client).await.iter().any(|run| run.state == Some(OperationState::Done))
    })
    .await;
    let a = cloud.client("node2").capsule(&crate::rig::reference("a")).await.unwrap();
    assert_eq!(a.memory_kib, 150 << 10);
    check_whole(&cloud, &server, &["a", "b"]).await;
    let run = runs(&server.client).await.into_iter().find(|run| run.operation.is_some()).unwrap();
    let changes: Vec<_> = run.plan.steps.iter().flat_map(|step| &step.proposals).collect();
    assert!(
        matches!(&changes[..], [first, second] if matches!(&first.change, Change::Migrate { to, .. } if to == "node2")
            && first.reason.ends_with("node node1: it is about to need it")
            && matches!(second.change, Change::Resize { .. })),
        "{changes:#?}"
    );
}
