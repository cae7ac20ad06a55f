//! Trains one session: samples, frozen prefix, steps, keys, validation, artifact (METHOD.md 5).
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Tensor;
use rand::RngCore;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::checkpoint::{Checkpoint, CheckpointError};
use super::dataset::{Dataset, DatasetError, Label, Split};
use super::missing::MissingTable;
use super::objective::{Batch, Objective, targets};
use super::optimiser::AdamW;
use super::prefix::{CHUNK, FrozenPrefix};
use super::random::{Purpose, below, choose, stream};
use super::samples::samples;
use super::schedule::Schedule;
use super::score::{ByPattern, predict, score};
use super::settings::{Settings, SettingsError};
use super::step_log::{StepLog, StepRecord};
use delo_engine::{Engine, Packed};
use delo_model::input::{InputProcessor, Presence, Sample};
use delo_model::method::task_model::{TARGETS, TaskModel};
use delo_model::partition::{self, BackboneRecord, KeyRule, PartitionError, PartitionMeta};
use delo_model::routing::keys::{KeyAverage, KeySignal, SessionKeys, Signals};
use delo_process::durable::replace;

/// What is to be learnt, on what, how.
#[derive(Debug)]
pub struct Session<'a> {
    pub engine: &'a Engine,
    pub processor: &'a InputProcessor,
    /// Of the backbone, to show to people.
    pub backbone: String,
    pub data: &'a Dataset,
    pub missing: &'a MissingTable,
    /// Index in [`Dataset::tasks`].
    pub task: usize,
    pub settings: &'a Settings,
    pub key: KeyRule,
}

/// Where a session writes, and whether over what is there.
#[derive(Clone, Debug)]
pub struct Outputs {
    pub artifact: PathBuf,
    /// A JSON line for each step.
    pub log: PathBuf,
    /// Overwrite the artifact, and start over where a checkpoint lies.
    pub force: bool,
    /// Go on from the checkpoint beside the artifact, if there is one.
    pub resume: bool,
    /// Steps between checkpoints; 0 means at the end of each epoch.
    pub checkpoint_every: usize,
    /// Bytes that cached states of the frozen layers may take.
    pub cache_bytes: usize,
    /// Creation time that the artifact states, RFC 3339, UTC.
    pub created: String,
}

/// How far a session is. The observer may stop it after any event.
#[derive(Debug)]
pub enum Event<'a> {
    /// States of the frozen prefix are computed.
    Prefix { done: usize, total: usize },
    /// The session goes on from a checkpoint after `step` steps.
    Resumed { step: usize },
    /// One step of `steps` is done.
    Step { record: &'a StepRecord, steps: usize },
}

/// What a session came to.
#[derive(Clone, Debug)]
pub struct Trained {
    pub artifact: PathBuf,
    pub steps: usize,
    pub samples: usize,
    /// Learning parameters, without the head.
    pub pool_parameters: usize,
    /// Wall time of this run, in seconds.
    pub seconds: f64,
    /// Task-oracle accuracy or F1-macro on the val split, in percent.
    pub validation: ByPattern,
}

/// Why a session ends without an artifact.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("task {0:?} has no item in the train split: check task_id and split in the list of items")]
    NoSamples(String),
    #[error("{} exists: choose another --out, or overwrite it with --force", .0.display())]
    Exists(PathBuf),
    #[error("an interrupted run lies in {}: go on with --resume, or start over with --force", .0.display())]
    Interrupted(PathBuf),
    #[error("the loss is not finite at step {step}: lower --lr ({lr})")]
    Diverged { step: usize, lr: f64 },
    #[error("stopped at step {step}: go on with --resume")]
    Stopped { step: usize },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("the artifact cannot be made: {0}")]
    Artifact(#[from] PartitionError),
    #[error("the forward or backward pass failed: {0}")]
    Compute(#[from] candle_core::Error),
}

/// Trains one session and writes its artifact. The same session gives the same artifact, also when it is interrupted and resumed.
///
/// # Errors
/// [`TrainError`]; the artifact is written whole or not at all.
pub fn train(
    session: &Session<'_>,
    outputs: &Outputs,
    observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<Trained, TrainError> {
    let start = Instant::now();
    let Session { engine, data, settings, .. } = session;
    let task = &data.tasks[session.task];
    let vilt = engine.backbone();
    let (layers, hidden) = (vilt.config.num_hidden_layers, vilt.config.hidden_size);
    settings.check(layers, vilt.config.patch_size)?;
    let rows = data.rows(session.task, Split::Train);
    if rows.is_empty() {
        return Err(TrainError::NoSamples(task.name.clone()));
    }
    let checkpoint_path = prepare_outputs(outputs)?;
    let identity = session.identity();
    let checkpoint = if outputs.resume { Checkpoint::read(&checkpoint_path, &identity)? } else { None };
    let first_step = checkpoint.as_ref().map_or(0, |c| c.step);

    let samples = samples(data, &rows, session.missing, session.processor)?;
    let mut stopped = false;
    let mut heard = |event: Event<'_>| stopped |= observe(event).is_break();
    let prefix = FrozenPrefix::new(engine, &samples, settings.first_adapted_layer, session.dummy_image())
        .keep(outputs.cache_bytes, &mut |done, total| heard(Event::Prefix { done, total }))?;
    let seed = stream(Purpose::Start, settings.seed, (task.id, 0)).next_u64();
    let model = TaskModel::init(settings.pools(layers, hidden), task.labels.len(), seed)?;
    let mut steps = Steps {
        session,
        samples: &samples,
        labels: rows.iter().map(|&row| &data.items[row].label).collect(),
        prefix,
        optimiser: AdamW::new(model.vars(), settings.adamw())?,
        objective: settings.objective(data.multi_label, layers),
        schedule: Schedule::new(settings.lr, settings.epochs * rows.len().div_ceil(settings.batch), settings.warmup),
        model,
    };
    if let Some(checkpoint) = &checkpoint {
        steps.optimiser.restore(&checkpoint.tensors, checkpoint.step)?;
        heard(Event::Resumed { step: first_step });
    }
    let mut log = StepLog::open(&outputs.log, first_step).map_err(write_error(&outputs.log))?;

    let batches = batches(rows.len(), settings, task.id);
    let per_epoch = rows.len().div_ceil(settings.batch);
    for (step, batch) in batches.iter().enumerate().skip(first_step) {
        if stopped {
            return Err(TrainError::Stopped { step });
        }
        let record = steps.step(step, step / per_epoch, batch)?;
        log.write(&record).map_err(write_error(&outputs.log))?;
        let done = step + 1;
        let due = match outputs.checkpoint_every {
            0 => done.is_multiple_of(per_epoch),
            every => done.is_multiple_of(every),
        };
        if due && done < batches.len() {
            Checkpoint { step: done, identity: identity.clone(), tensors: steps.optimiser.state()? }.write(&checkpoint_path)?;
        }
        stopped |= observe(Event::Step { record: &record, steps: batches.len() }).is_break();
    }

    let keys = session.keys(&samples, &batches)?;
    let validation = session.validate(&steps.model)?;
    let meta = session.meta(&steps.model, &validation, outputs);
    let bytes = partition::to_bytes(&meta, &steps.model, &keys)?;
    replace(&outputs.artifact, &bytes).map_err(write_error(&outputs.artifact))?;
    // The artifact is complete: a checkpoint that can't be removed costs a message at the next run, not this one's result.
    let _ = std::fs::remove_file(&checkpoint_path);
    Ok(Trained {
        artifact: outputs.artifact.clone(),
        steps: batches.len(),
        samples: rows.len(),
        pool_parameters: steps.model.pool_parameters(),
        seconds: start.elapsed().as_secs_f64(),
        validation,
    })
}

/// Refuses to overwrite, makes the folders, and returns the checkpoint's path.
fn prepare_outputs(outputs: &Outputs) -> Result<PathBuf, TrainError> {
    let checkpoint = Checkpoint::path(&outputs.artifact);
    if outputs.artifact.exists() && !outputs.force {
        return Err(TrainError::Exists(outputs.artifact.clone()));
    }
    if checkpoint.exists() && !outputs.resume && !outputs.force {
        return Err(TrainError::Interrupted(checkpoint));
    }
    for path in [&outputs.artifact, &outputs.log] {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(write_error(path))?;
        }
    }
    Ok(checkpoint)
}

fn write_error(path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
    let path = path.to_owned();
    move |source| TrainError::Write { path, source }
}

/// The samples of every step of the session, in training order; each epoch has its own order, which depends on the seed, the task and the epoch only.
fn batches(samples: usize, settings: &Settings, task_id: u64) -> Vec<Vec<usize>> {
    let order = |epoch| choose(&mut stream(Purpose::Order, settings.seed, (task_id, epoch as u64)), samples, samples);
    (0..settings.epochs).flat_map(|epoch| order(epoch).chunks(settings.batch).map(<[_]>::to_vec).collect::<Vec<_>>()).collect()
}

/// What the steps of a session work on.
struct Steps<'a> {
    session: &'a Session<'a>,
    samples: &'a [Sample],
    labels: Vec<&'a Label>,
    prefix: FrozenPrefix<'a>,
    model: TaskModel,
    optimiser: AdamW,
    objective: Objective,
    schedule: Schedule,
}

impl Steps<'_> {
    /// One step on the samples of `batch`: a single packed forward over them and the proxied copies of the complete ones.
    fn step(&mut self, step: usize, epoch: usize, batch: &[usize]) -> Result<StepRecord, TrainError> {
        let start = Instant::now();
        let Session { engine, data, settings, .. } = self.session;
        let complete: Vec<usize> = (0..batch.len()).filter(|&i| self.samples[batch[i]].presence() == Presence::Complete).collect();
        let mut parts = self.prefix.get(batch)?;
        if self.objective.consistency > 0.0 {
            let mut rng = stream(Purpose::Hidden, settings.seed, (data.tasks[self.session.task].id, step as u64));
            let keeps = [Presence::ImageOnly, Presence::TextOnly][below(&mut rng, 2)];
            let copies: Vec<Packed> = complete.iter().map(|&i| parts[i].with_presence(&[keeps])).collect();
            parts.extend(copies);
        }
        let output = engine.run_task(&Packed::concat(&parts)?, &self.model)?;
        let labels: Vec<&Label> = batch.iter().map(|&i| self.labels[i]).collect();
        let batch =
            Batch { targets: targets(&labels, output.logits.device())?, complete: complete.into_iter().map(|i| i as u32).collect() };
        let losses = self.objective.losses(&output, &batch)?;
        let value = |t: &Tensor| Ok::<_, candle_core::Error>(f64::from(t.to_scalar::<f32>()?));
        let loss = value(&losses.total)?;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step, lr: settings.lr });
        }
        let lr = self.schedule.at(step);
        self.optimiser.step(&losses.total.backward()?, lr)?;
        Ok(StepRecord {
            step,
            epoch,
            lr,
            loss,
            classification: value(&losses.classification)?,
            alignment: losses.alignment.as_ref().map(value).transpose()?,
            consistency: losses.consistency.as_ref().map(value).transpose()?,
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}

impl Session<'_> {
    /// Height and width of the image that stands in for a missing one, in pixels.
    fn dummy_image(&self) -> [usize; 2] {
        self.settings.dummy_image.as_deref().and_then(|size| size.try_into().ok()).unwrap_or(self.engine.default_dummy_image())
    }

    /// All that decides the result, by name.
    fn identity(&self) -> Map<String, Value> {
        let task = &self.data.tasks[self.task];
        let mut identity = match json!(self.settings) {
            Value::Object(settings) => settings,
            _ => Map::new(),
        };
        let table = json!(self.missing).to_string();
        identity.extend([
            ("seed".to_owned(), json!(self.settings.seed)),
            ("data".to_owned(), json!(self.data.name)),
            ("task".to_owned(), json!(task.name)),
            ("labels".to_owned(), json!(task.labels)),
            ("samples".to_owned(), json!(self.data.rows(self.task, Split::Train).len())),
            ("missing table (SHA-256)".to_owned(), json!(format!("{:x}", Sha256::digest(table)))),
            ("backbone".to_owned(), json!(self.engine.backbone().fingerprint)),
        ]);
        // A checkpoint without this entry read them as words.
        if self.processor.special_tokens() {
            identity.insert("--special-tokens".to_owned(), json!(true));
        }
        identity
    }

    /// What the artifact's two rules compare, from the signals of the frozen backbone: key and second moment
    /// of the whitened one, the key of the plain one. A moving average follows the batches in training order.
    fn keys(&self, samples: &[Sample], batches: &[Vec<usize>]) -> Result<SessionKeys, TrainError> {
        let KeyRule { signal, plain_signal, plain_average, .. } = self.key;
        let wanted: Vec<KeySignal> = BTreeSet::from([signal, plain_signal]).into_iter().collect();
        let mut chunks: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for chunk in samples.chunks(CHUNK) {
            for (name, values) in self.engine.signals(&self.engine.embed(chunk, self.dummy_image())?, &wanted)? {
                chunks.entry(name).or_default().push(values);
            }
        }
        let mut signals =
            chunks.into_iter().map(|(name, values)| Ok((name, Tensor::cat(&values, 0)?))).collect::<candle_core::Result<Signals>>()?;
        let mut keys = SessionKeys::of(&signals, &[signal])?;
        if plain_average == KeyAverage::Ema {
            keys.mean.retain(|name, _| *name == signal.to_string());
            signals.retain(|name, _| *name == plain_signal.to_string());
            for batch in batches {
                keys.moving_average_step(&signals, batch, self.settings.key_beta as f32)?;
            }
        }
        Ok(keys)
    }

    /// Task-oracle score on the val split, in percent.
    fn validate(&self, model: &TaskModel) -> Result<ByPattern, TrainError> {
        let rows = self.data.rows(self.task, Split::Val);
        let samples = samples(self.data, &rows, self.missing, self.processor)?;
        let threshold = self.data.multi_label.then_some(0.0);
        let mut predictions = Vec::with_capacity(rows.len());
        for chunk in samples.chunks(CHUNK) {
            let prefix = self.engine.run_frozen(&self.engine.embed(chunk, self.dummy_image())?, 0..self.settings.first_adapted_layer)?;
            let logits = self.engine.run_task(&prefix, model)?.logits.to_vec2::<f32>()?;
            predictions.extend(logits.iter().map(|row| predict(row, threshold)));
        }
        let presence: Vec<Presence> = samples.iter().map(Sample::presence).collect();
        Ok(ByPattern::of(&presence, |chosen| {
            let predicted: Vec<_> = chosen.iter().map(|&i| Some(&predictions[i])).collect();
            let truth: Vec<_> = chosen.iter().map(|&i| &self.data.items[rows[i]].label).collect();
            score(&predicted, &truth)
        }))
    }

    fn meta(&self, model: &TaskModel, validation: &ByPattern, outputs: &Outputs) -> PartitionMeta {
        let task = &self.data.tasks[self.task];
        let name = if self.data.multi_label { "val_f1_macro" } else { "val_accuracy" };
        let by_pattern = [
            (name.to_owned(), validation.all),
            (format!("{name}_complete"), validation.complete),
            (format!("{name}_image_only"), validation.image_only),
            (format!("{name}_text_only"), validation.text_only),
        ];
        PartitionMeta {
            task: task.name.clone(),
            labels: task.labels.clone(),
            multi_label: self.data.multi_label,
            pools: model.spec.clone(),
            targets: TARGETS.map(str::to_owned).to_vec(),
            key: self.key.clone(),
            dummy_image: self.dummy_image(),
            special_tokens: Some(self.processor.special_tokens()),
            backbone: BackboneRecord { fingerprint: self.engine.backbone().fingerprint.clone(), name: self.backbone.clone() },
            training: json!(self.settings),
            data: self.data_record(),
            seed: self.settings.seed,
            metrics: by_pattern.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
            created: outputs.created.clone(),
            delo_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// What the artifact says of its data: the missing table's rule, and items by split and modality pattern.
    fn data_record(&self) -> Value {
        let mut items = Map::new();
        for (name, split) in [("train", Split::Train), ("val", Split::Val), ("test", Split::Test)] {
            let rows = self.data.rows(self.task, split);
            let count = |p| rows.iter().filter(|&&row| self.missing.presence(self.data, row) == p).count();
            let counts = json!({
                "complete": count(Presence::Complete), "image_only": count(Presence::ImageOnly), "text_only": count(Presence::TextOnly),
            });
            items.insert(name.to_owned(), counts);
        }
        json!({
            "name": self.data.name, "task_id": self.data.tasks[self.task].id, "eta": self.missing.eta, "missing": self.missing.kind,
            "missing_seed": self.missing.seed, "items": items,
        })
    }
}
