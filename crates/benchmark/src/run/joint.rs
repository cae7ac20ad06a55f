//! A cell of joint training: an upper bound, not a continual learner. The classes of all tasks are one
//! session, on which the method's adapters and one head are trained once, on all items. After each session it
//! is asked for the classes seen until then; it does not change meanwhile.
use std::collections::BTreeSet;

use super::partitions::read_artifact;
use super::{Outcome, Run, RunError, timed};
use delo_model::TaskModel;
use delo_model::input::Sample;
use delo_train::data::{Item, Label, Task};
use delo_train::eval::LearnerEvaluation;
use delo_train::peers::ContinualLearner;
use delo_train::{Dataset, Session, Split, TrainError};
use serde_json::Value;

/// The artifact of the one session.
const ARTIFACT: &str = "joint.safetensors";

/// The data set as one task with the classes of all: `TASK/LABEL`. Its items keep their order, so that a
/// missing table of the data set fits.
fn joined(data: &Dataset) -> Dataset {
    let labels: Vec<String> =
        data.tasks.iter().flat_map(|task| task.labels.iter().map(move |label| format!("{}/{label}", task.name))).collect();
    let item = |item: &Item| {
        let label = match &item.label {
            Label::Class(class) => Label::Class(data.first_class(item.task) + class),
            Label::Classes(_) => Label::Classes((0..labels.len()).map(|class| item.all_classes.contains(class)).collect()),
        };
        Item { task: 0, label, ..item.clone() }
    };
    let items = data.items.iter().map(item).collect();
    let tasks = vec![Task { id: 0, name: "joint".to_owned(), labels }];
    let mut joined = Dataset::new(data.dir.clone(), data.name.clone(), data.multi_label, tasks, items);
    let kept: BTreeSet<usize> = (0..data.tasks.len()).flat_map(|task| data.rows(task, Split::Train)).copied().collect();
    joined.keep_train_rows(|row| kept.contains(&row));
    joined
}

/// The trained session, asked for the classes of the tasks that have come.
struct Joint {
    model: TaskModel,
    dummy_image: [usize; 2],
    /// The classes of the sessions until now.
    seen: usize,
}

impl ContinualLearner for Joint {
    fn learn(&mut self, session: &Session<'_>) -> Result<(), TrainError> {
        self.seen += session.data.tasks[session.task].labels.len();
        Ok(())
    }

    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> Result<Vec<Vec<f32>>, TrainError> {
        let embedded = session.engine.embed(samples, self.dummy_image)?;
        let prefix = session.engine.run_frozen(&embedded, 0..self.model.method().first_adapted_layer())?;
        Ok(session.engine.predict_task(&prefix, &self.model)?.narrow(1, 0, self.seen)?.to_vec2()?)
    }

    fn parameters(&self) -> usize {
        self.model.adapter_parameters()
    }

    fn head_parameters(&self) -> usize {
        self.model.head_weight.elem_count() + self.model.head_bias.elem_count()
    }
}

impl Run<'_> {
    pub(super) fn joint(&self, say: &mut dyn FnMut(&str)) -> Result<Outcome, RunError> {
        let data = joined(self.data);
        let artifact = self.folder.partitions().join(ARTIFACT);
        if !artifact.exists() {
            Run { data: &data, backbone: self.backbone.clone(), key: self.key.clone(), ..*self }.one_session(0, &artifact, say)?;
        }
        let mut outcome = Outcome::default();
        self.add_cost(&artifact, &mut outcome)?;
        let trained = read_artifact(&artifact)?;
        let model = TaskModel::from_tensors(trained.meta.method, trained.meta.labels.len(), &trained.tensors).map_err(TrainError::from)?;
        let mut learner = Joint { model, dummy_image: trained.meta.dummy_image, seen: 0 };
        let of = |&split| (split, LearnerEvaluation::new(self.data, self.missing, self.processor, split));
        let mut evaluations: Vec<_> = self.cell.splits.iter().map(of).collect();
        for task in 0..self.data.tasks.len() {
            let session = self.session(task, &self.cell.settings);
            learner.learn(&session)?;
            for (_, evaluation) in &mut evaluations {
                timed(&mut outcome.evaluation_seconds, || evaluation.after_session(&learner, &session))?;
            }
        }
        outcome.evaluated = evaluations.into_iter().map(|(split, evaluation)| (split, evaluation.finish())).collect();
        outcome.choices = Value::Null;
        Ok(outcome)
    }
}
