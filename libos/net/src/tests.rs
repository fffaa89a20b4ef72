//! Two stacks, or one and a stranger, on a simulated link with a clock that the test drives.

extern crate std;

use crate::{
    Config, ConnectionId, Duration, Error, Features, Instant, ListenerId, Mac, Offload, Options, Stack,
    Transmit,
};
use alloc::{collections::VecDeque, rc::Rc, sync::Arc, task::Wake, vec, vec::Vec};
use core::{
    cell::{Cell, RefCell},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU32, Ordering},
    task::{Poll, Waker},
};
use proptest::prelude::*;
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{IpProtocol, IpRepr, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, TcpTimestampRepr},
};

/// Buffers of all connections together.
const MEMORY: usize = 8 << 20;

type Frames = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// A card that puts frames into a queue.
struct Card {
    frames: Frames,
    features: Features,
    room: Rc<Cell<bool>>,
}

impl Transmit for Card {
    fn features(&self) -> Features {
        self.features
    }

    fn has_room(&mut self) -> bool {
        self.room.get()
    }

    fn send(&mut self, len: usize, fill: &mut dyn FnMut(&mut [u8]) -> Option<Offload>) {
        let mut frame = vec![0xee; len];
        if let Some(offload) = fill(&mut frame) {
            assert!(!offload.checksum || self.features.checksum4 || self.features.checksum6);
            assert!(offload.segment.is_none() || self.features.segments4.is_some());
            self.frames.borrow_mut().push_back(frame);
        }
    }

    fn flush(&mut self) {}
}

/// A stack with one card.
struct Host {
    stack: Stack<Card>,
    sent: Frames,
    room: Rc<Cell<bool>>,
    config: Config,
}

const MTU: u16 = 1500;

impl Host {
    /// Number `n` of the network 10.88.0.0/16, whose router is number 1.
    fn new(n: u8, features: Features) -> Self {
        let config = Config {
            mac: Mac([2, 0, 0, 0, 0, n]),
            mtu: MTU,
            ipv4: Some((Ipv4Addr::new(10, 88, 0, n), 16)),
            gateway4: Some(Ipv4Addr::new(10, 88, 0, 1)),
            ipv6: Some((Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, n.into()), 64)),
            gateway6: None,
        };
        let (sent, room) = (Frames::default(), Rc::new(Cell::new(true)));
        let card = Card { frames: sent.clone(), features, room: room.clone() };
        let stack = Stack::new(vec![(config, card)], MEMORY, u64::from(n) * 0x9e37_79b9, at(0));
        Self { stack, sent, room, config }
    }

    /// Whether its card completes checksums.
    fn completes(&mut self) -> bool {
        self.stack.card(0).features.checksum4
    }

    fn ipv4(&self) -> IpAddr {
        self.config.ipv4.unwrap().0.into()
    }

    fn ipv6(&self) -> IpAddr {
        self.config.ipv6.unwrap().0.into()
    }

    fn listen(&mut self, port: u16, backlog: usize) -> ListenerId {
        let all = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        self.stack.listen(all, backlog, Options::default()).unwrap()
    }

    fn accept(&mut self, listener: ListenerId) -> Option<ConnectionId> {
        ready(self.stack.poll_accept(listener, Waker::noop())).map(|(id, _)| id)
    }

    fn read(&mut self, id: ConnectionId) -> Option<Result<Vec<u8>, Error>> {
        let mut bytes = [0; 1 << 16];
        ready(self.stack.poll_read(id, &mut bytes, Waker::noop()))
            .map(|count| count.map(|count| bytes[..count].to_vec()))
    }

    fn write(&mut self, id: ConnectionId, bytes: &[u8]) -> Option<Result<usize, Error>> {
        ready(self.stack.poll_write(id, bytes, Waker::noop()))
    }

    fn receive(&mut self, frame: &[u8], now: Instant) {
        self.stack.receive(0, frame, false, now);
    }
}

fn ready<T>(poll: Poll<T>) -> Option<T> {
    match poll {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

fn at(ms: i64) -> Instant {
    Instant::from_millis(ms)
}

/// Lets both speak until neither has anything to say; returns how many frames that took.
fn exchange(a: &mut Host, b: &mut Host, now: Instant) -> usize {
    let mut count = 0;
    loop {
        a.stack.send(now);
        b.stack.send(now);
        let (from_a, from_b) = (a.sent.take(), b.sent.take());
        if from_a.is_empty() && from_b.is_empty() {
            return count;
        }
        count += from_a.len() + from_b.len();
        assert!(count < 1_000_000, "they never stop");
        // What a card was to complete arrives as it is: whoever receives trusts it.
        let (checked_a, checked_b) = (a.completes(), b.completes());
        from_a.into_iter().for_each(|frame| b.stack.receive(0, &frame, checked_a, now));
        from_b.into_iter().for_each(|frame| a.stack.receive(0, &frame, checked_b, now));
    }
}

/// A server and a client that are connected: their ends.
fn connected(
    server: &mut Host,
    client: &mut Host,
    to: SocketAddr,
    now: Instant,
) -> (ConnectionId, ConnectionId) {
    let listener = server.listen(to.port(), 10);
    let theirs = client.stack.connect(to, None, Options::default()).unwrap();
    exchange(server, client, now);
    assert_eq!(client.stack.poll_connected(theirs, Waker::noop()), Poll::Ready(Ok(())));
    (server.accept(listener).unwrap(), theirs)
}

fn hosts() -> (Host, Host) {
    (Host::new(2, Features::default()), Host::new(3, Features::default()))
}

/// A segment from a stranger on the link.
fn segment(
    to: &Host,
    from: Ipv4Addr,
    src_port: u16,
    dst_port: u16,
    control: TcpControl,
    ack: Option<i32>,
) -> Vec<u8> {
    let (src, dst) = (from, to.config.ipv4.unwrap().0);
    let tcp = TcpRepr {
        src_port,
        dst_port,
        control,
        seq_number: TcpSeqNumber(if control == TcpControl::Syn { 1000 } else { 1001 }),
        ack_number: ack.map(TcpSeqNumber),
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None::<TcpTimestampRepr>,
        payload: &[],
    };
    let ip = IpRepr::Ipv4(Ipv4Repr {
        src_addr: src,
        dst_addr: dst,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    });
    let mut frame = vec![0; 14 + ip.buffer_len()];
    frame[..6].copy_from_slice(&to.config.mac.0);
    frame[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    frame[12..14].copy_from_slice(&[8, 0]);
    ip.emit(&mut frame[14..], &ChecksumCapabilities::default());
    let mut packet = TcpPacket::new_unchecked(&mut frame[34..]);
    tcp.emit(&mut packet, &src.into(), &dst.into(), &ChecksumCapabilities::default());
    frame
}

#[test]
fn clients_and_servers_speak_over_both_families() {
    for six in [false, true] {
        let (mut server, mut client) = hosts();
        let address = if six { server.ipv6() } else { server.ipv4() };
        let (ours, theirs) = connected(&mut server, &mut client, SocketAddr::new(address, 80), at(0));
        assert_eq!(client.write(theirs, b"question"), Some(Ok(8)));
        exchange(&mut server, &mut client, at(1));
        assert_eq!(server.read(ours), Some(Ok(b"question".to_vec())));
        assert_eq!(server.read(ours), None);
        server.write(ours, b"answer");
        server.stack.close(ours, at(2));
        exchange(&mut server, &mut client, at(2));
        assert_eq!(client.read(theirs), Some(Ok(b"answer".to_vec())));
        assert_eq!(client.read(theirs), Some(Ok(vec![])));
        client.stack.close(theirs, at(3));
        exchange(&mut server, &mut client, at(3));
        assert_eq!((server.stack.connections(), client.stack.connections()), (0, 0));
        assert_eq!((server.stack.memory(), client.stack.memory()), (0, 0));
    }
}

#[test]
fn much_data_arrives_as_it_was_sent() {
    let whole = Features { checksum4: true, checksum6: true, segments4: Some(65_535) };
    for features in [Features::default(), whole] {
        let (mut server, mut client) = (Host::new(2, features), Host::new(3, features));
        let to = SocketAddr::new(server.ipv4(), 80);
        let (ours, theirs) = connected(&mut server, &mut client, to, at(0));
        let data: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
        let (mut written, mut read, mut now) = (0, Vec::new(), 1);
        while read.len() < data.len() {
            while let Some(Ok(count @ 1..)) = client.write(theirs, &data[written..]) {
                written += count;
            }
            exchange(&mut server, &mut client, at(now));
            while let Some(Ok(bytes)) = server.read(ours) {
                read.extend(bytes);
            }
            now += 10;
        }
        assert!(read == data);
        assert!(now < 10_000, "no retransmission was needed, yet it took {now} ms");
    }
}

#[test]
fn lost_frames_are_sent_again() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    let (ours, theirs) = connected(&mut server, &mut client, to, at(0));
    client.write(theirs, b"lost");
    client.stack.send(at(1));
    client.sent.take();
    let mut now = 1;
    while server.read(ours).is_none() {
        let deadline = client.stack.next_deadline().expect("a timer is running");
        now = deadline.total_millis().max(now + 1);
        exchange(&mut server, &mut client, at(now));
    }
    assert!(now < 3_000, "{now} ms");
}

#[test]
fn what_nobody_listens_to_is_refused() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 81);
    let id = client.stack.connect(to, None, Options::default()).unwrap();
    exchange(&mut server, &mut client, at(0));
    assert_eq!(client.stack.poll_connected(id, Waker::noop()), Poll::Ready(Err(Error::Refused)));
    client.stack.close(id, at(1));
    exchange(&mut server, &mut client, at(1));
    assert_eq!(client.stack.connections(), 0);
}

/// Waits for a connection to somebody whose answers do not come, and returns why there is none, and
/// after how many seconds and frames.
fn given_up(client: &mut Host, to: SocketAddr) -> (Error, i64, usize) {
    let id = client.stack.connect(to, None, Options::default()).unwrap();
    let (mut now, mut frames) = (at(0), 0);
    loop {
        client.stack.send(now);
        frames += client.sent.take().len();
        if let Poll::Ready(result) = client.stack.poll_connected(id, Waker::noop()) {
            client.stack.close(id, now);
            return (result.expect_err("nobody answers"), now.secs(), frames);
        }
        now = client.stack.next_deadline().expect("something is waited for").max(now);
    }
}

#[test]
fn an_address_that_nobody_has_is_unreachable_after_three_questions() {
    let mut client = Host::new(3, Features::default());
    for to in [IpAddr::from([10, 88, 0, 99]), IpAddr::from([192, 0, 2, 1]), "fd88::99".parse().unwrap()] {
        let (error, seconds, questions) = given_up(&mut client, SocketAddr::new(to, 80));
        assert_eq!((error, seconds), (Error::Unreachable, 3), "{to}");
        assert!(questions <= 4, "{to}: {questions}");
    }
}

#[test]
fn a_neighbor_that_takes_packets_and_says_nothing_is_given_up_after_a_while() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    // They know each other.
    connected(&mut server, &mut client, to, at(0));
    let (error, seconds, packets) = given_up(&mut client, SocketAddr::new(server.ipv4(), 81));
    assert_eq!((error, seconds), (Error::TimedOut, 20));
    assert!((4..10).contains(&packets), "{packets}");
}

#[test]
fn a_broken_connection_says_so_on_both_sides() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    let (ours, theirs) = connected(&mut server, &mut client, to, at(0));
    client.stack.abort(theirs);
    exchange(&mut server, &mut client, at(1));
    assert_eq!(server.read(ours), Some(Err(Error::Reset)));
    assert_eq!(server.write(ours, b"x"), Some(Err(Error::Reset)));
    server.stack.close(ours, at(2));
    exchange(&mut server, &mut client, at(2));
    assert_eq!((server.stack.connections(), client.stack.connections()), (0, 0));
}

#[test]
fn closing_with_unread_data_resets() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    let (ours, theirs) = connected(&mut server, &mut client, to, at(0));
    client.write(theirs, b"never read");
    exchange(&mut server, &mut client, at(1));
    server.stack.close(ours, at(2));
    exchange(&mut server, &mut client, at(2));
    assert_eq!(client.read(theirs), Some(Err(Error::Reset)));
    assert_eq!(server.stack.connections(), 0);
}

#[test]
fn a_peer_that_never_closes_is_given_up_after_a_while() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    let (ours, theirs) = connected(&mut server, &mut client, to, at(0));
    server.stack.close(ours, at(1));
    exchange(&mut server, &mut client, at(1));
    assert_eq!(server.stack.connections(), 1);
    exchange(&mut server, &mut client, at(29_000));
    assert_eq!(server.stack.connections(), 1);
    exchange(&mut server, &mut client, at(31_000));
    assert_eq!((server.stack.connections(), server.stack.memory()), (0, 0));
    assert_eq!(client.read(theirs), Some(Err(Error::Reset)));
}

#[test]
fn a_peer_that_vanishes_is_noticed() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    let (ours, _) = connected(&mut server, &mut client, to, at(0));
    server.write(ours, b"is anybody there");
    let mut now = at(1);
    while server.read(ours).is_none() {
        server.stack.send(now);
        server.sent.take();
        now = server.stack.next_deadline().expect("something is waited for").max(now);
        assert!(now < at(400_000));
    }
    assert_eq!(server.read(ours), Some(Err(Error::TimedOut)));
}

#[test]
fn a_slow_reader_stops_its_peer_and_nobody_else() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    let (ours, slow) = connected(&mut server, &mut client, to, at(0));
    let data = vec![7; 1 << 20];
    let (mut now, mut written) = (1, 0);
    while let Some(Ok(count)) = server.write(ours, &data) {
        written += count;
        exchange(&mut server, &mut client, at(now));
        now += 1;
    }
    assert!(written <= 2 * 64 * 1024, "{written} bytes are under way to somebody who does not read");
    let listener = server.listen(81, 10);
    let other = SocketAddr::new(server.ipv4(), 81);
    let quick = client.stack.connect(other, None, Options::default()).unwrap();
    exchange(&mut server, &mut client, at(now));
    assert!(server.accept(listener).is_some());
    assert!(client.stack.poll_connected(quick, Waker::noop()).is_ready());
    // And it goes on when it is read again.
    let mut read = 0;
    while read < written {
        now += 1000;
        exchange(&mut server, &mut client, at(now));
        while let Some(Ok(bytes)) = client.read(slow) {
            read += bytes.len();
        }
    }
    assert!(server.write(ours, &data).is_some());
}

#[test]
fn ten_thousand_half_open_connections_are_bounded_and_let_others_through() {
    let (mut server, mut client) = hosts();
    let listener = server.listen(80, 1024);
    let theirs = client.stack.connect(SocketAddr::new(server.ipv4(), 80), None, Options::default()).unwrap();
    for n in 0..10_000u32 {
        let from = Ipv4Addr::from_bits(0x0a58_1000 + n);
        let frame = segment(&server, from, 1024 + (n % 5000) as u16, 80, TcpControl::Syn, None);
        server.receive(&frame, at(i64::from(n) / 10));
        if n % 100 == 0 {
            server.stack.send(at(i64::from(n) / 10));
            server.sent.take();
        }
        if n == 5_000 {
            exchange(&mut server, &mut client, at(500));
        }
    }
    assert!(server.stack.connections() <= 257, "{} connections", server.stack.connections());
    assert!(server.stack.memory() <= MEMORY);
    assert!(client.stack.poll_connected(theirs, Waker::noop()).is_ready());
    assert!(server.accept(listener).is_some());
    // Nobody confirms: all of them go.
    let mut now = at(1_000);
    while server.stack.connections() > 1 {
        server.stack.send(now);
        server.sent.take();
        now = server.stack.next_deadline().expect("half-open connections end").max(now);
        assert!(now < at(60_000));
    }
}

#[test]
fn many_clients_leave_and_come_at_once_from_the_same_ports() {
    let (mut server, mut client) = hosts();
    let listener = server.listen(80, 1024);
    let to = SocketAddr::new(server.ipv4(), 80);
    let from = client.ipv4();
    let connect = |client: &mut Host, port| {
        client.stack.connect(to, Some(SocketAddr::new(from, port)), Options::default()).unwrap()
    };
    let mut theirs: Vec<_> = (50_000..50_100).map(|port| connect(&mut client, port)).collect();
    for round in 0..20 {
        let now = at(round * 10);
        exchange(&mut server, &mut client, now);
        let ours: Vec<_> = core::iter::from_fn(|| server.accept(listener)).collect();
        assert_eq!(ours.len(), theirs.len(), "round {round}");
        theirs.iter().for_each(|&id| assert_eq!(client.write(id, b"question"), Some(Ok(8))));
        exchange(&mut server, &mut client, now);
        for &id in &ours {
            assert_eq!(server.read(id), Some(Ok(b"question".to_vec())), "round {round}");
            server.write(id, b"answer");
        }
        exchange(&mut server, &mut client, now);
        for id in theirs.drain(..) {
            assert_eq!(client.read(id), Some(Ok(b"answer".to_vec())), "round {round}");
            client.stack.close(id, now);
        }
        // Others come while these leave, from the ports of those that have left before.
        let others = if round % 2 == 0 { 50_100..50_200 } else { 50_000..50_100 };
        theirs.extend(others.map(|port| connect(&mut client, port)));
        client.stack.send(now);
        client.sent.take().into_iter().for_each(|frame| server.receive(&frame, now));
        for id in ours {
            assert_eq!(server.read(id), Some(Ok(vec![])), "round {round}");
            server.stack.close(id, now);
        }
    }
}

#[test]
fn connections_that_nobody_accepts_are_bounded_by_the_backlog() {
    let (mut server, mut client) = hosts();
    let listener = server.listen(80, 3);
    let to = SocketAddr::new(server.ipv4(), 80);
    let all: Vec<_> = (0..10).map(|_| client.stack.connect(to, None, Options::default()).unwrap()).collect();
    exchange(&mut server, &mut client, at(0));
    let established = |client: &mut Host| {
        all.iter().filter(|&&id| client.stack.poll_connected(id, Waker::noop()).is_ready()).count()
    };
    assert!(established(&mut client) <= 6);
    let mut accepted = 0;
    for second in 1..20 {
        while server.accept(listener).is_some() {
            accepted += 1;
        }
        exchange(&mut server, &mut client, at(second * 1_000));
    }
    assert_eq!((accepted, established(&mut client)), (10, 10));
}

#[test]
fn memory_of_connections_has_an_end_and_comes_back() {
    let (mut server, mut client) = hosts();
    let listener = server.listen(80, 10_000);
    let to = SocketAddr::new(server.ipv4(), 80);
    let mut refused = 0;
    for n in 0..2_000 {
        match client.stack.connect(to, None, Options::default()) {
            Ok(_) => {}
            Err(Error::OutOfMemory) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        exchange(&mut server, &mut client, at(n));
    }
    assert!(refused > 0);
    assert!(server.stack.memory() <= MEMORY && client.stack.memory() <= MEMORY);
    // A thousand fit, in the memory of a small capsule.
    assert!(client.stack.connections() >= 500, "{}", client.stack.connections());
    while let Some(id) = server.accept(listener) {
        server.stack.abort(id);
    }
    exchange(&mut server, &mut client, at(3_000));
    assert_eq!(server.stack.memory(), 0);
}

#[test]
fn a_day_of_keep_alive_costs_two_frames_an_interval_and_nothing_grows() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    let (ours, theirs) = connected(&mut server, &mut client, to, at(0));
    server.stack.set_keep_alive(ours, Some(Duration::from_secs(30)));
    let (end, mut now) = (at(24 * 3600 * 1000), at(1));
    let (mut turns, mut frames, memory) = (0, 0, server.stack.memory());
    while now < end {
        frames += exchange(&mut server, &mut client, now);
        turns += 1;
        let next = [server.stack.next_deadline(), client.stack.next_deadline()].into_iter().flatten().min();
        now = next.expect("a keep-alive timer is running").max(now + Duration::from_millis(1));
    }
    let intervals = 24 * 3600 / 30;
    assert!(turns <= 4 * intervals, "{turns} turns");
    // Beside keep-alives, addresses of neighbours are confirmed once a minute.
    assert!((2 * intervals..5 * intervals).contains(&frames), "{frames} frames");
    assert_eq!(server.stack.memory(), memory);
    client.write(theirs, b"still there");
    exchange(&mut server, &mut client, end);
    assert_eq!(server.read(ours), Some(Ok(b"still there".to_vec())));
}

#[test]
fn an_idle_connection_has_no_timers() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    let (ours, theirs) = connected(&mut server, &mut client, to, at(0));
    client.write(theirs, b"x");
    exchange(&mut server, &mut client, at(1));
    server.read(ours);
    // What was set meanwhile fires once, and is not set again.
    let deadline =
        |a: &Host, b: &Host| a.stack.next_deadline().into_iter().chain(b.stack.next_deadline()).max();
    let mut frames = 0;
    for _ in 0..5 {
        if let Some(now) = deadline(&server, &client) {
            frames += exchange(&mut server, &mut client, now);
        }
    }
    assert_eq!(frames, 1, "one acknowledgement was put off");
    assert_eq!((server.stack.next_deadline(), client.stack.next_deadline()), (None, None));
    assert!(!server.stack.is_stalled());
}

#[test]
fn without_room_everything_waits_and_nothing_is_lost() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    let (ours, theirs) = connected(&mut server, &mut client, to, at(0));
    server.room.set(false);
    server.write(ours, b"later");
    exchange(&mut server, &mut client, at(1));
    assert!(server.stack.is_stalled());
    assert_eq!(client.read(theirs), None);
    server.room.set(true);
    exchange(&mut server, &mut client, at(2));
    assert_eq!(client.read(theirs), Some(Ok(b"later".to_vec())));
}

#[test]
fn another_card_takes_over_and_connections_stay() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    let (ours, theirs) = connected(&mut server, &mut client, to, at(0));
    server.write(ours, b"on its way");
    let card = Card { frames: server.sent.clone(), features: Features::default(), room: server.room.clone() };
    server.stack.replace_card(0, card, at(5));
    server.stack.announce(0, false, at(5));
    exchange(&mut server, &mut client, at(5));
    assert_eq!(client.read(theirs), Some(Ok(b"on its way".to_vec())));
}

#[test]
fn what_was_lost_on_the_way_between_two_places_is_sent_again_at_once() {
    let cases = [(10, 10), (1000, 9_000), (0, 9_000), (1000, 0)];
    for ((request, response), lost_again) in cases.into_iter().flat_map(|it| [(it, false), (it, true)]) {
        let (mut server, mut client) = hosts();
        for (to, port) in [(server.ipv4(), 80), (server.ipv6(), 81)] {
            let (ours, theirs) = connected(&mut server, &mut client, SocketAddr::new(to, port), at(0));
            // Either has heard the other before.
            server.write(ours, b"first");
            exchange(&mut server, &mut client, at(1));
            assert_eq!(client.read(theirs), Some(Ok(b"first".to_vec())));
            exchange(&mut server, &mut client, at(100));
            let (request, response) = (vec![1; request], vec![2; response]);
            server.write(ours, &response);
            client.write(theirs, &request);
            server.stack.send(at(101));
            client.stack.send(at(101));
            let lost = [server.sent.take(), client.sent.take()];
            assert!(lost.iter().any(|frames| !frames.is_empty()));
            let room = server.room.clone();
            let card = Card { frames: server.sent.clone(), features: Features::default(), room };
            server.stack.replace_card(0, card, at(102));
            server.stack.announce(0, false, at(102));
            if lost_again {
                server.stack.send(at(102));
                assert!(!server.sent.take().is_empty());
                server.stack.announce(0, true, at(102));
            }
            exchange(&mut server, &mut client, at(102));
            let read = |host: &mut Host, id| host.read(id).map_or(0, |bytes| bytes.unwrap().len());
            assert_eq!(read(&mut server, ours), request.len(), "{to}");
            assert_eq!(read(&mut client, theirs), response.len(), "{to}");
            server.stack.close(ours, at(103));
            exchange(&mut server, &mut client, at(103));
        }
    }
}

#[test]
fn other_addresses_break_old_connections_and_listeners_go_on() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    let listener = server.listen(80, 10);
    let theirs = client.stack.connect(to, None, Options::default()).unwrap();
    exchange(&mut server, &mut client, at(0));
    assert!(client.stack.poll_connected(theirs, Waker::noop()).is_ready());
    let ours = server.accept(listener).unwrap();
    server.config.ipv4 = Some((Ipv4Addr::new(10, 88, 0, 77), 16));
    server.stack.set_addresses(&[server.config], at(1));
    let card = Card { frames: server.sent.clone(), features: Features::default(), room: server.room.clone() };
    server.stack.replace_card(0, card, at(1));
    exchange(&mut server, &mut client, at(1));
    assert_eq!(server.read(ours), Some(Err(Error::Reset)));
    let to = SocketAddr::new(server.ipv4(), 80);
    let again = client.stack.connect(to, None, Options::default()).unwrap();
    exchange(&mut server, &mut client, at(2));
    assert!(client.stack.poll_connected(again, Waker::noop()).is_ready());
}

#[test]
fn the_capsule_reaches_itself() {
    let (mut host, _) = hosts();
    let listener = host.listen(80, 10);
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into(), host.ipv4(), host.ipv6()] {
        let id = host.stack.connect(SocketAddr::new(address, 80), None, Options::default()).unwrap();
        host.stack.send(at(0));
        assert_eq!(host.stack.poll_connected(id, Waker::noop()), Poll::Ready(Ok(())), "{address}");
        let ours = host.accept(listener).unwrap();
        let (data, mut written, mut read) = (vec![3; 200_000], 0, 0);
        while read < data.len() {
            if let Some(Ok(count)) = host.write(id, &data[written..]) {
                written += count;
            }
            host.stack.send(at(1));
            if let Some(Ok(bytes)) = host.read(ours) {
                read += bytes.len();
            }
        }
        assert!(host.sent.take().is_empty());
    }
}

#[test]
fn datagrams_find_their_sockets() {
    let (mut server, mut client) = hosts();
    let all = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 53);
    let ours = server.stack.udp_bind(all).unwrap();
    assert_eq!(server.stack.udp_bind(SocketAddr::new(server.ipv4(), 53)), Err(Error::AddressInUse));
    let theirs = client.stack.udp_bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0)).unwrap();
    let to = SocketAddr::new(server.ipv4(), 53);
    let send = |host: &mut Host, id, bytes: &[u8], to, now| {
        host.stack.poll_send_to(id, bytes, to, now, Waker::noop())
    };
    assert_eq!(send(&mut client, theirs, b"who?", to, at(0)), Poll::Ready(Ok(())));
    let long = vec![0; 1473];
    assert_eq!(send(&mut client, theirs, &long, to, at(0)), Poll::Ready(Err(Error::MessageTooLong)));
    assert_eq!(send(&mut client, theirs, &long[..1472], to, at(0)), Poll::Ready(Ok(())));
    exchange(&mut server, &mut client, at(0));
    let mut bytes = [0; 2000];
    let Poll::Ready((4, from)) = server.stack.poll_receive_from(ours, &mut bytes, Waker::noop()) else {
        panic!("the datagram has arrived")
    };
    assert_eq!(from, SocketAddr::new(client.ipv4(), client.stack.udp_address(theirs).port()));
    assert_eq!(
        server.stack.poll_receive_from(ours, &mut bytes, Waker::noop()).map(|(len, _)| len),
        Poll::Ready(1472)
    );
    // A stranger's datagram does not reach a socket that is connected to somebody else.
    client.stack.udp_connect(theirs, SocketAddr::new(server.ipv4(), 54)).unwrap();
    assert_eq!(send(&mut server, ours, b"me", from, at(1)), Poll::Ready(Ok(())));
    exchange(&mut server, &mut client, at(1));
    assert!(client.stack.poll_receive_from(theirs, &mut bytes, Waker::noop()).is_pending());
}

#[test]
fn a_datagram_leaves_also_when_nothing_else_happens() {
    let (server, mut client) = hosts();
    let theirs = client.stack.udp_bind(SocketAddr::new(client.ipv4(), 0)).unwrap();
    for turn in 0..2 {
        assert!(!client.stack.is_stalled());
        let to = SocketAddr::new(server.ipv4(), 53);
        assert!(client.stack.poll_send_to(theirs, b"who?", to, at(turn), Waker::noop()).is_ready());
        assert!(client.stack.is_stalled(), "it waits for the cards' turn");
        client.stack.send(at(turn));
    }
    assert!(!client.stack.is_stalled());
}

#[test]
fn datagrams_that_nobody_reads_are_bounded() {
    let (mut server, mut client) = hosts();
    let ours = server.stack.udp_bind(SocketAddr::new(server.ipv4(), 53)).unwrap();
    let theirs = client.stack.udp_bind(SocketAddr::new(client.ipv4(), 0)).unwrap();
    let to = SocketAddr::new(server.ipv4(), 53);
    for _ in 0..1_000 {
        let _ = client.stack.poll_send_to(theirs, &[0; 1000], to, at(0), Waker::noop());
        exchange(&mut server, &mut client, at(0));
    }
    let mut bytes = [0; 2000];
    let mut count = 0;
    while server.stack.poll_receive_from(ours, &mut bytes, Waker::noop()).is_ready() {
        count += 1;
    }
    assert!((100..150).contains(&count), "{count}");
}

/// Counts how often it is woken.
struct Counter(AtomicU32);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn tasks_are_woken_by_what_they_wait_for() {
    let (mut server, mut client) = hosts();
    let to = SocketAddr::new(server.ipv4(), 80);
    let (ours, theirs) = connected(&mut server, &mut client, to, at(0));
    let counter = Arc::new(Counter(AtomicU32::new(0)));
    let waker = Waker::from(counter.clone());
    assert!(server.stack.poll_read(ours, &mut [0; 10], &waker).is_pending());
    client.write(theirs, b"x");
    exchange(&mut server, &mut client, at(1));
    assert_eq!(counter.0.load(Ordering::Relaxed), 1);
}

#[test]
fn nothing_is_sent_without_a_network() {
    let mut stack: Stack<Card> = Stack::new(vec![], MEMORY, 1, at(0));
    let all = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 80);
    assert_eq!(stack.listen(all, 1, Options::default()), Err(Error::NoNetwork));
    assert_eq!(stack.udp_bind(all), Err(Error::NoNetwork));
    let far = SocketAddr::new(Ipv4Addr::new(10, 0, 0, 1).into(), 80);
    assert_eq!(stack.connect(far, None, Options::default()), Err(Error::NoNetwork));
    let here = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 80);
    assert!(stack.listen(here, 1, Options::default()).is_ok());
}

#[test]
fn a_stranger_with_our_address_is_not_heard() {
    let (mut server, _) = hosts();
    server.listen(80, 10);
    for from in
        [server.config.ipv4.unwrap().0, Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST]
    {
        let frame = segment(&server, from, 1234, 80, TcpControl::Syn, None);
        server.receive(&frame, at(0));
        server.stack.send(at(0));
        assert_eq!(server.stack.connections(), 0, "{from}");
    }
}

#[test]
fn wrong_checksums_are_dropped_unless_the_card_has_checked() {
    let (mut server, _) = hosts();
    server.listen(80, 10);
    let mut frame = segment(&server, Ipv4Addr::new(10, 88, 0, 9), 1234, 80, TcpControl::Syn, None);
    frame[14 + 20 + 16] ^= 1;
    server.receive(&frame, at(0));
    assert_eq!(server.stack.connections(), 0);
    server.stack.receive(0, &frame, true, at(0));
    assert_eq!(server.stack.connections(), 1);
}

#[test]
fn pings_are_answered() {
    let (mut server, _) = hosts();
    let mut frame = segment(&server, Ipv4Addr::new(10, 88, 0, 9), 0, 0, TcpControl::None, None);
    // An echo request of eight bytes in place of the segment.
    let packet = &mut frame[14..];
    packet[9] = 1;
    packet[3] = 28;
    packet[10..12].fill(0);
    packet[20..28].copy_from_slice(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    let sum = !smoltcp::wire::checksum::data(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    server.receive(&frame[..14 + 28], at(0));
    server.stack.send(at(0));
    // Whom to answer is asked first.
    let sent = server.sent.take();
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0][12..14], [8, 6]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever arrives, nothing panics, and memory is bounded.
    #[test]
    fn malformed_frames_change_nothing(
        frames in proptest::collection::vec((any::<Vec<u8>>(), 0u8..4, any::<[(u8, u8); 4]>()), 0..60),
    ) {
        let (mut server, mut client) = hosts();
        let to = SocketAddr::new(server.ipv4(), 80);
        let (ours, theirs) = connected(&mut server, &mut client, to, at(0));
        let udp = server.stack.udp_bind(SocketAddr::new(server.ipv4(), 53)).unwrap();
        for (n, (bytes, kind, changes)) in frames.into_iter().enumerate() {
            // Noise, noise behind a header, or frames with some bytes changed.
            let from = Ipv4Addr::new(10, 88, 0, 9);
            let mut frame = match kind {
                0 => bytes,
                1 => [&server.config.mac.0[..], &[2, 9, 9, 9, 9, 9, 8, 6], &bytes].concat(),
                2 => segment(&server, from, 1000, 80, TcpControl::Syn, None),
                _ => segment(&server, from, 1000, 80, TcpControl::Psh, Some(77)),
            };
            for (place, value) in changes {
                let len = frame.len().max(1);
                if let Some(byte) = frame.get_mut(usize::from(place) % len) {
                    *byte = value;
                }
            }
            server.stack.receive(0, &frame, n % 2 == 0, at(n as i64));
            server.stack.send(at(n as i64));
            server.sent.take();
        }
        prop_assert!(server.stack.memory() <= MEMORY);
        prop_assert!(server.stack.connections() <= 62);
        let _ = server.stack.poll_receive_from(udp, &mut [0; 100], Waker::noop());
        client.write(theirs, b"still here");
        exchange(&mut server, &mut client, at(5_000));
        exchange(&mut server, &mut client, at(10_000));
        prop_assert_eq!(server.read(ours), Some(Ok(b"still here".to_vec())));
    }
}
