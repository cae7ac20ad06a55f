//! A cell of a method that makes partitions: one session after another is trained, or takes over the adapters
//! of another cell, and all are evaluated as they would be served. An interrupted cell goes on from its
//! artifacts and from the checkpoint of the session that it was in.
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Outcome, Run, RunError, timed};
use crate::folder::{io, read_json, write_json};
use delo_catalogue::RoutingRule;
use delo_model::TaskModel;
use delo_model::partition::Artifact;
use delo_train::eval::{Evaluation, evaluate, read_directory};
use delo_train::training::{StepRecord, artifact_names, settings_to_renew};
use delo_train::{Event, Outputs, TrainError, renew, train};

/// `NAME.session.json`: what a session took, interruptions included.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct SessionTime {
    seconds: f64,
}

/// Of a step in how many a line is written to the log.
const TELL_EVERY: usize = 10;

impl Run<'_> {
    pub(super) fn partitions(&self, say: &mut dyn FnMut(&str)) -> Result<Outcome, RunError> {
        let names = artifact_names(self.data);
        for (task, name) in names.iter().enumerate() {
            let artifact = self.folder.partitions().join(name);
            if !artifact.exists() {
                self.one_session(task, &artifact, say)?;
            }
        }
        let mut outcome = Outcome::default();
        for name in &names {
            self.add_cost(&self.folder.partitions().join(name), &mut outcome)?;
        }
        if let Some(trained) = &self.cell.adapters_of {
            let cost = self.folder.of_other(trained).result()?.map(|result| result.cost);
            outcome.training_seconds += cost.as_ref().map_or(0.0, |cost| cost.training_seconds);
            outcome.steps = cost.map_or(0, |cost| cost.steps);
        }
        let partitions = read_directory(&self.folder.partitions(), self.engine.backbone())?;
        for &split in &self.cell.splits {
            let evaluation = Evaluation {
                engine: self.engine,
                processor: self.processor,
                data: self.data,
                missing: self.missing,
                split,
                partitions: &partitions,
                rules: &[RoutingRule::default()],
                store: Some(&self.options.store),
            };
            let evaluated = timed(&mut outcome.evaluation_seconds, || evaluate(&evaluation, &mut |_, _| ()))?;
            say(&format!("{split}: evaluated, {:.0} s until now", outcome.evaluation_seconds));
            outcome.evaluated.insert(split, evaluated);
        }
        Ok(outcome)
    }

    /// Trains a session, or takes over what another cell's session has learnt.
    pub(super) fn one_session(&self, task: usize, artifact: &Path, say: &mut dyn FnMut(&str)) -> Result<(), RunError> {
        let outputs = Outputs {
            artifact: artifact.to_owned(),
            log: artifact.with_extension("jsonl"),
            force: false,
            resume: true,
            checkpoint_every: self.options.checkpoint_every,
            cache_bytes: self.options.cache_bytes,
            created: self.options.created.clone(),
        };
        let name = &self.data.tasks[task].name;
        let mut before = 0.0;
        let trained = match &self.cell.adapters_of {
            None => {
                let log = outputs.log.clone();
                let session = self.session(task, &self.cell.settings);
                // Read before the session opens the log, which it cuts to its checkpoint.
                let earlier = steps(&log)?;
                train(&session, &outputs, &mut |event| {
                    match event {
                        Event::Resumed { step } => {
                            before = earlier.iter().filter(|record| record.step < step).map(|record| record.seconds).sum();
                            say(&format!("{name}: goes on from step {step}"));
                        }
                        Event::Step { record, steps } if (record.step + 1).is_multiple_of(steps.div_ceil(TELL_EVERY)) => {
                            say(&format!("{name}: step {} of {steps}, loss {:.3}", record.step + 1, record.loss));
                        }
                        Event::Prefix { .. } | Event::Step { .. } => {}
                    }
                    ControlFlow::Continue(())
                })?
            }
            Some(cell) => {
                let learnt = self.folder.of_other(cell).partitions().join(artifact.file_name().unwrap_or_default());
                let learnt = read_artifact(&learnt)?;
                let settings = settings_to_renew(&learnt, self.cell.settings.head_weight)
                    .map_err(|e| RunError::Artifact { path: cell.clone(), problem: e.to_string() })?;
                renew(&self.session(task, &settings), &learnt, &outputs)?
            }
        };
        let seconds = before + trained.seconds;
        write_json(&artifact.with_extension("session.json"), &SessionTime { seconds })?;
        say(&format!("{name}: {} samples, {} steps, {seconds:.0} s", trained.samples, trained.steps));
        Ok(())
    }

    /// Adds what a session took, and what it learnt.
    pub(super) fn add_cost(&self, artifact: &Path, outcome: &mut Outcome) -> Result<(), RunError> {
        let steps = steps(&artifact.with_extension("jsonl"))?;
        // A process that ended between the artifact and this file leaves the times of the steps.
        let whole = artifact.with_extension("session.json");
        outcome.training_seconds += match read_json::<SessionTime>(&whole) {
            Ok(time) => time.seconds,
            Err(_) => steps.iter().map(|record| record.seconds).sum(),
        };
        outcome.steps += steps.len();
        let Artifact { meta, tensors, .. } = read_artifact(artifact)?;
        let model = TaskModel::from_tensors(meta.method, meta.labels.len(), &tensors).map_err(TrainError::from)?;
        outcome.parameters += model.adapter_parameters();
        outcome.head_parameters += model.head_weight.elem_count() + model.head_bias.elem_count();
        Ok(())
    }
}

pub(super) fn read_artifact(path: &Path) -> Result<Artifact, RunError> {
    let bytes = std::fs::read(path).map_err(io(path))?;
    Artifact::parse(&bytes).map_err(|e| RunError::Artifact { path: path.display().to_string(), problem: e.to_string() })
}

/// The steps of a log; none where there is no log. A line that is cut off is left out.
fn steps(log: &Path) -> Result<Vec<StepRecord>, RunError> {
    if !log.exists() {
        return Ok(Vec::new());
    }
    let lines = BufReader::new(std::fs::File::open(log).map_err(io(log))?).lines();
    let lines = lines.collect::<std::io::Result<Vec<String>>>().map_err(io(log))?;
    Ok(lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect())
}
