//! What can be done to a capsule, from its making to its removal.

use fcap_api::stream::Frame;
use fcap_api::{
    Action, Capsule, CreateCapsule, EndReason, ErrorCode, Event, Node, Pruned, RestartPolicy, State, Stats,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{Server, until};

#[tokio::test]
async fn a_run_gives_the_capsule_its_output_and_its_end() {
    let server = Server::start().await;
    let request = server.spec("SIM:hello", "greeter").await;
    let mut frames = server.run(&request).await;
    let Some(Frame::Capsule(capsule)) = frames.next().await else { panic!("the capsule is the first frame") };
    assert_eq!((capsule.name.as_str(), capsule.id.len()), ("greeter", 32));
    let (output, lost, end) = frames.rest().await;
    assert_eq!((output.as_slice(), lost), (b"Hello from a simulated capsule!\n".as_slice(), 0));
    let end = end.unwrap();
    assert_eq!((end.exit_code, end.reason), (0, EndReason::Exited));
    let shown: Capsule = server.get("/capsules/greeter").await;
    assert_eq!((shown.state, shown.domid, shown.end), (State::Exited, None, Some(end)));
    assert!(shown.steps.iter().any(|step| step.name == "first output"), "{:?}", shown.steps);
    assert_eq!(server.world.domids(), [0; 0], "its domain is gone by then");
}

#[tokio::test]
async fn exit_codes_and_reasons_are_the_applications() {
    let server = Server::start().await;
    for (program, code, reason, message) in [
        ("SIM:exit 0", 0, EndReason::Exited, None),
        ("SIM:exit 42", 42, EndReason::Exited, None),
        ("SIM:exit 257", 1, EndReason::Exited, None),
        ("SIM:panic", 101, EndReason::Panicked, Some("src/main.rs:3:5")),
        ("SIM:leak", 134, EndReason::OutOfMemory, Some("4096 bytes")),
        ("SIM:fault", 139, EndReason::Crashed, Some("0x0")),
        ("SIM:crash", 139, EndReason::Crashed, Some("crashed")),
        ("SIMK:exit 3", 0, EndReason::Exited, None),
    ] {
        let request = CreateCapsule { name: None, remove: true, ..server.spec(program, "x").await };
        let (_, _, end) = server.run(&request).await.rest().await;
        let end = end.unwrap();
        assert_eq!((end.exit_code, end.reason), (code, reason), "{program}");
        assert!(message.is_none_or(|part| end.message.unwrap().contains(part)), "{program}");
        assert_eq!(end.backtrace.is_empty(), !["SIM:panic", "SIM:leak", "SIM:fault"].contains(&program));
    }
    assert_eq!(server.get::<Vec<Capsule>>("/capsules?all=true").await, [], "they are removed with their end");
    assert_eq!(std::fs::read_dir(server.state_dir().join("capsules")).unwrap().count(), 0);
}

#[tokio::test]
async fn arguments_and_environment_arrive() {
    let server = Server::start().await;
    let request = CreateCapsule {
        args: vec!["a b".into(), "ü".into(), String::new()],
        env: [("KEY".to_owned(), "value=1".to_owned())].into(),
        image_name: Some("printer".into()),
        ..server.spec("SIM:args", "x").await
    };
    let (output, _, _) = server.run(&request).await.rest().await;
    assert_eq!(String::from_utf8(output).unwrap(), "printer\na b\nü\n\nKEY=value=1\n");
}

#[tokio::test]
async fn states_change_as_drawn_and_wrong_wishes_are_refused() {
    let server = Server::start().await;
    let request = CreateCapsule { no_start: true, ..server.spec("SIM:spin", "x").await };
    assert_eq!(server.create(&request).await.state, State::Created);
    let wrong = async |wish: &str, part: &str| {
        let error = server.refused(Method::POST, &format!("/capsules/x/{wish}"), "").await;
        assert_eq!(error.code, ErrorCode::WrongState);
        assert!(error.message.contains(part), "{wish}: {error:?}");
    };
    let right = async |wish: &str| server.post::<Capsule>(&format!("/capsules/x/{wish}")).await.state;
    wrong("kill", "is not running").await;
    wrong("pause", "is not running").await;
    assert_eq!(right("stop").await, State::Created, "there is nothing to stop");
    assert_eq!(right("start").await, State::Running);
    wrong("start", "already").await;
    wrong("unpause", "is not paused").await;
    let error = server.refused(Method::DELETE, "/capsules/x", "").await;
    assert_eq!(error.code, ErrorCode::WrongState);
    assert_eq!(right("pause").await, State::Paused);
    wrong("pause", "already").await;
    assert_eq!(right("unpause").await, State::Running);
    assert_eq!(right("stop").await, State::Exited);
    let end = server.wait("x").await;
    assert_eq!((end.exit_code, end.reason), (143, EndReason::Stopped));
    assert_eq!(right("stop").await, State::Exited);
    assert_eq!(right("start").await, State::Running);
    assert_eq!(right("kill").await, State::Exited);
    let end = server.wait("x").await;
    assert_eq!((end.exit_code, end.reason), (137, EndReason::Killed));
    assert_eq!(right("start").await, State::Running);
    server.delete("/capsules/x?force=true").await;
    assert_eq!(server.refused(Method::GET, "/capsules/x", "").await.code, ErrorCode::NoSuchCapsule);
    assert_eq!(server.world.domids(), [0; 0]);
}

#[tokio::test]
async fn one_that_does_not_stop_is_killed_when_its_time_is_up() {
    let server = Server::start().await;
    server.start_capsule("SIM:stubborn", "x").await;
    let asked = std::time::Instant::now();
    let capsule: Capsule = server.post("/capsules/x/stop?timeout_s=1").await;
    assert!(asked.elapsed() >= std::time::Duration::from_secs(1));
    assert_eq!(capsule.end.unwrap().exit_code, 137);
    // A kill ends a stop that waits.
    server.post::<Capsule>("/capsules/x/start").await;
    let (stopped, ()) = tokio::join!(server.post::<Capsule>("/capsules/x/stop?timeout_s=1000"), async {
        until("stopping", async || server.state("x").await == State::Stopping).await;
        server.post::<Capsule>("/capsules/x/kill").await;
    });
    assert_eq!(stopped.state, State::Exited);
}

#[tokio::test]
async fn a_domain_that_somebody_else_destroys_is_noticed() {
    let server = Server::start().await;
    let capsule = server.start_capsule("SIM:spin", "x").await;
    server.world.destroy(capsule.domid.unwrap());
    let end = server.wait("x").await;
    assert_eq!((end.exit_code, end.reason), (137, EndReason::Killed));
    assert!(end.message.unwrap().contains("somebody else"));
}

#[tokio::test]
async fn policies_restart_what_ends_by_itself() {
    let server = Server::start().await;
    let failing = CreateCapsule {
        restart: RestartPolicy::OnFailure { max_retries: Some(2) },
        ..server.spec("SIM:exit 5", "failing").await
    };
    let (_, _, end) = server.run(&failing).await.rest().await;
    assert_eq!(end.unwrap().exit_code, 5);
    let capsule: Capsule = server.get("/capsules/failing").await;
    assert_eq!((capsule.restarts, capsule.state), (2, State::Exited));
    let fine = CreateCapsule {
        restart: RestartPolicy::OnFailure { max_retries: None },
        ..server.spec("SIM:exit 0", "fine").await
    };
    server.run(&fine).await.rest().await;
    assert_eq!(server.get::<Capsule>("/capsules/fine").await.restarts, 0);
    let always =
        CreateCapsule { restart: RestartPolicy::Always, ..server.spec("SIM:exit 0", "always").await };
    server.create(&always).await;
    until("two restarts", async || server.get::<Capsule>("/capsules/always").await.restarts >= 2).await;
    let stopped: Capsule = server.post("/capsules/always/stop").await;
    assert_eq!(stopped.state, State::Exited);
    let restarts = stopped.restarts;
    server.post::<Capsule>("/capsules/always/start").await;
    until("another restart", async || server.get::<Capsule>("/capsules/always").await.restarts > restarts)
        .await;
    server.delete("/capsules/always?force=true").await;
}

#[tokio::test]
async fn names_are_unique_and_change() {
    let server = Server::start().await;
    let first = server.start_capsule("SIM:spin", "first").await;
    let error =
        server.refused(Method::POST, "/run", json!(server.spec("SIM:spin", "first").await).to_string()).await;
    assert_eq!(error.code, ErrorCode::NameTaken);
    assert!(error.message.contains(&first.id), "{error:?}");
    server.start_capsule("SIM:spin", "second").await;
    let rename = |name: &str| json!({ "name": name }).to_string();
    let error = server.refused(Method::PATCH, "/capsules/first", rename("second")).await;
    assert_eq!(error.code, ErrorCode::NameTaken);
    let error = server.refused(Method::PATCH, "/capsules/first", rename("no good")).await;
    assert_eq!(error.code, ErrorCode::BadRequest);
    let renamed: Capsule = server.ok(Method::PATCH, "/capsules/first", json!({ "name": "third" })).await;
    assert_eq!((renamed.id, renamed.name.as_str()), (first.id, "third"));
    assert_eq!(server.refused(Method::GET, "/capsules/first", "").await.code, ErrorCode::NoSuchCapsule);
    server.start_capsule("SIM:spin", "first").await;
    let unnamed = CreateCapsule { name: None, ..server.spec("SIM:spin", "x").await };
    let names = [server.create(&unnamed).await.name, server.create(&unnamed).await.name];
    assert_ne!(names[0], names[1]);
}

#[tokio::test]
async fn settings_change_while_it_runs() {
    let server = Server::start().await;
    server.start_capsule("SIM:spin", "x").await;
    let change = json!({ "cpu_cap": 50, "weight": 512, "restart": "always" });
    let changed: Capsule = server.ok(Method::PATCH, "/capsules/x", change).await;
    assert_eq!((changed.cpu_cap, changed.weight, changed.restart), (50, 512, RestartPolicy::Always));
    let error = server.refused(Method::PATCH, "/capsules/x", r#"{"weight":0}"#).await;
    assert_eq!(error.code, ErrorCode::BadRequest);
}

#[tokio::test]
async fn memory_changes_while_it_runs_within_its_maximum() {
    let server = Server::start().await;
    let request = CreateCapsule {
        memory_kib: Some(16 << 10),
        max_memory_kib: Some(64 << 10),
        ..server.spec("SIM:spin", "x").await
    };
    let made = server.create(&request).await;
    assert_eq!((made.memory_kib, made.max_memory_kib), (16 << 10, 64 << 10));
    let free = async || server.get::<Node>("/node").await.free_memory_kib;
    let before = free().await;
    let change = |mib: u64| json!({ "memory_kib": mib << 10 });
    for mib in [48, 64, 16, 17] {
        let changed: Capsule = server.ok(Method::PATCH, "/capsules/x", change(mib)).await;
        assert_eq!((changed.memory_kib, changed.max_memory_kib), (mib << 10, 64 << 10));
        assert_eq!(free().await, before + (16 << 10) - (mib << 10));
        let stats: Vec<Stats> = server.get("/stats").await;
        assert_eq!((stats[0].memory_kib, stats[0].max_memory_kib), (mib << 10, 64 << 10));
    }
    let refused = async |mib, code, words: &str| {
        let error = server.refused(Method::PATCH, "/capsules/x", change(mib).to_string()).await;
        assert!(error.code == code && error.message.contains(words), "{error:?}");
    };
    refused(65, ErrorCode::BadRequest, "at most 64 MiB").await;
    refused(0, ErrorCode::BadRequest, "0 KiB").await;
    server.post::<Capsule>("/capsules/x/pause").await;
    refused(32, ErrorCode::WrongState, "unpause it").await;
    server.post::<Capsule>("/capsules/x/unpause").await;
    // The next start is with what it has now, and more is then possible.
    server.post::<Capsule>("/capsules/x/kill").await;
    let changed: Capsule = server.ok(Method::PATCH, "/capsules/x", change(80)).await;
    assert_eq!((changed.memory_kib, changed.max_memory_kib), (80 << 10, 80 << 10));
    let error = server.refused(Method::PATCH, "/capsules/x", r#"{"memory_kib":100}"#).await;
    assert_eq!(error.code, ErrorCode::NotEnoughMemory, "{error:?}");
    server.post::<Capsule>("/capsules/x/start").await;
    assert_eq!(free().await, before + (16 << 10) - (80 << 10));
}

#[tokio::test]
async fn memory_that_is_in_use_or_not_there_does_not_change() {
    let mut server = Server::start().await;
    let spec = async |program, name, max_mib: u64| CreateCapsule {
        memory_kib: Some(48 << 10),
        max_memory_kib: Some(max_mib << 10),
        ..server.spec(program, name).await
    };
    let uses = spec("SIM:hold 36864", "uses", 2048).await;
    let busy = spec("SIM:stubborn", "busy", 64).await;
    server.create(&uses).await;
    server.create(&busy).await;
    let kernel = server.start_capsule("SIMK:spin", "kernel").await;
    let refused = async |server: &Server, name: &str, mib: u64, code, words: &str| {
        let body = json!({ "memory_kib": mib << 10, "weight": 300 }).to_string();
        let error = server.refused(Method::PATCH, &format!("/capsules/{name}"), body).await;
        assert!(error.code == code && error.message.contains(words), "{error:?}");
        server.get::<Capsule>(&format!("/capsules/{name}")).await
    };
    let part = "capsule uses gave back 12 MiB of 32 MiB: the rest is in use";
    let uses = refused(&server, "uses", 16, ErrorCode::WrongState, part).await;
    // What has changed, has.
    assert_eq!((uses.memory_kib, uses.weight), (36 << 10, 300));
    refused(&server, "uses", 1500, ErrorCode::NoRoom, "KiB are free").await;
    let busy = refused(&server, "busy", 16, ErrorCode::WrongState, "capsule busy: it does not answer").await;
    assert_eq!((busy.memory_kib, busy.weight), (48 << 10, 256));
    let same = refused(&server, "kernel", 32, ErrorCode::WrongState, "no balloon").await;
    assert_eq!(same.memory_kib, kernel.memory_kib);
    server.kill_daemon();
    server.start_daemon().await;
    let uses: Capsule = server.get("/capsules/uses").await;
    assert_eq!((uses.memory_kib, uses.max_memory_kib), (36 << 10, 2048 << 10));
}

#[tokio::test]
async fn a_prefix_must_be_unique() {
    let server = Server::start().await;
    let request = CreateCapsule { no_start: true, name: None, ..server.spec("SIM:spin", "x").await };
    let mut ids = Vec::new();
    // By seventeen two begin with the same digit.
    for _ in 0..17 {
        ids.push(server.create(&request).await.id);
    }
    for id in &ids {
        let fits = ids.iter().filter(|other| other.starts_with(&id[..1])).count();
        if fits > 1 {
            let error = server.refused(Method::GET, &format!("/capsules/{}", &id[..1]), "").await;
            assert_eq!(error.code, ErrorCode::Ambiguous);
            assert!(error.message.contains(id), "{error:?}");
        }
        assert_eq!(&server.get::<Capsule>(&format!("/capsules/{}", &id[..20])).await.id, id);
        assert_eq!(&server.get::<Capsule>(&format!("/capsules/{id}")).await.id, id);
    }
    // A name goes before a prefix.
    let prefix = &ids[0][..1];
    let named = server.start_capsule("SIM:spin", prefix).await;
    assert_eq!(server.get::<Capsule>(&format!("/capsules/{prefix}")).await.id, named.id);
}

#[tokio::test]
async fn listing_shows_what_has_not_ended_unless_all_is_wanted() {
    let server = Server::start().await;
    server.start_capsule("SIM:spin", "runs").await;
    server.start_capsule("SIM:exit 1", "ended").await;
    server.wait("ended").await;
    let names = async |query| -> Vec<String> {
        let capsules: Vec<Capsule> = server.get(query).await;
        capsules.into_iter().map(|capsule| capsule.name).collect()
    };
    assert_eq!(names("/capsules").await, ["runs"]);
    assert_eq!(names("/capsules?all=true").await, ["runs", "ended"]);
}

#[tokio::test]
async fn events_tell_a_life_in_order() {
    let server = Server::start().await;
    let mut follow = server.request(Method::GET, "/events?follow=true", "").await;
    let request = CreateCapsule { remove: true, ..server.spec("SIM:exit 3", "x").await };
    server.run(&request).await.rest().await;
    let mut text = String::new();
    while text.matches('\n').count() < 4 {
        text.push_str(std::str::from_utf8(&follow.chunk().await.unwrap().unwrap()).unwrap());
    }
    let events: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let actions: Vec<_> = events.iter().map(|event| event.action).collect();
    assert_eq!(actions, [Action::Create, Action::Start, Action::Die, Action::Remove]);
    assert_eq!(events[2].end.as_ref().unwrap().exit_code, 3);
    let past = server.request(Method::GET, "/events", "").await.text().await.unwrap();
    assert_eq!(past, text);
}

#[tokio::test]
async fn prune_removes_what_is_not_used() {
    let server = Server::start().await;
    let running = server.start_capsule("SIM:spin", "runs").await;
    let ended = server.start_capsule("SIM:exit 1", "ended").await;
    server.wait("ended").await;
    let pruned: Pruned = server.ok(Method::POST, "/prune", Value::Null).await;
    assert_eq!((pruned.capsules, pruned.images), (vec![ended.id], vec![ended.image]));
    assert_eq!(server.get::<Vec<Capsule>>("/capsules?all=true").await[0].id, running.id);
}

#[tokio::test]
async fn capsules_do_not_notice_that_the_daemon_is_killed() {
    let mut server = Server::start().await;
    let before = server.start_capsule("SIM:tick 2", "clock").await;
    server.start_capsule("SIM:sleep 20", "ends").await;
    server.start_capsule("SIM:spin", "held").await;
    server.post::<Capsule>("/capsules/held/pause").await;
    server.logs("clock", "?follow=true").await.read_until("tick 5\n").await;
    server.kill_daemon();
    std::thread::sleep(std::time::Duration::from_millis(40));
    server.start_daemon().await;
    let after: Capsule = server.get("/capsules/clock").await;
    assert_eq!(
        (after.domid, after.started_ms, after.state),
        (before.domid, before.started_ms, State::Running)
    );
    assert_eq!(server.state("held").await, State::Paused);
    assert_eq!(server.wait("ends").await.exit_code, 0);
    let text = server.logs("clock", "?follow=true").await.read_until("tick 50\n").await;
    let expected: String = (1..=text.lines().count()).map(|n| format!("tick {n}\n")).collect();
    assert_eq!(text, expected);
    let stopped: Capsule = server.post("/capsules/clock/stop").await;
    assert_eq!(stopped.end.unwrap().exit_code, 143);
}
