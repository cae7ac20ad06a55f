//! Many samples of many tasks become one packed batch and one forward.
mod backbone;
pub mod catalogue;
pub mod checkpoint;
mod classify;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod forward;
mod learn;
pub mod packed;
mod resident;
mod signals;
mod tensors;

use std::sync::Arc;

use candle_core::{Device, Tensor};

pub use catalogue::{Catalogue, CatalogueError, RoutingRule, Share, Trial, TrialMode};
use cpu::CpuBackbone;
#[cfg(feature = "cuda")]
use cuda::CudaBackbone;
use delo_kernels::{Isa, Precision, bf16, threads};
use delo_model::input::Sample;
use delo_model::method::selection::top;
use delo_model::model_dir::ModelDir;
use delo_model::vilt::{Description, Loader, ViltError};
use device::DeviceBackbone;
pub use device::DeviceChoice;
pub use forward::in_pool;
pub use packed::{Packed, Span};
pub use resident::{Counted, Resident, VersionCounts};

/// Tokens of a batch on a GPU. On an H200, ViLT-B/32 in bf16 (`delo bench engine --batch 1 8 32 64`), 5,920 tokens take 8.6 ms; each costs 1.6 times less than of 1,480, and of 11,840 a tenth
/// less again.
const DEVICE_BATCH_TOKENS: usize = 4096;
/// The same while a crowd waits.
const DEVICE_BACKLOG_BATCH_TOKENS: usize = 3 * DEVICE_BATCH_TOKENS;

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
    /// Every resident task and its cosine, falling; empty where the partition was given.
    pub candidates: Vec<Candidate>,
    /// Factors applied per modality, `[visual, textual]`, over all adapted layers and targets.
    pub factors_selected: [u64; 2],
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
    F32(CpuBackbone<f32>),
    Bf16(CpuBackbone<bf16>),
    #[cfg(feature = "cuda")]
    Cuda(CudaBackbone),
    Device(DeviceBackbone),
}

/// Evaluates an expression with the backbone behind a [`Compute`], whatever its type.
macro_rules! with_backbone {
    ($compute:expr, $backbone:ident => $body:expr) => {
        match $compute {
            Compute::F32($backbone) => $body,
            Compute::Bf16($backbone) => $body,
            #[cfg(feature = "cuda")]
            Compute::Cuda($backbone) => $body,
            Compute::Device($backbone) => $body,
        }
    };
}
use with_backbone;

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
            if open.device.is_cuda() && CudaBackbone::fits(loader.config()) {
                let (cuda, backbone) = CudaBackbone::load(loader, open, precision)?;
                return Ok(Self { compute: Compute::Cuda(cuda), backbone, dummy_text });
            }
            let (device, backbone) = DeviceBackbone::load(loader, open, precision)?;
            return Ok(Self { compute: Compute::Device(device), backbone, dummy_text });
        }
        let isa = Isa::at_most(options.isa);
        let (compute, backbone) = match options.precision.unwrap_or(Precision::fastest(isa)) {
            Precision::F32 => {
                let (cpu, backbone) = CpuBackbone::load(loader, isa)?;
                (Compute::F32(cpu), backbone)
            }
            Precision::Bf16 => {
                let (cpu, backbone) = CpuBackbone::load(loader, isa)?;
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
        match &self.compute {
            Compute::F32(_) => Precision::F32,
            Compute::Bf16(_) => Precision::Bf16,
            #[cfg(feature = "cuda")]
            Compute::Cuda(backbone) => backbone.precision(),
            Compute::Device(backbone) => backbone.precision(),
        }
    }

    /// What multiplies: number format, and instructions or device.
    pub fn kernel(&self) -> &str {
        match &self.compute {
            Compute::F32(backbone) => backbone.kernel().name,
            Compute::Bf16(backbone) => backbone.kernel().name,
            #[cfg(feature = "cuda")]
            Compute::Cuda(backbone) => backbone.kernel(),
            Compute::Device(backbone) => backbone.kernel(),
        }
    }

    /// Threads of the compute pool.
    pub fn threads(&self) -> usize {
        threads()
    }

    /// Tokens of a batch that is large enough for this machine: a larger one takes longer and is hardly faster a token, and whoever comes next waits
    /// for its end. On a CPU, that is three quarters of a full sample for each thread, of two threads at least: the tail of a batch's
    /// time then stays near three times its median at eight tenths of capacity (`load-tests/`, `soak`).
    pub fn batch_tokens(&self) -> usize {
        let config = &self.backbone.config;
        match &self.compute {
            Compute::F32(_) | Compute::Bf16(_) => config.sample_tokens() * self.threads().max(2) * 3 / 4,
            _ => DEVICE_BATCH_TOKENS,
        }
    }

    /// Tokens of a batch while a crowd waits: on a CPU, a token of eight usual batches in one costs less, about an eighth with the embedded backbone on two threads.
    pub fn backlog_batch_tokens(&self) -> usize {
        match &self.compute {
            Compute::F32(_) | Compute::Bf16(_) => 8 * self.batch_tokens(),
            _ => DEVICE_BACKLOG_BATCH_TOKENS,
        }
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
