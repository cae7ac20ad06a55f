//! Trains one session: samples, frozen prefix, steps, keys, validation, artifact (METHOD.md 5).
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::checkpoint::Checkpoint;
use super::error::TrainError;
use super::prefix::FrozenPrefix;
use super::session::Session;
use super::settings::{Settings, SettingsError};
use super::step_log::{StepLog, StepRecord};
use super::steps::Steps;
use crate::data::samples::read_ahead;
use crate::data::{ByPattern, Samples, Split};
use crate::random::{Purpose, choose, stream};
use delo_model::TaskModel;
use delo_model::partition::Artifact;
use delo_process::durable::replace;

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
    if settings.bf16 && !engine.learning_device().is_cpu() {
        let expected = "a GPU trains in f32: leave it out, or give --device cpu".to_owned();
        return Err(SettingsError { flag: "--bf16", found: "on a GPU".to_owned(), expected }.into());
    }
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
    let residual = session.residual(samples)?;
    let mut steps = Steps::start(session, rows, method, residual.as_ref())?;
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

    let (artifact, validation) = session.artifact(&steps.model, samples, &batches, residual.as_ref(), &outputs.created)?;
    replace(&outputs.artifact, &artifact).map_err(write_error(&outputs.artifact))?;
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

/// Writes the artifact of a session that keeps what `learnt` has learnt: its adapter and head are taken over, and
/// keys, class statistics, analytic classifier and validation are computed from the session's data. The session's
/// settings must be those of `learnt` ([`super::session::settings_of`]), the share of the head apart.
///
/// # Errors
/// [`TrainError::Unfit`] where `learnt` is of another task, backbone or data; else as [`train`].
pub fn renew(session: &Session<'_>, learnt: &Artifact, outputs: &Outputs) -> Result<Trained, TrainError> {
    let start = Instant::now();
    let Session { engine, data, settings, .. } = session;
    let vilt = engine.backbone();
    settings.check(vilt.config.num_hidden_layers, vilt.config.patch_size)?;
    prepare_outputs(outputs)?;
    session.fits(learnt)?;
    let task = &data.tasks[session.task];
    let rows = data.rows(session.task, Split::Train);
    let model = TaskModel::from_tensors(learnt.meta.method.clone(), task.labels.len(), &learnt.tensors)?;
    let model = model.onto(&engine.learning_device())?;
    let batches = batches(rows.len(), settings, task.id);
    let samples = Samples::new(data, rows, session.missing, session.processor);
    let (artifact, validation) = session.artifact(&model, samples, &batches, session.residual(samples)?.as_ref(), &outputs.created)?;
    replace(&outputs.artifact, &artifact).map_err(write_error(&outputs.artifact))?;
    Ok(Trained {
        artifact: outputs.artifact.clone(),
        steps: 0,
        samples: rows.len(),
        pool_parameters: model.adapter_parameters(),
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
pub(crate) fn batches(samples: usize, settings: &Settings, task_id: u64) -> Vec<Vec<usize>> {
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
