//! Accuracy where the samples whose task is unsure are rejected.
use serde::{Deserialize, Serialize};

/// Points of a curve, at most.
const POINTS: usize = 100;

/// Accuracy of the samples that are kept, where those of the least confidence are rejected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    /// What the confidence is: `probability` or `cosine` of the best task, whichever decides the task.
    pub confidence: String,
    /// By rising coverage; the last point keeps all samples.
    pub points: Vec<CoveragePoint>,
}

/// The samples whose confidence is at least a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoveragePoint {
    /// The share of the samples that are kept, above 0.
    pub coverage: f64,
    /// The least confidence among them.
    pub threshold: f64,
    /// The share of them whose task is right.
    pub routing: f64,
    /// The share of them whose task and class are right; null for multi-label data.
    pub accuracy: Option<f64>,
}

/// The decision of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decided {
    /// Of its task.
    pub confidence: f64,
    /// Whether its task is right.
    pub task_right: bool,
    /// Whether its task and class are right; `None` for multi-label data.
    pub right: Option<bool>,
}

impl Coverage {
    /// The curve of some decisions; `None` without any. Samples of equal confidence are kept or rejected
    /// together.
    pub fn of(confidence: &str, decisions: &[Decided]) -> Option<Self> {
        let mut sorted = decisions.to_vec();
        sorted.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
        let (mut points, mut tasks, mut right) = (Vec::new(), 0usize, Some(0usize));
        let mut due = 0;
        for (i, decided) in sorted.iter().enumerate() {
            tasks += usize::from(decided.task_right);
            right = right.zip(decided.right).map(|(sum, right)| sum + usize::from(right));
            let kept = i + 1;
            let tied = sorted.get(kept).is_some_and(|next| next.confidence == decided.confidence);
            // One point for each hundredth of the samples.
            if tied || kept * POINTS < due * sorted.len() {
                continue;
            }
            due = kept * POINTS / sorted.len() + 1;
            let share = |count: usize| count as f64 / kept as f64;
            points.push(CoveragePoint {
                coverage: kept as f64 / sorted.len() as f64,
                threshold: decided.confidence,
                routing: share(tasks),
                accuracy: right.map(share),
            });
        }
        (!points.is_empty()).then(|| Self { confidence: confidence.to_owned(), points })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(confidence: f64, task_right: bool, right: Option<bool>) -> Decided {
        Decided { confidence, task_right, right }
    }

    #[test]
    fn the_surest_samples_are_kept_first_and_equal_ones_together() {
        let decisions = [
            decided(0.5, false, Some(false)),
            decided(0.9, true, Some(true)),
            decided(0.7, true, Some(false)),
            decided(0.7, false, Some(false)),
        ];
        let found = Coverage::of("probability", &decisions).unwrap();
        let points: Vec<_> = found.points.iter().map(|p| (p.coverage, p.threshold, p.routing, p.accuracy.unwrap())).collect();
        assert_eq!(points, [(0.25, 0.9, 1.0, 1.0), (0.75, 0.7, 2.0 / 3.0, 1.0 / 3.0), (1.0, 0.5, 0.5, 0.25)]);
        assert_eq!(Coverage::of("probability", &[]), None);
    }

    #[test]
    fn many_samples_give_a_hundred_points_and_the_last_keeps_all() {
        let decisions: Vec<Decided> = (0..1234).map(|i| decided(f64::from(i), i % 2 == 0, None)).collect();
        let points = Coverage::of("cosine", &decisions).unwrap().points;
        assert!((95..=101).contains(&points.len()), "{}", points.len());
        assert_eq!((points.last().unwrap().coverage, points[0].accuracy), (1.0, None));
        assert!(points.windows(2).all(|pair| pair[0].coverage < pair[1].coverage));
    }
}
