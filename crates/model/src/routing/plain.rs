//! The plain metric: the cosine of the signal with each task's key (METHOD.md 4, equation 8 of the paper).
use std::sync::Arc;

use super::{KeyChoice, NotPositiveDefinite, SessionKeys, TaskMetric, TaskRule, TaskScore, by_cosine};
use delo_kernels::Isa;
use delo_kernels::elementwise::dot;

/// The plain metric.
pub(super) struct Plain;

/// cos(φ, key) for each task.
#[derive(Debug)]
struct PlainRule {
    isa: Isa,
    width: usize,
    /// The keys, scaled to length 1, `[tasks, width]`.
    keys: Vec<f32>,
}

impl TaskMetric for Plain {
    fn knows(&self, session: &SessionKeys, choice: KeyChoice) -> bool {
        session.key(choice.signal, choice.average).is_some()
    }

    fn rule(&self, sessions: &[&SessionKeys], choice: KeyChoice) -> Result<Arc<dyn TaskRule>, NotPositiveDefinite> {
        let keys: Vec<&[f32]> = sessions.iter().filter_map(|session| session.key(choice.signal, choice.average)).collect();
        Ok(Arc::new(PlainRule::new(&keys)))
    }
}

impl PlainRule {
    fn new(keys: &[&[f32]]) -> Self {
        let unit_key = |key: &&[f32]| unit(key.iter().map(|&x| f64::from(x)).collect()).into_iter().map(|x| x as f32);
        let width = keys.first().map_or(0, |key| key.len());
        Self { isa: Isa::detect(), width, keys: keys.iter().flat_map(unit_key).collect() }
    }
}

impl TaskRule for PlainRule {
    /// The cosines; 0 for a signal that is zero.
    fn scores(&self, signal: &[f32]) -> Vec<TaskScore> {
        let mut scores = Vec::with_capacity(self.keys.len() / self.width.max(1));
        self.isa.run(
            #[inline(always)]
            || {
                let length = dot(signal, signal).sqrt();
                let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
                scores.extend(self.keys.chunks_exact(self.width.max(1)).map(|key| by_cosine(scale * dot(key, signal))));
            },
        );
        scores
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
    use super::*;

    #[test]
    fn scores_are_cosines_for_keys_and_signals_of_any_length() {
        let rule = PlainRule::new(&[[3.0f32, 0.0].as_slice(), &[1.0, 1.0]]);
        let cosines: Vec<f32> = rule.scores(&[0.0, 0.2]).iter().filter_map(|task| task.cosine).collect();
        assert_eq!(cosines[0], 0.0);
        assert!((cosines[1] - 0.5f32.sqrt()).abs() < 1e-6, "{cosines:?}");
    }

    #[test]
    fn a_zero_signal_has_cosine_zero() {
        assert_eq!(PlainRule::new(&[[1.0f32, 0.0].as_slice()]).scores(&[0.0, 0.0]), [by_cosine(0.0)]);
    }
}
