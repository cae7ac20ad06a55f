//! Many samples of many tasks become one packed batch and one forward.
pub mod catalogue;
pub mod packed;

use std::sync::Arc;

use candle_core::Tensor;

use crate::delo::keys::{KeySignal, Signals};
use crate::delo::task_model::TaskModel;
use crate::input::Sample;
use crate::vilt::Vilt;
pub use catalogue::{Catalogue, CatalogueError, Resident, RoutingRule};
pub use packed::{Packed, Span};

/// One sample to classify.
#[derive(Clone, Debug)]
pub struct Query {
    pub sample: Sample,
    /// The task, where the caller knows it: skips the decision.
    pub task: Option<String>,
    /// Also return the factors chosen in each layer.
    pub explain: bool,
}

/// What the engine says of one sample.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The partition that served the sample.
    pub resident: Arc<Resident>,
    /// One score per label of the partition, in the partition's order: softmax, or sigmoids for a multi-label task.
    pub scores: Vec<f32>,
    /// Every resident task and its cosine, falling; empty where the caller gave the task.
    pub candidates: Vec<Candidate>,
    /// Factors applied per modality, `[visual, textual]`, over all adapted layers and targets.
    pub factors_selected: [u64; 2],
    /// The factors chosen, where asked for.
    pub factors: Option<Vec<SelectedFactors>>,
}

/// A task and how near the sample is to its key.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub task: Arc<str>,
    pub cosine: f32,
}

/// The factors one sample used in one adapted map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedFactors {
    pub layer: usize,
    /// `query`, `key` or `value`.
    pub target: &'static str,
    /// `visual` or `textual`.
    pub modality: &'static str,
    /// Selected A factors (experts), by falling score; the i-th is paired with the i-th of `b`.
    pub a: Vec<u32>,
    pub b: Vec<u32>,
}

/// Why one sample could not be classified.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    #[error("no task {0:?} is loaded: leave the task out to let the server choose, or load its partition")]
    UnknownTask(String),
    #[error("no partition is loaded: load one with `delo admin load`")]
    NothingLoaded,
    #[error("the forward pass failed: {0}")]
    Compute(String),
}

/// The packed forward over one frozen backbone. Stateless: the partitions come with each call, as one catalogue. Blocking; call it off the
/// asynchronous runtime.
#[derive(Debug)]
pub struct Engine {
    vilt: Arc<Vilt>,
}

impl Engine {
    pub fn new(vilt: Arc<Vilt>) -> Self {
        Self { vilt }
    }

    pub fn vilt(&self) -> &Arc<Vilt> {
        &self.vilt
    }

    /// Real tokens that this sample adds to a batch, dummies of a missing modality included: the unit of the batcher's budget.
    pub fn tokens(&self, _sample: &Sample) -> usize {
        todo!()
    }

    /// Classifies samples of any tasks and modalities in one batch, in order. One failed sample does not fail its neighbours.
    pub fn classify(&self, _catalogue: &Catalogue, _queries: &[Query]) -> Vec<Result<Answer, EngineError>> {
        todo!()
    }

    /// Hidden states entering layer 0, dummies in place of what is missing. Not differentiable.
    pub fn embed(&self, _samples: &[Sample]) -> candle_core::Result<Packed> {
        todo!()
    }

    /// Frozen layers over a stream: from the state entering `layers.start` to the state entering `layers.end`. Not differentiable.
    pub fn run_frozen(&self, _packed: &Packed, _layers: std::ops::Range<usize>) -> candle_core::Result<Packed> {
        todo!()
    }

    /// One task's adapted layers and head over the state entering its first adapted layer. Differentiable in the task's variables.
    pub fn run_task(&self, _packed: &Packed, _task: &TaskModel) -> candle_core::Result<TaskOutput> {
        todo!()
    }

    /// The frozen backbone's signals of some samples, those of `wanted` only.
    pub fn signals(&self, _packed: &Packed, _wanted: &[KeySignal]) -> candle_core::Result<Signals> {
        todo!()
    }
}

/// What one task's layers give for each sample of a stream.
#[derive(Debug)]
pub struct TaskOutput {
    /// `[samples, classes]`
    pub logits: Tensor,
    /// q^v entering each adapted layer, proxies in place of what is missing: `[samples, d]` a layer.
    pub query_visual: Vec<Tensor>,
    /// q^t, likewise.
    pub query_textual: Vec<Tensor>,
}
