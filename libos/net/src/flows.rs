//! Which connection a segment belongs to: a hash table with chains.

use crate::flow::FlowKey;
use alloc::{vec, vec::Vec};

/// Chains that an empty table has; a power of two, as all its numbers of chains are.
const CHAINS_MIN: usize = 16;

/// Connections by the addresses and ports of their ends.
#[derive(Debug)]
pub(crate) struct Flows {
    chains: Vec<Vec<(FlowKey, usize)>>,
    len: usize,
    /// Of the hash function, which is multilinear: as long as nobody knows them, nobody can choose
    /// addresses and ports that meet in one chain more often than by chance.
    factors: [u64; FlowKey::WORDS + 1],
}

impl Flows {
    /// An empty table; `factors` must be hard to guess.
    pub(crate) fn new(factors: [u64; FlowKey::WORDS + 1]) -> Self {
        Self { chains: vec![Vec::new(); CHAINS_MIN], len: 0, factors }
    }

    /// The connection with these ends.
    pub(crate) fn get(&self, key: &FlowKey) -> Option<usize> {
        self.chains[self.chain(key)].iter().find(|(other, _)| other == key).map(|&(_, id)| id)
    }

    /// Adds a connection, whose ends no other has.
    pub(crate) fn insert(&mut self, key: FlowKey, id: usize) {
        if self.len == self.chains.len() {
            let longer = vec![Vec::new(); self.chains.len() * 2];
            for (key, id) in core::mem::replace(&mut self.chains, longer).into_iter().flatten() {
                self.push(key, id);
            }
        }
        self.push(key, id);
        self.len += 1;
    }

    /// Removes a connection that was added.
    pub(crate) fn remove(&mut self, key: &FlowKey) {
        let chain = self.chain(key);
        let chain = &mut self.chains[chain];
        if let Some(at) = chain.iter().position(|(other, _)| other == key) {
            chain.swap_remove(at);
            self.len -= 1;
        }
    }

    fn push(&mut self, key: FlowKey, id: usize) {
        let chain = self.chain(&key);
        self.chains[chain].push((key, id));
    }

    fn chain(&self, key: &FlowKey) -> usize {
        let [first, factors @ ..] = &self.factors;
        let words = key.words().into_iter().zip(factors);
        let sum =
            words.fold(*first, |sum, (word, factor)| sum.wrapping_add(factor.wrapping_mul(word.into())));
        // The upper half is the one that depends on all bits.
        (sum >> 32) as usize & (self.chains.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{IpAddr, Ipv4Addr};

    fn key(n: u32) -> FlowKey {
        let local = (IpAddr::V4(Ipv4Addr::new(10, 88, 0, 2)), 80);
        FlowKey::new(local, (IpAddr::V4(Ipv4Addr::from_bits(n / 100)), (n % 100) as u16))
    }

    #[test]
    fn connections_are_found_as_long_as_they_are_there() {
        let mut flows = Flows::new([3, 1 << 40, 5 << 33, 7 << 35, 11 << 37, 13 << 39].map(|n| n | 1));
        (0..10_000).for_each(|n| flows.insert(key(n), n as usize));
        (0..5_000).for_each(|n| flows.remove(&key(n)));
        for n in 0..11_000 {
            let expected = (5_000..10_000).contains(&n).then_some(n as usize);
            assert_eq!(flows.get(&key(n)), expected, "{n}");
        }
        assert_eq!(flows.len, 5_000);
    }

    #[test]
    fn chains_are_short() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let factors = core::array::from_fn(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        });
        let mut flows = Flows::new(factors);
        (0..10_000).for_each(|n| flows.insert(key(n), n as usize));
        let longest = flows.chains.iter().map(Vec::len).max();
        assert!(longest < Some(16), "{longest:?}");
    }
}
