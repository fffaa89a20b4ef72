//! What has happened lately, for those who want to know.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use fcap_api::Event;
use tokio::sync::watch;

/// Events kept for those who ask later.
const KEPT: usize = 1024;

/// Recent events in the order in which they happened.
pub struct Events {
    ring: Mutex<Ring>,
    count: watch::Sender<u64>,
}

struct Ring {
    events: VecDeque<Event>,
    /// Number of the first event in `events`, counted from the daemon's start.
    first: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self { ring: Mutex::new(Ring { events: VecDeque::new(), first: 0 }), count: watch::Sender::new(0) }
    }
}

impl Events {
    /// Adds an event.
    pub fn push(&self, event: Event) {
        let mut ring = self.ring.lock().unwrap();
        if ring.events.len() == KEPT {
            ring.events.pop_front();
            ring.first += 1;
        }
        ring.events.push_back(event);
        self.count.send_replace(ring.first + ring.events.len() as u64);
    }

    /// A reader of the kept events since a time, or only of those to come.
    pub fn reader(self: &Arc<Self>, since_ms: Option<u64>) -> Reader {
        let ring = self.ring.lock().unwrap();
        let skipped = since_ms.map_or(ring.events.len(), |since| {
            ring.events.iter().position(|event| event.time_ms >= since).unwrap_or(ring.events.len())
        });
        Reader { events: self.clone(), next: ring.first + skipped as u64, count: self.count.subscribe() }
    }
}

/// A place in the sequence of events. One that falls behind by more than the kept events
/// continues with the oldest that is left.
pub struct Reader {
    events: Arc<Events>,
    next: u64,
    count: watch::Receiver<u64>,
}

impl Reader {
    /// The events since the last call.
    pub fn read(&mut self) -> Vec<Event> {
        self.count.mark_unchanged();
        let ring = self.events.ring.lock().unwrap();
        let skip = self.next.saturating_sub(ring.first);
        let new: Vec<_> =
            ring.events.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)).cloned().collect();
        self.next = ring.first + ring.events.len() as u64;
        new
    }

    /// Waits until there may be more.
    pub async fn wait(&mut self) {
        // The sender lives in `self.events`, so this cannot fail.
        let _ = self.count.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fcap_api::Action;

    fn event(time_ms: u64) -> Event {
        Event {
            time_ms,
            action: Action::Start,
            id: "i".into(),
            name: "n".into(),
            node: "k".into(),
            end: None,
        }
    }

    fn times(events: Vec<Event>) -> Vec<u64> {
        events.into_iter().map(|event| event.time_ms).collect()
    }

    #[test]
    fn readers_start_where_they_ask_and_miss_nothing_within_bounds() {
        let events = Arc::new(Events::default());
        (0..10).for_each(|time| events.push(event(time)));
        let (mut late, mut new) = (events.reader(Some(7)), events.reader(None));
        assert_eq!(times(late.read()), [7, 8, 9]);
        assert_eq!(times(new.read()), [0; 0]);
        events.push(event(10));
        assert_eq!((times(late.read()), times(new.read())), (vec![10], vec![10]));
    }

    #[test]
    fn a_reader_that_falls_behind_goes_on_with_what_is_left() {
        let events = Arc::new(Events::default());
        let mut reader = events.reader(None);
        (0..KEPT as u64 + 5).for_each(|time| events.push(event(time)));
        assert_eq!(times(reader.read()), (5..KEPT as u64 + 5).collect::<Vec<_>>());
    }
}
