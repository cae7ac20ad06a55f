//! The frozen backbone: ViLT, one transformer over text tokens and image patches. Knows nothing of DeLo.
use candle_core::Tensor;

/// A linear map `y = x Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[d_out, d_in]`
    pub weight: Tensor,
    /// `[d_out]`
    pub bias: Tensor,
}

/// Layer normalisation over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    pub weight: Tensor,
    pub bias: Tensor,
    pub eps: f64,
}

/// One pre-norm encoder layer: `h += attention(layernorm_before(h))`, `h += output(gelu(intermediate(layernorm_after(h))))`.
#[derive(Clone, Debug)]
pub struct EncoderLayer {
    pub layernorm_before: LayerNorm,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub attention_output: Linear,
    pub layernorm_after: LayerNorm,
    pub intermediate: Linear,
    pub output: Linear,
}

/// A loaded, frozen ViLT.
#[derive(Debug)]
pub struct Vilt {
    pub layers: Vec<EncoderLayer>,
    /// After the last layer.
    pub layernorm: LayerNorm,
    /// `pooled = tanh(pooler · layernorm(h)[text CLS])`
    pub pooler: Linear,
    /// SHA-256 over the tensors, hexadecimal: names without prefix in order, shapes, and values in f32.
    pub fingerprint: String,
}
