//! How the task of a sample is decided: a signal of the frozen backbone, what a session stores of it
//! ([`keys`]), and a rule that turns the signal into a score for each task (METHOD.md 4, ROUTING.md).
//!
//! A metric is one file: what it needs from a session, and the rule that it makes from some sessions
//! ([`TaskMetric`]). The statistics of sessions can be added, and a rule is made from all resident sessions
//! in the order of their names. Partitions may therefore be loaded and unloaded in any order.
pub mod keys;
mod lda;
mod plain;
pub mod projection;
mod typicality;
mod whitened;

use std::fmt::Debug;
use std::sync::Arc;

use delo_kernels::Isa;
use delo_kernels::elementwise::dot;

pub use keys::{ClassStatistics, KeyAverage, KeySignal, Metric, SessionKeys};
pub use lda::session_logits;

/// The score of one task for one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskScore {
    /// The score: the task with the highest score serves the sample.
    pub score: f32,
    /// The cosine of the signal with the task's key; `None` for a rule that compares with no key.
    pub cosine: Option<f32>,
    /// The probability of the task; the probabilities of all tasks sum to 1. `None` for a rule without
    /// probabilities.
    pub probability: Option<f32>,
    /// How typical of the task the sample is, 0 to 1: the share of the task's own samples, among those that come
    /// to the task, that fit it less well. `None` for a rule without classes, and for a session with less than 8
    /// calibration samples.
    pub typicality: Option<f32>,
}

/// The scores of all tasks for a sample, by which its task is decided.
pub trait TaskRule: Debug + Send + Sync {
    /// The score of every session, in the order of the sessions that the rule was made from, given a sample's
    /// signal `[width]`.
    fn scores(&self, signal: &[f32]) -> Vec<TaskScore>;
}

/// The keys that a metric compares: their signal, and how they were averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyChoice {
    /// The signal.
    pub signal: KeySignal,
    /// How the keys were averaged. A metric may support one average only.
    pub average: KeyAverage,
}

/// A metric: how it makes a rule from sessions.
pub trait TaskMetric: Sync {
    /// What a session must store beside its key, for messages.
    fn statistics(&self) -> &'static str;

    /// Whether a session stores the statistics that the rule needs.
    fn knows(&self, session: &SessionKeys, choice: KeyChoice) -> bool;

    /// The rule over some sessions: at least one, and [`Self::knows`] is true for each.
    ///
    /// # Errors
    /// The sum of the sessions' second moments is not positive definite.
    fn rule(&self, sessions: &[&SessionKeys], choice: KeyChoice) -> Result<Arc<dyn TaskRule>, NotPositiveDefinite>;
}

/// The second moments of the resident sessions give no metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the second moments of the resident partitions are not positive definite: one of them is damaged, retrain or unload it")]
pub struct NotPositiveDefinite;

impl Metric {
    /// The implementation of this metric.
    pub fn definition(self) -> &'static dyn TaskMetric {
        match self {
            Self::Plain => &plain::Plain,
            Self::Whitened => &whitened::Whitened,
            Self::Lda => &lda::Lda,
        }
    }
}

/// The scores of a rule that decides by the cosine: key · φ / length of each of `keys` `[tasks, width]`; 0 where the
/// length is 0. φ is `signal` `[width]`, and `length` gives its length in the rule's metric.
fn cosines(isa: Isa, keys: &[f32], signal: &[f32], length: impl Fn() -> f32) -> Vec<TaskScore> {
    let width = signal.len();
    let mut cosines = vec![0.0; keys.len().checked_div(width).unwrap_or(0)];
    isa.run(
        #[inline(always)]
        || {
            let length = length();
            let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
            // A plain loop is compiled for the chosen instructions; the closure of an iterator may not be.
            for (cosine, key) in cosines.iter_mut().zip(keys.chunks_exact(width.max(1))) {
                *cosine = scale * dot(key, signal);
            }
        },
    );
    cosines.into_iter().map(|cosine| TaskScore { score: cosine, cosine: Some(cosine), probability: None, typicality: None }).collect()
}
