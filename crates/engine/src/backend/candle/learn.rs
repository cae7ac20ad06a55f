//! One task's layers during training, in candle's operations: on a GPU, or on the CPU in tests. candle's
//! autograd gives the backward pass; the operations of serving that have none (its fused softmax and layer
//! norm) are written out here. The other implementation, by kernels of our own on the CPU, is
//! [`crate::learn`].
use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::{layer_norm_slow, softmax};

use super::frozen::frozen;
use super::groups::{Group, merge, pick};
use super::low_rank::{Averages, Factors};
use super::{CandleBackend, Layer, cls};
use crate::backend::Backend;
use crate::learn::TaskOutput;
use crate::packed::{Packed, Span};
use delo_model::method::adapter::PROMPTS_ON_CPUS;
use delo_model::method::factors::CPU_ALONE;
use delo_model::method::{Additions, FactorPairs, LayerInput, Target, TaskModel};
use delo_model::vilt::LayerNorm;
use delo_model::{Modality, PerModality};

/// The samples of a training batch.
struct LearningBatch<'a> {
    spans: &'a [Span],
    /// Samples of the same number of tokens.
    groups: Vec<Group>,
    /// For each group.
    averages: Vec<Averages>,
}

impl CandleBackend {
    /// As [`crate::Engine::run_task`]. The task's variables lie on this backend's device
    /// ([`crate::Engine::learning_device`]).
    ///
    /// # Errors
    /// A backend that multiplies in another format than f32; variables on another device.
    pub fn run_task(&self, packed: &Packed, task: &TaskModel) -> Result<TaskOutput> {
        if self.dtype != DType::F32 {
            candle_core::bail!("training computes in f32: load the backbone with that precision");
        }
        if !task.method().cross_modal_guide() {
            candle_core::bail!("{CPU_ALONE}");
        }
        if task.method().reads_frozen_cls() {
            candle_core::bail!("{PROMPTS_ON_CPUS}");
        }
        let batch = LearningBatch::of(self, &packed.spans)?;
        let mut hidden = self.load_tensor(&packed.hidden)?;
        let mut of_layers = Vec::new();
        for (index, layer) in self.layers.iter().enumerate().skip(task.method().first_adapted_layer()) {
            let queries = batch.queries(&hidden)?;
            let additions = task.additions(index, LayerInput { queries: queries.as_ref(), frozen_cls: None })?;
            let Additions { pairs: Some(pairs), prompts: None, prefix: None } = additions else { candle_core::bail!("{PROMPTS_ON_CPUS}") };
            let factors = batch.factors(pairs)?;
            // The pooler reads only the text CLS of the last layer.
            hidden = if index + 1 == self.layers.len() {
                self.learn_cls_layer(layer, &hidden, &batch, &factors)?
            } else {
                self.learn_whole_layer(layer, &hidden, &batch, &factors)?
            };
            of_layers.push(queries);
        }
        if of_layers.is_empty() {
            hidden = cls(&hidden, batch.spans)?;
        }
        let pooled = frozen(&self.pooler.dense, &normalise(&self.pooler.layernorm, &hidden)?)?.tanh()?;
        Ok(TaskOutput { logits: task.head(&pooled)?, queries: of_layers, chosen_keys: None })
    }

    /// One pre-norm encoder layer with each sample's factors: `[tokens, d]` → `[tokens, d]`.
    fn learn_whole_layer(&self, layer: &Layer, hidden: &Tensor, batch: &LearningBatch<'_>, factors: &[Factors]) -> Result<Tensor> {
        let x = normalise(&layer.norm_before, hidden)?;
        let qkv = frozen(&layer.qkv, &x)?;
        let of_group = |(group, factors): (&Group, &Factors)| {
            let qkv = self.mapped(group, &x, &qkv, Some(factors), 0..Target::COUNT)?;
            attend(&qkv.get(0)?, &qkv.get(1)?, &qkv.get(2)?)
        };
        let contexts = batch.groups.iter().zip(factors).map(of_group).collect::<Result<Vec<_>>>()?;
        learn_after_attention(layer, hidden, &merge(&batch.groups, &contexts)?)
    }

    /// A layer for the text CLS of each sample alone: `[tokens, d]` → `[samples, d]`.
    fn learn_cls_layer(&self, layer: &Layer, hidden: &Tensor, batch: &LearningBatch<'_>, factors: &[Factors]) -> Result<Tensor> {
        let x = normalise(&layer.norm_before, hidden)?;
        let kv = frozen(&layer.part(1..Target::COUNT)?, &x)?;
        let (x_cls, hidden) = (cls(&x, batch.spans)?, cls(hidden, batch.spans)?);
        let q = frozen(&layer.part(0..1)?, &x_cls)?;
        let cls_groups: Vec<Group> = batch.groups.iter().map(Group::of_one_row).collect();
        let of_group = |((group, cls_group), factors): ((&Group, &Group), &Factors)| {
            let q = self.mapped(cls_group, &x_cls, &q, Some(factors), 0..1)?;
            let kv = self.mapped(group, &x, &kv, Some(factors), 1..Target::COUNT)?;
            attend(&q.get(0)?, &kv.get(0)?, &kv.get(1)?)
        };
        let contexts = batch.groups.iter().zip(&cls_groups).zip(factors).map(of_group).collect::<Result<Vec<_>>>()?;
        learn_after_attention(layer, &hidden, &merge(&cls_groups, &contexts)?)
    }
}

impl<'a> LearningBatch<'a> {
    fn of(backend: &CandleBackend, spans: &'a [Span]) -> Result<Self> {
        let groups = Group::of(spans);
        let averages = groups.iter().map(|group| Averages::of(group, spans, &backend.device)).collect::<Result<_>>()?;
        Ok(Self { spans, groups, averages })
    }

    /// The queries of each sample, `[samples, d]` for each modality; the proxy's query where the modality is
    /// missing (METHOD.md 3).
    fn queries(&self, hidden: &Tensor) -> Result<PerModality<Tensor>> {
        let of_groups = self.groups.iter().zip(&self.averages).map(|(group, averages)| averages.queries(group, hidden));
        let of_samples = merge(&self.groups, &of_groups.collect::<Result<Vec<_>>>()?)?;
        let of_samples = of_samples.reshape((self.spans.len(), Modality::ALL.len(), ()))?;
        let of = |modality: Modality| of_samples.narrow(1, modality as usize, 1)?.squeeze(1)?.contiguous();
        Ok(PerModality { image: of(Modality::Image)?, text: of(Modality::Text)? })
    }

    /// The factors of each group's samples.
    fn factors(&self, FactorPairs { a, b, pairs }: FactorPairs) -> Result<Vec<Factors>> {
        let d = a.dim(D::Minus1)?;
        let of_group = |all: &Tensor, group: &Group| {
            let rows = pick(&all.flatten_from(1)?, group.samples.iter().map(|&sample| (sample, 1)))?;
            rows.reshape((group.samples.len(), Target::COUNT, pairs, d))
        };
        self.groups.iter().map(|group| Ok(Factors { a: of_group(&a, group)?, b: of_group(&b, group)? })).collect()
    }
}

/// The part of a layer after attention, for any rows: `[rows, d]` → `[rows, d]`.
fn learn_after_attention(layer: &Layer, hidden: &Tensor, context: &Tensor) -> Result<Tensor> {
    let hidden = (hidden + frozen(&layer.attention_output, context)?)?;
    let inner = frozen(&layer.intermediate, &normalise(&layer.norm_after, &hidden)?)?.gelu_erf()?;
    hidden + frozen(&layer.output, &inner)?
}

/// Layer normalisation of each row, `[rows, d]`.
fn normalise(norm: &LayerNorm, x: &Tensor) -> Result<Tensor> {
    layer_norm_slow(x, &norm.weight, &norm.bias, norm.eps as f32)
}

/// softmax(Q Kᵀ / √d_head) V of each head: Q `[samples, heads, rows, d_head]`, K and V
/// `[samples, heads, tokens, d_head]` → `[samples, rows, d]`.
fn attend(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
    let (samples, heads, rows, width) = query.dims4()?;
    let scores = (query.matmul(&key.t()?)? / (width as f64).sqrt())?;
    softmax(&scores, D::Minus1)?.matmul(value)?.transpose(1, 2)?.reshape((samples, rows, heads * width))
}
