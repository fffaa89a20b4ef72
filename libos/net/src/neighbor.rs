//! Which hardware address has an IP address on the link: ARP (RFC 826) and neighbour discovery (RFC 4861).
//!
//! smoltcp has a table of its own, which asks for one neighbour a second and walks all entries
//! for each packet. A proxy that opens connections to ten servers would wait nine seconds.

use crate::link::Mac;
use alloc::vec::Vec;
use core::net::IpAddr;
use smoltcp::time::{Duration, Instant};

/// Entries, so that a link full of strangers does not use up memory.
const ENTRIES_MAX: usize = 1024;
/// Packets kept for neighbours that have not answered: who opens many connections at once would
/// otherwise have to ask again for some of them, a second later.
const QUEUED_MAX: usize = 256;
/// Longest packet that is kept; TCP sends larger ones again.
const QUEUED_LEN_MAX: usize = 2048;
/// Questions before giving up.
const QUESTIONS_MAX: u8 = 3;
/// Between questions.
const QUESTION_INTERVAL: Duration = Duration::from_secs(1);
/// An answer older than this is asked for again when it is used next.
const FRESH: Duration = Duration::from_secs(60);

/// The neighbours of an interface.
#[derive(Debug, Default)]
pub(crate) struct Neighbors {
    /// By address. Most links have few neighbours, and all have few that come and go.
    entries: Vec<(IpAddr, Entry)>,
    /// Those who have been asked and have not answered.
    asked: Vec<IpAddr>,
    /// Packets that wait for answers.
    queued: Vec<(IpAddr, Vec<u8>)>,
    /// The last one found, which most packets are for.
    last: Option<(IpAddr, Mac, Instant)>,
}

#[derive(Debug)]
struct Entry {
    mac: Option<Mac>,
    /// When the address was last confirmed, or first asked for.
    since: Instant,
    questions: u8,
    next_question: Instant,
}

/// What to do with a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Send it there.
    Found(Mac),
    /// Send it there, and ask whether that is still right.
    Confirm(Mac),
    /// Keep it with [`Neighbors::queue`].
    Wait {
        /// Ask now.
        ask: bool,
    },
}

/// Neighbours whose time has come.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// To be asked again.
    pub(crate) ask: Vec<IpAddr>,
    /// Given up.
    pub(crate) given_up: Vec<IpAddr>,
}

impl Neighbors {
    /// Looks for a neighbour to whom a packet is to be sent.
    pub(crate) fn look_up(&mut self, address: IpAddr, now: Instant) -> Answer {
        if let Some((last, mac, until)) = self.last
            && last == address
            && now < until
        {
            return Answer::Found(mac);
        }
        let at = self.find(address).unwrap_or_else(|_| self.insert(address, None, now));
        let entry = &mut self.entries[at].1;
        let ask = match entry.mac {
            Some(_) => now >= entry.since + FRESH && entry.may_ask(now),
            None => entry.may_ask(now),
        };
        if ask {
            entry.questions += 1;
            entry.next_question = now + QUESTION_INTERVAL;
            if !self.asked.contains(&address) {
                self.asked.push(address);
            }
        }
        match entry.mac {
            Some(mac) if ask => Answer::Confirm(mac),
            Some(mac) => {
                // Until then there is nothing to ask.
                self.last = Some((address, mac, (entry.since + FRESH).max(entry.next_question)));
                Answer::Found(mac)
            }
            None => Answer::Wait { ask },
        }
    }

    /// Keeps a packet until its neighbour answers; the oldest gives way.
    pub(crate) fn queue(&mut self, address: IpAddr, packet: &[u8]) {
        if packet.len() <= QUEUED_LEN_MAX {
            if self.queued.len() == QUEUED_MAX {
                self.queued.remove(0);
            }
            self.queued.push((address, packet.to_vec()));
        }
    }

    /// Learns where a neighbour is; returns what waited for it.
    ///
    /// Neighbours about whom nobody has asked are learned only if `create` is set, as it is for
    /// those who ask for us and whom we shall answer.
    pub(crate) fn learn(&mut self, address: IpAddr, mac: Mac, create: bool, now: Instant) -> Vec<Vec<u8>> {
        if !mac.is_unicast() || !(create || self.find(address).is_ok()) {
            return Vec::new();
        }
        self.last = None;
        self.asked.retain(|&asked| asked != address);
        self.insert(address, Some(mac), now);
        self.queued.extract_if(.., |(to, _)| *to == address).map(|(_, packet)| packet).collect()
    }

    /// Neighbours that are to be asked again now, and those that have not answered and are given up.
    pub(crate) fn due(&mut self, now: Instant) -> Due {
        let (mut ask, mut given_up) = (Vec::new(), Vec::new());
        for &address in &self.asked {
            let Ok(at) = self.entries.binary_search_by_key(&address, |&(address, _)| address) else {
                continue;
            };
            let entry = &mut self.entries[at].1;
            if now < entry.next_question {
                continue;
            }
            if entry.questions >= QUESTIONS_MAX {
                given_up.push(address);
            } else {
                entry.questions += 1;
                entry.next_question = now + QUESTION_INTERVAL;
                ask.push(address);
            }
        }
        given_up.iter().for_each(|&address| self.forget(address));
        Due { ask, given_up }
    }

    /// When [`Self::due`] has something to do.
    pub(crate) fn due_at(&self) -> Option<Instant> {
        let entries = self.asked.iter().filter_map(|&address| self.find(address).ok());
        entries.map(|at| self.entries[at].1.next_question).min()
    }

    /// Has every answer confirmed when it is used next, as when the link may be another one.
    pub(crate) fn doubt(&mut self, now: Instant) {
        for (_, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.mac.is_some()) {
            *entry = Entry { since: now - FRESH, questions: 0, next_question: now, ..*entry };
        }
        self.last = None;
    }

    /// Where the entry of an address is, or would be.
    fn find(&self, address: IpAddr) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&address, |&(address, _)| address)
    }

    /// Makes the entry of an address, in the place of the one that it may have; returns where it
    /// is. The oldest gives way.
    fn insert(&mut self, address: IpAddr, mac: Option<Mac>, now: Instant) -> usize {
        let entry = Entry { mac, since: now, questions: 0, next_question: now };
        if let Ok(at) = self.find(address) {
            self.entries[at].1 = entry;
            return at;
        }
        if self.entries.len() >= ENTRIES_MAX {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.since);
            oldest.map(|&(address, _)| address).into_iter().for_each(|address| self.forget(address));
        }
        let at = self.find(address).unwrap_or_else(|at| at);
        self.entries.insert(at, (address, entry));
        at
    }

    fn forget(&mut self, address: IpAddr) {
        if let Ok(at) = self.find(address) {
            self.entries.remove(at);
        }
        self.asked.retain(|&asked| asked != address);
        self.queued.retain(|(to, _)| *to != address);
        self.last = None;
    }
}

impl Entry {
    fn may_ask(&self, now: Instant) -> bool {
        self.questions == 0 || (now >= self.next_question && self.questions < QUESTIONS_MAX)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::net::Ipv4Addr;
    use std::vec;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(0x0a58_0000 + n))
    }

    fn at(ms: i64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn packets_wait_for_the_answer() {
        let mut neighbors = Neighbors::default();
        assert_eq!(neighbors.look_up(address(1), at(0)), Answer::Wait { ask: true });
        assert_eq!(neighbors.look_up(address(1), at(1)), Answer::Wait { ask: false });
        let packets: Vec<_> = (0..QUEUED_MAX + 6).map(|n| n.to_be_bytes()).collect();
        for packet in &packets {
            neighbors.queue(address(1), packet);
        }
        neighbors.queue(address(1), &[0; 3000]);
        let queued = neighbors.learn(address(1), MAC, false, at(5));
        assert_eq!(queued, packets[6..]);
        assert_eq!(neighbors.look_up(address(1), at(6)), Answer::Found(MAC));
        assert_eq!(neighbors.due_at(), None);
    }

    #[test]
    fn several_neighbors_are_asked_at_once() {
        let mut neighbors = Neighbors::default();
        for n in 0..10 {
            assert_eq!(neighbors.look_up(address(n), at(0)), Answer::Wait { ask: true });
        }
    }

    #[test]
    fn who_does_not_answer_is_given_up() {
        let mut neighbors = Neighbors::default();
        neighbors.look_up(address(1), at(0));
        assert_eq!(neighbors.due_at(), Some(at(1000)));
        let again = Due { ask: vec![address(1)], given_up: vec![] };
        assert_eq!(neighbors.due(at(1000)), again);
        assert_eq!(neighbors.due(at(2000)), again);
        assert_eq!(neighbors.due(at(3000)), Due { ask: vec![], given_up: vec![address(1)] });
        assert_eq!(neighbors.due_at(), None);
        assert!(neighbors.entries.is_empty());
    }

    #[test]
    fn old_answers_are_confirmed_and_used_meanwhile() {
        let mut neighbors = Neighbors::default();
        neighbors.learn(address(1), MAC, true, at(0));
        assert_eq!(neighbors.look_up(address(1), at(59_999)), Answer::Found(MAC));
        assert_eq!(neighbors.look_up(address(1), at(60_000)), Answer::Confirm(MAC));
        assert_eq!(neighbors.look_up(address(1), at(60_001)), Answer::Found(MAC));
        neighbors.learn(address(1), MAC, false, at(60_002));
        assert_eq!(neighbors.look_up(address(1), at(100_000)), Answer::Found(MAC));
    }

    #[test]
    fn doubtful_answers_are_confirmed_and_used_meanwhile() {
        let mut neighbors = Neighbors::default();
        neighbors.learn(address(1), MAC, true, at(0));
        assert_eq!(neighbors.look_up(address(1), at(1)), Answer::Found(MAC));
        neighbors.doubt(at(2));
        assert_eq!(neighbors.look_up(address(1), at(3)), Answer::Confirm(MAC));
        neighbors.learn(address(1), MAC, false, at(4));
        assert_eq!(neighbors.look_up(address(1), at(5)), Answer::Found(MAC));
    }

    #[test]
    fn strangers_are_bounded_and_not_learned_unasked() {
        let mut neighbors = Neighbors::default();
        neighbors.learn(address(1), MAC, false, at(0));
        assert!(neighbors.entries.is_empty());
        for n in 0..5000 {
            neighbors.learn(address(n), MAC, true, at(i64::from(n)));
        }
        assert_eq!(neighbors.entries.len(), ENTRIES_MAX);
        assert!(neighbors.find(address(4999)).is_ok());
        neighbors.learn(address(9999), Mac::BROADCAST, true, at(0));
        assert!(neighbors.find(address(9999)).is_err());
    }
}
