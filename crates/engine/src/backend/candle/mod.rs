//! The backbone with candle's operations: on an Apple GPU, on an NVIDIA GPU where our kernels do not support
//! the backbone's widths, or on the CPU in tests.
//!
//! Linear maps and norms run once over all tokens of all samples. Attention and the low-rank update run once
//! for each group of samples with the same number of tokens. Hidden states, norms, softmax and routing are in
//! f32, the operands of products in the chosen format.
mod choice;
mod embed;
pub(crate) mod factors;
mod frozen;
mod groups;
mod layer;
mod learn;
mod low_rank;

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::{layer_norm, softmax_last_dim};

use crate::backend::{Adapters, Backend, Dummy};
use crate::packed::Span;
pub use choice::{DeviceChoice, OpenDevice};
use delo_kernels::Precision;
use delo_model::input::Sample;
use delo_model::method::Target;
use delo_model::vilt::{Description, LayerNorm, Linear, Loader, Pooler, ViltError};
pub(super) use embed::Embeddings;
#[cfg(feature = "cuda")]
pub(super) use embed::Patches;
#[cfg(feature = "cuda")]
pub(super) use factors::DeviceFactors;
use groups::{Group, merge, pick};
pub(super) use layer::{Layer, cls};
use low_rank::{Averages, Factors, LayerUpdate};

/// A frozen ViLT on a device.
#[derive(Debug)]
pub(crate) struct CandleBackend {
    device: Device,
    precision: Precision,
    dtype: DType,
    /// Number format and device, as one name.
    kernel: String,
    heads: usize,
    embeddings: Embeddings,
    layers: Vec<Layer>,
    pooler: Pooler,
}

/// The samples of a batch in the packed matrix, and in groups of the same number of tokens.
pub(crate) struct Batch<'a> {
    spans: &'a [Span],
    groups: Vec<Group>,
    /// For each group; empty in a pass without adapters.
    averages: Vec<Averages>,
}

impl CandleBackend {
    /// Loads a checkpoint part by part; each part goes directly to the device.
    pub fn load(loader: Loader, open: OpenDevice, precision: Precision) -> std::result::Result<(Self, Description), ViltError> {
        let dtype = open.dtype(precision)?;
        let mut loader = loader.onto(&open.device);
        let embeddings = Embeddings::new(loader.embeddings()?, dtype)?;
        let layers = Layer::all(&mut loader, |map| cast(map, dtype))?;
        let Pooler { layernorm, dense } = loader.pooler()?;
        let backbone = Self {
            precision,
            dtype,
            kernel: format!("{precision} {}", open.name),
            heads: loader.config().num_attention_heads,
            embeddings,
            layers,
            pooler: Pooler { layernorm, dense: cast(&dense, dtype)? },
            device: open.device,
        };
        Ok((backbone, loader.finish()))
    }

    /// The device that computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The layer norm of each row, `[rows, d]`, in the products' format.
    fn normalised(&self, norm: &LayerNorm, hidden: &Tensor) -> Result<Tensor> {
        normalise(norm, hidden)?.to_dtype(self.dtype)
    }

    /// One pre-norm encoder layer: `[tokens, d]` → `[tokens, d]`.
    fn whole_layer(&self, layer: &Layer, hidden: &Tensor, groups: &[Group], update: Option<&LayerUpdate>) -> Result<Tensor> {
        let x = self.normalised(&layer.norm_before, hidden)?;
        let qkv = layer.qkv.forward(&x)?;
        let of_group = |(index, group): (usize, &Group)| {
            let factors = update.and_then(|update| update.groups[index].as_ref());
            let qkv = self.mapped(group, &x, &qkv, factors, 0..Target::COUNT)?;
            attend(&qkv.get(0)?, &qkv.get(1)?, &qkv.get(2)?)
        };
        let contexts = groups.iter().enumerate().map(of_group).collect::<Result<Vec<_>>>()?;
        self.after_attention(layer, hidden, &merge(groups, &contexts)?)
    }

    /// A layer for the text CLS of each sample alone, `[tokens, d]` → `[samples, d]`: keys and values are
    /// computed for all tokens, everything else for one row of each sample.
    fn cls_layer(&self, layer: &Layer, hidden: &Tensor, batch: &Batch<'_>, update: Option<&LayerUpdate>) -> Result<Tensor> {
        let x = self.normalised(&layer.norm_before, hidden)?;
        let kv = layer.part(1..Target::COUNT)?.forward(&x)?;
        let (x_cls, hidden) = (cls(&x, batch.spans)?, cls(hidden, batch.spans)?);
        let q = layer.part(0..1)?.forward(&x_cls)?;
        let cls_groups: Vec<Group> = batch.groups.iter().map(Group::of_one_row).collect();
        let of_group = |index: usize| {
            let factors = update.and_then(|update| update.groups[index].as_ref());
            let q = self.mapped(&cls_groups[index], &x_cls, &q, factors, 0..1)?;
            let kv = self.mapped(&batch.groups[index], &x, &kv, factors, 1..Target::COUNT)?;
            attend(&q.get(0)?, &kv.get(0)?, &kv.get(1)?)
        };
        let contexts = (0..cls_groups.len()).map(of_group).collect::<Result<Vec<_>>>()?;
        self.after_attention(layer, &hidden, &merge(&cls_groups, &contexts)?)
    }

    /// The part of a layer after attention, for any rows: `[rows, d]` → `[rows, d]`.
    fn after_attention(&self, layer: &Layer, hidden: &Tensor, context: &Tensor) -> Result<Tensor> {
        let hidden = (hidden + layer.attention_output.forward(context)?.to_dtype(DType::F32)?)?;
        let inner = layer.intermediate.forward(&self.normalised(&layer.norm_after, &hidden)?)?.gelu_erf()?;
        hidden + layer.output.forward(&inner)?.to_dtype(DType::F32)?
    }

    /// A range of targets of a group's rows with the updates of its samples, by head:
    /// `[targets, samples, heads, rows, d / heads]`. `x` is the input of the frozen maps, `[tokens, d]`, and
    /// `mapped` their output, `[tokens, targets · d]`.
    fn mapped(&self, group: &Group, x: &Tensor, mapped: &Tensor, factors: Option<&Factors>, targets: Range<usize>) -> Result<Tensor> {
        let (samples, rows, count, heads) = (group.samples.len(), group.rows, targets.len(), self.heads);
        let frozen = group.take(mapped)?.reshape((samples, rows, count, heads, ()))?.permute((2, 0, 3, 1, 4))?;
        let Some(factors) = factors else { return frozen.contiguous() };
        let update = factors.apply(&group.take(x)?, targets)?;
        frozen + update.reshape((samples, count, rows, heads, ()))?.permute((1, 0, 3, 2, 4))?
    }

    /// Chooses the samples' factors in a layer and notes the choices; `None` where no sample is adapted.
    fn update(&self, layer: usize, hidden: &Tensor, batch: &Batch<'_>, adapters: Option<&mut Adapters<'_>>) -> Result<Option<LayerUpdate>> {
        let Some(adapters) = adapters else { return Ok(None) };
        let update = LayerUpdate::route(&adapters.layer(layer), &batch.groups, &batch.averages, hidden, self.dtype)?;
        Ok(update.inspect(|update| adapters.note(layer, update.chosen.clone())))
    }
}

impl Backend for CandleBackend {
    type Hidden = Tensor;
    type Pass<'a> = Batch<'a>;

    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn kernel(&self) -> &str {
        &self.kernel
    }

    fn embed(&self, samples: &[&Sample], dummy: Dummy<'_>) -> Result<(Tensor, Vec<Span>)> {
        self.embeddings.embed(samples, dummy, |patches| self.embeddings.upload(patches))
    }

    fn start<'a>(&self, spans: &'a [Span], _: Range<usize>, adapters: Option<&Adapters<'_>>) -> Result<Batch<'a>> {
        adapters.map_or(Ok(()), Adapters::check_for_gpu)?;
        let groups = Group::of(spans);
        let averages = match adapters {
            Some(_) => groups.iter().map(|group| Averages::of(group, spans, &self.device)).collect::<Result<_>>()?,
            None => Vec::new(),
        };
        Ok(Batch { spans, groups, averages })
    }

    fn layer(&self, batch: &mut Batch<'_>, index: usize, hidden: &mut Tensor, adapters: Option<&mut Adapters<'_>>) -> Result<()> {
        let update = self.update(index, hidden, batch, adapters)?;
        *hidden = self.whole_layer(&self.layers[index], hidden, &batch.groups, update.as_ref())?;
        Ok(())
    }

    fn layer_of_cls(&self, batch: &mut Batch<'_>, index: usize, hidden: &Tensor, adapters: Option<&mut Adapters<'_>>) -> Result<Tensor> {
        let update = self.update(index, hidden, batch, adapters)?;
        self.cls_layer(&self.layers[index], hidden, batch, update.as_ref())
    }

    fn finish(&self, _: Batch<'_>, _: Option<&mut Adapters<'_>>) -> Result<()> {
        Ok(())
    }

    fn cls(&self, hidden: &Tensor, spans: &[Span]) -> Result<Tensor> {
        cls(hidden, spans)
    }

    fn pool(&self, cls: &Tensor) -> Result<Vec<Vec<f32>>> {
        let x = self.normalised(&self.pooler.layernorm, cls)?;
        self.pooler.dense.forward(&x)?.to_dtype(DType::F32)?.tanh()?.to_vec2()
    }

    fn means(&self, hidden: &Tensor, ranges: &[Range<usize>]) -> Result<Vec<Vec<f32>>> {
        let mean = |rows: &Range<usize>| match rows.len() {
            0 => Tensor::zeros((1, hidden.dim(1)?), DType::F32, &self.device),
            rows_of_it => hidden.narrow(0, rows.start, rows_of_it)?.mean_keepdim(0),
        };
        Tensor::cat(&ranges.iter().map(mean).collect::<Result<Vec<_>>>()?, 0)?.to_vec2()
    }

    fn select(&self, hidden: &Tensor, spans: &[Span]) -> Result<Tensor> {
        pick(hidden, spans.iter().map(|span| (span.start, span.tokens())))
    }

    fn to_tensor(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.to_device(&Device::Cpu)
    }

    fn load_tensor(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.to_device(&self.device)?.to_dtype(DType::F32)?.contiguous()
    }
}

/// The map in another number format.
fn cast(map: &Linear, dtype: DType) -> Result<Linear> {
    Ok(Linear { weight: map.weight.to_dtype(dtype)?, bias: map.bias.to_dtype(dtype)? })
}

/// Layer normalisation of each row, `[rows, d]`. candle's fused operation computes the variance as E[x²] −
/// E[x]². The mean is subtracted before, so that the result is as exact as with two passes.
fn normalise(norm: &LayerNorm, x: &Tensor) -> Result<Tensor> {
    layer_norm(&x.broadcast_sub(&x.mean_keepdim(1)?)?, &norm.weight, &norm.bias, norm.eps as f32)
}

/// softmax(Q Kᵀ / √d_head) V of each head. Q is `[samples, heads, rows, d_head]`, K and V are
/// `[samples, heads, tokens, d_head]`; the result is `[samples, rows, d]`.
fn attend(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
    let (samples, heads, rows, width) = query.dims4()?;
    let scores = (query.matmul(&key.t()?)?.to_dtype(DType::F32)? / (width as f64).sqrt())?;
    let weights = softmax_last_dim(&scores)?.to_dtype(value.dtype())?;
    weights.matmul(value)?.transpose(1, 2)?.reshape((samples, rows, heads * width))
}
