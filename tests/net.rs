//! Capsules on the network: between capsules, from the user's computer, across nodes.
//!
//! The tests share one cloud of two nodes and run one after the other; the test of encryption
//! has a cloud of its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::MutexGuard;
use std::time::Duration;

use fcap_api::{Capsule, Protocol, PublishedPort};
use fcap_tests::cli::{self, Fcap, Output};
use fcap_tests::rig::{self, Node, linux_guest, wait_until};
use fcap_tests::soak::net::inventory;

/// A sentence of httpd's root page.
const PAGE: &str = "<title>";

/// The nodes, for one test at a time.
struct Turn {
    here: &'static Node,
    there: &'static Node,
    fcap: Fcap,
    _turn: MutexGuard<'static, ()>,
}

fn turn() -> Turn {
    let (turn, [here, there]) = Node::shared_two();
    for node in [here, there] {
        clear(node);
    }
    Turn { here, there, fcap: here.fcap(), _turn: turn }
}

fn clear(node: &Node) {
    let fcap = node.fcap();
    for id in fcap.ok(&["ps", "-a", "-q"]).text().lines() {
        fcap.ok(&["rm", "-f", id]);
    }
    for network in fcap.ok(&["network", "ls", "-o", "name"]).text().lines().filter(|name| *name != "default")
    {
        fcap.ok(&["network", "rm", network]);
    }
}

fn path(name: &str) -> String {
    cli::image(name).to_str().expect("the tree's path is text").to_owned()
}

/// `fcap run -d --name NAME OPTIONS IMAGE ARGS` on a node.
fn start(node: &Node, name: &str, options: &[&str], image: &str, args: &[&str]) -> Capsule {
    node.fcap().ok(&[&["run", "-d", "--name", name], options, &[&path(image)], args].concat());
    inspect(node, name)
}

fn inspect(node: &Node, name: &str) -> Capsule {
    node.api().get(&format!("/v1/capsules/{name}")).expect("the capsule is known")
}

/// `fcap run --rm OPTIONS IMAGE ARGS` on a node.
fn run(node: &Node, options: &[&str], image: &str, args: &[&str]) -> Output {
    node.fcap().call(&[&["run", "--rm"], options, &[&path(image)], args].concat())
}

/// Asks a server for pages from a capsule; fails if one does not come.
fn load(node: &Node, url: &str) {
    let output = run(node, &[], "load", &["-c", "4", "-n", "200", url]);
    assert_eq!(output.code, 0, "{output:?}");
}

/// Starts a server with its port published on this computer, and returns that port.
fn publish(node: &Node, name: &str, image: &str, port: u16) -> u16 {
    let capsule = start(node, name, &["-m", "64m", "-p", &port.to_string()], image, &[]);
    let published = capsule.ports[0];
    assert_eq!(published.port, port);
    node.publish(&capsule.ports).expect("the port is free");
    wait_until("the server answers", || Ok(TcpStream::connect(("127.0.0.1", published.host_port)).is_ok()))
        .unwrap();
    published.host_port
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the port is published");
    ask(&mut stream, path);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer comes to its end");
    answer
}

fn ask(stream: &mut TcpStream, path: &str) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").unwrap();
}

/// Runs a program on this computer and returns its output.
fn program(words: &[&str]) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .unwrap_or_else(|error| panic!("{words:?}: {error}; `cargo xtask setup` installs it"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// `fcap run OPTIONS` of a Linux guest on the network, which runs a script and ends; returns what
/// it wrote.
fn linux_script(node: &Node, options: &[&str], script: &str) -> String {
    let mut initramfs = std::fs::read(linux_guest::initramfs()).expect("`cargo xtask test` builds it");
    rig::append_file(&mut initramfs, "script", script.as_bytes());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), initramfs).unwrap();
    let (initramfs, kernel) = (file.path().to_str().unwrap(), linux_guest::kernel());
    let common = ["-m", linux_guest::MEMORY, "--network", "default", "--initrd", initramfs];
    let rest = ["--append", "console=hvc0 quiet", kernel.to_str().unwrap()];
    let output = node.fcap().ok(&[&["run"], options, &common, &rest].concat());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn capsules_reach_each_other_by_name_on_one_node() {
    let t = turn();
    start(t.here, "web", &[], "httpd", &[]);
    load(t.here, "http://web/");
    let found = run(t.here, &[], "guest-resolve", &["web"]);
    let endpoint = &inspect(t.here, "web").networks[0];
    assert!(found.text().contains(&format!("web {}", endpoint.ipv4)), "{found:?}");
    assert!(found.text().contains(&format!("web {}", endpoint.ipv6)), "{found:?}");
    let missing = run(t.here, &[], "guest-resolve", &["nobody"]);
    assert_ne!(missing.code, 0, "{missing:?}");
}

#[test]
fn capsules_reach_each_other_by_name_across_nodes() {
    let t = turn();
    start(t.here, "web", &[], "httpd", &[]);
    wait_until("the other node has heard of it", || {
        Ok(run(t.there, &[], "guest-resolve", &["web"]).code == 0)
    })
    .unwrap();
    let clear = on_the_wire(t.there, PAGE, || load(t.there, "http://web/"));
    assert!(clear > 0, "nothing was seen between the nodes, so nothing could be seen");
}

/// How many packets between the nodes have `words` in clear while `action` runs.
fn on_the_wire(node: &Node, words: &str, action: impl FnOnce()) -> u32 {
    node.sh("tcpdump -Z root -i eth1 -w /tmp/wire >/tmp/tcpdump 2>&1 & echo $! >/tmp/tcpdump.pid").unwrap();
    wait_until("tcpdump listens", || Ok(node.sh("cat /tmp/tcpdump")?.contains("listening on"))).unwrap();
    action();
    node.sh(
        "kill $(cat /tmp/tcpdump.pid); while kill -0 $(cat /tmp/tcpdump.pid) 2>/dev/null; do sleep 0.1; done",
    )
    .unwrap();
    let packets = node.sh("wc -c </tmp/wire").unwrap();
    assert!(packets.trim().parse::<u64>().unwrap() > 10_000, "the wire was silent: {packets}");
    node.sh(&format!("grep -c -a -e '{words}' /tmp/wire || true")).unwrap().trim().parse().unwrap()
}

#[test]
fn with_encryption_nothing_is_readable_between_nodes() {
    let t = turn();
    let [here, there] = Node::two(true).unwrap();
    start(&here, "web", &[], "httpd", &[]);
    wait_until(
        "the other node has heard of it",
        || Ok(run(&there, &[], "guest-resolve", &["web"]).code == 0),
    )
    .unwrap();
    assert_eq!(on_the_wire(&there, PAGE, || load(&there, "http://web/")), 0);
    drop(t);
}

#[test]
fn a_published_port_answers_on_the_users_computer() {
    let t = turn();
    let port = publish(t.here, "web", "httpd", 80);
    assert!(get(port, "/").contains(PAGE));
    assert!(program(&["curl", "-sS", &format!("http://127.0.0.1:{port}/")]).contains(PAGE));
    let shown = t.fcap.ok(&["port", "web"]);
    assert!(shown.text().contains(&port.to_string()), "{shown:?}");
    assert!(t.fcap.ok(&["ps"]).text().contains(&port.to_string()));
}

/// A port of this computer that is no connection's, and that nodes do not choose.
fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (10_000..20_000).find(free).expect("one of ten thousand ports is free")
}

#[test]
fn the_command_line_publishes_ports_of_a_local_cloud_and_takes_them_back() {
    let t = turn();
    let free = free_port();
    let call = |args: &[&str]| t.here.cloud_fcap(args).output().expect("fcap is built");
    let publish = format!("{free}:80");
    let started = call(&["run", "-d", "--name", "web", "-p", &publish, &path("httpd")]);
    assert!(started.status.success(), "{started:?}");
    wait_until("the server answers", || Ok(TcpStream::connect(("127.0.0.1", free)).is_ok())).unwrap();
    assert!(get(free, "/").contains(PAGE));
    // It is taken now, on the user's computer, whichever node is to have it.
    let second = call(&["run", "-d", "--name", "second", "-p", &publish, &path("httpd")]);
    assert!(!second.status.success(), "{second:?}");
    assert!(String::from_utf8_lossy(&second.stderr).contains(&free.to_string()), "{second:?}");
    assert!(call(&["rm", "-f", "web"]).status.success());
    TcpListener::bind(("127.0.0.1", free)).expect("the port is free again");
}

#[test]
fn a_port_that_another_program_has_is_named() {
    let t = turn();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let ports = [PublishedPort { host_port: port, port: 80, protocol: Protocol::Tcp }];
    let error = t.here.publish(&ports).unwrap_err().to_string();
    assert!(error.contains(&format!("{port}/tcp")) && error.contains("taken"), "{error}");
}

#[test]
fn a_hundred_thousand_requests_at_a_hundred_connections_have_no_error() {
    let t = turn();
    let port = publish(t.here, "web", "httpd", 80);
    // wrk counts time and not requests: as long as it takes.
    let mut requests = 0;
    while requests < 100_000 {
        let url = format!("http://127.0.0.1:{port}/");
        let report = program(&["wrk", "-t", "1", "-c", "100", "-d", "20", "--timeout", "30", &url]);
        assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");
        let line = report.lines().find_map(|line| line.trim().split_once(" requests in"));
        let count: u64 = line.and_then(|(count, _)| count.parse().ok()).expect("wrk counts requests");
        assert!(count > 0, "{report}");
        requests += count;
    }
}

#[test]
fn a_hundred_thousand_commands_of_redis_benchmark_have_no_error() {
    let t = turn();
    let port = publish(t.here, "kv", "kv", 6379);
    let port = port.to_string();
    let common = ["redis-benchmark", "-p", &port, "-c", "100", "-t", "get,set", "--csv"];
    let report = program(&[&common[..], &["-n", "50000", "-P", "4"]].concat());
    assert_eq!(
        report.lines().filter(|line| line.contains("SET") || line.contains("GET")).count(),
        2,
        "{report}"
    );
    assert!(!report.to_lowercase().contains("error"), "{report}");
}

#[test]
fn a_thousand_connections_are_held_and_all_are_answered() {
    let t = turn();
    let port = publish(t.here, "web", "httpd", 80);
    let ask = |stream: &mut TcpStream| stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
    let mut streams: Vec<TcpStream> = Vec::new();
    // A connection through QEMU's user network is one before the capsule has heard of it: only
    // an answer tells that it holds it. It holds 256 that are half open, so not all come at once.
    for _ in 0..10 {
        let mut more: Vec<_> =
            (0..100).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("it connects")).collect();
        more.iter_mut().for_each(ask);
        more.iter_mut().for_each(read_page);
        streams.append(&mut more);
    }
    streams.iter_mut().for_each(ask);
    streams.iter_mut().for_each(read_page);
}

/// Reads the root page, of which the connection stays open.
fn read_page(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while !answer.windows(7).any(|end| end == b"</html>") {
        let len = stream.read(&mut piece).expect("the answer comes");
        assert!(len > 0, "the connection ended with {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..len]);
    }
}

#[test]
fn a_guest_can_use_only_its_own_addresses() {
    let t = turn();
    let web = start(t.here, "web", &[], "httpd", &[]).networks[0].clone();
    let report = linux_script(
        t.here,
        &["--name", "spoofer"],
        &format!(
            "try() {{ what=$1; shift; if \"$@\" >/dev/null 2>&1; then echo \"$what: reached\"; else echo \"$what: not reached\"; fi; }}\n\
             page() {{ printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w $3 $1 $2 | grep -q HTTP/; }}\n\
             try own page {web} 80 10\n\
             try dom0 page $gateway 7070 3\n\
             try name nslookup web $gateway\n\
             ip addr add 10.88.1.250/16 dev eth0\n\
             try foreign-ip ping -c 2 -W 1 -I 10.88.1.250 {web}\n\
             arping -c 2 -U -s {web} -I eth0 $gateway >/dev/null 2>&1\n\
             ip link set eth0 down; ip link set eth0 address 0a:fc:01:02:03:04; ip link set eth0 up\n\
             try foreign-mac ping -c 2 -W 1 {web}\n\
             echo done\n",
            web = web.ipv4
        ),
    );
    for line in
        ["own: reached", "dom0: not reached", "name: reached", "foreign-ip: not", "foreign-mac: not", "done"]
    {
        assert!(report.contains(line), "{line:?} is missing in {report:?}");
    }
    let denied = inspect(t.here, "spoofer").net.map(|net| net.denied);
    assert!(denied.is_none_or(|denied| denied > 0), "{denied:?}");
    // Nobody believed it.
    load(t.here, "http://web/");
}

#[test]
fn what_a_guest_may_not_send_is_counted() {
    let t = turn();
    let script = "ip link set eth0 down; ip link set eth0 address 0a:fc:01:02:03:04; ip link set eth0 up\n\
                  ip route add default via $gateway\nwhile true; do ping -c 1 -W 1 $gateway >/dev/null; done\n";
    linux_script(t.here, &["-d", "--name", "spoofer"], script);
    wait_until("its packets are counted as denied", || {
        Ok(inspect(t.here, "spoofer").net.is_some_and(|net| net.denied > 0))
    })
    .unwrap();
}

#[test]
fn networks_are_apart_and_none_is_none() {
    let t = turn();
    t.fcap.ok(&["network", "create", "blue"]);
    let web = start(t.here, "web", &["--network", "blue"], "httpd", &[]).networks[0].clone();
    assert_eq!(web.network, "blue");
    let same = run(t.here, &["--network", "blue"], "load", &["-c", "1", "-n", "5", "http://web/"]);
    assert_eq!(same.code, 0, "{same:?}");
    let by_name = run(t.here, &[], "guest-resolve", &["web"]);
    assert_ne!(by_name.code, 0, "{by_name:?}");
    let url = format!("http://{}/", web.ipv4);
    let by_address = run(t.here, &[], "load", &["-c", "1", "-n", "1", &url]);
    assert_ne!(by_address.code, 0, "{by_address:?}");
    let nobody = run(t.here, &[], "load", &["-n", "1", "http://10.88.255.250/"]);
    assert_ne!(nobody.code, 0, "{nobody:?}");
    assert!(nobody.text().contains("nobody has it"), "{nobody:?}");
    let none = start(t.here, "none", &["--network", "none"], "clock", &[]);
    assert_eq!(none.networks, []);
    assert_eq!(
        t.here
            .sh(&format!("ls -d /sys/class/net/vif{}.* 2>/dev/null | wc -l", none.domid.unwrap()))
            .unwrap()
            .trim(),
        "0"
    );
}

#[test]
fn a_clone_has_an_address_of_its_own_on_each_of_its_networks() {
    let t = turn();
    let networks: Vec<String> = (1..=fcap_api::MAX_NETWORKS).map(|number| format!("n{number}")).collect();
    for network in &networks {
        t.fcap.ok(&["network", "create", network]);
    }
    let on_all = networks.iter().flat_map(|network| ["--network", network]);
    let options: Vec<&str> = ["-m", "64m"].into_iter().chain(on_all).collect();
    let web = start(t.here, "web", &options, "httpd", &[]);
    t.fcap.ok(&["clone", "web", "web2"]);
    let clone = inspect(t.here, "web2");
    assert_eq!((web.networks.len(), clone.networks.len()), (networks.len(), networks.len()));
    for (network, (one, other)) in networks.iter().zip(web.networks.iter().zip(&clone.networks)) {
        assert_ne!(one.ipv4, other.ipv4);
        for address in [one.ipv4, other.ipv4] {
            let url = format!("http://{address}/");
            let asked = run(t.here, &["--network", network], "load", &["-c", "1", "-n", "5", &url]);
            assert_eq!(asked.code, 0, "{network}, {address}: {asked:?}");
        }
    }
}

#[test]
fn a_killed_daemon_comes_back_to_the_same_network() {
    let t = turn();
    let port = publish(t.here, "web", "httpd", 80);
    t.here.sh("kill -9 $(pidof fcapd)").unwrap();
    // What is there goes on without it.
    assert!(get(port, "/").contains(PAGE));
    wait_until("fcapd answers", || Ok(t.here.api().node().is_ok())).unwrap();
    assert!(get(port, "/").contains(PAGE));
    load(t.here, "http://web/");
}

#[test]
fn nothing_is_left_of_networked_capsules_however_they_end() {
    let t = turn();
    // The image, and what is made once.
    run(t.here, &["-p", "80"], "guest-resolve", &[]);
    let before = inventory(t.here).unwrap();
    let name = |i: usize| format!("web-{i}");
    for i in 0..4 {
        start(t.here, &name(i), &["-p", "80"], "httpd", &[]);
    }
    load(t.here, "http://web-0/");
    t.fcap.ok(&["stop", "web-0"]);
    t.fcap.ok(&["kill", "web-1"]);
    t.here.sh(&format!("xl destroy {}", inspect(t.here, "web-2").domid.unwrap())).unwrap();
    for i in 0..4 {
        t.fcap.ok(&["rm", "-f", &name(i)]);
    }
    // The image of httpd was not there before.
    t.fcap.ok(&["prune", "-f"]);
    run(t.here, &["-p", "80"], "guest-resolve", &[]);
    let after = inventory(t.here).unwrap();
    assert_eq!(before, after);
}

#[test]
fn a_networked_image_idles() {
    let t = turn();
    let port = publish(t.here, "web", "httpd", 80);
    load(t.here, "http://web/");
    // All that its clients have left behind comes to its end.
    rig::quiet(&t.here.api()).unwrap();
    let wakeups = || -> u64 {
        let answer = get(port, "/api/status");
        let (_, rest) = answer.split_once("\"wakeups\":").expect("httpd counts them");
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    // To ask wakes it as well: when the connection comes and when it ends, before and after
    // it has been counted.
    let (first, second) = (wakeups(), wakeups());
    let before = inspect(t.here, "web").cpu_time_ns;
    std::thread::sleep(Duration::from_secs(20));
    let used = Duration::from_nanos(inspect(t.here, "web").cpu_time_ns - before);
    let idle = (wakeups() - second).saturating_sub(second - first);
    assert!(idle <= 2 * 20, "woken {idle} times in 20 seconds, {} by a request", second - first);
    assert!(used < Duration::from_millis(40), "{used:?} of processor time in 20 seconds");
}

#[test]
fn networked_images_are_small() {
    for name in ["hello-http", "httpd", "kv"] {
        let size = std::fs::metadata(cli::image(name)).unwrap().len();
        assert!(size <= 256 * 1024, "{name} has {size} bytes");
    }
}
