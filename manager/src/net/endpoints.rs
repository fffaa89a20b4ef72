//! Where capsules are: on this node, and what other nodes of the overlay say of theirs.
//!
//! While a capsule moves, two nodes may claim it. Each move raises its endpoints' generation, and
//! the highest one is right; so all nodes come to the same view, in whatever order they hear of
//! it. Of two capsules with one name the older has it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use fcap_api::{OverlayEndpoint, OverlayPeer, OverlayUpdate, PeerStatus};

use crate::id::CapsuleId;

/// Most endpoints that are believed of one node.
pub const MAX_PER_PEER: usize = 1 << 14;

/// What tells endpoints apart: capsule and network.
pub type Key = (CapsuleId, String);

/// Endpoints of this node and of its peers.
#[derive(Debug, Default)]
pub struct Table {
    index: u16,
    own: BTreeMap<Key, OverlayEndpoint>,
    peers: BTreeMap<String, Peer>,
}

#[derive(Debug)]
struct Peer {
    index: u16,
    address: Ipv4Addr,
    /// It tells of its endpoints at present. Those of a silent one stay: its capsules run on.
    connected: bool,
    endpoints: BTreeMap<Key, OverlayEndpoint>,
}

impl Table {
    /// Enters an endpoint of this node, or changes it.
    pub fn set_own(&mut self, capsule: CapsuleId, endpoint: OverlayEndpoint) {
        self.own.insert((capsule, endpoint.network.clone()), endpoint);
    }

    /// Changes the endpoints of a capsule of this node.
    pub fn change_own(&mut self, capsule: CapsuleId, change: impl Fn(&mut OverlayEndpoint)) {
        let first = (capsule, String::new());
        self.own.range_mut(first..).take_while(|((id, _), _)| *id == capsule).for_each(|(_, it)| change(it));
    }

    /// Takes out the endpoints of a capsule of this node.
    pub fn remove_own(&mut self, capsule: CapsuleId) -> Vec<OverlayEndpoint> {
        let first = (capsule, String::new());
        let keys: Vec<Key> = self
            .own
            .range(first..)
            .map(|(key, _)| key.clone())
            .take_while(|(id, _)| *id == capsule)
            .collect();
        keys.iter().filter_map(|key| self.own.remove(key)).collect()
    }

    /// The endpoints of this node.
    pub fn own(&self) -> &BTreeMap<Key, OverlayEndpoint> {
        &self.own
    }

    /// Sets this node's number and the other nodes. What is known of one that stays is kept.
    pub fn set_peers(&mut self, index: u16, peers: &[OverlayPeer]) {
        self.index = index;
        let mut before = std::mem::take(&mut self.peers);
        for peer in peers {
            let endpoints = before.remove(&peer.name).map(|peer| peer.endpoints).unwrap_or_default();
            let (index, address) = (peer.index, peer.address);
            self.peers.insert(peer.name.clone(), Peer { index, address, connected: false, endpoints });
        }
    }

    /// The other nodes, by name.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let status = |(name, peer): (&String, &Peer)| PeerStatus {
            name: name.clone(),
            address: peer.address,
            index: peer.index,
            connected: peer.connected,
            endpoints: u32::try_from(peer.endpoints.len()).unwrap_or(u32::MAX),
        };
        self.peers.iter().map(status).collect()
    }

    /// Notes that a node cannot be heard any more.
    pub fn lost(&mut self, peer: &str) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.connected = false;
        }
    }

    /// Whether all nodes tell of their endpoints at present.
    pub fn hears_all(&self) -> bool {
        self.peers.values().all(|peer| peer.connected)
    }

    /// Takes in what a node tells of its endpoints; those that are not `sound` are left out.
    pub fn apply(&mut self, peer: &str, update: OverlayUpdate, sound: impl Fn(&OverlayEndpoint) -> bool) {
        let Some(peer) = self.peers.get_mut(peer) else { return };
        if update.all {
            peer.endpoints.clear();
            peer.connected = true;
        }
        for (capsule, network) in update.gone {
            if let Ok(capsule) = capsule.parse() {
                peer.endpoints.remove(&(capsule, network));
            }
        }
        for endpoint in update.set {
            let Ok(capsule) = endpoint.capsule.parse() else { continue };
            let key = (capsule, endpoint.network.clone());
            let room = peer.endpoints.len() < MAX_PER_PEER || peer.endpoints.contains_key(&key);
            if room && sound(&endpoint) {
                peer.endpoints.insert(key, endpoint);
            }
        }
    }

    /// Enters an endpoint as if that node had told of it.
    pub fn place(&mut self, peer: &str, capsule: CapsuleId, endpoint: OverlayEndpoint) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.endpoints.insert((capsule, endpoint.network.clone()), endpoint);
        }
    }

    /// Who says what about an endpoint, the node that is right last; `None` for this node.
    fn claims(&self, key: &Key) -> Vec<(Option<&Peer>, &OverlayEndpoint)> {
        let own = self.own.get(key).map(|endpoint| (None, endpoint));
        let theirs = self.peers.values().filter_map(|peer| Some((Some(peer), peer.endpoints.get(key)?)));
        let mut claims: Vec<_> = own.into_iter().chain(theirs).collect();
        claims.sort_by_key(|(peer, endpoint)| {
            let index = peer.map_or(self.index, |peer| peer.index);
            (endpoint.generation, endpoint.up, Reverse(index))
        });
        claims
    }

    fn is_right(&self, key: &Key, endpoint: &OverlayEndpoint) -> bool {
        self.claims(key).last().is_some_and(|(_, right)| std::ptr::eq(*right, endpoint))
    }

    fn all(&self) -> impl Iterator<Item = (&Key, &OverlayEndpoint)> {
        self.own.iter().chain(self.peers.values().flat_map(|peer| &peer.endpoints))
    }

    /// The endpoint in a network that bears a name at present; letters' case does not matter.
    pub fn named(&self, network: &str, name: &str) -> Option<&OverlayEndpoint> {
        self.all()
            .filter(|(_, it)| it.up && it.network == network && it.name.eq_ignore_ascii_case(name))
            .filter(|(key, it)| self.is_right(key, it))
            .map(|(_, it)| it)
            .min_by_key(|it| (it.created_ms, &it.capsule))
    }

    /// The endpoint in a network that has an address at present.
    pub fn addressed(&self, network: &str, address: IpAddr) -> Option<&OverlayEndpoint> {
        self.all()
            .filter(|(_, it)| it.up && it.network == network)
            .filter(|(_, it)| address == IpAddr::V4(it.ipv4) || address == IpAddr::V6(it.ipv6))
            .find(|(key, it)| self.is_right(key, it))
            .map(|(_, it)| it)
    }

    /// All endpoints that are up on other nodes, with these nodes' addresses.
    pub fn elsewhere(&self) -> impl Iterator<Item = (&OverlayEndpoint, Ipv4Addr)> {
        self.peers.values().flat_map(move |peer| {
            let right = peer.endpoints.iter().filter(|(key, it)| it.up && self.is_right(key, it));
            right.map(|(_, it)| (it, peer.address))
        })
    }

    /// Whether another node knows of a capsule in that network.
    pub fn is_elsewhere(&self, key: &Key) -> bool {
        self.peers.values().any(|peer| peer.endpoints.contains_key(key))
    }

    /// Whether another node has given an address to a capsule.
    pub fn is_used_elsewhere(&self, network: &str, address: Ipv4Addr) -> bool {
        let mut theirs = self.peers.values().flat_map(|peer| peer.endpoints.values());
        theirs.any(|it| it.network == network && it.ipv4 == address)
    }

    /// Id and node of another node's capsule with this name.
    pub fn name_elsewhere(&self, name: &str) -> Option<(String, String)> {
        self.peers.iter().find_map(|(node, peer)| {
            let it = peer.endpoints.values().find(|it| it.name == name)?;
            Some((it.capsule.clone(), node.clone()))
        })
    }
}

/// What has to be told to somebody who knows `before`, to know `now`; nothing if that is the same.
pub fn difference(
    before: &BTreeMap<Key, OverlayEndpoint>,
    now: &BTreeMap<Key, OverlayEndpoint>,
) -> Option<OverlayUpdate> {
    let new = now.iter().filter(|(key, it)| before.get(key) != Some(it));
    let set: Vec<_> = new.map(|(_, it)| it.clone()).collect();
    let gone: Vec<_> = before
        .keys()
        .filter(|key| !now.contains_key(key))
        .map(|(capsule, network)| (capsule.to_string(), network.clone()))
        .collect();
    (!set.is_empty() || !gone.is_empty()).then_some(OverlayUpdate { all: false, set, gone })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint(capsule: u8, name: &str, generation: u64) -> (CapsuleId, OverlayEndpoint) {
        let id = CapsuleId([capsule; 16]);
        let endpoint = OverlayEndpoint {
            capsule: id.to_string(),
            name: name.into(),
            network: "default".into(),
            ipv4: Ipv4Addr::new(10, 88, 1, capsule),
            ipv6: format!("fd88::{capsule:x}").parse().unwrap(),
            created_ms: u64::from(capsule),
            generation,
            up: true,
        };
        (id, endpoint)
    }

    fn peer(name: &str, index: u16) -> OverlayPeer {
        OverlayPeer { name: name.into(), address: Ipv4Addr::new(10, 99, 0, index as u8), index, url: None }
    }

    fn table() -> Table {
        let mut table = Table::default();
        table.set_peers(1, &[peer("two", 2), peer("three", 3)]);
        table
    }

    fn tell(table: &mut Table, node: &str, endpoints: &[(CapsuleId, OverlayEndpoint)]) {
        let set = endpoints.iter().map(|(_, it)| it.clone()).collect();
        table.apply(node, OverlayUpdate { all: true, set, gone: Vec::new() }, |_| true);
    }

    #[test]
    fn the_newest_place_is_right_on_every_node() {
        let mut table = table();
        let (id, old) = endpoint(7, "db", 1);
        let new = OverlayEndpoint { generation: 2, ..old.clone() };
        table.set_own(id, old);
        assert_eq!(table.elsewhere().count(), 0);
        tell(&mut table, "three", &[(id, new.clone())]);
        let places: Vec<_> = table.elsewhere().map(|(_, node)| node).collect();
        assert_eq!(places, [Ipv4Addr::new(10, 99, 0, 3)]);
        assert_eq!(table.named("default", "DB").map(|it| it.generation), Some(2));
        // It comes back, a third time newer.
        table.set_own(id, OverlayEndpoint { generation: 3, ..new });
        assert_eq!(table.elsewhere().count(), 0);
        table.remove_own(id);
        assert_eq!(table.elsewhere().count(), 1);
    }

    #[test]
    fn the_older_of_two_has_the_name_and_what_is_down_has_none() {
        let mut table = table();
        let (id, young) = endpoint(9, "web", 1);
        table.set_own(id, young);
        tell(&mut table, "two", &[endpoint(3, "Web", 1)]);
        assert_eq!(table.named("default", "web").unwrap().created_ms, 3);
        assert_eq!(table.named("other", "web"), None);
        table.apply("two", OverlayUpdate { all: true, ..OverlayUpdate::default() }, |_| true);
        assert_eq!(table.named("default", "web").unwrap().created_ms, 9);
        table.change_own(id, |it| it.up = false);
        assert_eq!(table.named("default", "web"), None);
        assert_eq!(table.addressed("default", "10.88.1.9".parse().unwrap()), None);
    }

    #[test]
    fn a_silent_nodes_endpoints_stay_and_a_removed_ones_go() {
        let mut table = table();
        tell(&mut table, "two", &[endpoint(1, "a", 1)]);
        table.lost("two");
        assert_eq!(table.elsewhere().count(), 1);
        assert!(!table.hears_all());
        table.set_peers(1, &[peer("three", 3)]);
        assert_eq!(table.elsewhere().count(), 0);
    }

    #[test]
    fn what_is_not_sound_or_too_much_is_left_out() {
        let mut table = table();
        let mut endpoints = vec![endpoint(1, "a", 1), endpoint(2, "b", 1)];
        endpoints[1].1.capsule = "no id".into();
        tell(&mut table, "two", &endpoints);
        tell(&mut table, "nobody", &endpoints);
        assert_eq!(table.peers().iter().map(|peer| peer.endpoints).sum::<u32>(), 1);
        let set = vec![endpoint(5, "e", 1).1];
        table.apply("two", OverlayUpdate { all: true, set, gone: Vec::new() }, |it| it.name != "e");
        assert_eq!(table.elsewhere().count(), 0);
    }

    proptest! {
        #[test]
        fn told_differences_make_the_same_table(
            steps in proptest::collection::vec(proptest::collection::btree_map(0u8..6, 0u64..4, 0..6), 1..8)
        ) {
            let mut table = table();
            let mut known = BTreeMap::new();
            table.apply("two", OverlayUpdate { all: true, ..OverlayUpdate::default() }, |_| true);
            for step in steps {
                let now: BTreeMap<Key, OverlayEndpoint> = step.into_iter().map(|(id, generation)| {
                    let (id, it) = endpoint(id, "n", generation);
                    ((id, it.network.clone()), it)
                }).collect();
                if let Some(update) = difference(&known, &now) {
                    table.apply("two", update, |_| true);
                }
                prop_assert_eq!(&table.peers["two"].endpoints, &now);
                known = now;
            }
        }
    }
}
