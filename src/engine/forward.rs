//! The layers over a packed stream: frozen, and with one task's learning adapters.
use std::borrow::Borrow;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::ops::{Attention, FrozenLayerNorm, FrozenLinear, Gelu, LowRank, SegmentMean};
use super::packed::{Packed, Span};
use super::{Engine, TaskOutput};
use crate::delo::keys::{KeySignal, Signals};
use crate::delo::task_model::{TARGETS, TaskModel};
use crate::input::{Pixels, Presence, Sample};
use crate::vilt::{EncoderLayer, LayerNorm, Linear};

/// What is added to a layer's queries, keys and values, given its normalised input.
type Update<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;

impl Engine {
    /// Hidden states entering layer 0; the dummy text, and a white image of `dummy_image` = [height, width] pixels, in place of what is missing.
    pub fn embed(&self, samples: &[impl Borrow<Sample>], dummy_image: [usize; 2]) -> Result<Packed> {
        let embeddings = &self.vilt.embeddings;
        let any_without_image = samples.iter().any(|s| s.borrow().image.is_none());
        let dummy = any_without_image.then(|| embeddings.image(&Pixels::dummy(dummy_image[0], dummy_image[1]))).transpose()?;
        let mut parts = Vec::with_capacity(2 * samples.len());
        let mut spans = Vec::with_capacity(samples.len());
        let mut start = 0;
        for sample in samples.iter().map(Borrow::borrow) {
            let text = embeddings.text(sample.text.as_ref().unwrap_or(&self.dummy_text))?;
            let image = match (&sample.image, &dummy) {
                (Some(pixels), _) => embeddings.image(pixels)?,
                (None, Some(dummy)) => dummy.clone(),
                (None, None) => candle_core::bail!("a sample without image needs the dummy image"),
            };
            let span = Span { start, text: text.dim(0)?, image: image.dim(0)?, presence: sample.presence() };
            start += span.tokens();
            spans.push(span);
            parts.extend([text, image]);
        }
        Ok(Packed { hidden: Tensor::cat(&parts, 0)?, spans: spans.into() })
    }

    /// Frozen layers over a stream: from the state entering `layers.start` to the state entering `layers.end`.
    pub fn run_frozen(&self, packed: &Packed, layers: Range<usize>) -> Result<Packed> {
        let mut hidden = packed.hidden.clone();
        for layer in layers {
            hidden = self.layer(layer, &hidden, &packed.spans, None)?;
        }
        Ok(packed.with_hidden(hidden))
    }

    /// One task's adapted layers and head over the state entering its first adapted layer. Differentiable in the task's variables.
    pub fn run_task(&self, packed: &Packed, task: &TaskModel) -> Result<TaskOutput> {
        let spans = &packed.spans;
        let (spec, samples) = (&task.spec, spans.len());
        let pairs: Arc<[usize]> = vec![2 * spec.rank; samples].into();
        let mut hidden = packed.hidden.clone();
        let (mut query_visual, mut query_textual) = (Vec::new(), Vec::new());
        for (layer, pools) in spec.adapted_layers().zip(&task.layers) {
            let (visual, textual) = queries(&hidden, spans)?;
            let selected = pools.select(spec, &visual, &textual)?;
            let rows = samples * TARGETS.len() * 2 * spec.rank;
            let (a, b) = (selected.a.reshape((rows, spec.hidden))?, selected.b.reshape((rows, spec.hidden))?);
            let update = |x: &Tensor| x.apply_op3(&a, &b, LowRank { spans: spans.clone(), pairs: pairs.clone() });
            hidden = self.layer(layer, &hidden, spans, Some(&update))?;
            query_visual.push(visual);
            query_textual.push(textual);
        }
        Ok(TaskOutput { logits: task.head(&self.pooled(&hidden, spans)?)?, query_visual, query_textual })
    }

    /// The frozen backbone's signals, from the state entering layer 0, those of `wanted` only.
    pub fn signals(&self, packed: &Packed, wanted: &[KeySignal]) -> Result<Signals> {
        let layers = self.vilt.layers.len();
        let last = wanted.iter().map(|s| s.layer().unwrap_or(layers)).max().unwrap_or(0);
        let mut out = Signals::new();
        let mut state = packed.clone();
        for layer in 0..=last {
            for signal in wanted.iter().filter(|s| s.layer() == Some(layer)) {
                out.insert(signal.to_string(), self.signal_at(&state, *signal)?);
            }
            if layer < last {
                state = self.run_frozen(&state, layer..layer + 1)?;
            }
        }
        for signal in wanted.iter().filter(|s| s.layer().is_none()) {
            out.insert(signal.to_string(), self.signal_at(&state, *signal)?);
        }
        Ok(out)
    }

    /// One signal of the state that tells it, `[samples, width]`. A signal without a layer is told by the state after the last.
    pub(super) fn signal_at(&self, state: &Packed, signal: KeySignal) -> Result<Tensor> {
        let Packed { hidden, spans } = state;
        match signal {
            KeySignal::MeanQuery { .. } => {
                let (visual, textual) = queries(hidden, spans)?;
                (visual + textual)? / 2.0
            }
            KeySignal::TextCls { .. } => rows(hidden, spans.iter().map(|s| s.start)),
            KeySignal::Pooled => self.pooled(hidden, spans),
            KeySignal::Parts { .. } => {
                let cls = |row: fn(&Span) -> usize| rows(hidden, spans.iter().map(row));
                parts(hidden, spans, &[cls(|span| span.start)?, cls(Span::image_cls)?])
            }
            KeySignal::Summary => parts(hidden, spans, &[self.pooled(hidden, spans)?]),
        }
    }

    /// tanh(pooler · layernorm(h)[text CLS]), `[samples, d]`
    pub(super) fn pooled(&self, hidden: &Tensor, spans: &[Span]) -> Result<Tensor> {
        let cls = rows(hidden, spans.iter().map(|s| s.start))?;
        linear(&layer_norm(&cls, &self.vilt.layernorm)?, &[&self.vilt.pooler])?.tanh()
    }

    /// One pre-norm encoder layer.
    pub(super) fn layer(&self, index: usize, hidden: &Tensor, spans: &Arc<[Span]>, update: Option<Update<'_>>) -> Result<Tensor> {
        let layer: &EncoderLayer = &self.vilt.layers[index];
        let x = layer_norm(hidden, &layer.layernorm_before)?;
        let mut qkv = linear(&x, &[&layer.query, &layer.key, &layer.value])?;
        if let Some(update) = update {
            qkv = (qkv + update(&x)?)?;
        }
        let attention = qkv.apply_op1(Attention { spans: spans.clone(), heads: self.vilt.config.num_attention_heads })?;
        let hidden = (hidden + linear(&attention, &[&layer.attention_output])?)?;
        let x = layer_norm(&hidden, &layer.layernorm_after)?;
        let inner = linear(&x, &[&layer.intermediate])?.apply_op1(Gelu)?;
        hidden + linear(&inner, &[&layer.output])?
    }
}

/// q^v and q^t of each sample, `[samples, d]` each, the proxy in place of what is missing (METHOD.md 3).
pub(super) fn queries(hidden: &Tensor, spans: &Arc<[Span]>) -> Result<(Tensor, Tensor)> {
    let means = hidden.apply_op1(SegmentMean(spans.clone()))?;
    let samples = spans.len();
    let chosen = |first: usize, instead: usize, lost: Presence| {
        let index: Vec<u32> =
            spans.iter().enumerate().map(|(i, span)| (i + if span.presence == lost { instead } else { first } * samples) as u32).collect();
        means.index_select(&Tensor::from_vec(index, samples, &Device::Cpu)?, 0)
    };
    Ok((chosen(0, 1, Presence::TextOnly)?, chosen(1, 0, Presence::ImageOnly)?))
}

/// The mean over text tokens, the mean over patches and `more` (`[samples, d]` each), all scaled to length 1, the mean of a missing modality
/// zero, then the one-hot modality pattern (ROUTING.md 2): `[samples, (2 + more) d + 3]`.
fn parts(hidden: &Tensor, spans: &Arc<[Span]>, more: &[Tensor]) -> Result<Tensor> {
    let means = hidden.apply_op1(SegmentMean(spans.clone()))?.to_vec2::<f32>()?;
    let more = more.iter().map(Tensor::to_vec2::<f32>).collect::<Result<Vec<_>>>()?;
    let (samples, d) = (spans.len(), hidden.dim(1)?);
    let width = (2 + more.len()) * d + 3;
    let mut out = Vec::with_capacity(samples * width);
    for (i, span) in spans.iter().enumerate() {
        let text = (&means[samples + i], span.presence == Presence::ImageOnly);
        let patches = (&means[i], span.presence == Presence::TextOnly);
        for (part, lost) in [text, patches].into_iter().chain(more.iter().map(|rows| (&rows[i], false))) {
            let length = part.iter().map(|x| x * x).sum::<f32>().sqrt();
            let scale = if lost || length == 0.0 { 0.0 } else { 1.0 / length };
            out.extend(part.iter().map(|x| x * scale));
        }
        out.extend([Presence::Complete, Presence::ImageOnly, Presence::TextOnly].map(|p| f32::from(u8::from(p == span.presence))));
    }
    Tensor::from_vec(out, (samples, width), &Device::Cpu)
}

fn rows(hidden: &Tensor, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
    let rows: Vec<u32> = rows.map(|row| row as u32).collect();
    hidden.index_select(&Tensor::new(rows.as_slice(), &Device::Cpu)?, 0)
}

fn layer_norm(x: &Tensor, norm: &LayerNorm) -> Result<Tensor> {
    x.apply_op1(FrozenLayerNorm(norm.clone()))
}

fn linear(x: &Tensor, maps: &[&Linear]) -> Result<Tensor> {
    x.apply_op1(FrozenLinear(maps.iter().map(|&l| l.clone()).collect()))
}
