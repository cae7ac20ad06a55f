//! How the task of a sample is decided: a signal of the frozen backbone ([`keys`]), what a session stores of it, and a
//! rule that turns the signal into a score for each task (METHOD.md 4, ROUTING.md).
//!
//! A metric is one file: what it needs of a session and the rule that it makes of some sessions ([`TaskMetric`]).
//! Whatever a session stores can be added up over sessions, and a rule is made anew of all resident sessions in the
//! order of their names, so that partitions load and unload in any order.
pub mod keys;
mod plain;
mod whitened;

use std::fmt::Debug;
use std::sync::Arc;

pub use keys::{KeyAverage, KeySignal, Metric, SessionKeys};

/// What a rule says of one task for one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskScore {
    /// What decides: the task with the largest one serves the sample.
    pub score: f32,
    /// The cosine of the signal with the task's key, for rules that compare with a key.
    pub cosine: Option<f32>,
    /// The probability of the task, for rules that have one; over all tasks they sum to 1.
    pub probability: Option<f32>,
}

/// Decides the task of a sample.
pub trait TaskRule: Debug + Send + Sync {
    /// The score of every session, in the order in which the rule was made of them, given a sample's signal `[width]`.
    fn scores(&self, signal: &[f32]) -> Vec<TaskScore>;
}

/// Where a metric looks: the signal, and how its keys are drawn from a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyChoice {
    /// The signal.
    pub signal: KeySignal,
    /// How keys are drawn; a metric may know one way only.
    pub average: KeyAverage,
}

/// How sessions become a rule.
pub trait TaskMetric: Sync {
    /// Whether a session stores what the rule needs.
    fn knows(&self, session: &SessionKeys, choice: KeyChoice) -> bool;

    /// The rule over some sessions, at least one, each of which [`Self::knows`].
    ///
    /// # Errors
    /// Sessions whose statistics give no rule.
    fn rule(&self, sessions: &[&SessionKeys], choice: KeyChoice) -> Result<Arc<dyn TaskRule>, NotPositiveDefinite>;
}

/// Why the resident moments give no metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the second moments of the resident partitions are not positive definite: one of them is damaged, retrain or unload it")]
pub struct NotPositiveDefinite;

impl Metric {
    /// How this metric makes rules.
    pub fn definition(self) -> &'static dyn TaskMetric {
        match self {
            Self::Plain => &plain::Plain,
            Self::Whitened => &whitened::Whitened,
        }
    }
}

/// The score of a rule that decides by the cosine.
fn by_cosine(cosine: f32) -> TaskScore {
    TaskScore { score: cosine, cosine: Some(cosine), probability: None }
}
