//! An encoder layer's weights on a device, and the rows of the text CLS.
use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::packed::Span;
use delo_model::vilt::{EncoderLayer, LayerNorm, Linear, Loader, ViltError};

/// One encoder layer: norms in f32, maps in the format that the backend multiplies.
#[derive(Debug)]
pub(crate) struct Layer {
    pub norm_before: LayerNorm,
    /// Query, key and value stacked, `[3 d, d]`.
    pub qkv: Linear,
    pub attention_output: Linear,
    pub norm_after: LayerNorm,
    pub intermediate: Linear,
    pub output: Linear,
}

impl Layer {
    /// All layers of a checkpoint, in order. `ready` converts a map to the number format in which it is used.
    ///
    /// # Errors
    /// See [`ViltError`].
    pub fn all(loader: &mut Loader, ready: impl Fn(&Linear) -> Result<Linear>) -> std::result::Result<Vec<Self>, ViltError> {
        (0..loader.config().num_hidden_layers).map(|index| Ok(Self::new(loader.layer(index)?, &ready)?)).collect()
    }

    fn new(from: EncoderLayer, ready: impl Fn(&Linear) -> Result<Linear>) -> Result<Self> {
        let maps = [&from.query, &from.key, &from.value];
        let qkv = Linear { weight: Tensor::cat(&maps.map(|map| &map.weight), 0)?, bias: Tensor::cat(&maps.map(|map| &map.bias), 0)? };
        Ok(Self {
            norm_before: from.layernorm_before,
            qkv: ready(&qkv)?,
            attention_output: ready(&from.attention_output)?,
            norm_after: from.layernorm_after,
            intermediate: ready(&from.intermediate)?,
            output: ready(&from.output)?,
        })
    }

    /// A range of the targets query, key and value; shares the storage.
    pub fn part(&self, targets: Range<usize>) -> Result<Linear> {
        let d = self.qkv.weight.dim(1)?;
        let rows = |t: &Tensor| t.narrow(0, targets.start * d, targets.len() * d);
        Ok(Linear { weight: rows(&self.qkv.weight)?, bias: rows(&self.qkv.bias)? })
    }
}

/// The rows of the samples' text CLS: `[tokens, width]` → `[samples, width]`.
pub(crate) fn cls(packed: &Tensor, spans: &[Span]) -> Result<Tensor> {
    let rows: Vec<u32> = spans.iter().map(|span| span.start as u32).collect();
    packed.index_select(&Tensor::new(rows, packed.device())?, 0)
}
