//! The plain metric: the cosine of the signal with each task's key (METHOD.md 4, equation 8 of the paper).
use std::sync::Arc;

use super::{KeyChoice, NotPositiveDefinite, SessionKeys, TaskMetric, TaskRule, TaskScore, cosines};
use delo_kernels::Isa;
use delo_kernels::elementwise::dot;

/// The plain metric.
pub(super) struct Plain;

/// cos(φ, key) for each task.
#[derive(Debug)]
pub(super) struct PlainRule {
    isa: Isa,
    /// The keys, scaled to length 1, `[tasks, width]`.
    keys: Vec<f32>,
}

impl TaskMetric for Plain {
    fn statistics(&self) -> &'static str {
        "key"
    }

    fn knows(&self, session: &SessionKeys, choice: KeyChoice) -> bool {
        session.key(choice.signal, choice.average).is_some()
    }

    fn rule(&self, sessions: &[&SessionKeys], choice: KeyChoice) -> Result<Arc<dyn TaskRule>, NotPositiveDefinite> {
        let keys: Vec<&[f32]> = sessions.iter().filter_map(|session| session.key(choice.signal, choice.average)).collect();
        Ok(Arc::new(PlainRule::new(&keys)))
    }
}

impl PlainRule {
    /// The rule over keys `[width]` of any length.
    pub(super) fn new(keys: &[&[f32]]) -> Self {
        let unit_key = |key: &&[f32]| unit(key.iter().map(|&x| f64::from(x)).collect()).into_iter().map(|x| x as f32);
        Self { isa: Isa::detect(), keys: keys.iter().flat_map(unit_key).collect() }
    }
}

impl TaskRule for PlainRule {
    /// The cosines; 0 for a signal that is zero.
    fn scores(&self, signal: &[f32]) -> Vec<TaskScore> {
        cosines(
            self.isa,
            &self.keys,
            signal,
            #[inline(always)]
            || dot(signal, signal).sqrt(),
        )
    }
}

/// A vector scaled to length 1; zero stays zero.
fn unit(mut x: Vec<f64>) -> Vec<f64> {
    let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
    if length > 0.0 {
        x.iter_mut().for_each(|x| *x /= length);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::super::{KeyAverage, KeySignal, Metric};
    use super::*;

    #[test]
    fn scores_are_cosines_for_keys_and_signals_of_any_length() {
        let rule = PlainRule::new(&[[3.0f32, 0.0].as_slice(), &[1.0, 1.0]]);
        let cosines: Vec<f32> = rule.scores(&[0.0, 0.2]).iter().filter_map(|task| task.cosine).collect();
        assert_eq!(cosines[0], 0.0);
        assert!((cosines[1] - 0.5f32.sqrt()).abs() < 1e-6, "{cosines:?}");
    }

    #[test]
    fn a_zero_key_has_cosine_zero() {
        let scores = PlainRule::new(&[[0.0f32, 0.0].as_slice(), &[0.0, 2.0]]).scores(&[0.0, 0.2]);
        assert_eq!(scores.iter().map(|task| task.score).collect::<Vec<_>>(), [0.0, 1.0]);
    }

    #[test]
    fn a_session_is_known_by_a_key_of_the_chosen_signal_and_average() {
        let session = SessionKeys { mean: [(KeySignal::Pooled, vec![1.0, 0.0])].into(), ..SessionKeys::default() };
        let knows = |signal, average| Plain.knows(&session, KeyChoice { signal, average });
        assert!(knows(KeySignal::Pooled, KeyAverage::Mean));
        assert!(!knows(KeySignal::Pooled, KeyAverage::Ema) && !knows(KeySignal::Summary, KeyAverage::Mean));
        let rule = Metric::Plain.definition().rule(&[&session], KeyChoice { signal: KeySignal::Pooled, average: KeyAverage::Mean });
        assert_eq!(rule.unwrap().scores(&[2.0, 0.0])[0].score, 1.0);
    }

    #[test]
    fn a_zero_signal_has_cosine_zero() {
        assert_eq!(
            PlainRule::new(&[[1.0f32, 0.0].as_slice()]).scores(&[0.0, 0.0]),
            [TaskScore { score: 0.0, cosine: Some(0.0), probability: None, typicality: None }]
        );
    }
}
