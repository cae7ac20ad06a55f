//! Rate limit of a log line: an event that repeats is logged once every 30 seconds, with its count.
use std::time::{Duration, Instant};

/// Shortest time between two log lines of one event.
const PAUSE: Duration = Duration::from_secs(30);

/// One event that repeats.
#[derive(Debug, Default)]
pub struct Seldom {
    told: Option<Instant>,
    /// Events since then.
    untold: u64,
}

impl Seldom {
    /// Counts one event. Returns the events since the last log line, this one included, where it is time for
    /// another line.
    pub fn happened(&mut self) -> Option<u64> {
        self.happened_at(Instant::now())
    }

    fn happened_at(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now < told + PAUSE) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_often_is_told_once_in_a_while_with_how_often() {
        let (mut seldom, start) = (Seldom::default(), Instant::now());
        let told: Vec<_> = (0..65).filter_map(|second| seldom.happened_at(start + Duration::from_secs(second))).collect();
        assert_eq!(told, [1, 30, 30]);
    }
}
