//! Layers during training: the frozen products forward and backward on packed weights, and gradients of the
//! state and of what a method adds to the layers.
//!
//! | module | holds |
//! | --- | --- |
//! | `layer` | one layer as an operation of candle's graph |
//! | `prompts` | prompts behind the tokens of the samples |
//! | `pooler` | the final norm and the pooler as such operations |
//! | `segment_mean` | the query signals of a layer |
//! | `attention`, `low_rank`, `products`, `small_product` | the arithmetic |
//!
//! The backward pass of a layer uses the values that its forward pass kept, and the transposes of the
//! weights, which are packed at the first call.
//! On other devices than the CPU, `backend/candle/learn.rs` computes one task's layers in candle's operations.
mod attention;
mod layer;
mod low_rank;
mod pooler;
mod products;
mod prompts;
mod segment_mean;
mod small_product;

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

use super::backend::cpu::CpuBackend;
use super::packed::{Packed, Span};
use crate::Engine;
use crate::compute::Compute;
use crate::tensors::with_values;
use delo_kernels::{Matrix, RowsRef};
use delo_model::PerModality;
use delo_model::input::Presence;
use delo_model::method::{Additions, ChosenKeys, LayerInput, TaskModel};
use layer::LearningLayer;
use pooler::{FinalNorm, Pool};
use segment_mean::SegmentMean;

/// The output of one task's layers and head for each sample.
#[derive(Debug)]
pub struct TaskOutput {
    /// `[samples, classes]`
    pub logits: Tensor,
    /// For each layer from the first adapted one on, the queries of the state that enters it, `[samples, d]`
    /// for each modality; the proxy's query where the modality is missing (METHOD.md 3).
    pub queries: Vec<PerModality<Tensor>>,
    /// The keys by which the samples chose prompts; `None` where the method has none.
    pub chosen_keys: Option<ChosenKeys>,
}

impl Engine {
    /// Runs one task's adapted layers and its head. `packed` is the state that enters the task's first
    /// adapted layer. The output is differentiable in the task's variables. A method that reads the frozen
    /// text CLS takes a pass through the frozen layers first. Blocking.
    ///
    /// # Errors
    /// An engine that was not loaded for training ([`crate::Options::training`]) or computes in another
    /// format than f32; a task whose variables lie on another device than [`Engine::learning_device`].
    pub fn run_task(&self, packed: &Packed, task: &TaskModel) -> Result<TaskOutput> {
        self.task_output(packed, task, true)
    }

    /// The logits `[samples, classes]` of [`Self::run_task`], which nothing can learn from: computed in f32 whatever
    /// the steps of training are computed in. Blocking.
    ///
    /// # Errors
    /// As [`Self::run_task`].
    pub fn predict_task(&self, packed: &Packed, task: &TaskModel) -> Result<Tensor> {
        Ok(self.task_output(packed, task, false)?.logits.detach())
    }

    fn task_output(&self, packed: &Packed, task: &TaskModel, learns: bool) -> Result<TaskOutput> {
        if let Compute::Candle(backbone) = &self.compute {
            return backbone.run_task(packed, task);
        }
        let frozen_cls = if task.method().reads_frozen_cls() {
            let layers = task.method().first_adapted_layer()..self.backbone.config.num_hidden_layers;
            Some(self.cls(&self.run_frozen(packed, layers)?)?.text)
        } else {
            None
        };
        let mut of_layers = Vec::new();
        let pooled = self.run_adapted_to_pooled(packed, task.method().first_adapted_layer(), |layer, state| {
            let queries = queries(state, task.method().cross_modal_guide())?;
            let additions = task.additions(layer, LayerInput { queries: queries.as_ref(), frozen_cls: frozen_cls.as_ref() })?;
            of_layers.push(queries);
            Ok(if learns { additions } else { additions.detach() })
        })?;
        let chosen_keys = frozen_cls.map(|cls| task.chosen_keys(&cls)).transpose()?.flatten();
        Ok(TaskOutput { logits: task.head(&pooled)?, queries: of_layers, chosen_keys })
    }

    /// Runs layers with what `adapt` adds to each, given the layer's number and the state that enters it:
    /// from the state that enters `layers.start` to the one that enters `layers.end`. Differentiable in what
    /// is added. Blocking.
    ///
    /// # Errors
    /// An engine that does not compute in f32 on the CPU; additions that do not fit the samples; those of
    /// `adapt`.
    pub fn run_adapted(
        &self,
        state: &Packed,
        layers: Range<usize>,
        mut adapt: impl FnMut(usize, &Packed) -> Result<Additions>,
    ) -> Result<Packed> {
        let mut state = state.clone();
        for layer in layers {
            let additions = adapt(layer, &state)?;
            if additions.is_empty() && !state.hidden.track_op() {
                state = self.run_frozen(&state, layer..layer + 1)?;
                continue;
            }
            let (prompted, hidden) = self.run_layer(layer, state, &additions, false)?;
            state = prompted.with_hidden(hidden);
        }
        Ok(state)
    }

    /// As [`Self::run_adapted`] from the state that enters layer `first` to the pooled output,
    /// `[samples, d]`. Of the last layer, only what the pooler reads is computed.
    ///
    /// # Errors
    /// As [`Self::run_adapted`].
    pub fn run_adapted_to_pooled(
        &self,
        state: &Packed,
        first: usize,
        mut adapt: impl FnMut(usize, &Packed) -> Result<Additions>,
    ) -> Result<Tensor> {
        let layers = self.backbone.config.num_hidden_layers;
        let hidden = if first < layers {
            let state = self.run_adapted(state, first..layers - 1, &mut adapt)?;
            let additions = adapt(layers - 1, &state)?;
            self.run_layer(layers - 1, state, &additions, true)?.1
        } else {
            select_rows(&state.hidden, state.spans.iter().map(|span| span.start))?
        };
        let backbone = self.learning_backbone()?;
        let (norm, pooler) = backbone.pooler();
        hidden.apply_op1(Pool {
            norm: norm.clone(),
            kernel: *backbone.multiplier(),
            pooler: pooler.clone(),
            back: backbone.transposed_pooler(),
        })
    }

    /// The image CLS and the text CLS of each sample after the final norm, `[samples, d]` each. `state` is
    /// the one after the last layer. Differentiable. Blocking.
    ///
    /// # Errors
    /// An engine that does not compute in f32 on the CPU.
    pub fn cls(&self, state: &Packed) -> Result<PerModality<Tensor>> {
        let backbone = self.learning_backbone()?;
        let normalised = |rows: Tensor| rows.apply_op1(FinalNorm { norm: backbone.pooler().0.clone(), kernel: *backbone.multiplier() });
        Ok(PerModality {
            image: normalised(select_rows(&state.hidden, state.spans.iter().map(Span::image_cls))?)?,
            text: normalised(select_rows(&state.hidden, state.spans.iter().map(|span| span.start))?)?,
        })
    }

    /// What the projections of query, key and value of a layer read of the state that enters it: the
    /// normalised state, `[tokens, d]`. Not differentiable. Blocking.
    ///
    /// # Errors
    /// An engine that does not compute in f32 on the CPU.
    pub fn attention_input(&self, layer: usize, state: &Packed) -> Result<Tensor> {
        let backbone = self.learning_backbone()?;
        let (tokens, d) = state.hidden.dims2()?;
        let mut x = Matrix::<f32>::zeros(tokens, d);
        with_values(&state.hidden, |h| {
            backbone.layer_at(layer).norm_before.rows(backbone.multiplier().isa, RowsRef::new(h, tokens, d, d), &x.view_mut());
        })?;
        Tensor::from_vec(x.to_vec(), (tokens, d), &Device::Cpu)
    }

    /// One layer: the state with the layer's prompts, and what comes out for it.
    fn run_layer(&self, layer: usize, state: Packed, additions: &Additions, cls_alone: bool) -> Result<(Packed, Tensor)> {
        let Additions { pairs, prompts, prefix } = additions;
        let state = prompts.as_ref().map_or(Ok(state.clone()), |prompts| prompts::join(prompts, &state))?;
        let backbone = self.learning_backbone()?;
        let hidden = LearningLayer::run(backbone, layer, &state, pairs.as_ref(), prefix.as_ref(), cls_alone)?;
        Ok((state, hidden))
    }

    fn learning_backbone(&self) -> Result<&CpuBackend<f32>> {
        match &self.compute {
            Compute::F32(backbone) => Ok(backbone),
            _ => candle_core::bail!("training computes in f32 on the CPU: load the backbone with that precision and device"),
        }
    }
}

/// Some rows of a matrix.
fn select_rows(hidden: &Tensor, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
    let rows: Vec<u32> = rows.map(|row| row as u32).collect();
    let count = rows.len();
    hidden.index_select(&Tensor::from_vec(rows, count, &Device::Cpu)?, 0)
}

/// The queries of each sample, `[samples, d]` for each modality. Where the modality is missing: the proxy's
/// query (METHOD.md 3) or, not `guided`, that of its dummy.
fn queries(state: &Packed, guided: bool) -> Result<PerModality<Tensor>> {
    let Packed { hidden, spans } = state;
    let means = hidden.apply_op1(SegmentMean { spans: spans.clone(), dummies: !guided })?;
    let samples = spans.len();
    let chosen = |first: usize, instead: usize, lost: Presence| {
        let row = |(i, span): (usize, &Span)| i + if guided && span.presence == lost { instead } else { first } * samples;
        select_rows(&means, spans.iter().enumerate().map(row))
    };
    Ok(PerModality { image: chosen(0, 1, Presence::TextOnly)?, text: chosen(1, 0, Presence::ImageOnly)? })
}
