//! An encoder layer's weights on a device, and the rows of the text CLS.
use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::packed::Span;
use delo_model::vilt::{EncoderLayer, LayerNorm, Linear, Loader, ViltError};

/// Norms in f32, maps as whoever computes wants them.
#[derive(Debug)]
pub(crate) struct Layer {
    pub norm_before: LayerNorm,
    /// Query, key and value under each other, `[3 d, d]`.
    pub qkv: Linear,
    pub attention_output: Linear,
    pub norm_after: LayerNorm,
    pub intermediate: Linear,
    pub output: Linear,
}

impl Layer {
    /// All layers of a checkpoint, in order. `ready` puts a map into the number formats that it is used in.
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

    /// Some targets of query, key and value; shares the storage.
    pub fn part(&self, targets: Range<usize>) -> Result<Linear> {
        let d = self.qkv.weight.dim(1)?;
        let rows = |t: &Tensor| t.narrow(0, targets.start * d, targets.len() * d);
        Ok(Linear { weight: rows(&self.qkv.weight)?, bias: rows(&self.qkv.bias)? })
    }
}

/// The rows of the text CLS, `[samples, width]`.
pub(crate) fn cls(stream: &Tensor, spans: &[Span]) -> Result<Tensor> {
    let rows: Vec<u32> = spans.iter().map(|span| span.start as u32).collect();
    stream.index_select(&Tensor::new(rows, stream.device())?, 0)
}
