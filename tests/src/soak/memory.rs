//! A capsule that verifies memory which it keeps rewriting moves again and again: not a byte is
//! wrong, no line is lost, and its clocks lose no more than it stood still.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::moves::{self, Diary};
use crate::rig::{self, Node};

/// MiB that it rewrites, and all that it has.
const MIB: &str = "64";
const MEMORY: &str = "80m";
/// What is allowed between what its clock shows and when that was read here.
const READING: Duration = Duration::from_secs(2);

/// Moves it so many times.
pub fn run(times: u32) -> anyhow::Result<()> {
    let [one, two] = Node::two(false)?;
    moves::start(&one, "guest", &["-m", MEMORY], "guest-suspend", &[MIB, "20"])?;
    let clock = |node: &Node| Diary::read(node, "guest").clocks().last().copied();
    rig::wait_until("it has verified all its memory", || Ok(clock(&one).is_some()))?;
    // One that it wrote just now: the last may be as old as a look at all its memory takes.
    let old = clock(&one);
    rig::wait_until("it has verified all of it again", || Ok(clock(&one) != old))?;
    let (began, (first, _)) = (Instant::now(), clock(&one).context("it has a clock")?);
    let mut downtimes = Vec::new();
    for i in 0..times {
        let (from, to) = if i % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let moved = moves::move_it(from, to, "guest").with_context(|| format!("move {}", i + 1))?;
        moves::is_well(to, "guest").with_context(|| format!("after move {}", i + 1))?;
        moves::nothing_left(from)?;
        let diary = Diary::read(to, "guest");
        diary.check().with_context(|| format!("after move {}", i + 1))?;
        downtimes.push(moved.downtime_ms);
        // Its own clock goes on while it stands still, or loses just that.
        let stood = Duration::from_secs_f64(downtimes.iter().sum::<f64>() / 1e3);
        let (elapsed, (last, wall)) = (began.elapsed(), clock(to).context("it has a clock")?);
        ensure!(
            last - first + stood + READING >= elapsed && last - first <= elapsed + READING,
            "move {}: its clock shows {:?} after {elapsed:?}, of which it stood {stood:?}",
            i + 1,
            last - first
        );
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        ensure!(now.abs_diff(wall) < 2 * READING, "move {}: its time of day is {wall:?} at {now:?}", i + 1);
        if (i + 1) % 10 == 0 {
            println!("{} moves; the last one stood {:.1} ms", i + 1, moved.downtime_ms);
        }
    }
    downtimes.sort_by(f64::total_cmp);
    println!(
        "{times} moves of {MIB} MiB that are rewritten: no byte wrong, no line lost, no clock back; \
         downtime {:.1} ms in the middle, {:.1} ms at most",
        downtimes[downtimes.len() / 2],
        downtimes[downtimes.len() - 1]
    );
    Ok(())
}
