//! Rate limit of a log line: an event that repeats is logged once every 30 seconds, with its count.
use std::time::{Duration, Instant};

/// Shortest time between two log lines of one event.
const PAUSE: Duration = Duration::from_secs(30);

/// One event that repeats.
#[derive(Debug, Default)]
pub struct Seldom {
    logged: Option<Instant>,
    /// Events since then, not logged yet.
    unlogged: u64,
}

impl Seldom {
    /// Counts one event. Returns the events since the last log line, this one included, where it is time for
    /// another line.
    pub fn happened(&mut self) -> Option<u64> {
        self.happened_at(Instant::now())
    }

    fn happened_at(&mut self, now: Instant) -> Option<u64> {
        self.unlogged += 1;
        if self.logged.is_some_and(|logged| now < logged + PAUSE) {
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frequent_event_is_logged_once_in_a_while_with_its_count() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        let logged: Vec<_> = (0..65).filter_map(|second| seldom.happened_at(start + Duration::from_secs(second))).collect();
        assert_eq!(logged, [1, 30, 30]);
    }
}
