//! What the engine asks of the frozen layers, whatever processor they run on.
use std::fmt::Debug;
use std::ops::Range;

use candle_core::{Result, Tensor};

use super::packed::Span;
use delo_model::input::Sample;
use delo_model::method::Adapter;
use delo_model::method::factors::{Choice, FactorBank};

/// The frozen backbone on some processor, with room for each sample's own adapters.
pub(super) trait Backbone: Debug + Send + Sync {
    /// Hidden states of a stream, `[tokens, d]`.
    type Hidden;

    /// Hidden states entering layer 0; `dummy` in place of what is missing.
    fn embed(&self, samples: &[&Sample], dummy: Dummy<'_>) -> Result<(Self::Hidden, Vec<Span>)>;

    /// From the state entering `layers.start` to the state entering `layers.end`.
    fn run(&self, hidden: &mut Self::Hidden, spans: &[Span], layers: Range<usize>, adapters: Option<&mut Adapters<'_>>) -> Result<()>;

    /// From the state entering `first` to the pooled output of each sample, `[samples, d]`. The state is spent: of the last layer, only what the
    /// pooled output needs is computed.
    fn run_to_pooled(
        &self,
        hidden: Self::Hidden,
        spans: &[Span],
        first: usize,
        adapters: Option<&mut Adapters<'_>>,
    ) -> Result<Vec<Vec<f32>>>;

    /// tanh(pooler · layernorm(h)[text CLS]) of the state after the last layer, `[samples, d]`.
    fn pooled(&self, hidden: &Self::Hidden, spans: &[Span]) -> Result<Vec<Vec<f32>>>;

    /// The mean of each range of rows, `[ranges, d]`; zero where it is empty.
    fn means(&self, hidden: &Self::Hidden, ranges: &[Range<usize>]) -> Result<Vec<Vec<f32>>>;

    /// Some samples' rows, one sample after another.
    fn select(&self, hidden: &Self::Hidden, spans: &[Span]) -> Result<Self::Hidden>;

    /// As a tensor on the CPU, for whoever learns from it.
    fn to_tensor(&self, hidden: &Self::Hidden) -> Result<Tensor>;

    fn load_tensor(&self, hidden: &Tensor) -> Result<Self::Hidden>;
}

/// What stands in for a missing modality.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dummy<'a> {
    /// Token ids of the empty text.
    pub text: &'a [u32],
    /// Height and width of the white image, in pixels.
    pub image: [usize; 2],
}

/// What a pass adds to the frozen layers: each sample's adapter, and what was chosen of it.
pub(super) struct Adapters<'a> {
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
