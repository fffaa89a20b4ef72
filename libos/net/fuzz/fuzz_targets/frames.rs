//! Any frames, at any times, to a stack with a listener and a datagram socket.
#![no_main]

use core::{net::Ipv4Addr, task::Waker};
use fcap_libos_net::{Config, Features, Instant, Mac, Offload, Options, Stack, Transmit};
use libfuzzer_sys::fuzz_target;

const MEMORY: usize = 1 << 20;

/// Sends nothing.
struct Card;

impl Transmit for Card {
    fn features(&self) -> Features {
        Features::default()
    }

    fn has_room(&mut self) -> bool {
        true
    }

    fn send(&mut self, len: usize, fill: &mut dyn FnMut(&mut [u8]) -> Option<Offload>) {
        fill(&mut vec![0; len]);
    }

    fn flush(&mut self) {}
}

fuzz_target!(|frames: Vec<(u8, bool, Vec<u8>)>| {
    let config = Config {
        mac: Mac([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        ipv4: Some((Ipv4Addr::new(10, 88, 0, 2), 16)),
        gateway4: None,
        ipv6: Some(("fd88::2".parse().expect("an address"), 64)),
        gateway6: None,
    };
    let mut now = Instant::from_millis(0);
    let mut stack = Stack::new(vec![(config, Card)], MEMORY, 1, now);
    let listener = stack.listen("[::]:80".parse().expect("an address"), 4, Options::default());
    let listener = listener.expect("nobody else listens");
    let datagrams = stack.udp_bind("[::]:53".parse().expect("an address")).expect("nobody else is there");
    for (ms, verified, mut frame) in frames {
        now += fcap_libos_net::Duration::from_millis(ms.into());
        // For us, or it would be dropped at once.
        if let Some(mac) = frame.get_mut(..6) {
            mac.copy_from_slice(&config.mac.0);
        }
        stack.receive(0, &frame, verified, now);
        stack.send(now);
        assert!(stack.memory() <= MEMORY);
        let _ = stack.poll_accept(listener, Waker::noop()).map(|(id, _)| stack.close(id, now));
        let _ = stack.poll_receive_from(datagrams, &mut [0; 64], Waker::noop());
    }
});
