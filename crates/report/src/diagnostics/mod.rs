//! Numbers that say how trained partitions work on a split of a data set.
//!
//! | module | holds |
//! | --- | --- |
//! | [`loss`] | the losses of the training, from its logs |
//! | [`selection`] | how often each factor is selected |
//! | [`similarity`] | cos(q^v, q^t) by layer, with and without adapters |
//! | [`calibration`] | whether the task's probability is as high as it is right |
//! | [`coverage`] | accuracy where unsure samples are rejected |
//! | [`queries`] | the samples' signals and the task keys in two dimensions |
//! | [`projection`] | PCA and t-SNE |
//! | `walk` | the walk over the samples that collects all of it |
pub mod calibration;
pub mod coverage;
pub mod loss;
pub mod projection;
pub mod queries;
pub mod selection;
pub mod similarity;
mod walk;

use serde::{Deserialize, Serialize};

pub use calibration::{Calibration, Reliability};
pub use coverage::Coverage;
pub use loss::{LossCurve, LossError};
pub use queries::QueryMap;
pub use selection::TaskSelection;
pub use similarity::Similarity;
pub use walk::diagnose;

/// Everything that a walk over the samples of a split tells of partitions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Diagnostics {
    /// Name of the data set.
    pub data: String,
    /// The part of it that was walked over.
    pub split: String,
    /// The samples of all tasks that have a partition.
    pub samples: usize,
    /// The metric and the signal that decide the task, `whitened summary` for instance.
    pub rule: String,
    /// How often each factor is selected, for each task whose method has routers.
    pub selection: Vec<TaskSelection>,
    /// cos(q^v, q^t) of the complete samples; `None` without such samples.
    pub similarity: Option<Similarity>,
    /// The reliability of the task's probability; `None` where the metric gives none.
    pub calibration: Option<Calibration>,
    /// Accuracy where unsure samples are rejected; `None` without samples.
    pub coverage: Option<Coverage>,
    /// The samples' signals and the task keys in two dimensions; `None` with fewer than three samples.
    pub queries: Option<QueryMap>,
}
