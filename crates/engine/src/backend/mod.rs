//! What the engine asks of a processor, and the drive through the layers, which is the same on all of them. The backends
//! differ in arithmetic only.
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
use delo_model::method::factors::{Choice, FactorBank};

/// The frozen backbone on some processor, which adds each sample's own adapter to the layers.
pub(crate) trait Backend: Debug + Send + Sync {
    /// Hidden states, `[rows, d]`.
    type Hidden;

    /// What a pass over some layers of a batch needs beside the hidden states.
    type Pass<'a>;

    /// Encoder layers.
    fn layers(&self) -> usize;

    /// Number format of the products.
    fn precision(&self) -> Precision;

    /// What multiplies: number format, and instructions or device.
    fn kernel(&self) -> &str;

    /// Tokens of a batch that is large enough, see [`crate::Engine::batch_tokens`]; `sample_tokens` are those of a full
    /// sample.
    fn batch_tokens(&self, sample_tokens: usize) -> usize;

    /// The same while samples wait, see [`crate::Engine::backlog_batch_tokens`].
    fn backlog_batch_tokens(&self, sample_tokens: usize) -> usize;

    /// Hidden states entering layer 0; `dummy` in place of what is missing.
    fn embed(&self, samples: &[&Sample], dummy: Dummy<'_>) -> Result<(Self::Hidden, Vec<Span>)>;

    /// Prepares a pass over `layers`.
    fn start<'a>(&self, spans: &'a [Span], layers: Range<usize>, adapters: Option<&Adapters<'_>>) -> Result<Self::Pass<'a>>;

    /// One layer, in place. What is chosen is noted in `adapters` here or at the end of the pass.
    fn layer(&self, pass: &mut Self::Pass<'_>, index: usize, hidden: &mut Self::Hidden, adapters: Option<&mut Adapters<'_>>) -> Result<()>;

    /// A layer for the text CLS of each sample alone, `[samples, d]`: keys and values are computed of all tokens,
    /// everything else of one row a sample.
    fn layer_of_cls(
        &self,
        pass: &mut Self::Pass<'_>,
        index: usize,
        hidden: &Self::Hidden,
        adapters: Option<&mut Adapters<'_>>,
    ) -> Result<Self::Hidden>;

    /// Ends a pass.
    fn finish(&self, pass: Self::Pass<'_>, adapters: Option<&mut Adapters<'_>>) -> Result<()>;

    /// The row of each sample's text CLS, `[samples, d]`.
    fn cls(&self, hidden: &Self::Hidden, spans: &[Span]) -> Result<Self::Hidden>;

    /// tanh(pooler · layernorm(h)) of each row of text CLS, `[samples, d]`.
    fn pool(&self, cls: &Self::Hidden) -> Result<Vec<Vec<f32>>>;

    /// The mean of each range of rows, `[ranges, d]`; zero where it is empty.
    fn means(&self, hidden: &Self::Hidden, ranges: &[Range<usize>]) -> Result<Vec<Vec<f32>>>;

    /// Some samples' rows, one sample after another.
    fn select(&self, hidden: &Self::Hidden, spans: &[Span]) -> Result<Self::Hidden>;

    /// As a tensor on the CPU, for training.
    fn to_tensor(&self, hidden: &Self::Hidden) -> Result<Tensor>;

    /// From a tensor.
    fn load_tensor(&self, hidden: &Tensor) -> Result<Self::Hidden>;

    /// From the state entering `layers.start` to the state entering `layers.end`.
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

    /// From the state entering `first` to the pooled output of each sample, `[samples, d]`. The state is spent: of the
    /// last layer, only what the pooled output needs is computed.
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

    /// The pooled output of the state after the last layer, `[samples, d]`.
    fn pooled(&self, hidden: &Self::Hidden, spans: &[Span]) -> Result<Vec<Vec<f32>>> {
        self.pool(&self.cls(hidden, spans)?)
    }
}

/// Tokens of a batch on a GPU. On an H200, ViLT-B/32 in bf16 (`delo bench engine --batch 1 8 32 64`), 5,920 tokens take
/// 8.6 ms; each costs 1.6 times less than of 1,480, and of 11,840 a tenth less again.
pub(crate) const GPU_BATCH_TOKENS: usize = 4096;
/// The same while samples wait.
pub(crate) const GPU_BACKLOG_BATCH_TOKENS: usize = 3 * GPU_BATCH_TOKENS;

/// What stands in for a missing modality.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dummy<'a> {
    /// Token ids of the empty text.
    pub text: &'a [u32],
    /// Height and width of the white image, in pixels.
    pub image: [usize; 2],
}

/// What a pass adds to the frozen layers: each sample's adapter, and what was chosen of it.
pub(crate) struct Adapters<'a> {
    of_samples: Vec<&'a Adapter>,
    /// For each sample, each adapted layer with the choice in every group of its bank.
    pub chosen: Vec<Vec<(usize, Vec<Choice>)>>,
}

impl<'a> Adapters<'a> {
    /// One adapter for each sample, in order.
    pub fn new(of_samples: Vec<&'a Adapter>) -> Self {
        Self { chosen: vec![Vec::new(); of_samples.len()], of_samples }
    }

    /// Each sample's factors in a layer; `None` where its task adds nothing to the layer.
    pub fn layer(&self, layer: usize) -> Vec<Option<&'a FactorBank>> {
        self.of_samples.iter().map(|adapter| adapter.bank(layer)).collect()
    }

    /// Notes what was chosen in a layer.
    pub fn note(&mut self, layer: usize, chosen: Vec<Option<Vec<Choice>>>) {
        for (all, chosen) in self.chosen.iter_mut().zip(chosen) {
            all.extend(chosen.map(|chosen| (layer, chosen)));
        }
    }
}
