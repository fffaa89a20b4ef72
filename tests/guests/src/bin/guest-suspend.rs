//! Works while it is suspended, moved and copied, and says at once when something is wrong.
//!
//! Each turn rewrites some of its memory and verifies another part, looks at the clock and at
//! its timers. Everything that it notices is a line of its own; lines are numbered, so that one
//! that is lost or doubled shows. With every full look at its memory it says what its clocks
//! show: milliseconds since it began, and since the Unix epoch. Arguments: MiB of memory (4), milliseconds between turns (20).
#![no_std]
#![no_main]

extern crate alloc;

use alloc::{rc::Rc, vec, vec::Vec};
use core::cell::Cell;
use libos::{
    DomId, Page, env,
    gnttab::{Access, Grant},
    lifecycle, println, random, spawn,
    time::{self, Duration, Instant, SystemTime},
    xenstore,
};

/// Words of a page.
const PAGE: usize = 512;

/// What page `index` holds after it was written in turn `turn`.
fn word(index: usize, turn: u64, at: usize) -> u64 {
    let seed = (index as u64) << 40 ^ turn << 12 ^ at as u64;
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ turn
}

/// Memory of which the right content is known.
struct Memory {
    words: Vec<u64>,
    turns: Vec<u64>,
}

impl Memory {
    fn new(pages: usize) -> Self {
        let mut memory = Self { words: vec![0; pages * PAGE], turns: vec![0; pages] };
        (0..pages).for_each(|index| memory.write(index, 1));
        memory
    }

    fn pages(&self) -> usize {
        self.turns.len()
    }

    fn write(&mut self, index: usize, turn: u64) {
        self.turns[index] = turn;
        for (at, place) in self.words[index * PAGE..][..PAGE].iter_mut().enumerate() {
            *place = word(index, turn, at);
        }
    }

    fn verify(&self, index: usize) {
        for (at, &found) in self.words[index * PAGE..][..PAGE].iter().enumerate() {
            let expected = word(index, self.turns[index], at);
            assert!(found == expected, "page {index} word {at}: {found:#x} instead of {expected:#x}");
        }
    }
}

#[libos::main]
async fn main() {
    let mut numbers = env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let mib: usize = numbers.next().unwrap_or(4);
    let period = Duration::from_millis(numbers.next().unwrap_or(20) as u64);

    let line = Rc::new(Cell::new(0u64));
    let say = {
        let line = line.clone();
        move |text: core::fmt::Arguments<'_>| {
            line.set(line.get() + 1);
            println!("{} {text}", line.get());
        }
    };

    lifecycle::on_suspend({
        let say = say.clone();
        async move |reason| {
            // Hooks may wait, and everything works meanwhile.
            time::sleep(Duration::from_millis(1)).await;
            say(format_args!("suspend {reason:?}"));
        }
    });
    lifecycle::on_resume({
        let say = say.clone();
        move |place| {
            let name = env::capsule_name().unwrap_or_default();
            say(format_args!("resume {place:?} random {:x} {name}", random::u64()));
        }
    });

    spawn({
        let say = say.clone();
        async move {
            let mut watch = xenstore::watch("data/test").await.expect("the node can be watched");
            loop {
                let path = watch.next().await;
                let value = xenstore::read(&path).await.unwrap_or_default();
                say(format_args!("watch {}", str::from_utf8(&value).unwrap_or("?")));
            }
        }
    });

    let page = Page::new();
    page.write(0, b"granted");
    let grant = Grant::new(page, DomId::DOM0, Access::ReadWrite).expect("a page can be granted");
    say(format_args!("grant {}", grant.reference().0));

    let mut memory = Memory::new(mib * 256);
    // Allocations come and go, so that free memory is not always the same.
    let mut heap: Vec<Vec<u8>> = Vec::new();
    let first = Instant::now();
    let (mut previous, mut previous_wall) = (first, Duration::ZERO);
    let mut ticks = time::interval(period);
    for turn in 2u64.. {
        ticks.tick().await;
        let now = Instant::now();
        assert!(now >= previous, "the clock has gone back");
        let stood = now - previous;
        if stood > Duration::from_secs(2) {
            say(format_args!("gap {} ms", stood.as_millis()));
        }
        previous = now;
        for step in 0..16 {
            let index = turn as usize * 16 + step;
            memory.write(index * 7 % memory.pages(), turn);
            memory.verify(index * 5 % memory.pages());
        }
        if heap.len() > 8 {
            heap.swap_remove(turn as usize % 8);
        }
        heap.push(vec![turn as u8; 1 + turn as usize * 6151 % 50_000]);
        assert!(heap.iter().all(|bytes| bytes.iter().all(|&byte| byte == bytes[0])), "the heap is damaged");
        let mut text = [0; 7];
        grant.read(0, &mut text);
        assert!(&text == b"granted", "the granted page is damaged");
        if turn.is_multiple_of(25) {
            (0..memory.pages()).for_each(|index| memory.verify(index));
            let wall = SystemTime::now().since_epoch();
            assert!(wall >= previous_wall, "the time of day has gone back");
            previous_wall = wall;
            say(format_args!("clocks {} {}", first.elapsed().as_millis(), wall.as_millis()));
            say(format_args!("turn {turn}"));
        }
    }
}
