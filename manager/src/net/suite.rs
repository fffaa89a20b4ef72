//! What every network of dom0 does, tested with both.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Attachment, Error, Fabric, Network, Protocol, Publish, Wanted, sim::Sim};

#[test]
fn the_simulated_network_passes_the_suite() {
    run(&Sim::default());
}

/// Asks all of it of a network without anything in it.
pub(super) fn run(fabric: &dyn Fabric) {
    let network = Network {
        name: "suite".into(),
        bridge: "fcap-suite".into(),
        vni: 77,
        gateway4: (Ipv4Addr::new(10, 77, 0, 1), 16),
        gateway6: (Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1), 64),
        gateway_mac: [0x0a, 0xfc, 10, 77, 0, 1],
        mtu: 1500,
        outbound: true,
    };
    fabric.ensure(&network).unwrap();
    fabric.ensure(&network).unwrap();
    fabric.ensure(&Network { mtu: 1450, outbound: false, ..network.clone() }).unwrap();
    capsules_come_and_go(fabric, &network.name);
    ports_have_one_owner(fabric);
    what_is_not_wanted_goes(fabric, &network);
    fabric.remove(&network.name).unwrap();
    fabric.remove(&network.name).unwrap();
}

fn attachment(network: &str, number: u8) -> Attachment {
    Attachment {
        capsule: [number; 16],
        handle: 0,
        network: network.into(),
        mac: [0x0a, 0xfc, 10, 77, 1, number],
        ipv4: Ipv4Addr::new(10, 77, 1, number),
        ipv6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, number.into()),
    }
}

fn capsules_come_and_go(fabric: &dyn Fabric, network: &str) {
    let one = attachment(network, 1);
    // Twice, as after a restart of the daemon; then anew in another domain, as after its own.
    for domid in [100, 100, 101] {
        fabric.attach(&one).unwrap();
        fabric.place(one.capsule, domid).unwrap();
    }
    fabric.announce(one.capsule).unwrap();
    fabric.detach(one.capsule).unwrap();
    fabric.detach(one.capsule).unwrap();
    // Nobody knows these.
    assert_eq!(fabric.counters(one.capsule, 0).unwrap(), None);
    fabric.place([9; 16], 102).unwrap();
    fabric.announce([9; 16]).unwrap();
}

fn ports_have_one_owner(fabric: &dyn Fabric) {
    let publish =
        Publish { protocol: Protocol::Tcp, node_port: 18_077, ipv4: Ipv4Addr::new(10, 77, 1, 1), port: 80 };
    let other = Publish { port: 81, ..publish };
    fabric.publish(&publish).unwrap();
    fabric.publish(&publish).unwrap();
    assert!(matches!(fabric.publish(&other), Err(Error::PortTaken { port: 18_077, protocol: "tcp" })));
    // It is another port.
    let udp = Publish { protocol: Protocol::Udp, ..publish };
    fabric.publish(&udp).unwrap();
    // It is not theirs to take back.
    fabric.unpublish(&other).unwrap();
    assert!(fabric.publish(&other).is_err());
    fabric.unpublish(&publish).unwrap();
    fabric.publish(&other).unwrap();
    fabric.unpublish(&other).unwrap();
    fabric.unpublish(&udp).unwrap();
}

fn what_is_not_wanted_goes(fabric: &dyn Fabric, network: &Network) {
    fabric.attach(&attachment(&network.name, 2)).unwrap();
    fabric.place([2; 16], 200).unwrap();
    let publish =
        Publish { protocol: Protocol::Udp, node_port: 18_078, ipv4: Ipv4Addr::new(10, 77, 1, 2), port: 80 };
    fabric.publish(&publish).unwrap();
    fabric.retain(&Wanted { networks: vec![network.name.clone()], ..Wanted::default() }).unwrap();
    // The port is free again.
    let other = Publish { port: 81, ..publish };
    fabric.publish(&other).unwrap();
    fabric.unpublish(&other).unwrap();
}
