//! Joint linear head: an upper bound, not a continual learner. It keeps the frozen signals of every session
//! and, after each of them, trains one head over all classes seen to convergence on all of them at once, with
//! an L2 chosen on the val items of all these sessions.
use serde_json::{Value, json};

use super::ContinualLearner;
use super::features::{self, Rows, of_samples, of_split};
use super::linear_head::{LinearHeadSettings, best};
use super::logistic::{Classifier, Problem};
use crate::data::{Label, Split, predict, score};
use crate::training::statistics::flags;
use crate::training::{Session, TrainError};
use delo_model::input::Sample;

/// See the [module](self). For multi-label, a sample's flags are those of all classes seen.
#[derive(Debug)]
pub struct JointHead {
    settings: LinearHeadSettings,
    train: Kept,
    val: Kept,
    /// The number of classes of the sessions until now.
    classes: usize,
    head: Classifier,
    record: Value,
}

/// The items of the sessions until now.
#[derive(Debug, Default)]
struct Kept {
    signals: Rows,
    /// Index of each item in the data set's list.
    items: Vec<usize>,
}

impl JointHead {
    /// Before the first session.
    pub fn new(settings: LinearHeadSettings) -> Self {
        let (train, val) = (Kept::default(), Kept::default());
        Self { settings, train, val, classes: 0, head: Classifier::default(), record: Value::Null }
    }
}

impl ContinualLearner for JointHead {
    fn learn(&mut self, session: &Session<'_>) -> Result<(), TrainError> {
        let signal = self.settings.signal;
        features::check(session, signal)?;
        let data = session.data;
        for (kept, split) in [(&mut self.train, Split::Train), (&mut self.val, Split::Val)] {
            kept.signals.extend(of_split(session, split, signal)?);
            kept.items.extend(data.rows(session.task, split));
        }
        self.classes = data.first_class(session.task) + data.tasks[session.task].labels.len();
        let classes = self.classes;
        let label = |&row: &usize| {
            let item = &data.items[row];
            match item.label {
                Label::Class(class) => Label::Class(data.first_class(item.task) + class),
                Label::Classes(_) => Label::Classes((0..classes).map(|class| item.all_classes.contains(class)).collect()),
            }
        };
        let targets: Rows = self.train.items.iter().map(|row| flags(&label(row), classes)).collect();
        let problem = Problem::new(&self.train.signals, &targets, data.multi_label);
        let truth: Vec<Label> = self.val.items.iter().map(label).collect();
        let threshold = data.multi_label.then_some(0.0);
        let val_score = |logits: &Rows| {
            let predictions: Vec<Label> = logits.iter().map(|row| predict(row, threshold)).collect();
            score(&predictions.iter().map(Some).collect::<Vec<_>>(), &truth.iter().collect::<Vec<_>>())
        };
        (self.head, self.record) = best(&problem, &self.settings.l2, &self.val.signals, val_score);
        Ok(())
    }

    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> Result<Vec<Vec<f32>>, TrainError> {
        Ok(self.head.logits(&of_samples(session, samples, self.settings.signal)?))
    }

    fn parameters(&self) -> usize {
        0
    }

    fn head_parameters(&self) -> usize {
        self.head.parameters()
    }

    fn choices(&self) -> Value {
        json!(self.record)
    }
}
