//! The protocol of METHOD.md 6 for a learner of all sessions, which changes with each of them: after every
//! session, it predicts all samples of the tasks learnt until then over all classes that it has seen.
use std::collections::BTreeMap;
use std::ops::Range;

use super::figures::{self, Predictions, Scored};
use super::protocol::Evaluated;
use crate::data::{Dataset, Label, MissingTable, Samples, Split, predict};
use crate::peers::ContinualLearner;
use crate::training::{Session, TrainError};
use delo_model::input::{InputProcessor, Sample};

/// Samples that are predicted together.
const BATCH: usize = 32;
/// How a learner of all sessions decides the task.
const RULE: &str = "all seen classes";

/// The predictions of one split, as the sessions come in the data set's order.
///
/// Task-oracle: the best class among those of the true task. Task-agnostic: the best of all classes seen; the
/// sample goes to the task of that class. For multi-label, the classes whose logit is above 0: the
/// task-oracle column counts those of the true task alone, the task-agnostic one those of all tasks seen. The
/// figures over a task's own classes are therefore equal in both columns; labels of other tasks' classes show
/// in F1-macro over all seen classes.
pub struct LearnerEvaluation<'a> {
    data: &'a Dataset,
    missing: &'a MissingTable,
    processor: &'a InputProcessor,
    split: Split,
    /// The samples of the tasks learnt until now, task by task.
    scored: Vec<Scored>,
    /// The number of sessions learnt.
    learnt: usize,
}

impl<'a> LearnerEvaluation<'a> {
    /// Before the first session.
    pub fn new(data: &'a Dataset, missing: &'a MissingTable, processor: &'a InputProcessor, split: Split) -> Self {
        Self { data, missing, processor, split, scored: Vec::new(), learnt: 0 }
    }

    /// Predicts the samples of all tasks until that of `session`, which the learner has just learnt.
    ///
    /// # Errors
    /// A sample that cannot be read; a failed forward pass.
    pub fn after_session(&mut self, learner: &dyn ContinualLearner, session: &Session<'_>) -> Result<(), TrainError> {
        let stage = self.learnt;
        let mut position = 0;
        for task in 0..=stage {
            let rows = self.data.rows(task, self.split);
            let samples = Samples::new(self.data, rows, self.missing, self.processor);
            samples.for_each_chunk(BATCH, |chunk, samples| {
                let logits = learner.logits(session, samples)?;
                for ((sample, &row), logits) in samples.iter().zip(&rows[chunk]).zip(&logits) {
                    if task == stage {
                        self.scored.push(self.unseen(task, row, sample));
                    }
                    self.predict(position, stage, logits)?;
                    position += 1;
                }
                Ok::<_, TrainError>(())
            })?;
        }
        self.learnt += 1;
        Ok(())
    }

    /// The report and the samples, once all sessions are learnt.
    pub fn finish(self) -> Evaluated {
        let tasks: Vec<usize> = (0..self.learnt).collect();
        let samples = self.scored.iter().map(|sample| sample.record(self.data, &tasks)).collect();
        let empty = tasks.iter().filter(|&&task| self.data.rows(task, self.split).is_empty());
        let names: Vec<&str> = empty.map(|&task| self.data.tasks[task].name.as_str()).collect();
        let mut notes = Vec::new();
        if !names.is_empty() {
            notes.push(format!("no {} items of {}: left out of AP and FG, but learnt", self.split, names.join(", ")));
        }
        notes.extend(self.data.shared_classes());
        if self.data.multi_label {
            notes.push(
                "one head over all tasks: no task is chosen, so that AP is the same in both columns; labels of other tasks count in F1 all seen"
                    .to_owned(),
            );
        }
        let of = figures::Evaluated { data: self.data, missing: self.missing, split: self.split };
        Evaluated { report: of.report(tasks, vec![RULE.to_owned()], &self.scored, notes), samples }
    }

    /// A sample without predictions.
    fn unseen(&self, task: usize, item: usize, sample: &Sample) -> Scored {
        let predictions = Predictions::BySession(Vec::new());
        // Before its own session, a sample goes nowhere.
        let routes = vec![vec![None; task]];
        Scored { item, task, presence: sample.presence(), predictions, routes, unrouted: self.data.multi_label }
    }

    /// Adds the predictions of the sample at `position` once tasks 0..=stage are learnt.
    fn predict(&mut self, position: usize, stage: usize, logits: &[f32]) -> Result<(), TrainError> {
        let seen = self.data.first_class(stage) + self.data.tasks[stage].labels.len();
        if logits.len() != seen {
            return Err(candle_core::Error::Msg(format!("{} logits for {seen} classes", logits.len())).into());
        }
        let classes = |task: usize| -> Range<usize> {
            let first = self.data.first_class(task);
            first..first + self.data.tasks[task].labels.len()
        };
        let threshold = self.data.multi_label.then_some(0.0);
        let best = match predict(logits, None) {
            Label::Class(class) => (0..=stage).find(|&task| classes(task).contains(&class)),
            Label::Classes(_) => None,
        };
        let own = self.scored[position].task;
        let wanted = if self.data.multi_label { 0..stage + 1 } else { own..own + 1 };
        let predicted: BTreeMap<usize, Label> = wanted.map(|task| (task, predict(&logits[classes(task)], threshold))).collect();
        let sample = &mut self.scored[position];
        if let Predictions::BySession(stages) = &mut sample.predictions {
            stages.push(predicted);
        }
        sample.routes[0].push(best);
        Ok(())
    }
}
