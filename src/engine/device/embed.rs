//! From token ids and pixels to the hidden states that enter layer 0, all samples in one stream.
use candle_core::{DType, Result, Tensor};

use super::super::backbone::Dummy;
use super::super::packed::Span;
use super::{cast, normalise};
use crate::input::Sample;
use crate::vilt::{self, Linear};

/// The embeddings of text and patches on a device.
#[derive(Debug)]
pub(super) struct Embeddings {
    /// Word table and patch projection in the products' format, the rest in f32.
    tables: vilt::Embeddings,
    dtype: DType,
}

impl Embeddings {
    pub fn new(from: vilt::Embeddings, dtype: DType) -> Result<Self> {
        let text_position = from.text_position.broadcast_add(&from.token_type)?;
        let tables = vilt::Embeddings {
            word: from.word.to_dtype(dtype)?,
            text_position,
            patch_projection: cast(&from.patch_projection, dtype)?,
            ..from
        };
        Ok(Self { tables, dtype })
    }

    /// Hidden states `[tokens, d]` in f32 of all samples, one after another.
    ///
    /// # Errors
    /// More tokens than positions, an id outside the vocabulary, or an image whose sides are no multiples of the patch.
    pub fn embed(&self, samples: &[&Sample], dummy: Dummy<'_>) -> Result<(Tensor, Vec<Span>)> {
        let mut spans: Vec<Span> = Vec::with_capacity(samples.len());
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        let (mut patches, mut grids) = (Vec::new(), Vec::new());
        for sample in samples {
            let text = sample.text.as_deref().unwrap_or(dummy.text);
            self.tables.check_text(text)?;
            ids.extend_from_slice(text);
            positions.extend(0..text.len() as u32);
            let (rows, columns) = self.patch_grid(sample, dummy)?;
            patches.push(self.patches(sample, rows * columns)?);
            grids.push(self.tables.grids.grid(rows, columns)?);
            let start = spans.last().map_or(0, Span::end);
            spans.push(Span { start, text: text.len(), image: 1 + rows * columns, presence: sample.presence() });
        }
        let texts = self.texts(ids, positions)?;
        let patches = self.tables.patch_projection.forward(&Tensor::cat(&patches, 0)?)?;
        let patches = (patches.to_dtype(DType::F32)? + Tensor::cat(&grids, 0)?)?;
        let mut parts = Vec::with_capacity(3 * spans.len());
        let (mut text, mut patch) = (0, 0);
        for span in &spans {
            parts.push(texts.narrow(0, text, span.text)?);
            parts.push(self.tables.image_cls.clone());
            parts.push(patches.narrow(0, patch, span.image - 1)?);
            (text, patch) = (text + span.text, patch + span.image - 1);
        }
        Ok((Tensor::cat(&parts, 0)?, spans))
    }

    fn patch_grid(&self, sample: &Sample, dummy: Dummy<'_>) -> Result<(usize, usize)> {
        let [height, width] = sample.image.as_ref().map_or(dummy.image, |pixels| [pixels.height, pixels.width]);
        let numbers = sample.image.as_ref().map_or(3 * height * width, |pixels| pixels.data.len());
        self.tables.patch_grid([height, width], numbers)
    }

    /// The patches of an image, `[patches, 3 · patch · patch]`; white where there is none.
    fn patches(&self, sample: &Sample, count: usize) -> Result<Tensor> {
        let Some(pixels) = &sample.image else {
            let Linear { weight, .. } = &self.tables.patch_projection;
            return Tensor::ones((count, weight.dim(1)?), self.dtype, weight.device());
        };
        self.tables.cut(pixels)?.to_dtype(self.dtype)
    }

    /// layernorm(word + token type + position) + modality type of all texts' tokens, `[tokens, d]`.
    fn texts(&self, ids: Vec<u32>, positions: Vec<u32>) -> Result<Tensor> {
        let (tables, tokens) = (&self.tables, ids.len());
        let rows = |rows: Vec<u32>| Tensor::from_vec(rows, tokens, tables.word.device());
        let words = tables.word.index_select(&rows(ids)?, 0)?.to_dtype(DType::F32)?;
        let sum = (words + tables.text_position.index_select(&rows(positions)?, 0)?)?;
        normalise(&tables.text_layernorm, &sum)?.broadcast_add(&tables.text_modality)
    }
}
