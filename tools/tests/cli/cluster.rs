//! What only a controller can tell: of all nodes at once, and who did what.

use std::io::BufRead as _;
use std::sync::{Arc, mpsc};

use fcap_api::PublishedPort;
use fcap_api::cluster::Flavor;
use fcap_cluster::controller::{Controller, Security};
use fcap_cluster::execute::Limits;
use fcap_cluster::nodes::Rhythm;
use fcap_cluster::provider::{Machine, Provider, ProviderError, Wanted};
use fcap_cluster::store::Local;
use fcap_tls::{Authority, VALIDITY};
use futures_util::future::BoxFuture;

use crate::rig::{Output, Server, check_refused, fcap, finished, first_line, signal, wait_for};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A provider of these nodes and no others.
struct Fixed(Vec<Machine>);

fn refuse<T: Send + 'static>(what: &str) -> BoxFuture<'static, Result<T, ProviderError>> {
    let what = what.to_owned();
    Box::pin(async move { Err(ProviderError::Failed { what, reason: "there are only these".into() }) })
}

impl Provider for Fixed {
    fn flavors(&self) -> Vec<Flavor> {
        Vec::new()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Machine>, ProviderError>> {
        Box::pin(async { Ok(self.0.clone()) })
    }

    fn create(&self, _: Wanted) -> BoxFuture<'_, Result<Machine, ProviderError>> {
        refuse("start a node")
    }

    fn destroy(&self, _: &str) -> BoxFuture<'_, Result<(), ProviderError>> {
        refuse("destroy a node")
    }

    fn move_ports(
        &self,
        _: Vec<PublishedPort>,
        _: &str,
        _: &str,
    ) -> BoxFuture<'_, Result<(), ProviderError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Two nodes and their controller, which is what commands speak to.
struct Cluster {
    nodes: [Server; 2],
    url: String,
    _runtime: tokio::runtime::Runtime,
}

impl Cluster {
    fn start() -> Self {
        let nodes = ["node1", "node2"].map(Server::named);
        let machine = |(name, server): (&str, &Server)| Machine {
            name: name.into(),
            flavor: None,
            url: server.host(),
            token: TOKEN.into(),
            started_ms: 0,
            tag: None,
        };
        let provider = Arc::new(Fixed(["node1", "node2"].into_iter().zip(&nodes).map(machine).collect()));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (send, receive) = mpsc::channel();
        runtime.spawn(async move {
            let store = Arc::new(Local::in_memory());
            let authority = Arc::new(Authority::generate().unwrap());
            let security = Security { token: TOKEN.into(), authority, validity: VALIDITY };
            let controller =
                Controller::start(store, provider, security, Rhythm::default(), Limits::default());
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            send.send(listener.local_addr().unwrap()).unwrap();
            controller.await.unwrap().serve(listener).await.unwrap();
        });
        let url = format!("http://{}", receive.recv().unwrap());
        let cluster = Self { nodes, url, _runtime: runtime };
        wait_for("both nodes", || cluster.call(&["node", "ls"]).stdout.matches(" ready ").count() == 2);
        cluster
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = fcap(args);
        command.env("FCAP_HOST", &self.url).env("FCAP_TOKEN", TOKEN).env("USER", "ada");
        command
    }

    fn call(&self, args: &[&str]) -> Output {
        finished(self.command(args).spawn().unwrap())
    }
}

#[test]
fn events_of_all_nodes_come_from_the_controller() {
    let cluster = Cluster::start();
    let [one, two] = &cluster.nodes;
    one.ok(&["run", "-d", "--name", "a", &one.image("tick 1000")]);
    let args = ["events", "--since", "1h", "--filter", "event=start", "--filter", "event=kill", "-o", "json"];
    let mut following = cluster.command(&args).spawn().unwrap();
    let (first, more) = first_line(&mut following);
    let event: serde_json::Value = serde_json::from_str(&first).unwrap();
    assert_eq!((&event["name"], &event["node"]), (&"a".into(), &"node1".into()), "{first}");
    two.ok(&["run", "-d", "--name", "b", &two.image("tick 1000")]);
    two.ok(&["kill", "b"]);
    let two_more: Vec<String> = more.lines().take(2).map(Result::unwrap).collect();
    assert!(two_more.iter().all(|line| line.contains(r#""node":"node2""#)), "{two_more:?}");
    assert!(two_more[1].contains(r#""action":"kill""#), "{two_more:?}");
    signal(&following, "TERM");
    following.wait().unwrap();

    let kept = cluster.call(&["events", "--no-follow", "-F", "node=node2", "-F", "capsule=b"]);
    assert!(kept.stdout.lines().all(|line| line.contains("Z node2 ")), "{kept:?}");
    assert!(
        kept.stdout.contains(" node2 die ") && kept.stdout.contains("(name=b, exitCode=137)"),
        "{kept:?}"
    );
    let bad = ["events", "--filter", "colour=red"];
    assert_eq!(cluster.call(&bad).code, 2);
}

#[test]
fn the_record_says_who_did_what_and_is_followed() {
    let cluster = Cluster::start();
    assert_eq!(cluster.call(&["node", "cordon", "node1"]).code, 0);
    assert_eq!(cluster.call(&["node", "uncordon", "node1"]).code, 0);
    let entries = cluster.call(&["audit", "-o", "json"]).json();
    assert_eq!((&entries[0]["by"], &entries[0]["what"]), (&"ada".into(), &"uncordon node node1".into()));
    let table = cluster.call(&["audit", "--filter", "what= node1", "--filter", "who=ada", "-n", "1"]).stdout;
    assert!(table.lines().count() == 2 && table.contains("uncordon node node1"), "{table}");
    assert_eq!(
        cluster.call(&["audit", "--filter", "who=nobody", "-o", "json"]).json(),
        serde_json::json!([])
    );

    let mut following = cluster.command(&["audit", "--follow", "-n", "0"]).spawn().unwrap();
    // What is followed begins when the controller knows of it; until then there is nothing to tell.
    let tell = || cluster.call(&["node", "label", "node2", "disk=new"]).code == 0;
    let (line, teller) = std::thread::scope(|scope| {
        let (stop, stopped) = mpsc::channel::<()>();
        let teller =
            scope.spawn(move || while tell() && stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {});
        let (line, _) = first_line(&mut following);
        drop(stop);
        (line, teller.join())
    });
    teller.unwrap();
    assert!(line.ends_with("Z ada: change labels disk of node node2"), "{line}");
    signal(&following, "TERM");
    following.wait().unwrap();
    let yaml = ["audit", "-f", "-o", "yaml"];
    check_refused(&yaml, &cluster.call(&yaml), 1, &["-o json"]);
}
