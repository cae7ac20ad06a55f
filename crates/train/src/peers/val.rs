//! Hyper-parameters of a peer, chosen on val items alone, without keeping an item of an earlier session.
use serde_json::{Value, json};

use crate::data::{Label, Split, predict, score};
use crate::training::Session;

/// Candidates with the sum of their val scores over the sessions until now, each weighted by its val items.
#[derive(Clone, Debug)]
pub(super) struct Candidates<C> {
    candidates: Vec<C>,
    sums: Vec<f64>,
    items: usize,
}

impl<C: Copy + Into<Value>> Candidates<C> {
    /// The first one is chosen where none is better. At least one.
    pub(super) fn new(candidates: Vec<C>) -> Self {
        Self { sums: vec![0.0; candidates.len()], candidates, items: 0 }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = C> + '_ {
        self.candidates.iter().copied()
    }

    /// Adds the scores of a session's val items: `logits` has, for each candidate, the logits of each item
    /// over all classes seen.
    pub(super) fn add(&mut self, session: &Session<'_>, logits: &[Vec<Vec<f32>>]) {
        let items = session.data.rows(session.task, Split::Val).len();
        for (sum, logits) in self.sums.iter_mut().zip(logits) {
            *sum += items as f64 * val_score(session, logits).unwrap_or_default();
        }
        self.items += items;
    }

    /// The index of the best candidate until now.
    pub(super) fn best(&self) -> usize {
        (1..self.sums.len()).fold(0, |best, other| if self.sums[other] > self.sums[best] { other } else { best })
    }

    /// The best candidate, all candidates and their mean val scores in percent.
    pub(super) fn record(&self) -> Value {
        let mean = |sum: &f64| if self.items == 0 { Value::Null } else { json!(sum / self.items as f64) };
        json!({
            "chosen": self.candidates.get(self.best()).copied().map(Into::into).unwrap_or_default(),
            "candidates": self.candidates.iter().copied().map(Into::into).collect::<Vec<Value>>(),
            "val_scores": self.sums.iter().map(mean).collect::<Vec<_>>(),
        })
    }
}

/// The score of a session's val items from their logits over all classes seen, in percent: accuracy over all
/// these classes, or F1-macro over the session's own. `None` without val items.
pub(super) fn val_score(session: &Session<'_>, logits: &[Vec<f32>]) -> Option<f64> {
    let data = session.data;
    let (first, count) = (data.first_class(session.task), data.tasks[session.task].labels.len());
    let predictions: Vec<Option<Label>> = logits
        .iter()
        .map(|logits| {
            if data.multi_label {
                return Some(predict(&logits[first..first + count], Some(0.0)));
            }
            match predict(logits, None) {
                Label::Class(class) => (first..first + count).contains(&class).then(|| Label::Class(class - first)),
                Label::Classes(_) => None,
            }
        })
        .collect();
    let truth: Vec<&Label> = data.rows(session.task, Split::Val).iter().map(|&row| &data.items[row].label).collect();
    score(&predictions.iter().map(Option::as_ref).collect::<Vec<_>>(), &truth)
}
