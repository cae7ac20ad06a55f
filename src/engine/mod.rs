//! Many samples of many tasks become one packed batch and one forward.
pub mod bench;
pub mod catalogue;
mod classify;
mod forward;
pub mod ops;
pub mod packed;

use std::sync::Arc;

use candle_core::Tensor;

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

/// The packed forward over one frozen backbone. Stateless: the partitions come with each call, as one catalogue. Blocking; call it off the
/// asynchronous runtime.
#[derive(Debug)]
pub struct Engine {
    vilt: Arc<Vilt>,
    /// Token ids of the empty text, which stands in for a missing one: `[CLS] [SEP]`.
    dummy_text: Vec<u32>,
}

impl Engine {
    /// `dummy_text`: the token ids of the empty text ([`crate::input::InputProcessor::dummy_text`]).
    pub fn new(vilt: Arc<Vilt>, dummy_text: Vec<u32>) -> Self {
        Self { vilt, dummy_text }
    }

    pub fn vilt(&self) -> &Arc<Vilt> {
        &self.vilt
    }

    /// Height and width of a square dummy image as large as the backbone's own pictures: the default of training.
    pub fn default_dummy_image(&self) -> [usize; 2] {
        [self.vilt.config.image_size; 2]
    }

    /// Real tokens that this sample adds to a batch, dummies of a missing modality included: the unit of the batcher's budget.
    pub fn tokens(&self, catalogue: &Catalogue, sample: &Sample) -> usize {
        let [height, width] = sample.image.as_ref().map_or(catalogue.dummy_image(), |p| [p.height, p.width]);
        let patch = self.vilt.config.patch_size;
        sample.text.as_ref().unwrap_or(&self.dummy_text).len() + 1 + (height / patch) * (width / patch)
    }
}
