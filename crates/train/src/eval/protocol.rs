//! The protocol of METHOD.md 6: sessions arrive in the data set's order; after each of them, every sample of
//! the tasks learnt until then is routed and scored.
use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::Tensor;

use super::metrics::ScoreMatrix;
use super::report::{Column, Report, SampleRecord, TaskRow};
use crate::data::{ByPattern, Dataset, DatasetError, Label, MissingTable, Samples, Split, predict, score};
use delo_catalogue::{Catalogue, CatalogueError, Resident, RoutingRule};
use delo_engine::{Engine, EngineError, Query};
use delo_model::input::{InputProcessor, Presence, Sample};
use delo_model::routing::keys::{KeySignal, Signals};

/// Samples that go through the backbone together.
const BATCH: usize = 32;

/// The partitions to evaluate, the data, and the rules of routing.
#[derive(Debug)]
pub struct Evaluation<'a> {
    /// The frozen backbone.
    pub engine: &'a Engine,
    /// Makes samples of images and texts, as the backbone's checkpoint says.
    pub processor: &'a InputProcessor,
    /// The data set.
    pub data: &'a Dataset,
    /// Which items lose a modality.
    pub missing: &'a MissingTable,
    /// The items to evaluate.
    pub split: Split,
    /// In any order; those of no task of the data set are left out, and the report says so.
    pub partitions: &'a [Arc<Resident>],
    /// The report has a task-agnostic column for each of them.
    pub rules: &'a [RoutingRule],
}

/// Why an evaluation gives no figures.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// An item whose image or text cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// Partitions that do not go together, or lack the key of a rule.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// A sample that the engine refuses.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No task of the data set has a partition.
    #[error("no partition is of a task of {0}: train them with `delo train --data … --task …`")]
    NoTask(String),
    /// A task has more than one partition.
    #[error("two partitions are of task {0:?}: leave one in the folder")]
    Twice(String),
    /// A partition whose labels are not those of its task.
    #[error("partition {task:?} has labels {found:?}, the data set {expected:?}: evaluate on the data that it was trained on")]
    Labels {
        /// Name of the task.
        task: String,
        /// The partition's labels.
        found: Vec<String>,
        /// The data set's labels.
        expected: Vec<String>,
    },
    /// The engine failed.
    #[error("the forward pass failed: {0}")]
    Compute(#[from] candle_core::Error),
}

/// One evaluated sample.
struct Scored {
    /// Index in the data set's list.
    item: usize,
    /// Position among the evaluated tasks.
    task: usize,
    presence: Presence,
    truth: Label,
    /// The prediction of its true task's partition.
    prediction: Label,
    /// For each rule, the position of the task chosen once tasks 0..=j are learnt, for every j.
    routes: Vec<Vec<Option<usize>>>,
}

/// One routing rule over the stages: entry j holds the partitions of tasks 0..=j.
struct Stages {
    catalogues: Vec<Catalogue>,
}

/// Evaluates partitions as if their sessions had come one after another. Samples are decoded in chunks, of
/// which at most two are held. `progress` is called with the number of samples that are done, and the number
/// of all.
///
/// # Errors
/// [`EvalError`].
pub fn evaluate(evaluation: &Evaluation<'_>, progress: &mut dyn FnMut(usize, usize)) -> Result<Evaluated, EvalError> {
    let (engine, data) = (evaluation.engine, evaluation.data);
    let tasks = evaluation.tasks()?;
    let empty = |rule| Catalogue::empty(engine.backbone(), rule).with_special_tokens(evaluation.processor.special_tokens());
    let rules = evaluation.rules.iter().map(|&rule| Stages::build(empty(rule), &tasks)).collect::<Result<Vec<_>, _>>()?;
    let everything = empty(RoutingRule::default()).with_all(tasks.iter().map(|(_, r)| r.clone()))?;
    let signals: BTreeSet<KeySignal> = rules.iter().flat_map(|r| &r.catalogues).map(Catalogue::signal).collect();
    let signals: Vec<KeySignal> = signals.into_iter().collect();

    let total = tasks.iter().map(|(task, _)| data.rows(*task, evaluation.split).len()).sum();
    let mut scored: Vec<Scored> = Vec::with_capacity(total);
    for (position, (task, resident)) in tasks.iter().enumerate() {
        let threshold = resident.partition.meta.multi_label.then_some(0.5);
        let rows = data.rows(*task, evaluation.split);
        let samples = Samples::new(data, rows, evaluation.missing, evaluation.processor);
        samples.for_each_chunk(BATCH, |chunk, samples| {
            let frozen = engine.signals(&engine.embed(samples, everything.dummy_image())?, &signals)?;
            let routes = rules.iter().map(|stages| stages.route(&frozen, &tasks)).collect::<Result<Vec<_>, _>>()?;
            let query = |sample: &Sample| Query::given(sample.clone(), resident.clone());
            let answers = engine.classify(&everything, &samples.iter().map(query).collect::<Vec<_>>());
            for (i, (answer, &row)) in answers.into_iter().zip(&rows[chunk]).enumerate() {
                scored.push(Scored {
                    item: row,
                    task: position,
                    presence: samples[i].presence(),
                    truth: data.items[row].label.clone(),
                    prediction: predict(&answer?.scores, threshold),
                    routes: routes.iter().map(|rule| rule[i].clone()).collect(),
                });
            }
            progress(scored.len(), total);
            Ok::<_, EvalError>(())
        })?;
    }
    let samples = scored.iter().map(|sample| record(data, &tasks, sample)).collect();
    Ok(Evaluated { report: report(evaluation, &tasks, &rules, &scored), samples })
}

/// The result of an evaluation: the figures, and the samples that they are computed from.
#[derive(Debug)]
pub struct Evaluated {
    /// The figures.
    pub report: Report,
    /// In the order of the tasks, then of the data set's list.
    pub samples: Vec<SampleRecord>,
}

fn record(data: &Dataset, tasks: &[(usize, Arc<Resident>)], sample: &Scored) -> SampleRecord {
    let (task, resident) = &tasks[sample.task];
    let labels = &resident.partition.meta.labels;
    let named = |label: &Label| -> Vec<String> {
        match label {
            Label::Class(class) => vec![labels[*class].clone()],
            Label::Classes(flags) => labels.iter().zip(flags).filter(|(_, flag)| **flag).map(|(label, _)| label.clone()).collect(),
        }
    };
    let routed = |stages: &Vec<Option<usize>>| stages.last().copied().flatten().map(|position| tasks[position].1.task().to_owned());
    SampleRecord {
        item: sample.item,
        image: data.items[sample.item].image.clone(),
        task: data.tasks[*task].name.clone(),
        pattern: sample.presence,
        truth: named(&sample.truth),
        prediction: named(&sample.prediction),
        routed: sample.routes.iter().map(routed).collect(),
    }
}

impl Evaluation<'_> {
    /// The tasks of the data set that have a partition, in the data set's order, as (index in the data set,
    /// partition).
    fn tasks(&self) -> Result<Vec<(usize, Arc<Resident>)>, EvalError> {
        let mut tasks = Vec::new();
        for (index, task) in self.data.tasks.iter().enumerate() {
            let mut mine = self.partitions.iter().filter(|r| r.task() == task.name);
            let Some(resident) = mine.next() else { continue };
            if mine.next().is_some() {
                return Err(EvalError::Twice(task.name.clone()));
            }
            let found = &resident.partition.meta.labels;
            if *found != task.labels {
                return Err(EvalError::Labels { task: task.name.clone(), found: found.clone(), expected: task.labels.clone() });
            }
            tasks.push((index, resident.clone()));
        }
        if tasks.is_empty() { Err(EvalError::NoTask(self.data.name.clone())) } else { Ok(tasks) }
    }
}

impl Stages {
    fn build(empty: Catalogue, tasks: &[(usize, Arc<Resident>)]) -> Result<Self, CatalogueError> {
        let mut last = empty;
        let mut catalogues = Vec::with_capacity(tasks.len());
        for (_, resident) in tasks {
            let next = last.with(resident.clone())?;
            catalogues.push(std::mem::replace(&mut last, next));
        }
        catalogues.push(last);
        // The first catalogue is the empty one.
        catalogues.remove(0);
        Ok(Self { catalogues })
    }

    /// For each sample, the position of the task that each stage's catalogue chooses.
    fn route(&self, signals: &Signals, tasks: &[(usize, Arc<Resident>)]) -> candle_core::Result<Vec<Vec<Option<usize>>>> {
        let mut routes: Vec<Vec<Option<usize>>> = Vec::new();
        for catalogue in &self.catalogues {
            let rows = signals.get(&catalogue.signal()).map(Tensor::to_vec2::<f32>).transpose()?.unwrap_or_default();
            routes.resize_with(rows.len(), Vec::new);
            for (sample, row) in rows.iter().enumerate() {
                let chosen = catalogue.candidates(row).into_iter().next();
                routes[sample].push(chosen.and_then(|best| tasks.iter().position(|(_, r)| r.task() == &*best.task)));
            }
        }
        Ok(routes)
    }

    /// The metric and the signal by which the last stage decides.
    fn name(&self) -> String {
        self.catalogues.last().map_or(String::new(), |c| format!("{} {}", c.metric(), c.signal()))
    }

    fn notice(&self) -> Option<&str> {
        self.catalogues.last().and_then(Catalogue::notice)
    }
}

/// How the task of a sample is decided.
#[derive(Clone, Copy)]
enum Decision {
    /// The true task is given.
    Oracle,
    /// By the routing rule of this index.
    Key(usize),
}

impl Decision {
    /// The sample's prediction once tasks 0..=stage are learnt; `None` where another task than its own is
    /// chosen.
    fn prediction(self, sample: &Scored, stage: usize) -> Option<&Label> {
        let right = match self {
            Self::Oracle => true,
            Self::Key(rule) => sample.routes[rule][stage] == Some(sample.task),
        };
        right.then_some(&sample.prediction)
    }

    fn score<'a>(self, samples: impl Iterator<Item = &'a Scored> + Clone, stage: usize) -> Option<f64> {
        let predictions: Vec<_> = samples.clone().map(|s| self.prediction(s, stage)).collect();
        score(&predictions, &samples.map(|s| &s.truth).collect::<Vec<_>>())
    }
}

fn report(evaluation: &Evaluation<'_>, tasks: &[(usize, Arc<Resident>)], rules: &[Stages], scored: &[Scored]) -> Report {
    let data = evaluation.data;
    let known: BTreeSet<&str> = data.tasks.iter().map(|t| t.name.as_str()).collect();
    let mut notes: Vec<String> = rules.iter().filter_map(Stages::notice).map(str::to_owned).collect();
    let lacking: Vec<&str> =
        data.tasks.iter().enumerate().filter(|(i, _)| tasks.iter().all(|(t, _)| t != i)).map(|(_, t)| t.name.as_str()).collect();
    if !lacking.is_empty() {
        notes.push(format!("no partition for {}: left out of every figure", lacking.join(", ")));
    }
    let foreign: Vec<&str> = evaluation.partitions.iter().map(|r| r.task()).filter(|t| !known.contains(t)).collect();
    if !foreign.is_empty() {
        notes.push(format!("not of this data set, and not loaded: {}", foreign.join(", ")));
    }
    Report {
        data: data.name.clone(),
        split: evaluation.split,
        measure: if data.multi_label { "F1-macro" } else { "accuracy" }.to_owned(),
        eta: evaluation.missing.eta,
        missing: evaluation.missing.kind,
        seed: evaluation.missing.seed,
        samples: scored.len(),
        oracle: column("task-oracle".to_owned(), Decision::Oracle, tasks, scored, data.multi_label),
        agnostic: rules
            .iter()
            .enumerate()
            .map(|(rule, stages)| column(format!("task-agnostic, {}", stages.name()), Decision::Key(rule), tasks, scored, data.multi_label))
            .collect(),
        notes,
    }
}

fn column(name: String, decision: Decision, tasks: &[(usize, Arc<Resident>)], scored: &[Scored], multi_label: bool) -> Column {
    let last = tasks.len() - 1;
    let of_task = |task: usize| scored.iter().filter(move |s| s.task == task);
    let matrix = ScoreMatrix::of(tasks.len(), |i, j| decision.score(of_task(i), j).unwrap_or(0.0));
    let presence: Vec<Presence> = scored.iter().map(|s| s.presence).collect();
    let by_pattern = ByPattern::of(&presence, |chosen| {
        let chosen = chosen.iter().map(|&i| &scored[i]);
        if !multi_label {
            return decision.score(chosen, last);
        }
        // Classes differ between tasks: F1-macro within each, then the mean over those that have such
        // samples.
        let tasks: Vec<f64> =
            (0..tasks.len()).filter_map(|task| decision.score(chosen.clone().filter(move |s| s.task == task), last)).collect();
        (!tasks.is_empty()).then(|| tasks.iter().sum::<f64>() / tasks.len() as f64)
    });
    let right = |s: &Scored| decision.prediction(s, last).is_some();
    let share = |hits: usize, of: usize| (of > 0).then(|| 100.0 * hits as f64 / of as f64);
    let routing = ByPattern::of(&presence, |chosen| share(chosen.iter().filter(|&&i| right(&scored[i])).count(), chosen.len()));
    Column {
        ap: matrix.average_performance(),
        fg: matrix.forgetting(),
        score: by_pattern,
        routing: matches!(decision, Decision::Key(_)).then_some(routing),
        tasks: tasks
            .iter()
            .enumerate()
            .map(|(task, (_, resident))| TaskRow {
                task: resident.task().to_owned(),
                samples: of_task(task).count(),
                scores: matrix.rows()[task].clone(),
                routing: share(of_task(task).filter(|s| right(s)).count(), of_task(task).count()),
            })
            .collect(),
        name,
    }
}
