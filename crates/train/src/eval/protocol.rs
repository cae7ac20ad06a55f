//! The protocol of METHOD.md 6: sessions arrive in the data set's order; after each of them, every sample of
//! the tasks learnt until then is routed and scored.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::Tensor;

use super::figures::{Predictions, Scored, report};
use super::report::{Report, SampleRecord};
use crate::data::{Dataset, DatasetError, Label, MissingTable, Samples, Split, predict};
use crate::signals::{SignalStore, signals as signals_of};
use delo_catalogue::{Catalogue, CatalogueError, Resident, RoutingRule};
use delo_engine::{Engine, EngineError, Query};
use delo_model::input::{InputProcessor, Sample};
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
    /// Where signals of the frozen backbone are kept.
    pub store: Option<&'a SignalStore>,
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
    /// The curves of policies need the probabilities of tasks and one label a sample.
    #[error(
        "the curves of reject, early_answer and second_task need probabilities of tasks and one label a sample: train the \
         partitions with --key-metric lda, choose --metric lda, and no multi-label data"
    )]
    NoProbabilities,
    /// The engine failed.
    #[error("the forward pass failed: {0}")]
    Compute(#[from] candle_core::Error),
}

/// One routing rule over the stages: entry j holds the partitions of tasks 0..=j.
pub(super) struct Stages {
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
    for (position, (task, _)) in tasks.iter().enumerate() {
        let rows = data.rows(*task, evaluation.split);
        let samples = Samples::new(data, rows, evaluation.missing, evaluation.processor);
        samples.for_each_chunk(BATCH, |chunk, samples| {
            let frozen = signals_of(engine, evaluation.store, samples, everything.dummy_image(), &signals)?;
            let routes = rules.iter().map(|stages| stages.route(&frozen, &tasks)).collect::<Result<Vec<_>, _>>()?;
            let routes: Vec<Vec<_>> = (0..samples.len()).map(|i| routes.iter().map(|rule| rule[i].clone()).collect()).collect();
            let wanted: Vec<BTreeSet<usize>> = routes.iter().map(|routes| answering(position, routes, data.multi_label)).collect();
            let predictions = predictions(engine, &everything, &tasks, samples, &wanted)?;
            for (((sample, row), routes), predictions) in samples.iter().zip(&rows[chunk]).zip(routes).zip(predictions) {
                let (presence, predictions) = (sample.presence(), Predictions::Fixed(predictions));
                scored.push(Scored { item: *row, task: position, presence, predictions, routes, unrouted: false });
            }
            progress(scored.len(), total);
            Ok::<_, EvalError>(())
        })?;
    }
    let order: Vec<usize> = tasks.iter().map(|(task, _)| *task).collect();
    let samples = scored.iter().map(|sample| sample.record(data, &order)).collect();
    Ok(Evaluated { report: report(evaluation, &tasks, &rules, &scored), samples })
}

/// Positions of the tasks whose partitions a sample of `task` goes through: its own and, for multi-label,
/// those that some rule chooses once its own task is learnt, whose labels count as well.
fn answering(task: usize, routes: &[Vec<Option<usize>>], multi_label: bool) -> BTreeSet<usize> {
    let chosen = routes.iter().flat_map(|stages| &stages[task..]).flatten().copied().filter(|_| multi_label);
    chosen.chain([task]).collect()
}

/// What the wanted partitions predict of each sample, by position of their task.
fn predictions(
    engine: &Engine,
    everything: &Catalogue,
    tasks: &[(usize, Arc<Resident>)],
    samples: &[Sample],
    wanted: &[BTreeSet<usize>],
) -> Result<Vec<BTreeMap<usize, Label>>, EvalError> {
    let pairs: Vec<(usize, usize)> = wanted.iter().enumerate().flat_map(|(i, tasks)| tasks.iter().map(move |&task| (i, task))).collect();
    let mut predictions = vec![BTreeMap::new(); samples.len()];
    for pairs in pairs.chunks(BATCH) {
        let queries: Vec<Query> = pairs.iter().map(|&(i, task)| Query::given(samples[i].clone(), tasks[task].1.clone())).collect();
        for (answer, &(i, task)) in engine.classify(everything, &queries).into_iter().zip(pairs) {
            let threshold = tasks[task].1.partition.meta.multi_label.then_some(0.5);
            predictions[i].insert(task, predict(&answer?.scores, threshold));
        }
    }
    Ok(predictions)
}

/// The result of an evaluation: the figures, and the samples that they are computed from.
#[derive(Debug)]
pub struct Evaluated {
    /// The figures.
    pub report: Report,
    /// In the order of the tasks, then of the data set's list.
    pub samples: Vec<SampleRecord>,
}

impl Evaluation<'_> {
    /// The tasks of the data set that have a partition, in the data set's order, as (index in the data set,
    /// partition).
    ///
    /// # Errors
    /// [`EvalError::NoTask`], [`EvalError::Twice`], [`EvalError::Labels`].
    pub fn tasks(&self) -> Result<Vec<(usize, Arc<Resident>)>, EvalError> {
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
    pub(super) fn name(&self) -> String {
        self.catalogues.last().map_or(String::new(), |c| format!("{} {}", c.metric(), c.signal()))
    }

    pub(super) fn notice(&self) -> Option<&str> {
        self.catalogues.last().and_then(Catalogue::notice)
    }
}
