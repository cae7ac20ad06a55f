//! How tasks were decided in the last minutes: a window that moves on, in parts of half a minute.
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use delo_proto as pb;

/// Length of a part of the window.
const PART: Duration = Duration::from_secs(30);
/// Parts of the window, the one that is being counted included.
const PARTS: usize = 10;

/// What was decided in the last [`PARTS`] times [`PART`].
#[derive(Clone, Debug)]
pub struct Recent {
    began: Instant,
    /// The latest is the last.
    parts: VecDeque<Part>,
}

#[derive(Clone, Debug, Default)]
struct Part {
    /// Parts since `began`.
    number: u64,
    of_tasks: BTreeMap<Arc<str>, Decisions>,
}

/// Decisions for one task.
#[derive(Clone, Copy, Debug, Default)]
struct Decisions {
    samples: u64,
    /// Those that had a probability, and the sum of them.
    probable: u64,
    probability: f64,
    outcomes: u64,
    right: u64,
}

impl Decisions {
    fn add(&mut self, other: &Self) {
        self.samples += other.samples;
        self.probable += other.probable;
        self.probability += other.probability;
        self.outcomes += other.outcomes;
        self.right += other.right;
    }

    fn shown(&self, window_seconds: f64) -> pb::RecentRouting {
        pb::RecentRouting {
            window_seconds,
            samples: self.samples,
            expected_accuracy: (self.probable > 0).then(|| self.probability / self.probable as f64),
            outcomes: self.outcomes,
            right: self.right,
        }
    }
}

impl Default for Recent {
    fn default() -> Self {
        Self { began: Instant::now(), parts: VecDeque::new() }
    }
}

impl Recent {
    /// A sample was routed to `task`.
    pub fn routed(&mut self, task: &str, probability: Option<f32>, now: Instant) {
        let decisions = self.decisions(task, now);
        decisions.samples += 1;
        if let Some(probability) = probability {
            decisions.probable += 1;
            decisions.probability += f64::from(probability);
        }
    }

    /// The truth about a sample that had been routed to `task`.
    pub fn outcome(&mut self, task: &str, right: bool, now: Instant) {
        let decisions = self.decisions(task, now);
        decisions.outcomes += 1;
        decisions.right += u64::from(right);
    }

    /// The window over all tasks, and for each of them.
    pub fn shown(&mut self, now: Instant) -> (pb::RecentRouting, BTreeMap<Arc<str>, pb::RecentRouting>) {
        self.move_to(now);
        let age = now.saturating_duration_since(self.began);
        let of_part = Duration::from_nanos(u64::try_from(age.as_nanos() % PART.as_nanos()).unwrap_or_default());
        let window = age.min(PART * (PARTS as u32 - 1) + of_part).as_secs_f64();
        let (mut all, mut of_tasks) = (Decisions::default(), BTreeMap::<Arc<str>, Decisions>::new());
        for (task, decisions) in self.parts.iter().flat_map(|part| &part.of_tasks) {
            all.add(decisions);
            of_tasks.entry(task.clone()).or_default().add(decisions);
        }
        (all.shown(window), of_tasks.into_iter().map(|(task, decisions)| (task, decisions.shown(window))).collect())
    }

    fn decisions(&mut self, task: &str, now: Instant) -> &mut Decisions {
        let part = self.move_to(now);
        if !part.of_tasks.contains_key(task) {
            part.of_tasks.insert(task.into(), Decisions::default());
        }
        part.of_tasks.entry(task.into()).or_default()
    }

    /// Drops what is older than the window, and gives the part of this moment.
    fn move_to(&mut self, now: Instant) -> &mut Part {
        let number = u64::try_from(now.saturating_duration_since(self.began).as_nanos() / PART.as_nanos()).unwrap_or(u64::MAX);
        self.parts.retain(|part| part.number + PARTS as u64 > number);
        if self.parts.back().is_none_or(|part| part.number < number) {
            self.parts.push_back(Part { number, ..Part::default() });
        }
        let latest = self.parts.len() - 1;
        &mut self.parts[latest]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_moves_on_and_counts_each_task() {
        let mut recent = Recent::default();
        let at = |seconds| recent_began() + Duration::from_secs(seconds);
        recent.began = at(0);
        recent.routed("food", Some(0.5), at(1));
        recent.routed("food", Some(1.0), at(40));
        recent.routed("travel", None, at(50));
        recent.outcome("food", true, at(60));
        recent.outcome("food", false, at(60));
        let (all, of_tasks) = recent.shown(at(61));
        assert_eq!((all.samples, all.expected_accuracy, all.outcomes, all.right, all.window_seconds), (3, Some(0.75), 2, 1, 61.0));
        assert_eq!((of_tasks["food"].samples, of_tasks["travel"].samples, of_tasks["travel"].expected_accuracy), (2, 1, None));
        // The first half minute has left the window.
        let (all, _) = recent.shown(at(301));
        assert_eq!((all.samples, all.expected_accuracy, all.window_seconds), (2, Some(1.0), 271.0));
        assert_eq!(recent.shown(at(10_000)).0.samples, 0);
        assert_eq!(recent.parts.len(), 1);
    }

    fn recent_began() -> Instant {
        static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *BEGAN.get_or_init(Instant::now)
    }
}
