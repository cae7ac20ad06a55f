//! The backbone on an NVIDIA GPU: products by cuBLAS, everything else by kernels of our own (`kernels.cu`).
//! The GPU does not wait for the CPU between the decision of the tasks and the answers.
//!
//! Linear maps and norms run once over all tokens of all samples. Attention runs once for each group of
//! samples of similar length, padded to the longest of the group. The device chooses each sample's experts
//! and reads its factors from the partition's copy. Hidden states, norms, softmax and routing are in f32, the
//! operands of products in the chosen format.
mod gpu;
mod plan;
mod staging;

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use crate::backend::candle::{Embeddings, Layer, OpenDevice, cls};
use crate::backend::{Adapters, Backend, Dummy};
use crate::packed::Span;
use delo_kernels::Precision;
use delo_model::Modality;
use delo_model::input::Sample;
use delo_model::method::Target;
use delo_model::vilt::{Description, Linear, Loader, Pooler, ViltConfig, ViltError};
use gpu::{Gpu, Part};
use plan::{Plan, Routing, range_words};
use staging::Staging;

/// The largest d for which `project` of `kernels.cu` holds a row in registers: 128 times its `PROJECTED`.
const WIDEST: usize = 1536;

/// A frozen ViLT on an NVIDIA GPU.
#[derive(Debug)]
pub(crate) struct CudaBackend {
    gpu: Gpu,
    precision: Precision,
    dtype: DType,
    /// Number format and device, as one name.
    kernel: String,
    heads: usize,
    embeddings: Embeddings,
    staging: Staging,
    layers: Vec<Layer>,
    pooler: Pooler,
}

impl CudaBackend {
    /// Whether the kernels support a backbone of these widths.
    pub fn fits(config: &ViltConfig) -> bool {
        let fours = [config.hidden_size, config.head_size(), config.intermediate_size].iter().all(|width| width.is_multiple_of(4));
        fours && config.hidden_size <= WIDEST
    }

    /// Loads a checkpoint part by part; each part goes directly to the device.
    pub fn load(loader: Loader, open: OpenDevice, precision: Precision) -> std::result::Result<(Self, Description), ViltError> {
        let dtype = open.dtype(precision)?;
        let gpu = Gpu::new(open.device.as_cuda_device()?.clone(), dtype)?;
        let mut loader = loader.onto(&open.device);
        let embeddings = Embeddings::new(loader.embeddings()?, dtype)?;
        let layers = Layer::all(&mut loader, |map| ready(map, dtype))?;
        let Pooler { layernorm, dense } = loader.pooler()?;
        let pooler = Pooler { layernorm, dense: ready(&dense, dtype)? };
        let (kernel, heads) = (format!("{precision} {}", open.name), loader.config().num_attention_heads);
        let staging = Staging::new(dtype);
        Ok((Self { gpu, precision, dtype, kernel, heads, embeddings, staging, layers, pooler }, loader.finish()))
    }

    /// Chooses the experts of a layer by the state that enters it, and projects its normalised input onto the
    /// chosen A factors; `None` where the layer adapts no sample.
    fn projections<'a>(&self, index: usize, hidden: &Tensor, x: &Tensor, plan: &'a Plan<'_>) -> Result<Option<(Tensor, &'a Routing)>> {
        let Some(routing) = plan.routing(index) else { return Ok(None) };
        let queries = self.gpu.means(hidden, plan.queries, plan.spans.len() * Modality::ALL.len())?;
        self.gpu.choose(&queries, routing, index)?;
        let (tiles, count) = plan.tiles;
        Ok(Some((self.gpu.project(x, routing, index, tiles, count)?, routing)))
    }

    /// One pre-norm encoder layer: `[tokens, d]` → `[tokens, d]`.
    fn whole_layer(&self, index: usize, hidden: &Tensor, plan: &Plan<'_>) -> Result<Tensor> {
        let (gpu, layer) = (&self.gpu, &self.layers[index]);
        let x = gpu.norm(hidden, &layer.norm_before)?;
        let projections = self.projections(index, hidden, &x, plan)?;
        let update = projections.as_ref().map(|(u, routing)| (u, *routing, index));
        let qkv = product(&x, &layer.qkv)?;
        let contexts = gpu.empty(self.dtype, hidden.dims())?;
        for group in &plan.groups {
            let parts = gpu.split(group, &Part::whole(&qkv, &layer.qkv.bias, update, group), self.heads)?;
            gpu.attend([&parts.get(0)?, &parts.get(1)?, &parts.get(2)?], group, group.members, &contexts)?;
        }
        self.after_attention(layer, hidden, &contexts)
    }

    /// A layer for the text CLS of each sample alone, `[tokens, d]` → `[samples, d]`: keys and values are
    /// computed for all tokens, everything else for one row of each sample.
    fn cls_layer(&self, index: usize, hidden: &Tensor, plan: &Plan<'_>) -> Result<Tensor> {
        let (gpu, layer) = (&self.gpu, &self.layers[index]);
        let x = gpu.norm(hidden, &layer.norm_before)?;
        let projections = self.projections(index, hidden, &x, plan)?;
        let update = projections.as_ref().map(|(u, routing)| (u, *routing, index));
        let (x_cls, hidden) = (cls(&x, plan.spans)?, cls(hidden, plan.spans)?);
        let q = product(&x_cls, &layer.part(0..1)?)?;
        let kv = product(&x, &layer.part(1..Target::COUNT)?)?;
        let contexts = gpu.empty(self.dtype, hidden.dims())?;
        for group in &plan.groups {
            let whole = Part::whole(&kv, &layer.qkv.bias, update, group);
            let kv = gpu.split(group, &Part { first_target: 1, targets: Target::COUNT - 1, ..whole }, self.heads)?;
            let q = gpu.split(group, &Part { mapped: &q, members: group.cls, targets: 1, ..whole }, self.heads)?;
            gpu.attend([&q.get(0)?, &kv.get(0)?, &kv.get(1)?], group, group.cls, &contexts)?;
        }
        self.after_attention(layer, &hidden, &contexts)
    }

    /// The part of a layer after attention, for any rows: `[rows, d]` → `[rows, d]`.
    fn after_attention(&self, layer: &Layer, hidden: &Tensor, contexts: &Tensor) -> Result<Tensor> {
        let attended = product(contexts, &layer.attention_output)?;
        let (hidden, x) = self.gpu.residual_norm(hidden, &attended, &layer.attention_output.bias, &layer.norm_after)?;
        let inner = product(&x, &layer.intermediate)?;
        self.gpu.gelu(&inner, &layer.intermediate.bias)?;
        self.gpu.residual(&hidden, &product(&inner, &layer.output)?, &layer.output.bias)
    }
}

/// The map with its weight in the products' format. Its bias stays in f32, in which it is added.
fn ready(map: &Linear, dtype: DType) -> Result<Linear> {
    Ok(Linear { weight: map.weight.to_dtype(dtype)?, bias: map.bias.clone() })
}

/// x Wᵀ
fn product(x: &Tensor, map: &Linear) -> Result<Tensor> {
    x.matmul(&map.weight.t()?)
}

impl Backend for CudaBackend {
    type Hidden = Tensor;
    type Pass<'a> = Plan<'a>;

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
        self.embeddings.embed(samples, dummy, |patches| self.staging.upload(&self.gpu, patches))
    }

    fn start<'a>(&self, spans: &'a [Span], layers: Range<usize>, adapters: Option<&Adapters<'_>>) -> Result<Plan<'a>> {
        adapters.map_or(Ok(()), Adapters::check_for_gpu)?;
        Plan::new(&self.gpu, spans, layers, adapters, self.dtype)
    }

    fn layer(&self, plan: &mut Plan<'_>, index: usize, hidden: &mut Tensor, _: Option<&mut Adapters<'_>>) -> Result<()> {
        *hidden = self.whole_layer(index, hidden, plan)?;
        Ok(())
    }

    fn layer_of_cls(&self, plan: &mut Plan<'_>, index: usize, hidden: &Tensor, _: Option<&mut Adapters<'_>>) -> Result<Tensor> {
        self.cls_layer(index, hidden, plan)
    }

    /// Notes the choices of all layers. Beside the pooled output, this is the first copy from the device to
    /// the CPU after the task decision.
    fn finish(&self, plan: Plan<'_>, adapters: Option<&mut Adapters<'_>>) -> Result<()> {
        match (&plan.routing, adapters) {
            (Some(routing), Some(adapters)) => routing.note(adapters),
            _ => Ok(()),
        }
    }

    fn cls(&self, hidden: &Tensor, spans: &[Span]) -> Result<Tensor> {
        cls(hidden, spans)
    }

    fn pool(&self, cls: &Tensor) -> Result<Vec<Vec<f32>>> {
        let Pooler { layernorm, dense } = &self.pooler;
        let mapped = product(&self.gpu.norm(cls, layernorm)?, dense)?.to_dtype(DType::F32)?;
        mapped.broadcast_add(&dense.bias)?.tanh()?.to_vec2()
    }

    fn means(&self, hidden: &Tensor, ranges: &[Range<usize>]) -> Result<Vec<Vec<f32>>> {
        let words: Vec<u32> = range_words(ranges.iter().cloned()).collect();
        let words = Tensor::new(words, &self.gpu.device())?;
        self.gpu.means(hidden, self.gpu.address(&words)?, ranges.len())?.to_vec2()
    }

    fn select(&self, hidden: &Tensor, spans: &[Span]) -> Result<Tensor> {
        let rows: Vec<u32> = spans.iter().flat_map(|span| span.start as u32..span.end() as u32).collect();
        hidden.index_select(&Tensor::new(rows, &self.gpu.device())?, 0)
    }

    fn to_tensor(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.to_device(&Device::Cpu)
    }

    fn load_tensor(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.to_device(&self.gpu.device())?.to_dtype(DType::F32)?.contiguous()
    }
}
