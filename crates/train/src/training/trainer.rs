//! Trains one session: samples, frozen prefix, steps, keys, validation, artifact (METHOD.md 5).
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::checkpoint::Checkpoint;
use super::error::TrainError;
use super::prefix::{CHUNK, FrozenPrefix};
use super::settings::Settings;
use super::step_log::{StepLog, StepRecord};
use super::steps::Steps;
use crate::data::samples::read_ahead;
use crate::data::{ByPattern, Dataset, MissingTable, Samples, Split, predict, score};
use crate::random::{Purpose, choose, stream};
use delo_engine::Engine;
use delo_model::TaskModel;
use delo_model::input::{InputProcessor, Presence, Sample};
use delo_model::partition::{self, BackboneRecord, KeyRule, PartitionMeta};
use delo_model::routing::keys::{KeyAverage, KeySignal, SessionKeys, Signals};
use delo_process::durable::replace;

/// One session: the task to learn, its data, and how it is learnt.
#[derive(Debug)]
pub struct Session<'a> {
    /// The frozen backbone.
    pub engine: &'a Engine,
    /// Makes samples of images and texts, as the backbone's checkpoint says.
    pub processor: &'a InputProcessor,
    /// Name of the backbone, to show to people.
    pub backbone: String,
    /// The data set; only the items of `task` are read.
    pub data: &'a Dataset,
    /// Which items lose a modality.
    pub missing: &'a MissingTable,
    /// Index in [`Dataset::tasks`].
    pub task: usize,
    /// The hyper-parameters.
    pub settings: &'a Settings,
    /// How the artifact's key is compared with a sample.
    pub key: KeyRule,
}

/// Where a session writes, and whether over what is there.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// The file of the artifact.
    pub artifact: PathBuf,
    /// The file of the log: a JSON line for each step.
    pub log: PathBuf,
    /// Overwrite the artifact, and start over where a checkpoint lies.
    pub force: bool,
    /// Go on from the checkpoint beside the artifact, if there is one.
    pub resume: bool,
    /// Steps between checkpoints; 0 means at the end of each epoch.
    pub checkpoint_every: usize,
    /// Bytes that kept states of the frozen layers may take.
    pub cache_bytes: usize,
    /// Creation time that the artifact states, RFC 3339, UTC.
    pub created: String,
}

/// How far a session is. The observer may stop it after any event.
#[derive(Debug)]
pub enum Event<'a> {
    /// Samples are decoded, and the states of the frozen prefix computed that memory has room for.
    Prefix {
        /// Samples that are ready.
        done: usize,
        /// All samples of the session.
        total: usize,
    },
    /// The session goes on from a checkpoint.
    Resumed {
        /// Steps that were taken before.
        step: usize,
    },
    /// One step is done.
    Step {
        /// Its losses.
        record: &'a StepRecord,
        /// Steps of the whole session.
        steps: usize,
    },
}

/// The result of a session.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The file of the artifact.
    pub artifact: PathBuf,
    /// Steps of the whole session, those before an interruption included.
    pub steps: usize,
    /// Training samples.
    pub samples: usize,
    /// Learning parameters, without the head.
    pub pool_parameters: usize,
    /// Wall time of this run, in seconds.
    pub seconds: f64,
    /// Task-oracle accuracy or F1-macro on the val split, in percent.
    pub validation: ByPattern,
}

/// Trains one session and writes its artifact. The same session gives the same artifact, also when it is
/// interrupted and resumed, and whatever the number of threads and the memory for kept states.
///
/// Memory does not grow with the number of images: pixels are decoded when they are needed, and of the states
/// of the frozen layers as many are kept as [`Outputs::cache_bytes`] has room for. For each sample remain its
/// entry in the data set and, while the keys are computed, its signals: 4 · (4 d + 3) bytes with the default
/// rules, d the width of the backbone.
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

    let samples = Samples::new(data, rows, session.missing, session.processor);
    let mut stopped = false;
    let mut report = |event: Event<'_>| stopped |= observe(event).is_break();
    let mut progress = |done, total| report(Event::Prefix { done, total });
    let method = settings.method(layers, hidden);
    let (first, dummy_image) = (method.first_adapted_layer(), session.dummy_image());
    let prefix = FrozenPrefix::new(engine, samples, first, dummy_image, outputs.cache_bytes, &mut progress)?;
    let mut steps = Steps::start(session, rows, method)?;
    if let Some(checkpoint) = &checkpoint {
        steps.optimiser.restore(&checkpoint.tensors, checkpoint.step)?;
        report(Event::Resumed { step: first_step });
    }
    let mut log = StepLog::open(&outputs.log, first_step).map_err(write_error(&outputs.log))?;

    let batches = batches(rows.len(), settings, task.id);
    let per_epoch = rows.len().div_ceil(settings.batch);
    let remaining = batches.iter().enumerate().skip(first_step);
    read_ahead(
        remaining,
        |(_, batch)| prefix.decode(batch),
        |(step, batch), decoded| {
            if stopped {
                return Err(TrainError::Stopped { step });
            }
            let record = steps.step(step, step / per_epoch, batch, &prefix, &decoded)?;
            log.write(&record).map_err(write_error(&outputs.log))?;
            let done = step + 1;
            if outputs.checkpoint_is_due(done, per_epoch) && done < batches.len() {
                Checkpoint { step: done, identity: identity.clone(), tensors: steps.optimiser.state()? }.write(&checkpoint_path)?;
            }
            stopped |= observe(Event::Step { record: &record, steps: batches.len() }).is_break();
            Ok(())
        },
    )?;
    // The kept states make room for the signals of all samples.
    drop(prefix);

    let validation = session.write_artifact(&steps.model, samples, &batches, outputs)?;
    // The artifact is complete. Where the checkpoint cannot be removed, the next run asks for --resume or
    // --force.
    let _ = std::fs::remove_file(&checkpoint_path);
    Ok(Trained {
        artifact: outputs.artifact.clone(),
        steps: batches.len(),
        samples: rows.len(),
        pool_parameters: steps.model.adapter_parameters(),
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

/// The samples of every step of the session, in training order. Each epoch has an order of its own, which
/// depends on the seed, the task and the epoch only.
fn batches(samples: usize, settings: &Settings, task_id: u64) -> Vec<Vec<usize>> {
    let order = |epoch| choose(&mut stream(Purpose::Order, settings.seed, (task_id, epoch as u64)), samples, samples);
    (0..settings.epochs).flat_map(|epoch| order(epoch).chunks(settings.batch).map(<[_]>::to_vec).collect::<Vec<_>>()).collect()
}

impl Outputs {
    /// Whether a checkpoint is written after `done` steps, of which an epoch has `per_epoch`.
    fn checkpoint_is_due(&self, done: usize, per_epoch: usize) -> bool {
        let every = if self.checkpoint_every == 0 { per_epoch } else { self.checkpoint_every };
        done.is_multiple_of(every)
    }
}

impl Session<'_> {
    /// Computes the keys and the validation score of what was learnt, and writes the artifact.
    fn write_artifact(
        &self,
        model: &TaskModel,
        samples: Samples<'_>,
        batches: &[Vec<usize>],
        outputs: &Outputs,
    ) -> Result<ByPattern, TrainError> {
        let keys = self.keys(samples, batches)?;
        let validation = self.validate(model)?;
        let meta = self.meta(model, &validation, outputs);
        replace(&outputs.artifact, &partition::to_bytes(&meta, model, &keys)?).map_err(write_error(&outputs.artifact))?;
        Ok(validation)
    }

    /// Height and width of the image that stands in for a missing one, in pixels.
    fn dummy_image(&self) -> [usize; 2] {
        self.settings.dummy_image.unwrap_or(self.engine.default_dummy_image())
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
        // A checkpoint without this entry is of a session that read special tokens as words.
        if self.processor.special_tokens() {
            identity.insert("--special-tokens".to_owned(), json!(true));
        }
        identity
    }

    /// What the artifact's two rules compare, from the signals of the frozen backbone: key and second moment
    /// of the whitened rule, the key of the plain one. A moving average follows the batches in training
    /// order.
    ///
    /// Every sample goes through the frozen layers once more: its signals may be those of a later layer than
    /// the kept states.
    fn keys(&self, samples: Samples<'_>, batches: &[Vec<usize>]) -> Result<SessionKeys, TrainError> {
        let KeyRule { signal, plain_signal, plain_average, .. } = self.key;
        let wanted: Vec<KeySignal> = BTreeSet::from([signal, plain_signal]).into_iter().collect();
        let hidden = self.engine.backbone().config.hidden_size;
        let room = |signal: &KeySignal| (*signal, Vec::with_capacity(samples.len() * signal.width(hidden)));
        let mut rows: BTreeMap<KeySignal, Vec<f32>> = wanted.iter().map(room).collect();
        samples.for_each_chunk(CHUNK, |_, chunk| {
            for (signal, values) in self.engine.signals(&self.engine.embed(chunk, self.dummy_image())?, &wanted)? {
                rows.entry(signal).or_default().extend(values.flatten_all()?.to_vec1::<f32>()?);
            }
            Ok::<_, TrainError>(())
        })?;
        let tensor = |(signal, values): (KeySignal, Vec<f32>)| {
            let shape = (samples.len(), values.len() / samples.len());
            Ok((signal, Tensor::from_vec(values, shape, &Device::Cpu)?))
        };
        let mut signals = rows.into_iter().map(tensor).collect::<candle_core::Result<Signals>>()?;
        let mut keys = SessionKeys::of(&signals, &[signal])?;
        if plain_average == KeyAverage::Ema {
            keys.mean.retain(|kept, _| *kept == signal);
            signals.retain(|kept, _| *kept == plain_signal);
            for batch in batches {
                keys.moving_average_step(&signals, batch, self.settings.key_beta as f32)?;
            }
        }
        Ok(keys)
    }

    /// Task-oracle score on the val split, in percent.
    fn validate(&self, model: &TaskModel) -> Result<ByPattern, TrainError> {
        let rows = self.data.rows(self.task, Split::Val);
        let threshold = self.data.multi_label.then_some(0.0);
        let mut predictions = Vec::with_capacity(rows.len());
        let mut presence = Vec::with_capacity(rows.len());
        let samples = Samples::new(self.data, rows, self.missing, self.processor);
        samples.for_each_chunk(CHUNK, |_, chunk| {
            let prefix = self.engine.run_frozen(&self.engine.embed(chunk, self.dummy_image())?, 0..model.method().first_adapted_layer())?;
            let logits = self.engine.run_task(&prefix, model)?.logits.to_vec2::<f32>()?;
            predictions.extend(logits.iter().map(|row| predict(row, threshold)));
            presence.extend(chunk.iter().map(Sample::presence));
            Ok::<_, TrainError>(())
        })?;
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
            method: model.method().clone(),
            targets: model.method().targets().iter().map(|target| target.name().to_owned()).collect(),
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
        for split in Split::ALL {
            let rows = self.data.rows(self.task, split);
            let count = |p| rows.iter().filter(|&&row| self.missing.presence(self.data, row) == p).count();
            let counts = json!({
                "complete": count(Presence::Complete), "image_only": count(Presence::ImageOnly), "text_only": count(Presence::TextOnly),
            });
            items.insert(split.to_string(), counts);
        }
        json!({
            "name": self.data.name, "task_id": self.data.tasks[self.task].id, "eta": self.missing.eta, "missing": self.missing.kind,
            "missing_seed": self.missing.seed, "items": items,
        })
    }
}
