//! What a finished cell says of itself.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use delo_train::Split;
use delo_train::eval::Report;
use delo_train::eval::paired::DrawnAp;

/// The figures of a finished cell, and what they cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// Name of the cell.
    pub cell: String,
    /// By split; a_{i,j} of each task stands in it.
    pub reports: BTreeMap<Split, Report>,
    /// What was chosen on val items, by name; null: nothing.
    pub choices: Value,
    /// What it cost.
    pub cost: Cost,
}

/// Time and parameters of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Wall time of training in seconds; where adapters are taken over, that of their training is in it.
    pub training_seconds: f64,
    /// Wall time of the evaluation of all splits, in seconds.
    pub evaluation_seconds: f64,
    /// Learnt numbers of all tasks without the heads.
    pub parameters: usize,
    /// Learnt numbers of the heads of all tasks.
    pub head_parameters: usize,
    /// Gradient steps of all sessions.
    pub steps: usize,
    /// Name of the machine's processor.
    pub processor: String,
    /// Threads that computed.
    pub threads: usize,
    /// Version of the program.
    pub version: String,
}

/// AP of one split under the draws of the bootstrap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitDraws {
    /// [`delo_train::eval::paired::items_digest`].
    pub items: String,
    /// The task is chosen.
    pub agnostic: DrawnAp,
    /// The true task is given.
    pub oracle: DrawnAp,
}
