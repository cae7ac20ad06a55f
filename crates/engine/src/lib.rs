//! Many samples of many tasks become one packed batch and one forward.
mod backend;
pub mod checkpoint;
mod classify;
mod forward;
mod learn;
pub mod packed;
mod signals;
mod tensors;

use std::sync::Arc;

use candle_core::{Device, Tensor};

use backend::Backend;
use backend::candle::CandleBackend;
pub use backend::candle::DeviceChoice;
use backend::cpu::CpuBackend;
#[cfg(feature = "cuda")]
use backend::cuda::CudaBackend;
use delo_catalogue::{Candidate, Resident};
use delo_kernels::{Isa, Precision, bf16, threads};
use delo_model::PerModality;
use delo_model::input::Sample;
use delo_model::method::PoolId;
use delo_model::method::selection::top;
use delo_model::model_dir::ModelDir;
use delo_model::vilt::{Description, Loader, ViltError};
pub use forward::in_pool;
pub use packed::{Packed, Span};

/// One sample to classify.
#[derive(Clone, Debug)]
pub struct Query {
    pub sample: Arc<Sample>,
    /// The partition to serve it with, resident in the catalogue or not: skips the decision.
    pub given: Option<Arc<Resident>>,
    /// Where its task has a canary, this decides between the two versions: the same ticket, the same version.
    pub ticket: u64,
    /// Also return the factors chosen in each layer.
    pub explain: bool,
}

impl Query {
    /// A sample whose task is to be decided.
    pub fn open(sample: impl Into<Arc<Sample>>) -> Self {
        Self { sample: sample.into(), given: None, ticket: 0, explain: false }
    }

    /// A sample for one partition.
    pub fn given(sample: impl Into<Arc<Sample>>, resident: Arc<Resident>) -> Self {
        Self { given: Some(resident), ..Self::open(sample) }
    }
}

/// What the engine says of one sample.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The partition that served the sample.
    pub resident: Arc<Resident>,
    /// One score per label of the partition, in the partition's order: softmax, or sigmoids for a multi-label task.
    pub scores: Vec<f32>,
    /// Every resident task with its score, falling; empty where the partition was given.
    pub candidates: Vec<Candidate>,
    /// Factors that routers chose by each modality's query, over all adapted layers and targets.
    pub factors_selected: PerModality<u64>,
    /// The factors chosen, where asked for.
    pub factors: Option<Vec<SelectedFactors>>,
}

impl Answer {
    /// The `most` labels of the highest score with their scores, falling; equal ones in the order of the
    /// partition's labels.
    pub fn ranked(&self, most: usize) -> impl Iterator<Item = (&str, f32)> {
        let labels = &self.resident.partition.meta.labels;
        top(&self.scores, most).map(|i| (labels[i as usize].as_str(), self.scores[i as usize]))
    }

    /// The label of the highest score.
    pub fn best_label(&self) -> Option<&str> {
        self.ranked(1).next().map(|(label, _)| label)
    }
}

/// The factors one sample used in one adapted map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedFactors {
    pub layer: usize,
    /// The adapted map, and the modality by whose query they were chosen.
    pub pool: PoolId,
    /// Selected A factors (experts), by falling score; the i-th is paired with the i-th of `b`.
    pub a: Vec<u32>,
    pub b: Vec<u32>,
}

/// Why one sample could not be classified.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
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
    /// The queries entering each adapted layer, proxies in place of what is missing: `[samples, d]` a modality.
    pub queries: Vec<PerModality<Tensor>>,
}

/// What the engine computes with; `None` leaves the choice to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Number format of the frozen products and of resident factors.
    pub precision: Option<Precision>,
    /// The best vector instructions that may be used.
    pub isa: Option<Isa>,
    /// The processor.
    pub device: DeviceChoice,
}

/// The packed forward over one frozen backbone. Stateless: the partitions come with each call, as one catalogue. Blocking; call it off the
/// asynchronous runtime.
#[derive(Debug)]
pub struct Engine {
    compute: Compute,
    backbone: Description,
    /// Token ids of the empty text, which stands in for a missing one: `[CLS] [SEP]`.
    dummy_text: Vec<u32>,
}

/// The backbone in one number format on one processor.
#[derive(Debug)]
enum Compute {
    F32(CpuBackend<f32>),
    Bf16(CpuBackend<bf16>),
    #[cfg(feature = "cuda")]
    Cuda(CudaBackend),
    Candle(CandleBackend),
}

/// Evaluates an expression with the backend behind a [`Compute`], whatever its type.
macro_rules! with_backend {
    ($compute:expr, $backend:ident => $body:expr) => {
        match $compute {
            Compute::F32($backend) => $body,
            Compute::Bf16($backend) => $body,
            #[cfg(feature = "cuda")]
            Compute::Cuda($backend) => $body,
            Compute::Candle($backend) => $body,
        }
    };
}
use with_backend;

impl Engine {
    /// Loads a checkpoint directory.
    ///
    /// `dummy_text`: the token ids of the empty text ([`delo_model::input::InputProcessor::dummy_text`]).
    ///
    /// # Errors
    /// See [`ViltError`]; what is wrong with a tensor names it. A device that does not open.
    pub fn load(dir: &ModelDir, dummy_text: Vec<u32>, options: Options) -> Result<Self, ViltError> {
        Self::of(Loader::open(dir, &Device::Cpu)?, dummy_text, options)
    }

    /// From a checkpoint that is being loaded.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn of(loader: Loader, dummy_text: Vec<u32>, options: Options) -> Result<Self, ViltError> {
        if let Some(open) = options.device.open()? {
            let precision = options.precision.unwrap_or(open.fastest());
            #[cfg(feature = "cuda")]
            if open.device.is_cuda() && CudaBackend::fits(loader.config()) {
                let (cuda, backbone) = CudaBackend::load(loader, open, precision)?;
                return Ok(Self { compute: Compute::Cuda(cuda), backbone, dummy_text });
            }
            let (device, backbone) = CandleBackend::load(loader, open, precision)?;
            return Ok(Self { compute: Compute::Candle(device), backbone, dummy_text });
        }
        let isa = Isa::at_most(options.isa);
        let (compute, backbone) = match options.precision.unwrap_or(Precision::fastest(isa)) {
            Precision::F32 => {
                let (cpu, backbone) = CpuBackend::load(loader, isa, Precision::F32)?;
                (Compute::F32(cpu), backbone)
            }
            Precision::Bf16 => {
                let (cpu, backbone) = CpuBackend::load(loader, isa, Precision::Bf16)?;
                (Compute::Bf16(cpu), backbone)
            }
        };
        Ok(Self { compute, backbone, dummy_text })
    }

    pub fn backbone(&self) -> &Description {
        &self.backbone
    }

    /// Number format of the products.
    pub fn precision(&self) -> Precision {
        with_backend!(&self.compute, backend => backend.precision())
    }

    /// What multiplies: number format, and instructions or device.
    pub fn kernel(&self) -> &str {
        with_backend!(&self.compute, backend => backend.kernel())
    }

    /// Threads of the compute pool.
    pub fn threads(&self) -> usize {
        threads()
    }

    /// Tokens of a batch that is large enough for this machine: a larger one takes longer and is hardly faster a token,
    /// and the samples that come next wait for its end. On a CPU, that is three quarters of a full sample for each
    /// thread, of two threads at least: the tail of a batch's time then stays near three times its median at eight
    /// tenths of capacity (`load-tests/`, `soak`).
    pub fn batch_tokens(&self) -> usize {
        let sample_tokens = self.backbone.config.sample_tokens();
        with_backend!(&self.compute, backend => backend.batch_tokens(sample_tokens))
    }

    /// Tokens of a batch while many samples wait. On a CPU, a token of eight usual batches in one costs less, about an
    /// eighth with the embedded backbone on two threads.
    pub fn backlog_batch_tokens(&self) -> usize {
        let sample_tokens = self.backbone.config.sample_tokens();
        with_backend!(&self.compute, backend => backend.backlog_batch_tokens(sample_tokens))
    }

    /// Height and width in pixels of the images on which the backbone's position embeddings were trained.
    pub fn image_size(&self) -> usize {
        self.backbone.config.image_size
    }

    /// Height and width of the dummy image unless something else is said: one patch, since all patches of a white image are equal.
    pub fn default_dummy_image(&self) -> [usize; 2] {
        [self.backbone.config.patch_size; 2]
    }

    /// Real tokens that this sample adds to a batch, dummies of a missing modality included: the unit of the batcher's budget. `dummy_image`:
    /// height and width of the image that stands in for a missing one, in pixels.
    pub fn tokens(&self, dummy_image: [usize; 2], sample: &Sample) -> usize {
        let [height, width] = sample.image.as_ref().map_or(dummy_image, |p| [p.height, p.width]);
        let patch = self.backbone.config.patch_size;
        sample.text.as_ref().unwrap_or(&self.dummy_text).len() + 1 + (height / patch) * (width / patch)
    }
}
