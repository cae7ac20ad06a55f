//! One cell, trained and evaluated in this process.
mod joint;
mod learner;
mod partitions;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Instant;

use super::folder::{CellFolder, FolderError, io};
use super::result::{CellResult, Cost, SplitDraws};
use super::{Cell, processor};
use delo_engine::checkpoint::{Checkpoint, CheckpointError};
use delo_engine::{DeviceChoice, Engine, Options};
use delo_kernels::Precision;
use delo_model::input::{InputProcessor, Limits};
use delo_model::model_dir::ModelDir;
use delo_model::partition::KeyRule;
use delo_train::data::MissingError;
use delo_train::eval::paired::{DrawnAp, Reading, TaskLabels, items_digest};
use delo_train::eval::protocol::Evaluated;
use delo_train::eval::{EvalError, PartitionsError};
use delo_train::peers::named::PeerError;
use delo_train::training::SettingsError;
use delo_train::{Dataset, DatasetError, MissingTable, Session, SignalStore, Split, TrainError};
use serde_json::Value;

/// Why a cell has no result.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each says what its source says")]
pub enum RunError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Missing(#[from] MissingError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Evaluation(#[from] EvalError),
    #[error(transparent)]
    Partitions(#[from] PartitionsError),
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The data or the checkpoint is another than when the cell was begun.
    #[error("the {0} has changed since the cell was begun: choose another --out")]
    Changed(&'static str),
    /// An artifact of the cell or of the one whose adapters it takes over.
    #[error("{path}: {problem}")]
    Artifact {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// A split without items.
    #[error("{data} has no {split} items: leave {split} out of the cell's splits")]
    NoItems {
        /// Name of the data set.
        data: String,
        /// The split.
        split: Split,
    },
}

/// How a cell is computed; none of it changes the result.
#[derive(Debug)]
pub struct RunOptions {
    /// What the engine computes with.
    pub engine: Options,
    /// Bytes that kept states of the frozen layers may take.
    pub cache_bytes: usize,
    /// Steps between checkpoints; 0 means at the end of each epoch.
    pub checkpoint_every: usize,
    /// Creation time that the artifacts state, RFC 3339, UTC.
    pub created: String,
    /// Signals of the frozen backbones, which cells share.
    pub store: SignalStore,
}

/// What the run of a cell reads.
struct Run<'a> {
    folder: &'a CellFolder,
    cell: &'a Cell,
    options: &'a RunOptions,
    engine: &'a Engine,
    processor: &'a InputProcessor,
    backbone: String,
    data: &'a Dataset,
    missing: &'a MissingTable,
    key: KeyRule,
}

/// What a method leaves.
#[derive(Default)]
struct Outcome {
    evaluated: BTreeMap<Split, Evaluated>,
    choices: Value,
    training_seconds: f64,
    evaluation_seconds: f64,
    parameters: usize,
    head_parameters: usize,
    steps: usize,
}

/// The backbone's fingerprint of a cell's checkpoint.
///
/// # Errors
/// A checkpoint that cannot be loaded.
pub fn backbone_fingerprint(cell: &Cell) -> Result<String, CheckpointError> {
    let dir = ModelDir::from(cell.backbone.as_deref());
    let options = Options { precision: Some(Precision::F32), ..Options::default() };
    let checkpoint = Checkpoint::load(&dir, Limits::default(), cell.texts(), options)?;
    Ok(checkpoint.engine.backbone().fingerprint.clone())
}

/// Runs the cell of a folder to its end, from where an interrupted run was. `say`: a line for the log.
///
/// # Errors
/// [`RunError`].
pub fn run(folder: &CellFolder, options: &RunOptions, say: &mut dyn FnMut(&str)) -> Result<(), RunError> {
    let _lock = folder.lock()?;
    if folder.result()?.is_some() {
        return Ok(());
    }
    let record = folder.record()?;
    let cell = &record.cell;
    let dir = ModelDir::from(cell.backbone.as_deref());
    let device = if cell.makes_partitions() { options.engine.device } else { DeviceChoice::Cpu };
    let training = Options { training: Some(cell.settings.precision()), device, ..options.engine };
    let Checkpoint { engine, processor } = Checkpoint::load(&dir, Limits::default(), cell.texts(), training)?;
    let mut data = Dataset::open(&cell.data)?;
    if engine.backbone().fingerprint != record.backbone_fingerprint {
        return Err(RunError::Changed("backbone"));
    }
    if data.fingerprint()? != record.data_fingerprint {
        return Err(RunError::Changed("data set"));
    }
    let missing = MissingTable::draw(&data, cell.eta, cell.missing, cell.seed)?;
    missing.write(&folder.missing())?;
    if let Some(share) = cell.train_share {
        data.keep_train_share(share, cell.seed);
    }
    let config = &engine.backbone().config;
    cell.settings.check(config.num_hidden_layers, config.patch_size)?;
    let key = cell.key.rule(config.num_hidden_layers, config.hidden_size)?;
    let run =
        Run { folder, cell, options, engine: &engine, processor: &processor, backbone: dir.display(), data: &data, missing: &missing, key };
    say(&format!("{}: {} on {}, {} threads", cell.name, data.name, run.backbone, engine.threads()));
    let outcome = if cell.joint {
        run.joint(say)?
    } else if cell.makes_partitions() {
        run.partitions(say)?
    } else {
        run.learner(say)?
    };
    run.finish(outcome)?;
    say(&format!("{}: finished", cell.name));
    Ok(())
}

impl<'a> Run<'a> {
    fn session(&'a self, task: usize, settings: &'a delo_train::Settings) -> Session<'a> {
        Session {
            engine: self.engine,
            processor: self.processor,
            backbone: self.backbone.clone(),
            data: self.data,
            missing: self.missing,
            task,
            settings,
            key: self.key.clone(),
            store: Some(&self.options.store),
        }
    }

    /// Writes samples, draws and, last, the result.
    fn finish(&self, outcome: Outcome) -> Result<(), RunError> {
        let labels: TaskLabels = self.data.tasks.iter().map(|task| (task.name.clone(), task.labels.clone())).collect();
        let mut reports = BTreeMap::new();
        for (split, Evaluated { report, samples }) in outcome.evaluated {
            let path = self.folder.samples(split);
            let written = File::create(&path).and_then(|file| {
                let mut file = BufWriter::new(file);
                for sample in &samples {
                    serde_json::to_writer(&mut file, sample)?;
                    file.write_all(b"\n")?;
                }
                file.flush()
            });
            written.map_err(io(&path))?;
            let drawn = |reading| DrawnAp::of(&samples, &labels, self.data.multi_label, reading);
            let (Some(agnostic), Some(oracle)) = (drawn(Reading::Agnostic(0)), drawn(Reading::Oracle)) else {
                return Err(RunError::NoItems { data: self.data.name.clone(), split });
            };
            self.folder.write_draws(split, &SplitDraws { items: items_digest(&samples), agnostic, oracle })?;
            reports.insert(split, report);
        }
        let cost = Cost {
            training_seconds: outcome.training_seconds,
            evaluation_seconds: outcome.evaluation_seconds,
            parameters: outcome.parameters,
            head_parameters: outcome.head_parameters,
            steps: outcome.steps,
            processor: processor::name(),
            threads: self.engine.threads(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let result = CellResult { cell: self.cell.name.clone(), reports, choices: outcome.choices, cost };
        Ok(self.folder.finish(&result)?)
    }
}

/// Calls `work` and adds its wall time in seconds to `seconds`.
fn timed<T>(seconds: &mut f64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    *seconds += start.elapsed().as_secs_f64();
    result
}
