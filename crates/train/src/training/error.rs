//! Why a session ends without an artifact.

use std::path::PathBuf;

use super::checkpoint::CheckpointError;
use super::settings::SettingsError;
use crate::data::DatasetError;
use delo_model::partition::PartitionError;

/// Why a session ends without an artifact.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A setting outside its range.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// An item whose image or text cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A checkpoint that cannot be written or continued.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Nothing to learn from.
    #[error("task {0:?} has no item in the train split: check task_id and split in the list of items")]
    NoSamples(String),
    /// A partition whose learnt parameters cannot be taken over.
    #[error("the partition for {task:?} does not fit: {reason}")]
    Unfit {
        /// Name of the session's task.
        task: String,
        /// What differs, and what to do.
        reason: String,
    },
    /// The artifact is there, and may not be overwritten.
    #[error("{} exists: choose another --out, or overwrite it with --force", .0.display())]
    Exists(PathBuf),
    /// A checkpoint is there, and the session was told neither to resume nor to start over.
    #[error("an interrupted run lies in {}: go on with --resume, or start over with --force", .0.display())]
    Interrupted(PathBuf),
    /// The loss is infinite or no number.
    #[error("the loss is not finite at step {step}: lower --lr ({lr})")]
    Diverged {
        /// The step, counted from 0.
        step: usize,
        /// The peak learning rate.
        lr: f64,
    },
    /// The observer stopped the session.
    #[error("stopped at step {step}: go on with --resume")]
    Stopped {
        /// Steps taken.
        step: usize,
    },
    /// The file system refuses the artifact or the log.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// What was learnt does not make an artifact.
    #[error("the artifact cannot be made: {0}")]
    Artifact(#[from] PartitionError),
    /// The engine failed.
    #[error("the forward or backward pass failed: {0}")]
    Compute(#[from] candle_core::Error),
}
