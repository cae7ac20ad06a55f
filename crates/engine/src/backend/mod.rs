//! What the engine requires of a processor, and the loop over the layers, which is the same for all of them.
//!
//! | module | holds |
//! | --- | --- |
//! | `cpu` | the CPU, with the kernels of `delo_kernels` |
//! | `cuda` | NVIDIA GPUs, with kernels of our own and cuBLAS |
//! | `candle` | other GPUs, with candle's operations |
//! | `patches` | cutting images into patches, for all of them |
//!
//! The backends differ in arithmetic only.
pub(crate) mod candle;
pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod patches;

use std::fmt::Debug;
use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::packed::Span;
use delo_kernels::Precision;
use delo_model::input::Sample;
use delo_model::method::Adapter;
use delo_model::method::adapter::PROMPTS_ON_CPUS;
use delo_model::method::factors::{Choice, FactorBank};
use delo_model::method::prefix::Prefix;

/// The frozen backbone on one processor. A pass adds each sample's own adapter to the layers.
pub(crate) trait Backend: Debug + Send + Sync {
    /// Hidden states where the processor reads them, `[rows, d]`.
    type Hidden;

    /// What a pass of one batch over a range of layers needs beside the hidden states.
    type Pass<'a>;

    /// Number of encoder layers.
    fn layers(&self) -> usize;

    /// Number format of the products.
    fn precision(&self) -> Precision;

    /// The name of what multiplies: number format, and instructions or device.
    fn kernel(&self) -> &str;

    /// See [`crate::Engine::batch_tokens`]. `sample_tokens`: the tokens of a sample with the longest text and
    /// an image of the trained size. Of a GPU, unless a backend says otherwise.
    fn batch_tokens(&self, sample_tokens: usize) -> usize {
        let _ = sample_tokens;
        GPU_BATCH_TOKENS
    }

    /// See [`crate::Engine::backlog_batch_tokens`]. Of a GPU, unless a backend says otherwise.
    fn backlog_batch_tokens(&self, sample_tokens: usize) -> usize {
        let _ = sample_tokens;
        GPU_BACKLOG_BATCH_TOKENS
    }

    /// Hidden states that enter layer 0, all samples one after another, and the rows of each. `dummy` stands
    /// in for missing modalities.
    fn embed(&self, samples: &[&Sample], dummy: Dummy<'_>) -> Result<(Self::Hidden, Vec<Span>)>;

    /// Prepares a pass over `layers`.
    fn start<'a>(&self, spans: &'a [Span], layers: Range<usize>, adapters: Option<&Adapters<'_>>) -> Result<Self::Pass<'a>>;

    /// Runs one layer in place. The choices are noted in `adapters` here or in [`Self::finish`].
    fn layer(&self, pass: &mut Self::Pass<'_>, index: usize, hidden: &mut Self::Hidden, adapters: Option<&mut Adapters<'_>>) -> Result<()>;

    /// Runs one layer for the text CLS of each sample alone, `[samples, d]`: keys and values are computed for
    /// all tokens, everything else for one row of each sample.
    fn layer_of_cls(
        &self,
        pass: &mut Self::Pass<'_>,
        index: usize,
        hidden: &Self::Hidden,
        adapters: Option<&mut Adapters<'_>>,
    ) -> Result<Self::Hidden>;

    /// Ends a pass; the choices of all its layers are then noted in `adapters`.
    fn finish(&self, pass: Self::Pass<'_>, adapters: Option<&mut Adapters<'_>>) -> Result<()>;

    /// The rows of the samples' text CLS, `[samples, d]`.
    fn cls(&self, hidden: &Self::Hidden, spans: &[Span]) -> Result<Self::Hidden>;

    /// layernorm(h) of each row, `[samples, d]`, where layernorm is the final one. By it samples choose
    /// prompts, which a CPU alone computes.
    fn normalised(&self, _cls: &Self::Hidden) -> Result<Vec<Vec<f32>>> {
        candle_core::bail!("{PROMPTS_ON_CPUS}")
    }

    /// The state with more rows behind those of each sample, `[d]` each: prompts, which a CPU alone computes.
    fn append(&self, _hidden: &Self::Hidden, _spans: &[Span], _rows: &[Vec<&[f32]>]) -> Result<Self::Hidden> {
        candle_core::bail!("{PROMPTS_ON_CPUS}")
    }

    /// tanh(pooler · layernorm(h)) of each row, `[samples, d]`.
    fn pool(&self, cls: &Self::Hidden) -> Result<Vec<Vec<f32>>>;

    /// The mean of each range of rows, `[ranges, d]`; zero where the range is empty.
    fn means(&self, hidden: &Self::Hidden, ranges: &[Range<usize>]) -> Result<Vec<Vec<f32>>>;

    /// The rows of these samples, one sample after another.
    fn select(&self, hidden: &Self::Hidden, spans: &[Span]) -> Result<Self::Hidden>;

    /// A copy as a tensor on the CPU, in f32, for training and evaluation.
    fn to_tensor(&self, hidden: &Self::Hidden) -> Result<Tensor>;

    /// Hidden states from a tensor `[rows, d]`.
    fn load_tensor(&self, hidden: &Tensor) -> Result<Self::Hidden>;

    /// Runs layers in place: from the state that enters `layers.start` to the state that enters `layers.end`.
    fn run(&self, hidden: &mut Self::Hidden, spans: &[Span], layers: Range<usize>, mut adapters: Option<&mut Adapters<'_>>) -> Result<()> {
        if layers.is_empty() {
            return Ok(());
        }
        let mut pass = self.start(spans, layers.clone(), adapters.as_deref())?;
        for index in layers {
            self.layer(&mut pass, index, hidden, adapters.as_deref_mut())?;
        }
        self.finish(pass, adapters)
    }

    /// From the state that enters layer `first` to the pooled output of each sample, `[samples, d]`. Takes
    /// the state: of the last layer, only what the pooled output needs is computed.
    fn run_to_pooled(
        &self,
        mut hidden: Self::Hidden,
        spans: &[Span],
        first: usize,
        mut adapters: Option<&mut Adapters<'_>>,
    ) -> Result<Vec<Vec<f32>>> {
        let last = self.layers() - 1;
        if first > last {
            return self.pooled(&hidden, spans);
        }
        let mut pass = self.start(spans, first..last + 1, adapters.as_deref())?;
        for index in first..last {
            self.layer(&mut pass, index, &mut hidden, adapters.as_deref_mut())?;
        }
        let cls = self.layer_of_cls(&mut pass, last, &hidden, adapters.as_deref_mut())?;
        let pooled = self.pool(&cls)?;
        self.finish(pass, adapters)?;
        Ok(pooled)
    }

    /// From the state that enters layer `first` of the frozen layers to the text CLS of each sample after the
    /// last one, `[samples, d]`: of the last layer, nothing else is computed.
    fn run_to_cls(&self, mut hidden: Self::Hidden, spans: &[Span], first: usize) -> Result<Self::Hidden> {
        let last = self.layers() - 1;
        if first > last {
            return self.cls(&hidden, spans);
        }
        let mut pass = self.start(spans, first..last + 1, None)?;
        for index in first..last {
            self.layer(&mut pass, index, &mut hidden, None)?;
        }
        let cls = self.layer_of_cls(&mut pass, last, &hidden, None)?;
        self.finish(pass, None)?;
        Ok(cls)
    }

    /// The pooled output of the state after the last layer, `[samples, d]`.
    fn pooled(&self, hidden: &Self::Hidden, spans: &[Span]) -> Result<Vec<Vec<f32>>> {
        self.pool(&self.cls(hidden, spans)?)
    }
}

/// Tokens of a usual batch on a GPU. On an H200 with ViLT-B/32 in bf16
/// (`delo bench engine --batch 1 8 32 64`), a batch of 5,920 tokens takes 8.6 ms. Its time for each token is
/// 1.6 times less than that of a batch of 1,480 tokens; at 11,840 tokens, it is less by another tenth.
const GPU_BATCH_TOKENS: usize = 4096;
/// Tokens of the largest batch on a GPU while a backlog waits.
const GPU_BACKLOG_BATCH_TOKENS: usize = 3 * GPU_BATCH_TOKENS;

/// The stand-ins for missing modalities.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dummy<'a> {
    /// Token ids of the empty text.
    pub text: &'a [u32],
    /// Height and width of the white image, in pixels.
    pub image: [usize; 2],
}

/// The adapters that a pass adds to the frozen layers, one for each sample, and the choices of their factors.
pub(crate) struct Adapters<'a> {
    of_samples: Vec<&'a Adapter>,
    /// For each sample, each adapted layer with the choice in every group of the layer's bank.
    pub chosen: Vec<Vec<(usize, Vec<Choice>)>>,
}

impl<'a> Adapters<'a> {
    /// One adapter for each sample, in order.
    pub fn new(of_samples: Vec<&'a Adapter>) -> Self {
        Self { chosen: vec![Vec::new(); of_samples.len()], of_samples }
    }

    /// Refuses adapters that a CPU alone computes, for all other backends.
    pub fn check_for_gpu(&self) -> Result<()> {
        match self.of_samples.iter().find_map(|adapter| adapter.needs_cpu()) {
            Some(reason) => candle_core::bail!("{reason}"),
            None => Ok(()),
        }
    }

    /// For each sample, its prefix in a layer; `None` where its task adds none to the layer.
    pub fn prefixes(&self, layer: usize) -> Vec<Option<&'a Prefix>> {
        self.of_samples.iter().map(|adapter| adapter.prefix(layer)).collect()
    }

    /// For each sample, its factors in a layer; `None` where its task adds no low-rank update to the layer.
    pub fn layer(&self, layer: usize) -> Vec<Option<&'a FactorBank>> {
        self.of_samples.iter().map(|adapter| adapter.bank(layer)).collect()
    }

    /// Notes the choices of all samples in a layer; `None` for a sample that the layer does not adapt.
    pub fn note(&mut self, layer: usize, chosen: Vec<Option<Vec<Choice>>>) {
        for (all, chosen) in self.chosen.iter_mut().zip(chosen) {
            all.extend(chosen.map(|chosen| (layer, chosen)));
        }
    }
}
