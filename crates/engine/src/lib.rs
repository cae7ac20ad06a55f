//! The packed forward: many samples of many tasks in one matrix of tokens, through one frozen backbone.
//!
//! | module | holds |
//! | --- | --- |
//! | `answer` | the query of one sample and the engine's answer to it: [`Query`], [`Answer`] |
//! | `compute` | which processor and number format compute: [`Options`], [`Engine::load`] |
//! | [`checkpoint`] | the engine of a checkpoint with the processor that makes its samples |
//! | `classify` | a batch of samples: decide the tasks, apply each sample's own factors, score |
//! | `policy` | when a sample is answered without an adapted pass, or by two: [`Policy`] |
//! | `forward` | the frozen layers alone, for training and evaluation |
//! | `signals` | the frozen backbone's signals, from which the task is decided |
//! | `prompted` | prompts behind the tokens of the samples that take them |
//! | `queries` | the queries of each layer, with and without adapters, for diagnostics |
//! | [`packed`] | the matrix of all samples' tokens, and each sample's rows in it: [`Packed`], [`Span`] |
//! | `learn` | layers forward and backward while a method learns: [`Engine::run_task`], [`Engine::run_adapted`] |
//! | `backend` | what the engine requires of a processor, and one module for each kind of processor |
//! | `tensors` | conversion between candle's tensors and plain numbers |
//!
//! **Invariant: a sample's scores do not depend on what else is in its batch.** On a CPU they are the same
//! bits alone, in any batch and on any number of threads.
//!
//! The engine keeps no state between calls: the partitions come with each call, as one
//! [`Catalogue`](delo_catalogue::Catalogue). Its calls block and compute on the threads of the compute pool.
#![warn(missing_docs)]

mod answer;
mod backend;
pub mod checkpoint;
mod classify;
mod compute;
mod forward;
mod learn;
pub mod packed;
mod policy;
mod prompted;
mod queries;
mod signals;
mod tensors;

use backend::Backend;
use compute::{Compute, with_backend};
use delo_catalogue::Catalogue;
use delo_kernels::{Precision, threads};
use delo_model::input::Sample;
use delo_model::vilt::Description;

pub use answer::{Answer, EngineError, Marks, Query, SelectedFactors};
pub use backend::candle::DeviceChoice;
pub use compute::Options;
pub use delo_model::method::{Additions, Prompts, SampleRows};
pub use forward::in_pool;
pub use learn::TaskOutput;
pub use packed::{Packed, Span};
pub use policy::{Policy, Scored};
pub use queries::Queries;

/// The packed forward over one frozen backbone. It may be shared between threads. Its calls block: call it
/// from a blocking thread, not from an asynchronous task.
#[derive(Debug)]
pub struct Engine {
    compute: Compute,
    backbone: Description,
    /// Token ids of the empty text, which stands in for a missing one: `[CLS] [SEP]`.
    dummy_text: Vec<u32>,
}

impl Engine {
    /// The backbone's configuration and fingerprint.
    pub fn backbone(&self) -> &Description {
        &self.backbone
    }

    /// Number format of the products.
    pub fn precision(&self) -> Precision {
        with_backend!(&self.compute, backend => backend.precision())
    }

    /// The name of what multiplies: number format, and instructions or device; `f32 cuda:0` for instance.
    pub fn kernel(&self) -> &str {
        with_backend!(&self.compute, backend => backend.kernel())
    }

    /// Threads of the compute pool.
    pub fn threads(&self) -> usize {
        threads()
    }

    /// The usual size of a batch, in tokens. A larger batch is hardly faster for each token, and the samples
    /// that arrive meanwhile wait longer. On a CPU: three quarters of a full sample for each thread, counting
    /// at least two threads; the 99.9th percentile of a batch's time then stays near three times its median
    /// at 80 % of capacity (`load-tests/`, scenario `soak`).
    pub fn batch_tokens(&self) -> usize {
        let sample_tokens = self.backbone.config.sample_tokens();
        with_backend!(&self.compute, backend => backend.batch_tokens(sample_tokens))
    }

    /// The largest size of a batch while a backlog waits, in tokens. On a CPU: eight usual batches; a token
    /// of such a batch costs about an eighth less, with the embedded backbone on two threads.
    pub fn backlog_batch_tokens(&self) -> usize {
        let sample_tokens = self.backbone.config.sample_tokens();
        with_backend!(&self.compute, backend => backend.backlog_batch_tokens(sample_tokens))
    }

    /// Height and width in pixels of the images on which the backbone's position embeddings were trained.
    pub fn image_size(&self) -> usize {
        self.backbone.config.image_size
    }

    /// Token ids of the empty text, which stands in for a missing one.
    pub fn dummy_text(&self) -> &[u32] {
        &self.dummy_text
    }

    /// Default height and width of the dummy image, in pixels: one patch, because all patches of a white
    /// image are equal.
    pub fn default_dummy_image(&self) -> [usize; 2] {
        [self.backbone.config.patch_size; 2]
    }

    /// Tokens that a query adds to a batch: the unit of the batcher's budget. Those of its sample, and the
    /// prompts of its partition; where the task is open, those of the partition that has the most, and all of it twice
    /// where the sample may be computed under two tasks.
    pub fn query_tokens(&self, catalogue: &Catalogue, query: &Query) -> usize {
        let prompts = query.given.as_ref().map_or_else(|| catalogue.prompt_tokens(), |resident| resident.partition.adapter.prompt_tokens());
        let passes = if query.given.is_none() && query.policy.second_task.is_some() { 2 } else { 1 };
        passes * (self.tokens(catalogue.dummy_image(), &query.sample) + prompts)
    }

    /// Tokens of this sample, including the dummy of a missing modality, without prompts. `dummy_image`:
    /// height and width in pixels of the image that stands in for a missing one.
    pub fn tokens(&self, dummy_image: [usize; 2], sample: &Sample) -> usize {
        let [height, width] = sample.image.as_ref().map_or(dummy_image, |p| [p.height, p.width]);
        let patch = self.backbone.config.patch_size;
        sample.text.as_ref().unwrap_or(&self.dummy_text).len() + 1 + (height / patch) * (width / patch)
    }
}
