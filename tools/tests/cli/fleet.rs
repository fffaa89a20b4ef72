//! Several nodes as one.

use crate::rig::{Output, Server, check_refused, fcap, finished};

fn call(nodes: &[&Server], args: &[&str]) -> Output {
    let hosts: Vec<String> = nodes.iter().map(|node| node.host()).collect();
    finished(fcap(args).env("FCAP_HOST", hosts.join(",")).spawn().unwrap())
}

fn ok(nodes: &[&Server], args: &[&str]) -> String {
    let output = call(nodes, args);
    assert_eq!(output.code, 0, "fcap {args:?}: {output:?}");
    output.stdout.trim_end().to_owned()
}

#[test]
fn a_fleet_is_listed_searched_and_filled_as_one() {
    let (one, two) = (Server::named("one"), Server::named("two"));
    let both = [&one, &two];
    let image = one.image("tick 1000");
    let on_two = ok(&both, &["run", "-d", "--node", "two", "--name", "a", &image]);
    // The other one has more room now.
    ok(&both, &["run", "-d", "--name", "b", &image]);
    let nodes = ok(&both, &["ps"]);
    assert!(nodes.contains("NODE") && nodes.contains("one") && nodes.contains("two"), "{nodes}");
    assert_eq!(ok(&both, &["ps", "-o", "name", "-f", "node=two"]), "a");
    assert_eq!(ok(&both, &["ps", "-o", "name", "-f", "node=one"]), "b");
    assert_eq!(ok(&both, &["pause", "a", "b"]), "a\nb");
    assert_eq!(ok(&both, &["kill", &on_two[..10]]), &on_two[..10]);
    assert_eq!(ok(&both, &["wait", "a"]), "137");
    assert!(call(&both, &["version"]).stdout.matches("simulator").count() == 2);

    let taken = ["run", "--name", "b", "--node", "two", &image];
    check_refused(&taken, &call(&both, &taken), 125, &["taken", "one"]);
    let renamed = ["rename", "a", "b"];
    check_refused(&renamed, &call(&both, &renamed), 1, &["taken"]);
    let nowhere = ["run", "--node", "three", &image];
    check_refused(&nowhere, &call(&both, &nowhere), 125, &["three", "one, two"]);
    let none = ["kill", "none"];
    check_refused(&none, &call(&both, &none), 1, &["none"]);
}

#[test]
fn a_name_on_two_nodes_is_ambiguous_and_an_id_is_not() {
    let (one, two) = (Server::named("one"), Server::named("two"));
    let image = one.image("hello");
    one.ok(&["create", "--name", "same", &image]);
    let id = two.ok(&["create", "--name", "same", &image]);
    let both = [&one, &two];
    let inspect = ["inspect", "same"];
    let output = call(&both, &inspect);
    assert_eq!(output.code, 1, "{output:?}");
    assert_eq!(ok(&both, &["rm", &id]), id);
    assert_eq!(ok(&both, &["rm", "same"]), "same");
}

#[test]
fn a_dead_node_does_not_hide_the_others() {
    let (one, two) = (Server::named("one"), Server::named("two"));
    one.ok(&["run", "-d", "--name", "a", &one.image("tick 1000")]);
    let dead = two.host();
    drop(two);
    let hosts = format!("{},{dead}", one.host());
    let call = |args: &[&str]| finished(fcap(args).env("FCAP_HOST", &hosts).spawn().unwrap());
    let ps = call(&["ps", "-o", "name"]);
    assert_eq!((ps.code, ps.stdout.as_str()), (1, "a\n"), "{ps:?}");
    assert!(ps.stderr.contains("no answer from"), "{ps:?}");
    assert_eq!(call(&["kill", "a"]).code, 0);
    // Not the beginning of any id.
    let lost = call(&["kill", "somebody"]);
    assert_eq!(lost.code, 1);
    assert!(lost.stderr.contains("could not be asked"), "{lost:?}");
}
