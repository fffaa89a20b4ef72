//! The console page of a running domain.
//!
//! Layout and meaning are in [`xen_proto::console`]. The domain can write anything anywhere in
//! its page at any time; whatever it does there, it gets at worst garbage logged, 2 KiB for
//! each look that the daemon takes, or no input. The indexes that are ours to write (what we
//! have read, what we have put in) are kept here and never read back.

use std::sync::{
    Mutex, MutexGuard,
    atomic::{Ordering, fence},
};

use xen_proto::console::{self as page, EndKind};

use super::sys::Mapping;
use crate::toolstack::Epitaph;

/// Our end of a console page.
#[derive(Debug)]
pub struct Console {
    page: Mapping,
    /// Consumer index of the output ring.
    out_cons: Mutex<u32>,
    input: Mutex<Input>,
}

#[derive(Debug)]
struct Input {
    /// Producer index of the input ring.
    prod: u32,
    /// `HOST_FLAGS`.
    flags: u32,
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOutcome {
    /// Bytes taken.
    pub len: usize,
    /// Whether the domain may be waiting for room.
    pub notify: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in `keep` leaves the indexes as they were.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Console {
    /// Takes a page that a builder has just filled with zeros; with `HOST_*` flags.
    pub fn new(page: Mapping, flags: u32) -> Self {
        page.write_u64(page::STATUS, page::STATUS_MAGIC);
        page.write_u32(page::HOST_FLAGS, flags);
        Self { page, out_cons: Mutex::new(0), input: Mutex::new(Input { prod: 0, flags }) }
    }

    /// Takes the page of a domain that runs, after an earlier daemon.
    pub fn adopt(page: Mapping) -> Self {
        let out_cons = Mutex::new(page.read_u32(page::OUT_CONS));
        let input =
            Mutex::new(Input { prod: page.read_u32(page::IN_PROD), flags: page.read_u32(page::HOST_FLAGS) });
        Self { page, out_cons, input }
    }

    /// Changes `HOST_*` flags: sets some, then clears some.
    pub fn change_flags(&self, set: u32, clear: u32) {
        let mut input = lock(&self.input);
        input.flags = (input.flags | set) & !clear;
        // After whatever the flags tell of: the last input, xenstored's answer.
        fence(Ordering::Release);
        self.page.write_u32(page::HOST_FLAGS, input.flags);
    }

    /// The `HOST_*` flags as they were last set.
    pub fn flags(&self) -> u32 {
        lock(&self.input).flags
    }

    /// `GUEST_*` flags, as the domain has them now.
    pub fn guest_flags(&self) -> u32 {
        self.page.read_u32(page::GUEST_FLAGS)
    }

    /// Frame of the page by which the domain tracks its writes, as it says; 0 while there is none.
    pub fn tracking(&self) -> u32 {
        self.page.read_u32(page::TRACKING)
    }

    /// Asks the domain to have so many pages of memory; returns the number of the request.
    pub fn request_memory(&self, pages: u32) -> u32 {
        let last = self.page.read_u32(page::MEMORY_REQUEST);
        // An answer to an earlier one that still comes is none to this.
        let request = last.wrapping_add(if last.wrapping_add(1) == self.memory_answer() { 2 } else { 1 });
        self.page.write_u32(page::MEMORY_TARGET, pages);
        // The number is there after what it is about.
        fence(Ordering::Release);
        self.page.write_u32(page::MEMORY_REQUEST, request);
        request
    }

    /// Takes the request for other memory back.
    pub fn withdraw_memory(&self) {
        self.page.write_u32(page::MEMORY_TARGET, 0);
    }

    /// Number of the last request for other memory that the domain has answered, as it says.
    pub fn memory_answer(&self) -> u32 {
        self.page.read_u32(page::MEMORY_ANSWER)
    }

    /// Leaves records for a domain that goes on, at most [`page::RESUME_LEN`] bytes.
    pub fn write_resume(&self, records: &[u8]) {
        assert!(records.len() <= page::RESUME_LEN, "{} bytes of records", records.len());
        let (head, rest) = records.split_at(records.len().min(page::RESUME_HEAD));
        self.page.write(page::RESUME, head);
        self.page.write(page::MESSAGE, rest);
    }

    /// Bytes taken so far, modulo 2^32.
    pub fn output_position(&self) -> u32 {
        *lock(&self.out_cons)
    }

    /// Takes at most `max` bytes of output, if `keep` agrees when it sees them.
    pub fn read_output(&self, max: usize, keep: &mut dyn FnMut(&[u8]) -> bool) -> ReadOutcome {
        let mut cons = lock(&self.out_cons);
        let prod = self.page.read_u32(page::OUT_PROD);
        // The bytes are read after the index that says they are there.
        fence(Ordering::Acquire);
        let mut from = *cons;
        let mut available = prod.wrapping_sub(from) as usize;
        if available > page::OUT_LEN {
            // The index is nonsense: take one ring's worth, whatever it is, and go on from there.
            available = page::OUT_LEN;
            from = prod.wrapping_sub(available as u32);
        }
        let len = available.min(max);
        if len == 0 {
            return ReadOutcome { len: 0, notify: false };
        }
        let mut bytes = [0; page::OUT_LEN];
        let bytes = &mut bytes[..len];
        let at = from as usize % page::OUT_LEN;
        let (head, tail) = bytes.split_at_mut(len.min(page::OUT_LEN - at));
        self.page.read(page::OUT + at, head);
        self.page.read(page::OUT, tail);
        if !keep(bytes) {
            return ReadOutcome { len: 0, notify: false };
        }
        // The bytes are read before the room is given back.
        fence(Ordering::Release);
        *cons = from.wrapping_add(len as u32);
        self.page.write_u32(page::OUT_CONS, *cons);
        // A domain that found the ring full waits for a word from us. Either it sees the index
        // just written, or we see here that it has filled the ring up to the old one: both
        // sides write, then read, with a full barrier between. It may want room for more than
        // one byte, so "full" begins at half.
        fence(Ordering::SeqCst);
        let filled = self.page.read_u32(page::OUT_PROD).wrapping_sub(from) as usize;
        ReadOutcome { len, notify: filled >= page::OUT_LEN / 2 }
    }

    /// Puts input into the ring; returns how many bytes there was room for.
    pub fn write_input(&self, bytes: &[u8]) -> usize {
        let mut input = lock(&self.input);
        let cons = self.page.read_u32(page::IN_CONS);
        // The domain has read the bytes whose room is used again.
        fence(Ordering::Acquire);
        let used = input.prod.wrapping_sub(cons) as usize;
        // A consumer index that is nonsense gets no input.
        let len = page::IN_LEN.saturating_sub(used).min(bytes.len());
        let at = input.prod as usize % page::IN_LEN;
        let (head, tail) = bytes[..len].split_at(len.min(page::IN_LEN - at));
        self.page.write(page::IN + at, head);
        self.page.write(page::IN, tail);
        // The bytes are there before the index that says so.
        fence(Ordering::Release);
        input.prod = input.prod.wrapping_add(len as u32);
        self.page.write_u32(page::IN_PROD, input.prod);
        len
    }

    /// What the domain says of its end, if it does.
    pub fn epitaph(&self) -> Option<Epitaph> {
        let kind = EndKind::from_u32(self.page.read_u32(page::END_KIND))?;
        // The kind is written last.
        fence(Ordering::Acquire);
        let exit_code = self.page.read_u32(page::EXIT_CODE) as i32;
        let len = (self.page.read_u32(page::MESSAGE_LEN) as usize).min(page::MESSAGE_MAX);
        let mut message = [0; page::MESSAGE_MAX];
        self.page.read(page::MESSAGE, &mut message[..len]);
        let message = String::from_utf8_lossy(&message[..len]).into_owned();
        let len = (self.page.read_u32(page::BACKTRACE_LEN) as usize).min(page::BACKTRACE_MAX);
        let backtrace = (0..len).map(|index| self.page.read_u64(page::BACKTRACE + 8 * index)).collect();
        Some(Epitaph { kind, exit_code, message, backtrace })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn console() -> Console {
        Console::new(Mapping::for_test(1), page::HOST_STDIN)
    }

    /// Writes as a guest does, without looking whether there is room.
    fn guest_writes(console: &Console, bytes: &[u8]) {
        let mut prod = console.page.read_u32(page::OUT_PROD);
        for &byte in bytes {
            console.page.write(page::OUT + prod as usize % page::OUT_LEN, &[byte]);
            prod = prod.wrapping_add(1);
        }
        console.page.write_u32(page::OUT_PROD, prod);
    }

    fn take(console: &Console, max: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        let outcome = console.read_output(max, &mut |bytes| {
            taken.extend_from_slice(bytes);
            true
        });
        assert_eq!(outcome.len, taken.len());
        taken
    }

    #[test]
    fn what_is_not_kept_is_shown_again() {
        let console = console();
        guest_writes(&console, b"hello");
        assert_eq!(console.read_output(100, &mut |_| false).len, 0);
        assert_eq!(console.output_position(), 0);
        assert_eq!(take(&console, 2), b"he");
        assert_eq!(take(&console, 100), b"llo");
        assert_eq!(console.output_position(), 5);
    }

    #[test]
    fn a_guest_that_filled_the_ring_is_told_of_room() {
        let console = console();
        guest_writes(&console, &[b'x'; page::OUT_LEN]);
        assert!(console.read_output(1, &mut |_| true).notify);
        let outcome = console.read_output(page::OUT_LEN, &mut |_| true);
        assert_eq!(outcome, ReadOutcome { len: page::OUT_LEN - 1, notify: true });
        guest_writes(&console, b"x");
        assert!(!console.read_output(1, &mut |_| true).notify);
    }

    #[test]
    fn input_stops_at_a_full_ring_and_goes_on() {
        let console = console();
        assert_eq!(console.write_input(&[1; 2000]), page::IN_LEN);
        assert_eq!(console.write_input(&[2; 10]), 0);
        console.page.write_u32(page::IN_CONS, 5);
        assert_eq!(console.write_input(&[2; 10]), 5);
        let mut start = [0; 6];
        console.page.read(page::IN, &mut start);
        assert_eq!(start, [2, 2, 2, 2, 2, 1]);
        assert_eq!(console.page.read_u32(page::IN_PROD), page::IN_LEN as u32 + 5);
    }

    #[test]
    fn an_adopted_console_goes_on_where_the_last_one_was() {
        let console = console();
        guest_writes(&console, b"abc");
        take(&console, 1);
        console.write_input(b"in");
        let Console { page, .. } = console;
        let console = Console::adopt(page);
        assert_eq!(take(&console, 100), b"bc");
        console.write_input(b"put");
        console.change_flags(page::HOST_EOF, 0);
        let mut input = [0; 5];
        console.page.read(page::IN, &mut input);
        assert_eq!(&input, b"input");
        assert_eq!(console.page.read_u32(page::HOST_FLAGS), page::HOST_STDIN | page::HOST_EOF);
    }

    #[test]
    fn a_request_for_memory_is_new_whatever_was_answered_before() {
        let console = console();
        for (last, answered) in [(0, 0), (7, 7), (7, 6), (u32::MAX, 0), (7, 8)] {
            console.page.write_u32(page::MEMORY_REQUEST, last);
            console.page.write_u32(page::MEMORY_ANSWER, answered);
            let request = console.request_memory(4096);
            assert!(request != last && request != answered, "{last} {answered}");
            assert_eq!(console.page.read_u32(page::MEMORY_REQUEST), request);
            assert_eq!(console.page.read_u32(page::MEMORY_TARGET), 4096);
        }
        console.withdraw_memory();
        assert_eq!(console.page.read_u32(page::MEMORY_TARGET), 0);
    }

    #[test]
    fn an_epitaph_is_there_once_its_kind_is() {
        let console = console();
        console.page.write_u32(page::EXIT_CODE, 101);
        console.page.write_u32(page::MESSAGE_LEN, 4);
        console.page.write(page::MESSAGE, b"o\xffps");
        console.page.write_u32(page::BACKTRACE_LEN, 1);
        console.page.write_u64(page::BACKTRACE, 42);
        assert_eq!(console.epitaph(), None);
        console.page.write_u32(page::END_KIND, EndKind::Panicked as u32);
        let message = "o\u{fffd}ps".into();
        let expected = Epitaph { kind: EndKind::Panicked, exit_code: 101, message, backtrace: vec![42] };
        assert_eq!(console.epitaph(), Some(expected));
    }

    proptest! {
        #[test]
        fn no_page_content_hurts(
            indexes: [u32; 4],
            status in proptest::collection::vec(any::<u32>(), 128),
            max in 0usize..5000,
        ) {
            let console = console();
            for (index, value) in indexes.into_iter().enumerate() {
                console.page.write_u32(page::IN_CONS + 4 * index, value);
            }
            for (index, value) in status.into_iter().enumerate() {
                console.page.write_u32(page::STATUS + 4 * index, value);
            }
            let mut taken = 0;
            for _ in 0..4 {
                taken += take(&console, max).len();
            }
            // One ring's worth, and then there is nothing more.
            prop_assert!(taken <= page::OUT_LEN);
            prop_assert!(console.write_input(&[0; 3000]) <= page::IN_LEN);
            if let Some(epitaph) = console.epitaph() {
                prop_assert!(epitaph.message.len() <= 3 * page::MESSAGE_MAX);
                prop_assert!(epitaph.backtrace.len() <= page::BACKTRACE_MAX);
            }
        }

        #[test]
        fn output_arrives_whole(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..700), 0..30)) {
            let console = console();
            let mut arrived = Vec::new();
            for chunk in &chunks {
                guest_writes(&console, chunk);
                arrived.extend(take(&console, page::OUT_LEN));
            }
            prop_assert_eq!(arrived, chunks.concat());
        }
    }
}
