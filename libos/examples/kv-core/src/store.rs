//! The keys and their values, with the times when they end.
//!
//! Time is milliseconds on a clock that never goes back; [`Store::advance`] sets it. A key
//! whose time is over is not there any more, whether or not its memory was given back yet.

use crate::{
    memory::{Memory, OutOfMemory},
    reply::decimal,
    request::integer,
};
use alloc::{collections::BTreeSet, rc::Rc, vec::Vec};
use core::hash::BuildHasher;
use hashbrown::HashMap;
use siphasher::sip::SipHasher13;

/// Bytes that a key may have.
pub const MAX_KEY: usize = 64 * 1024;
/// Keys that [`Store::advance`] removes at a time.
const SWEEP: usize = 64;
/// What a key's place in the order of deadlines takes, about.
const DEADLINE_COST: usize = 48;

/// The keyed hash that keeps clients from choosing keys that collide.
#[derive(Clone, Copy, Debug)]
struct Keyed(u64, u64);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

type Key = Rc<[u8]>;

#[derive(Debug)]
struct Entry {
    value: Vec<u8>,
    deadline: Option<u64>,
}

/// What becomes of the time when a key ends, when its value is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// It does not end.
    Never,
    /// It stays as it was.
    Keep,
    /// It ends then.
    At(u64),
}

/// A value cannot be counted up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CountError {
    /// It is no number.
    #[error("value is not an integer or out of range")]
    NotInteger,
    /// The result would have more than 64 bits.
    #[error("increment or decrement would overflow")]
    Overflow,
    /// There is no room for it.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

/// The store.
#[derive(Debug)]
pub struct Store {
    map: HashMap<Key, Entry, Keyed>,
    /// All keys that end, in that order.
    deadlines: BTreeSet<(u64, Key)>,
    memory: Memory,
    now: u64,
    expired: u64,
}

impl Store {
    /// An empty store, which takes its memory from `memory`; `seed` is random.
    pub fn new(memory: &Memory, seed: (u64, u64)) -> Self {
        Self {
            map: HashMap::with_hasher(Keyed(seed.0, seed.1)),
            deadlines: BTreeSet::new(),
            memory: memory.clone(),
            now: 0,
            expired: 0,
        }
    }

    /// Sets the time, and gives back memory of a few keys whose time is over.
    pub fn advance(&mut self, now: u64) {
        self.now = self.now.max(now);
        self.sweep(SWEEP);
    }

    /// The time.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The account.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// How many keys there are.
    pub fn count(&mut self) -> usize {
        self.sweep(usize::MAX);
        self.map.len()
    }

    /// How many of them will end.
    pub fn ending(&self) -> usize {
        self.deadlines.len()
    }

    /// How many keys have gone because their time was over.
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// The value of `key`.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.live(key).map(|entry| &*entry.value)
    }

    /// Whether there is such a key.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.live(key).is_some()
    }

    /// All keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.map.iter().filter(|(_, entry)| entry.is_live(self.now)).map(|(key, _)| &**key)
    }

    /// When `key` ends: `None` if there is no such key, `Some(None)` if it does not end.
    pub fn deadline(&self, key: &[u8]) -> Option<Option<u64>> {
        self.live(key).map(|entry| entry.deadline)
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    /// If there is no room; then nothing has changed.
    pub fn set(&mut self, key: &[u8], value: &[u8], deadline: Deadline) -> Result<(), OutOfMemory> {
        // Most often there is such a key, with room for the value and no deadline.
        if let Some(entry) = self.map.get_mut(key)
            && entry.deadline.is_none()
            && !matches!(deadline, Deadline::At(_))
            && entry.has_room(value.len())
        {
            entry.value.clear();
            entry.value.extend_from_slice(value);
            return Ok(());
        }
        let kept = self.live(key).and_then(|entry| entry.deadline);
        let deadline = match deadline {
            Deadline::Never => None,
            Deadline::Keep => kept,
            Deadline::At(at) => Some(at),
        };
        self.replace(key, value, &[], value.len(), deadline)
    }

    /// Appends to the value of `key`, which is empty if there is none, and returns its length.
    ///
    /// # Errors
    /// If there is no room; then nothing has changed.
    pub fn append(&mut self, key: &[u8], more: &[u8]) -> Result<usize, OutOfMemory> {
        self.forget_expired(key);
        let Some(entry) = self.map.get_mut(key) else {
            return self.set(key, more, Deadline::Never).map(|()| more.len());
        };
        let len = entry.value.len() + more.len();
        if len <= entry.value.capacity() {
            entry.value.extend_from_slice(more);
            return Ok(len);
        }
        let (deadline, old) = (entry.deadline, core::mem::take(&mut entry.value));
        // Doubled, so that many small pieces move little; no more than is needed if that
        // is too much.
        let roomy = len.max(old.capacity() * 2);
        let replaced = self
            .replace(key, &old, more, roomy, deadline)
            .or_else(|_| self.replace(key, &old, more, len, deadline));
        match (replaced, self.map.get_mut(key)) {
            (Err(error), Some(entry)) => {
                entry.value = old;
                Err(error)
            }
            _ => {
                self.memory.give(block(old.capacity()));
                Ok(len)
            }
        }
    }

    /// Adds to a number, which is 0 if there is none, and returns the sum.
    ///
    /// # Errors
    /// If the value is no number, the sum is too large, or there is no room; then nothing
    /// has changed.
    pub fn add(&mut self, key: &[u8], by: i64) -> Result<i64, CountError> {
        let value = self.get(key).unwrap_or(b"0");
        let sum = integer(value).ok_or(CountError::NotInteger)?;
        let sum = sum.checked_add(by).ok_or(CountError::Overflow)?;
        let mut digits = [0; 20];
        let mut at = decimal(&mut digits, sum.unsigned_abs());
        if sum < 0 {
            at -= 1;
            digits[at] = b'-';
        }
        self.set(key, &digits[at..], Deadline::Keep)?;
        Ok(sum)
    }

    /// Sets or clears the time when `key` ends, and tells whether there is such a key.
    ///
    /// # Errors
    /// If there is no room to note it.
    pub fn expire(&mut self, key: &[u8], deadline: Option<u64>) -> Result<bool, OutOfMemory> {
        self.forget_expired(key);
        let Some(entry) = self.map.get(key) else { return Ok(false) };
        if deadline.is_some() && entry.deadline.is_none() {
            self.take(DEADLINE_COST)?;
        }
        self.set_deadline(key, deadline);
        Ok(true)
    }

    /// Removes `key`, and tells whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let was_there = self.contains(key);
        self.forget(key);
        was_there
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        let entries: usize = self.map.iter().map(|(key, entry)| cost(key, entry)).sum();
        self.memory.give(entries + self.map.allocation_size());
        self.deadlines.clear();
        // A table that is only cleared would keep its size.
        self.map = HashMap::with_hasher(*self.map.hasher());
    }

    fn live(&self, key: &[u8]) -> Option<&Entry> {
        self.map.get(key).filter(|entry| entry.is_live(self.now))
    }

    /// Gives `key` a value of two parts, in a piece of memory of its own.
    fn replace(
        &mut self,
        key: &[u8],
        first: &[u8],
        second: &[u8],
        capacity: usize,
        deadline: Option<u64>,
    ) -> Result<(), OutOfMemory> {
        self.forget_expired(key);
        let mut value = self.allocate(capacity)?;
        value.extend_from_slice(first);
        value.extend_from_slice(second);
        let value_cost = block(value.capacity());
        let old = self.map.get(key);
        let had_deadline = old.is_some_and(|entry| entry.deadline.is_some());
        let deadline_cost = if deadline.is_some() && !had_deadline { DEADLINE_COST } else { 0 };
        let is_new = old.is_none();
        if let Err(error) = self.take(deadline_cost) {
            self.memory.give(value_cost);
            return Err(error);
        }
        if is_new {
            if let Err(error) = self.insert(key, value) {
                self.memory.give(value_cost + deadline_cost);
                return Err(error);
            }
        } else if let Some(entry) = self.map.get_mut(key) {
            let old = core::mem::replace(&mut entry.value, value);
            self.memory.give(block(old.capacity()));
        }
        self.set_deadline(key, deadline);
        Ok(())
    }

    /// Adds a key that is not there, with a value that was charged.
    fn insert(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), OutOfMemory> {
        self.take(block(key.len() + 16))?;
        if self.grow().is_err() {
            self.memory.give(block(key.len() + 16));
            return Err(OutOfMemory);
        }
        self.map.insert(key.into(), Entry { value, deadline: None });
        Ok(())
    }

    /// Makes room for one more entry in the table.
    fn grow(&mut self) -> Result<(), OutOfMemory> {
        if self.map.len() < self.map.capacity() {
            return Ok(());
        }
        // While it grows, there are the old table and one of twice its size.
        let before = self.map.allocation_size();
        let while_growing = (before * 2).max(1024);
        self.take(while_growing)?;
        let grown = self.map.try_reserve(1);
        self.memory.give(before + while_growing - self.map.allocation_size());
        grown.map_err(|_| OutOfMemory)
    }

    /// Takes memory for a value. A large one may not be there although the account has it:
    /// what is free may be in pieces.
    fn allocate(&mut self, capacity: usize) -> Result<Vec<u8>, OutOfMemory> {
        let mut value = Vec::new();
        value.try_reserve_exact(capacity).map_err(|_| OutOfMemory)?;
        self.take(block(value.capacity()))?;
        Ok(value)
    }

    /// Takes from the account, if need be after all keys whose time is over have gone.
    fn take(&mut self, bytes: usize) -> Result<(), OutOfMemory> {
        self.memory.take(bytes).or_else(|_| {
            self.sweep(usize::MAX);
            self.memory.take(bytes)
        })
    }

    /// Sets a deadline, whose cost was taken if there was none before.
    fn set_deadline(&mut self, key: &[u8], deadline: Option<u64>) {
        let Some((key, entry)) = self.map.get_key_value_mut(key) else { return };
        let old = core::mem::replace(&mut entry.deadline, deadline);
        if old == deadline {
            return;
        }
        if let Some(old) = old {
            self.deadlines.remove(&(old, key.clone()));
            if deadline.is_none() {
                self.memory.give(DEADLINE_COST);
            }
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, key.clone()));
        }
    }

    fn forget(&mut self, key: &[u8]) {
        if let Some((key, entry)) = self.map.remove_entry(key) {
            self.memory.give(cost(&key, &entry));
            if let Some(deadline) = entry.deadline {
                self.deadlines.remove(&(deadline, key));
            }
        }
    }

    fn forget_expired(&mut self, key: &[u8]) {
        if self.map.get(key).is_some_and(|entry| !entry.is_live(self.now)) {
            self.forget(key);
            self.expired += 1;
        }
    }

    /// Removes up to `most` keys whose time is over.
    fn sweep(&mut self, most: usize) {
        for _ in 0..most {
            match self.deadlines.first() {
                Some((deadline, key)) if *deadline <= self.now => {
                    let key = key.clone();
                    self.forget(&key);
                    self.expired += 1;
                }
                _ => return,
            }
        }
    }
}

impl Entry {
    fn is_live(&self, now: u64) -> bool {
        self.deadline.is_none_or(|deadline| deadline > now)
    }

    /// Whether the value's memory does for `len` bytes without much waste.
    fn has_room(&self, len: usize) -> bool {
        (len..=len.saturating_mul(4).max(64)).contains(&self.value.capacity())
    }
}

/// What an allocation of so many bytes takes, about.
fn block(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes + 8).next_multiple_of(16).max(32) }
}

/// What an entry takes outside of the table.
fn cost(key: &Key, entry: &Entry) -> usize {
    block(key.len() + 16) + block(entry.value.capacity()) + entry.deadline.map_or(0, |_| DEADLINE_COST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{collections::BTreeMap, format, vec};
    use proptest::prelude::*;

    fn store(limit: usize) -> (Memory, Store) {
        let memory = Memory::new(limit);
        let store = Store::new(&memory, (1, 2));
        (memory, store)
    }

    #[test]
    fn a_key_ends_when_its_time_is_over() {
        let (memory, mut store) = store(1 << 20);
        store.set(b"a", b"1", Deadline::At(100)).unwrap();
        store.set(b"b", b"1", Deadline::Never).unwrap();
        store.advance(99);
        assert_eq!(store.get(b"a"), Some(&b"1"[..]));
        store.advance(100);
        assert_eq!(store.get(b"a"), None);
        assert_eq!((store.count(), store.expired(), store.ending()), (1, 1, 0));
        store.clear();
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn a_new_value_has_no_end_unless_it_is_kept() {
        let (_, mut store) = store(1 << 20);
        store.set(b"a", b"1", Deadline::At(100)).unwrap();
        store.add(b"a", 1).unwrap();
        assert_eq!(store.deadline(b"a"), Some(Some(100)));
        store.set(b"a", b"3", Deadline::Never).unwrap();
        assert_eq!(store.deadline(b"a"), Some(None));
        assert_eq!(store.ending(), 0);
    }

    #[test]
    fn counting_stops_at_the_ends_of_what_there_is() {
        let (_, mut store) = store(1 << 20);
        assert_eq!(store.add(b"n", -5), Ok(-5));
        assert_eq!(store.get(b"n"), Some(&b"-5"[..]));
        assert_eq!(store.add(b"n", i64::MIN), Err(CountError::Overflow));
        assert_eq!(store.add(b"n", i64::MIN + 5), Ok(i64::MIN));
        assert_eq!(store.get(b"n"), Some(&b"-9223372036854775808"[..]));
        store.set(b"n", b"1.5", Deadline::Never).unwrap();
        assert_eq!(store.add(b"n", 1), Err(CountError::NotInteger));
    }

    #[test]
    fn a_full_store_keeps_what_it_has_and_takes_again_when_there_is_room() {
        let (memory, mut store) = store(100_000);
        let mut keys = 0;
        while store.set(format!("{keys}").as_bytes(), &[b'x'; 100], Deadline::Never).is_ok() {
            keys += 1;
        }
        assert!(keys > 200, "{keys}");
        assert!(memory.used() <= 100_000);
        assert_eq!(store.append(b"0", &[b'y'; 100_000]), Err(OutOfMemory));
        assert_eq!(store.get(b"0"), Some(&[b'x'; 100][..]));
        assert_eq!(store.set(b"0", &vec![0; 100_000], Deadline::At(1)), Err(OutOfMemory));
        assert_eq!(store.get(b"0"), Some(&[b'x'; 100][..]));
        assert_eq!(store.count(), keys);
        // Some leave a mark in the table, and only the next key that comes by uses it.
        (0..keys / 4).for_each(|key| assert!(store.remove(format!("{key}").as_bytes())));
        assert_eq!(store.set(b"new", &[b'x'; 100], Deadline::Never), Ok(()));
    }

    #[test]
    fn keys_whose_time_is_over_make_room() {
        let (_, mut store) = store(100_000);
        let mut keys = 0;
        while store.set(format!("{keys}").as_bytes(), &[b'x'; 100], Deadline::At(10)).is_ok() {
            keys += 1;
        }
        // Not by the sweep alone, which takes a few.
        store.advance(10);
        assert_eq!(store.set(b"new", &[b'x'; 50_000], Deadline::Never), Ok(()));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(u8, usize, Deadline),
        Append(u8, usize),
        Add(u8, i64),
        Remove(u8),
        Expire(u8, Option<u64>),
        Pass(u64),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = 0u8..8;
        let deadline =
            prop_oneof![Just(Deadline::Never), Just(Deadline::Keep), (0u64..50).prop_map(Deadline::At)];
        prop_oneof![
            4 => (key.clone(), 0usize..300, deadline).prop_map(|(key, len, at)| Step::Set(key, len, at)),
            2 => (key.clone(), 0usize..300).prop_map(|(key, len)| Step::Append(key, len)),
            2 => (key.clone(), any::<i64>()).prop_map(|(key, by)| Step::Add(key, by)),
            2 => key.clone().prop_map(Step::Remove),
            2 => (key, proptest::option::of(0u64..50)).prop_map(|(key, at)| Step::Expire(key, at)),
            2 => (0u64..10).prop_map(Step::Pass),
            1 => Just(Step::Clear),
        ]
    }

    proptest! {
        /// With an account so small that steps fail, which must change nothing.
        #[test]
        fn the_store_does_what_a_plain_map_does(
            limit in 1500usize..10_000, steps in proptest::collection::vec(step(), 0..60)
        ) {
            let (memory, mut store) = store(limit);
            let mut model: BTreeMap<u8, (Vec<u8>, Option<u64>)> = BTreeMap::new();
            let mut now = 0;
            for step in steps {
                model.retain(|_, (_, end)| end.is_none_or(|end| end > now));
                match step {
                    Step::Set(key, len, deadline) => {
                        let value = vec![key; len];
                        if store.set(&[key], &value, deadline).is_ok() {
                            let end = match deadline {
                                Deadline::Never => None,
                                Deadline::Keep => model.get(&key).and_then(|&(_, end)| end),
                                Deadline::At(at) => Some(at),
                            };
                            model.insert(key, (value, end));
                        }
                    }
                    Step::Append(key, len) => {
                        if let Ok(len) = store.append(&[key], &vec![b'a'; len]) {
                            model.entry(key).or_default().0.resize(len, b'a');
                        }
                    }
                    Step::Add(key, by) => {
                        if let Ok(sum) = store.add(&[key], by) {
                            model.entry(key).or_default().0 = format!("{sum}").into();
                        }
                    }
                    Step::Remove(key) => {
                        prop_assert_eq!(store.remove(&[key]), model.remove(&key).is_some());
                    }
                    Step::Expire(key, end) => {
                        if let Ok(found) = store.expire(&[key], end) {
                            prop_assert_eq!(found, model.contains_key(&key));
                            model.entry(key).and_modify(|entry| entry.1 = end);
                        }
                    }
                    Step::Pass(time) => {
                        now += time;
                        store.advance(now);
                    }
                    Step::Clear => {
                        store.clear();
                        model.clear();
                    }
                }
                model.retain(|_, (_, end)| end.is_none_or(|end| end > now));
                for key in 0..8 {
                    let expected = model.get(&key);
                    prop_assert_eq!(store.get(&[key]), expected.map(|(value, _)| &value[..]));
                    prop_assert_eq!(store.deadline(&[key]), expected.map(|&(_, end)| end));
                }
                let entries: usize = store.map.iter().map(|(key, entry)| cost(key, entry)).sum();
                prop_assert_eq!(memory.used(), entries + store.map.allocation_size());
                prop_assert!(memory.used() <= limit);
                prop_assert_eq!(store.count(), model.len());
            }
        }
    }
}
