//! What a sample's answer may take beside one adapted pass under the likeliest task: none at all, or a second
//! one. It is decided from the frozen backbone's signals, before any adapted pass.
use std::sync::Arc;

use delo_catalogue::{Candidate, Catalogue, Resident};
use delo_model::Partition;
use delo_model::method::selection::softmax;

/// When a sample is answered otherwise than by one adapted pass under the likeliest task. A rule that is `None` is
/// off. None of them concerns a sample whose partition is given, or a rule of tasks without probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Policy {
    /// A sample whose typicality of the likeliest task is below this belongs to none of the tasks: it gets no
    /// scores. The share of the tasks' own samples that are refused too is about this number.
    pub reject: Option<f32>,
    /// A sample whose likeliest class has at least this probability, among the classes of all tasks, is answered
    /// by the analytic classifier of its task, without an adapted pass. Not for multi-label tasks.
    pub early_answer: Option<f32>,
    /// A sample whose likeliest task has a lower probability than this is answered under the two likeliest
    /// tasks, and the likelier of their two best classes decides. It takes an adapted pass of each. Not where
    /// one of the two is multi-label.
    pub second_task: Option<f32>,
}

/// What the scores of an answer come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scored {
    /// An adapted pass under one task, or under two.
    Adapted,
    /// The frozen backbone's signal and the analytic classifier ([`Policy::early_answer`]).
    Early,
    /// There are none: the sample belongs to none of the tasks ([`Policy::reject`]).
    Rejected,
}

/// What remains to be computed for a sample.
pub(crate) enum Plan {
    /// An adapted pass under its task.
    Pass,
    /// An adapted pass under its task, and one under the second likeliest.
    Two(Arc<Resident>),
    /// Nothing: these are its scores.
    Early(Vec<f32>),
    /// Nothing: it has no scores.
    Reject,
}

impl Policy {
    /// The plan for a sample whose likeliest task is that of `resident`. `signal`: the signal of the partition's
    /// analytic classifier, where it has one.
    pub(crate) fn plan(
        &self,
        catalogue: &Catalogue,
        resident: &Resident,
        candidates: &[Candidate],
        signal: Option<&[f32]>,
        ticket: u64,
    ) -> Plan {
        let Some(best) = candidates.first() else { return Plan::Pass };
        if self.reject.zip(best.score.typicality).is_some_and(|(least, typicality)| typicality < least) {
            return Plan::Reject;
        }
        let Some(probability) = best.score.probability else { return Plan::Pass };
        if let Some(scores) = self.early_answer.and_then(|least| early(&resident.partition, signal?, probability, least)) {
            return Plan::Early(scores);
        }
        if self.second_task.is_some_and(|least| probability < least) && !resident.partition.meta.multi_label {
            let second = candidates.get(1).and_then(|second| catalogue.pick(&second.task, ticket));
            if let Some(second) = second.filter(|second| !second.partition.meta.multi_label) {
                return Plan::Two(second.clone());
            }
        }
        Plan::Pass
    }
}

/// The class probabilities of the analytic classifier, at the session's temperature, where the likeliest class of
/// a task of this `probability` is at least as likely as `least`.
fn early(partition: &Partition, signal: &[f32], probability: f32, least: f32) -> Option<Vec<f32>> {
    let analytic = partition.analytic.as_ref().filter(|_| !partition.meta.multi_label)?;
    let temperature = partition.keys.classes.temperature.unwrap_or(1.0);
    let mut scores = analytic.logits(signal);
    scores.iter_mut().for_each(|z| *z /= temperature);
    softmax(&mut scores);
    let best = scores.iter().copied().fold(0.0, f32::max);
    (best * probability >= least).then_some(scores)
}
