//! The encoder: linear maps, layer normalisation, attention, and one pre-norm layer.
use candle_core::{D, Result, Tensor};
use candle_nn::ops::{layer_norm_slow, softmax};

use super::checkpoint::Checkpoint;
use super::{ViltConfig, ViltError};

/// A linear map `y = x Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// W, `[d_out, d_in]`.
    pub weight: Tensor,
    /// b, `[d_out]`.
    pub bias: Tensor,
}

impl Linear {
    pub(super) fn load(checkpoint: &mut Checkpoint, name: &str, d_in: usize, d_out: usize) -> std::result::Result<Self, ViltError> {
        Ok(Self {
            weight: checkpoint.take(&format!("{name}.weight"), &[d_out, d_in])?,
            bias: checkpoint.take(&format!("{name}.bias"), &[d_out])?,
        })
    }

    /// A map `[d, d]` whose bias is read from the checkpoint if `biased`, and is zero otherwise.
    fn load_biased_if(checkpoint: &mut Checkpoint, name: &str, d: usize, biased: bool) -> std::result::Result<Self, ViltError> {
        if biased {
            return Self::load(checkpoint, name, d, d);
        }
        let weight = checkpoint.take(&format!("{name}.weight"), &[d, d])?;
        Ok(Self { bias: Tensor::zeros(d, weight.dtype(), weight.device())?, weight })
    }

    /// y of x: `[…, d_in]` → `[…, d_out]`.
    ///
    /// # Errors
    /// The last dimension of x is not `d_in`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        let (d_out, d_in) = self.weight.dims2()?;
        if let Some(last) = shape.last_mut() {
            *last = d_out;
        }
        x.reshape(((), d_in))?.matmul(&self.weight.t()?)?.broadcast_add(&self.bias)?.reshape(shape)
    }
}

/// Layer normalisation over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// The gain, `[d]`.
    pub weight: Tensor,
    /// The bias, `[d]`.
    pub bias: Tensor,
    /// ε, which is added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    pub(super) fn load(checkpoint: &mut Checkpoint, name: &str, config: &ViltConfig) -> std::result::Result<Self, ViltError> {
        let d = config.hidden_size;
        let (weight, bias) = (checkpoint.take(&format!("{name}.weight"), &[d])?, checkpoint.take(&format!("{name}.bias"), &[d])?);
        Ok(Self { weight, bias, eps: config.layer_norm_eps })
    }

    /// `[…, d]` → `[…, d]`, in two passes: the mean, then the variance. candle's fused operation computes the
    /// variance as E[x²] − E[x]², which rounding can make negative where a row is nearly constant; an ε of
    /// 1e-12 is too small to prevent that.
    ///
    /// # Errors
    /// The last dimension is not d.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm_slow(x, &self.weight, &self.bias, self.eps as f32)
    }
}

/// One pre-norm encoder layer: `h += attention_output(attention(layernorm_before(h)))`, then
/// `h += output(gelu(intermediate(layernorm_after(h))))`.
#[derive(Clone, Debug)]
pub struct EncoderLayer {
    /// The layer norm before attention.
    pub layernorm_before: LayerNorm,
    /// The query map, `[d, d]`.
    pub query: Linear,
    /// The key map, `[d, d]`.
    pub key: Linear,
    /// The value map, `[d, d]`.
    pub value: Linear,
    /// The map after attention, `[d, d]`.
    pub attention_output: Linear,
    /// The layer norm before the MLP.
    pub layernorm_after: LayerNorm,
    /// The first map of the MLP, `[mlp, d]`.
    pub intermediate: Linear,
    /// The second map of the MLP, `[d, mlp]`.
    pub output: Linear,
}

impl EncoderLayer {
    pub(super) fn load(checkpoint: &mut Checkpoint, index: usize, config: &ViltConfig) -> std::result::Result<Self, ViltError> {
        let (d, mlp) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let mut qkv = |part: &str| Linear::load_biased_if(checkpoint, &name(&format!("attention.attention.{part}")), d, config.qkv_bias);
        let (query, key, value) = (qkv("query")?, qkv("key")?, qkv("value")?);
        Ok(Self {
            layernorm_before: LayerNorm::load(checkpoint, &name("layernorm_before"), config)?,
            query,
            key,
            value,
            attention_output: Linear::load(checkpoint, &name("attention.output.dense"), d, d)?,
            layernorm_after: LayerNorm::load(checkpoint, &name("layernorm_after"), config)?,
            intermediate: Linear::load(checkpoint, &name("intermediate.dense"), d, mlp)?,
            output: Linear::load(checkpoint, &name("output.dense"), mlp, d)?,
        })
    }

    /// `[batch, tokens, d]` → `[batch, tokens, d]`. `mask` is `[batch, tokens]`: 1 for a real token, 0 for
    /// padding.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn forward(&self, hidden: &Tensor, mask: &Tensor, heads: usize) -> Result<Tensor> {
        let x = self.layernorm_before.forward(hidden)?;
        let context = attention(&self.query.forward(&x)?, &self.key.forward(&x)?, &self.value.forward(&x)?, mask, heads)?;
        let hidden = (hidden + self.attention_output.forward(&context)?)?;
        let x = self.intermediate.forward(&self.layernorm_after.forward(&hidden)?)?.gelu_erf()?;
        hidden + self.output.forward(&x)?
    }
}

/// softmax(Q Kᵀ / √d_head) V for each head, without padding. Q, K, V and the result are `[batch, tokens, d]`.
fn attention(query: &Tensor, key: &Tensor, value: &Tensor, mask: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, d) = query.dims3()?;
    let split = |x: &Tensor| x.reshape((batch, tokens, heads, d / heads))?.transpose(1, 2)?.contiguous();
    let (query, key, value) = (split(query)?, split(key)?, split(value)?);
    let scores = (query.matmul(&key.t()?)? / ((d / heads) as f64).sqrt())?;
    // 0 for a real token, the least finite number for padding.
    let bias = mask.affine(f64::from(f32::MAX), -f64::from(f32::MAX))?.reshape((batch, 1, 1, tokens))?;
    let weights = softmax(&scores.broadcast_add(&bias)?, D::Minus1)?;
    weights.matmul(&value)?.transpose(1, 2)?.reshape((batch, tokens, d))
}
