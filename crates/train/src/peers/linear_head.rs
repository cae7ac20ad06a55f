//! A linear head for each task on a frozen signal, trained to convergence on its own session alone (softmax,
//! or sigmoids for multi-label, with an L2 chosen on the session's val items), and the logits of all heads
//! side by side. Heads of different sessions never saw each other's classes: nothing makes their logits
//! comparable, which is what this row shows.
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ContinualLearner;
use super::features::{self, Rows, of_samples, of_split};
use super::logistic::{Classifier, Problem};
use crate::data::{Label, Split, predict, score};
use crate::training::statistics::flags;
use crate::training::{Session, TrainError};
use delo_model::input::Sample;
use delo_model::routing::keys::KeySignal;

/// Settings of [`LinearHead`] and [`super::joint_head::JointHead`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinearHeadSettings {
    /// The signal of the frozen backbone.
    pub signal: KeySignal,
    /// The weights of ‖W‖² / 2 that are tried on val items, over features of variance 1. The strongest is
    /// tried first, and where none is better, it is chosen.
    pub l2: Vec<f64>,
}

impl Default for LinearHeadSettings {
    fn default() -> Self {
        Self { signal: KeySignal::Pooled, l2: vec![1.0, 1e-1, 1e-2, 1e-3, 1e-4] }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct LinearHead {
    settings: LinearHeadSettings,
    heads: Vec<Classifier>,
    /// By session: what was chosen.
    records: Vec<Value>,
}

impl LinearHead {
    /// Before the first session.
    pub fn new(settings: LinearHeadSettings) -> Self {
        Self { settings, heads: Vec::new(), records: Vec::new() }
    }
}

/// The classifier with the L2 that is best on val, and the record of the choice. `score`: of the val items
/// from their logits.
pub(super) fn best(problem: &Problem, l2: &[f64], val: &Rows, score: impl Fn(&Rows) -> Option<f64>) -> (Classifier, Value) {
    let (mut chosen, mut best) = (None, f64::NEG_INFINITY);
    let (mut scores, mut iterations, mut start) = (Vec::new(), Vec::new(), Vec::new());
    for &weight in l2 {
        let optimum = problem.minimise(weight, &start);
        let found = score(&optimum.classifier.logits(val));
        if chosen.is_none() || found.is_some_and(|score| score > best) {
            best = found.unwrap_or(best);
            chosen = Some((weight, optimum.classifier));
        }
        scores.push(found);
        iterations.push(optimum.iterations);
        // The optimum of a stronger regularisation is near that of the next weaker one.
        start = optimum.point;
    }
    let (weight, classifier) = chosen.unwrap_or_default();
    (classifier, json!({"chosen": {"l2": weight}, "candidates": l2, "val_scores": scores, "iterations": iterations}))
}

impl ContinualLearner for LinearHead {
    fn learn(&mut self, session: &Session<'_>) -> Result<(), TrainError> {
        let signal = self.settings.signal;
        features::check(session, signal)?;
        let data = session.data;
        let classes = data.tasks[session.task].labels.len();
        let labels = |split| data.rows(session.task, split).iter().map(|&row| &data.items[row].label).collect::<Vec<&Label>>();
        let targets: Rows = labels(Split::Train).iter().map(|label| flags(label, classes)).collect();
        let problem = Problem::new(&of_split(session, Split::Train, signal)?, &targets, data.multi_label);
        let truth = labels(Split::Val);
        let threshold = data.multi_label.then_some(0.0);
        let val_score = |logits: &Rows| {
            let predictions: Vec<Label> = logits.iter().map(|row| predict(row, threshold)).collect();
            score(&predictions.iter().map(Some).collect::<Vec<_>>(), &truth)
        };
        let (head, mut record) = best(&problem, &self.settings.l2, &of_split(session, Split::Val, signal)?, val_score);
        record["task"] = json!(data.tasks[session.task].name);
        self.heads.push(head);
        self.records.push(record);
        Ok(())
    }

    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> Result<Vec<Vec<f32>>, TrainError> {
        let signals = of_samples(session, samples, self.settings.signal)?;
        let mut logits = vec![Vec::new(); signals.len()];
        for head in &self.heads {
            logits.iter_mut().zip(head.logits(&signals)).for_each(|(all, of_head)| all.extend(of_head));
        }
        Ok(logits)
    }

    fn parameters(&self) -> usize {
        0
    }

    fn head_parameters(&self) -> usize {
        self.heads.iter().map(Classifier::parameters).sum()
    }

    fn choices(&self) -> Value {
        json!(self.records)
    }
}
