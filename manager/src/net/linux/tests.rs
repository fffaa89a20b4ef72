//! The real network, each time in a network namespace of its own. A guest is a thread with a
//! namespace of its own, too, at the other end of a pair of devices of which dom0's has the name
//! that netback would give it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::mpsc::{self, Sender},
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Uid, gettid},
};

use super::*;
use crate::net::{Peer, suite};

/// Longest time that something takes which is going to happen.
const PATIENCE: Duration = Duration::from_secs(10);

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// The node's own address, as the world knows it.
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Whether this can be tested here; says why if not.
fn possible() -> bool {
    let lacking = if !Uid::effective().is_root() {
        "root"
    } else if Command::new("nft").arg("--version").output().is_err() {
        "nft (package nftables)"
    } else if Command::new("ip").arg("-V").output().is_err() {
        "ip (package iproute2)"
    } else {
        return true;
    };
    eprintln!("not tested: this needs {lacking}");
    false
}

fn sh(command: &str) {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Puts this thread into a new network namespace.
fn separate() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    sh("ip link set lo up");
    // Nodes do not have it: it shows to iptables what is within a bridge.
    let iptables = std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    if iptables.exists() {
        fs::write(iptables, "0").unwrap();
        fs::write(iptables.with_file_name("bridge-nf-call-ip6tables"), "0").unwrap();
        fs::write(iptables.with_file_name("bridge-nf-call-arptables"), "0").unwrap();
    }
}

/// Does `work` in a new network namespace, which ends with it.
fn elsewhere<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            separate();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A thread in a namespace of its own, which does what it is told.
struct Place {
    work: Sender<Box<dyn FnOnce() + Send>>,
    thread: i32,
}

impl Place {
    fn new() -> Self {
        let (work, todo) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (name, named) = mpsc::channel();
        thread::spawn(move || {
            separate();
            name.send(gettid().as_raw()).unwrap();
            todo.into_iter().for_each(|work| work());
        });
        Self { work, thread: named.recv().unwrap() }
    }

    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (result, done) = mpsc::channel();
        self.work.send(Box::new(move || drop(result.send(work())))).unwrap();
        done.recv().expect("the work panicked")
    }

    fn sh(&self, command: impl Into<String>) {
        let command = command.into();
        self.run(move || sh(&command));
    }
}

fn network(name: &str, number: u8) -> Network {
    Network {
        name: name.into(),
        bridge: format!("fcap{}", number - 88),
        vni: number.into(),
        gateway4: (Ipv4Addr::new(10, number, 0, 1), 16),
        gateway6: (Ipv6Addr::new(0xfd00 | u16::from(number), 0, 0, 0, 0, 0, 0, 1), 64),
        gateway_mac: [0x0a, 0xfc, 10, number, 0, 1],
        mtu: 1450,
        outbound: true,
    }
}

fn attachment(network: &Network, number: u8) -> Attachment {
    let [a, b, ..] = network.gateway4.0.octets();
    let prefix = network.gateway6.0.segments()[0];
    Attachment {
        capsule: [number; 16],
        handle: 0,
        network: network.name.clone(),
        mac: [0x0a, 0xfc, a, b, 1, number],
        ipv4: Ipv4Addr::new(a, b, 1, number),
        ipv6: Ipv6Addr::new(prefix, 0, 0, 0, 0, 0, 1, number.into()),
    }
}

/// Gives a capsule its place in a network, in the order of a real start, and lets it run until it
/// is connected. From then on no frame is lost.
fn guest(fabric: &Linux, network: &Network, number: u8) -> Place {
    let place = arriving_guest(fabric, network, number);
    wait_until_connected(fabric, number);
    place
}

fn wait_until_connected(fabric: &Linux, number: u8) {
    let mut connection = fabric.connection([number; 16], 0).expect("the interface is attached");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let connected = tokio::time::timeout(PATIENCE, connection.wait_for(|&connected| connected)).await;
        connected.expect("the interface is taken up").expect("the interface stays");
    });
}

/// As [`guest`], for one that gets no frames yet: they go to another node.
fn arriving_guest(fabric: &Linux, network: &Network, number: u8) -> Place {
    let attachment = attachment(network, number);
    let place = Place::new();
    fabric.attach(&attachment).unwrap();
    fabric.place(attachment.capsule, number.into()).unwrap();
    let name = port_name(number.into(), 0);
    sh(&format!("ip link add {name} type veth peer name eth0 netns {}", place.thread));
    let mac = attachment.mac.map(|byte| format!("{byte:02x}")).join(":");
    place.sh(format!(
        "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
         ip link set eth0 address {mac} up
         ip address add {}/16 dev eth0
         ip address add {}/64 dev eth0
         ip route add default via {}",
        attachment.ipv4, attachment.ipv6, network.gateway4.0
    ));
    place
}

/// Sends a datagram from one address of a place to another.
fn send(from: &Place, source: impl Into<IpAddr>, to: impl Into<IpAddr>, port: u16, text: &'static [u8]) {
    let (source, to) = (source.into(), SocketAddr::new(to.into(), port));
    from.run(move || {
        let socket = UdpSocket::bind((source, 0)).unwrap();
        // That there is no way is an answer, too.
        let _ = socket.send_to(text, to);
    });
}

/// Opens a socket in a place; datagrams that come are read in order.
fn listen(at: &Place, address: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let address = address.into();
    at.run(move || bind_udp(address, port))
}

fn bind_udp(address: IpAddr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn next(socket: &UdpSocket) -> (Vec<u8>, IpAddr) {
    let mut buffer = [0; 100];
    let (len, from) = socket.recv_from(&mut buffer).expect("a datagram");
    (buffer[..len].to_vec(), from.ip())
}

fn has_none(socket: &UdpSocket) -> bool {
    socket.set_nonblocking(true).unwrap();
    socket.recv(&mut [0; 100]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

fn denied(fabric: &Linux, number: u8) -> u64 {
    fabric.counters([number; 16], 0).unwrap().unwrap().denied
}

/// Answers one connection of TCP with the address of who asked.
fn serve_once(listener: &TcpListener) {
    let (mut stream, peer) = listener.accept().unwrap();
    stream.write_all(peer.ip().to_string().as_bytes()).unwrap();
}

fn ask(address: Ipv4Addr, port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), PATIENCE)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn the_real_network_passes_the_suite() {
    if possible() {
        elsewhere(|| suite::run(&Linux::new().unwrap()));
    }
}

#[test]
fn capsules_reach_each_other_and_their_name_server_and_nothing_else_of_dom0() {
    if !possible() {
        return;
    }
    elsewhere(|| {
        let fabric = Linux::new().unwrap();
        let network = network("default", 88);
        fabric.ensure(&network).unwrap();
        let (one, two) = (guest(&fabric, &network, 1), guest(&fabric, &network, 2));
        let (first, second) = (attachment(&network, 1), attachment(&network, 2));

        let socket = listen(&two, second.ipv4, 1000);
        send(&one, first.ipv4, second.ipv4, 1000, b"four");
        assert_eq!(next(&socket), (b"four".to_vec(), first.ipv4.into()));
        let socket = listen(&two, second.ipv6, 1000);
        send(&one, first.ipv6, second.ipv6, 1000, b"six");
        assert_eq!(next(&socket), (b"six".to_vec(), first.ipv6.into()));

        for (from, gateway) in
            [(first.ipv4.into(), IpAddr::from(GATEWAY)), (first.ipv6.into(), network.gateway6.0.into())]
        {
            let from: IpAddr = from;
            let (names, secret) = (bind_udp(gateway, 53), bind_udp(gateway, 7070));
            send(&one, from, gateway, 7070, b"secret");
            send(&one, from, gateway, 53, b"name");
            assert_eq!(next(&names), (b"name".to_vec(), from));
            assert!(has_none(&secret));
        }
        assert_eq!(denied(&fabric, 1), 0);
        let counters = fabric.counters(first.capsule, 0).unwrap().unwrap();
        assert!(counters.tx_packets >= 6 && counters.tx_bytes > 6 * 42, "{counters:?}");
    });
}

#[test]
fn a_capsule_has_no_name_but_its_own() {
    if !possible() {
        return;
    }
    elsewhere(|| {
        let fabric = Linux::new().unwrap();
        let network = network("default", 88);
        fabric.ensure(&network).unwrap();
        let (one, two) = (guest(&fabric, &network, 1), guest(&fabric, &network, 2));
        let (first, second) = (attachment(&network, 1), attachment(&network, 2));
        let socket = listen(&two, second.ipv4, 1000);

        // With ARP, another one's address; and the gateway's.
        let stolen = Ipv4Addr::new(10, 88, 1, 77);
        one.sh(format!("ip address add {stolen}/32 dev eth0; ip address add {GATEWAY}/32 dev eth0"));
        send(&one, stolen, second.ipv4, 1000, b"stolen");
        assert!(denied(&fabric, 1) >= 1);
        // Without ARP; what waited for its answer is sent at once.
        let mac = second.mac.map(|byte| format!("{byte:02x}")).join(":");
        one.sh(format!("ip neighbour replace {} lladdr {mac} dev eth0 nud permanent", second.ipv4));
        let after_arp = denied(&fabric, 1);
        send(&one, stolen, second.ipv4, 1000, b"stolen");
        send(&one, GATEWAY, second.ipv4, 1000, b"gateway");
        assert_eq!(denied(&fabric, 1), after_arp + 2);

        // Neighbour discovery: whether somebody has the gateway's address.
        one.sh("echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip address add fd58::1/64 dev eth0");
        let deadline = std::time::Instant::now() + PATIENCE;
        while denied(&fabric, 1) == after_arp + 2 {
            assert!(std::time::Instant::now() < deadline, "the question was let through");
        }

        // Another one's hardware address.
        one.sh(format!("ip link set eth0 address {mac}"));
        let before = denied(&fabric, 1);
        send(&one, first.ipv4, second.ipv4, 1000, b"mac");
        assert!(denied(&fabric, 1) > before);
        let own = first.mac.map(|byte| format!("{byte:02x}")).join(":");
        one.sh(format!("ip link set eth0 address {own}"));
        send(&one, first.ipv4, second.ipv4, 1000, b"honest");
        assert_eq!(next(&socket), (b"honest".to_vec(), first.ipv4.into()));
        assert_eq!(denied(&fabric, 2), 0);
    });
}

#[test]
fn networks_are_apart_and_only_some_reach_the_world() {
    if !possible() {
        return;
    }
    elsewhere(|| {
        let fabric = Linux::new().unwrap();
        let (open, closed) = (network("open", 88), Network { outbound: false, ..network("closed", 89) });
        fabric.ensure(&open).unwrap();
        fabric.ensure(&closed).unwrap();
        let (one, two) = (guest(&fabric, &open, 1), guest(&fabric, &closed, 2));
        let (first, second) = (attachment(&open, 1), attachment(&closed, 2));
        let world = world();

        let socket = listen(&world, WORLD, 1000);
        send(&two, second.ipv4, WORLD, 1000, b"closed");
        send(&one, first.ipv4, WORLD, 1000, b"open");
        assert_eq!(next(&socket), (b"open".to_vec(), NODE.into()));
        assert!(has_none(&socket));

        let socket = listen(&two, second.ipv4, 1000);
        world.sh(format!("ip route add 10.88.0.0/15 via {NODE}"));
        send(&one, first.ipv4, second.ipv4, 1000, b"across");
        send(&world, WORLD, second.ipv4, 1000, b"from the world");
        let node = UdpSocket::bind("0.0.0.0:0").unwrap();
        node.send_to(b"node", (second.ipv4, 1000)).unwrap();
        assert_eq!(next(&socket).0, b"node");
        assert!(has_none(&socket));
    });
}

/// What is beyond the node.
fn world() -> Place {
    let world = Place::new();
    sh(&format!(
        "ip link add out0 type veth peer name eth0 netns {}; ip address add {NODE}/24 dev out0; ip link set out0 up",
        world.thread
    ));
    world.sh(format!("ip address add {WORLD}/24 dev eth0; ip link set eth0 up"));
    world
}

#[test]
fn a_published_port_leads_to_its_capsule_from_everywhere() {
    if !possible() {
        return;
    }
    elsewhere(|| {
        let fabric = Linux::new().unwrap();
        let network = network("default", 88);
        fabric.ensure(&network).unwrap();
        let (one, two) = (guest(&fabric, &network, 1), guest(&fabric, &network, 2));
        let world = world();
        let (first, second) = (attachment(&network, 1), attachment(&network, 2));
        let listener = one.run(move || TcpListener::bind((first.ipv4, 80)).unwrap());
        let publish = Publish { protocol: Protocol::Tcp, node_port: 8080, ipv4: first.ipv4, port: 80 };
        fabric.publish(&publish).unwrap();

        thread::scope(|scope| {
            scope.spawn(|| (0..5).for_each(|_| serve_once(&listener)));
            // The world is known by its address; the others come through the node.
            assert_eq!(world.run(|| ask(NODE, 8080)).unwrap(), WORLD.to_string());
            assert_eq!(two.run(|| ask(NODE, 8080)).unwrap(), GATEWAY.to_string());
            assert_eq!(one.run(|| ask(NODE, 8080)).unwrap(), GATEWAY.to_string());
            assert_eq!(ask(Ipv4Addr::LOCALHOST, 8080).unwrap(), GATEWAY.to_string());
            ask(NODE, 8080).unwrap();
        });
        assert_eq!(denied(&fabric, 2), 0);

        // A port that dom0 uses itself.
        let own = TcpListener::bind("0.0.0.0:0").unwrap();
        let taken = Publish { node_port: own.local_addr().unwrap().port(), ..publish };
        assert!(matches!(fabric.publish(&taken), Err(Error::PortTaken { protocol: "tcp", .. })));
        // And no program of dom0 can use a published one.
        assert!(TcpListener::bind("0.0.0.0:8080").is_err());
        fabric.unpublish(&publish).unwrap();
        assert!(ask(NODE, 8080).is_err());
        TcpListener::bind("0.0.0.0:8080").unwrap();

        // UDP.
        let publish = Publish { protocol: Protocol::Udp, node_port: 5353, ipv4: second.ipv4, port: 53 };
        fabric.publish(&publish).unwrap();
        let socket = listen(&two, second.ipv4, 53);
        let sender = listen(&world, WORLD, 4000);
        sender.send_to(b"udp", (NODE, 5353)).unwrap();
        assert_eq!(next(&socket), (b"udp".to_vec(), WORLD.into()));
        // Who has sent to one capsule sends to the next one that has the port.
        fabric.unpublish(&publish).unwrap();
        fabric.publish(&Publish { ipv4: first.ipv4, ..publish }).unwrap();
        let heir = listen(&one, first.ipv4, 53);
        sender.send_to(b"again", (NODE, 5353)).unwrap();
        assert_eq!(next(&heir), (b"again".to_vec(), WORLD.into()));
        assert!(has_none(&socket));
    });
}

#[test]
fn a_later_daemon_takes_back_what_is_wanted_and_removes_the_rest() {
    if !possible() {
        return;
    }
    elsewhere(|| {
        let (kept, lost) = (network("kept", 88), network("lost", 89));
        let fabric = Linux::new().unwrap();
        fabric.ensure(&kept).unwrap();
        fabric.ensure(&lost).unwrap();
        let places = [guest(&fabric, &kept, 1), guest(&fabric, &kept, 2), guest(&fabric, &lost, 3)];
        let publish = |port| Publish {
            protocol: Protocol::Tcp,
            node_port: port,
            ipv4: attachment(&kept, 1).ipv4,
            port: 80,
        };
        fabric.publish(&publish(8080)).unwrap();
        fabric.publish(&publish(8081)).unwrap();
        drop(fabric);

        let fabric = Linux::new().unwrap();
        fabric.ensure(&kept).unwrap();
        fabric.attach(&attachment(&kept, 1)).unwrap();
        fabric.place([1; 16], 1).unwrap();
        // The port has come to lead to another capsule meanwhile.
        let moved = Publish { ipv4: attachment(&kept, 2).ipv4, ..publish(8080) };
        fabric.publish(&moved).unwrap();
        let wanted =
            Wanted { networks: vec!["kept".into()], attachments: vec![([1; 16], 0)], published: vec![moved] };
        fabric.retain(&wanted).unwrap();

        assert!(fabric.shared.route.link("fcap0").unwrap().is_some());
        assert_eq!(fabric.shared.route.link("fcap1").unwrap(), None);
        let expected = fabric.shared.state().elements();
        let found = Mutex::new(Vec::new());
        let note = |element: &filter::Element| {
            found.lock().unwrap().push(element.clone());
            true
        };
        fabric.shared.filter.retain(&note).unwrap();
        let mut found = found.into_inner().unwrap();
        found.sort();
        assert_eq!(found, expected);
        let gateway = network("kept", 88).gateway4.0;
        let neighbours = fabric.shared.route.neighbours().unwrap();
        let fixed = neighbours.iter().filter(|neighbour| neighbour.fixed).filter_map(|n| n.address);
        let fixed: Vec<_> = fixed.filter(|a| a.is_ipv4() && !a.is_multicast()).collect();
        assert_eq!(fixed, [IpAddr::from(attachment(&kept, 1).ipv4)]);

        // The one that stayed has not noticed.
        let names = bind_udp(gateway.into(), 53);
        send(&places[0], attachment(&kept, 1).ipv4, gateway, 53, b"still here");
        assert_eq!(next(&names).0, b"still here");
        // What is left goes as well.
        fabric.retain(&Wanted::default()).unwrap();
        assert_eq!(fabric.shared.route.link("fcap0").unwrap(), None);
        fabric.shared.filter.retain(&|element| panic!("{element:?} is left")).unwrap();
    });
}

/// A node of an overlay, with one network and one capsule.
struct Node {
    place: Place,
    network: Network,
}

impl Node {
    fn lan(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, number)
    }

    /// Runs `work` with the node's network.
    fn with<T: Send + 'static>(&self, work: impl FnOnce(&Linux, &Network) -> T + Send + 'static) -> T {
        thread_local! {
            static FABRIC: std::cell::OnceCell<Linux> = const { std::cell::OnceCell::new() };
        }
        let network = self.network.clone();
        self.place
            .run(move || FABRIC.with(|fabric| work(fabric.get_or_init(|| Linux::new().unwrap()), &network)))
    }
}

#[test]
fn one_network_spans_nodes_and_carries_only_what_is_for_somebody() {
    if !possible() {
        return;
    }
    let nodes = [1, 2].map(|_| Node { place: Place::new(), network: network("default", 88) });
    nodes[0].place.sh(format!("ip link add lan type veth peer name lan netns {}", nodes[1].place.thread));
    for (node, number) in nodes.iter().zip([1, 2]) {
        node.place.sh(format!("ip address add {}/24 dev lan; ip link set lan up", Node::lan(number)));
        let overlay = Overlay {
            address: Node::lan(number),
            peers: vec![Peer { address: Node::lan(3 - number), public_key: None }],
            private_key: None,
        };
        let mtu = node.with(move |fabric, network| {
            fabric.ensure(network).unwrap();
            fabric.set_overlay(&overlay).unwrap()
        });
        assert_eq!(mtu, 1450);
    }
    // The second one is a capsule on node 2; node 3's end is not there.
    let guests = [
        nodes[0].with(|fabric, network| guest(fabric, network, 1)),
        nodes[1].with(|fabric, network| guest(fabric, network, 2)),
    ];
    let remote = |number: u8, node: u8| {
        let Attachment { network, mac, ipv4, ipv6, .. } = attachment(&network("default", 88), number);
        Remote { network, mac, ipv4, ipv6, node: Node::lan(node) }
    };
    for (node, (number, other)) in nodes.iter().zip([(2, 2), (1, 1)]) {
        let remote = remote(number, other);
        node.with(move |fabric, _| fabric.set_remotes(&[remote]).unwrap());
    }
    let (first, second) = (attachment(&nodes[0].network, 1), attachment(&nodes[0].network, 2));
    let socket = listen(&guests[1], second.ipv4, 1000);
    send(&guests[0], first.ipv4, second.ipv4, 1000, b"across");
    assert_eq!(next(&socket), (b"across".to_vec(), first.ipv4.into()));
    let six = listen(&guests[1], second.ipv6, 1000);
    send(&guests[0], first.ipv6, second.ipv6, 1000, b"across");
    assert_eq!(next(&six), (b"across".to_vec(), first.ipv6.into()));

    // Nobody is asked for, and nothing is sent to, who is not there.
    let sent = |node: &Node| {
        node.with(|fabric, network| {
            let tunnel = format!("fcapv{}", network.vni);
            fabric.shared.route.link(&tunnel).unwrap().unwrap().packets[1]
        })
    };
    let before = sent(&nodes[0]);
    send(&guests[0], first.ipv4, Ipv4Addr::new(10, 88, 9, 9), 1000, b"nobody");
    send(&guests[0], first.ipv4, second.ipv4, 1000, b"again");
    assert_eq!(next(&socket).0, b"again");
    assert_eq!(sent(&nodes[0]), before + 1);

    // The capsule comes over: first its place is prepared, then it is here.
    let come = nodes[0].with(|fabric, network| arriving_guest(fabric, network, 2));
    let here = listen(&come, second.ipv4, 1000);
    send(&guests[0], first.ipv4, second.ipv4, 1000, b"still there");
    assert_eq!(next(&socket).0, b"still there");
    nodes[0].with(|fabric, _| fabric.announce([2; 16]).unwrap());
    let _stays = nodes[0].with(move |fabric, _| {
        wait_until_connected(fabric, 2);
        come
    });
    send(&guests[0], first.ipv4, second.ipv4, 1000, b"here");
    assert_eq!(next(&here).0, b"here");
    assert!(has_none(&socket));
    // The other side follows.
    let remotes = [remote(1, 1), remote(2, 1)];
    nodes[1].with(move |fabric, _| {
        fabric.set_remotes(&remotes).unwrap();
        fabric.detach([2; 16]).unwrap();
    });
    let node = nodes[1].place.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    // dom0 itself reaches it, too: as the gateway, which is at home everywhere, it gets no answer.
    node.send_to(b"node 2", (second.ipv4, 1000)).unwrap();
    assert_eq!(next(&here).0, b"node 2");

    nodes[0].with(|fabric, _| {
        let alone = Overlay { address: Node::lan(1), peers: Vec::new(), private_key: None };
        fabric.set_overlay(&alone).unwrap();
        assert_eq!(fabric.shared.route.link("fcapv88").unwrap(), None);
    });
}

#[test]
fn link_local_addresses_are_made_as_linux_makes_them() {
    let address = link_local([0x0a, 0xfc, 10, 88, 1, 2]);
    assert_eq!(address.to_string(), "fe80::8fc:aff:fe58:102");
}
