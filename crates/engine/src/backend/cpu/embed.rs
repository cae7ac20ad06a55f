//! From token ids and pixels to the hidden states that enter layer 0, all samples in one matrix.
use candle_core::Result;

use super::Map;
use crate::backend::Dummy;
use crate::backend::patches::cut_patch;
use crate::packed::Span;
use crate::tensors::{values_of, with_values};
use delo_kernels::norm::Norm;
use delo_kernels::{Float, Format, Isa, Kernel, Matrix, RowsMut, Tile, TileSink, parallel, product};
use delo_model::input::{Pixels, Sample};
use delo_model::vilt::{self, PatchGrids};

/// The embeddings of text and patches.
#[derive(Debug)]
pub(super) struct Embeddings<F: Format> {
    d: usize,
    /// `[vocabulary, d]`
    word: Vec<F::Float>,
    /// Position and token type 0, `[text positions, d]`.
    text_position: Vec<f32>,
    text_norm: Norm,
    /// `[d]`
    text_modality: Vec<f32>,
    patch_projection: Map<F>,
    patch_size: usize,
    /// Sum of the image CLS token, its position and its modality type, `[d]`.
    image_cls: Vec<f32>,
    grids: PatchGrids,
}

impl<F: Format> Embeddings<F> {
    pub fn load(from: &vilt::Embeddings) -> Result<Self> {
        Ok(Self {
            d: from.text_modality.dim(0)?,
            word: with_values(&from.word, |values| values.iter().map(|&x| F::Float::of(x)).collect())?,
            text_position: values_of(&from.text_position.broadcast_add(&from.token_type)?)?,
            text_norm: super::norm(&from.text_layernorm)?,
            text_modality: values_of(&from.text_modality)?,
            patch_projection: Map::pack(&[&from.patch_projection])?,
            patch_size: from.patch_size,
            image_cls: values_of(&from.image_cls)?,
            grids: from.grids.clone(),
        })
    }

    /// Hidden states `[tokens, d]` of all samples, one after another. Writes their patches to `pixels`, which
    /// is reshaped.
    ///
    /// # Errors
    /// More tokens than positions, an id outside the vocabulary, or an image whose sides are no multiples of
    /// the patch.
    pub fn embed(
        &self,
        kernel: &Kernel<F>,
        samples: &[&Sample],
        dummy: Dummy<'_>,
        pixels: &mut Matrix<F::Float>,
    ) -> Result<(Matrix<f32>, Vec<Span>)> {
        let mut spans = Vec::with_capacity(samples.len());
        let mut grids = Vec::with_capacity(samples.len());
        let (mut start, mut patches) = (0, 0);
        for sample in samples {
            let text = text_of(sample, dummy);
            self.check_text(text)?;
            let (rows, columns) = self.patch_grid(sample.image.as_ref(), dummy)?;
            grids.push((patches, self.grids.grid(rows, columns)?));
            patches += rows * columns;
            let span = Span { start, text: text.len(), image: 1 + rows * columns, prompts: 0, presence: sample.presence() };
            start = span.end();
            spans.push(span);
        }
        let mut hidden = Matrix::zeros(start, self.d);
        for (span, (_, grid)) in spans.iter().zip(&grids) {
            with_values(grid, |grid| {
                grid.chunks_exact(self.d).zip(span.patches()).for_each(|(position, row)| hidden.row_mut(row).copy_from_slice(position));
            })?;
        }
        pixels.reshape(patches, self.patch_projection.weight.k());
        {
            let (hidden, pixels) = (hidden.view_mut(), pixels.view_mut());
            parallel(samples.len(), |i| {
                kernel.isa.run(
                    #[inline(always)]
                    || {
                        self.write_text(text_of(samples[i], dummy), &spans[i], &hidden);
                        // SAFETY: each sample is one piece of work, and this is the row of its image CLS.
                        unsafe { hidden.part(spans[i].image_cls(), 0..self.d) }.copy_from_slice(&self.image_cls);
                        self.cut(samples[i].image.as_ref(), grids[i].0, spans[i].image - 1, &pixels);
                    },
                );
            });
        }
        let owners = grids.iter().zip(&spans).map(|((first, _), span)| (*first, span.image_cls() + 1)).collect();
        let sink = PatchSink { isa: kernel.isa, owners, out: hidden.view_mut() };
        let map = &self.patch_projection;
        product(kernel, pixels.view(), &map.weight, Some(&map.bias), &sink);
        Ok((hidden, spans))
    }

    fn check_text(&self, ids: &[u32]) -> Result<()> {
        let (vocabulary, positions) = (self.word.len() / self.d, self.text_position.len() / self.d);
        if ids.len() > positions {
            candle_core::bail!("a text of {} tokens, but the backbone has {positions} positions: truncate it", ids.len());
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            candle_core::bail!("token {id} is outside the vocabulary of {vocabulary}: the tokenizer is another checkpoint's");
        }
        Ok(())
    }

    /// Rows and columns of patches of an image, or of the dummy image.
    fn patch_grid(&self, image: Option<&Pixels>, dummy: Dummy<'_>) -> Result<(usize, usize)> {
        let p = self.patch_size;
        let [height, width] = image.map_or(dummy.image, |pixels| [pixels.height, pixels.width]);
        let whole = |side: usize| side > 0 && side.is_multiple_of(p);
        let numbers = image.map_or(3 * height * width, |pixels| pixels.data.len());
        if !whole(height) || !whole(width) || numbers != 3 * height * width {
            candle_core::bail!("an image of {height} × {width} and {numbers} numbers, but patches are of {p} × {p} in 3 channels");
        }
        Ok((height / p, width / p))
    }

    /// Writes layernorm(word + token type + position) + modality type of a sample's text tokens.
    #[inline(always)]
    fn write_text(&self, ids: &[u32], span: &Span, hidden: &RowsMut<'_, f32>) {
        let d = self.d;
        let mut sum = vec![0f32; d];
        for (i, &id) in ids.iter().enumerate() {
            let (word, position) = (&self.word[id as usize * d..][..d], &self.text_position[i * d..][..d]);
            sum.iter_mut().zip(word.iter().zip(position)).for_each(|(s, (w, p))| *s = w.get() + p);
            // SAFETY: each sample is one piece of work, and this is a row of its text.
            let row = unsafe { hidden.part(span.start + i, 0..d) };
            self.text_norm.row(&sum, row);
            row.iter_mut().zip(&self.text_modality).for_each(|(x, m)| *x += m);
        }
    }

    /// Writes the patches of an image, row by row, each `[3, patch, patch]`; white patches where there is no
    /// image.
    #[inline(always)]
    fn cut(&self, image: Option<&Pixels>, first: usize, count: usize, out: &RowsMut<'_, F::Float>) {
        let p = self.patch_size;
        for patch in 0..count {
            // SAFETY: each sample is one piece of work, and this is a row of its patches.
            let row = unsafe { out.part(first + patch, 0..3 * p * p) };
            cut_patch(image, patch, p, row, F::Float::of);
        }
    }
}

fn text_of<'a>(sample: &'a Sample, dummy: Dummy<'a>) -> &'a [u32] {
    sample.text.as_deref().unwrap_or(dummy.text)
}

/// Adds projected patches to the rows of their samples.
struct PatchSink<'a> {
    isa: Isa,
    /// For each sample, the first row of its patches among all patches, and among all tokens.
    owners: Vec<(usize, usize)>,
    out: RowsMut<'a, f32>,
}

impl TileSink for PatchSink<'_> {
    #[inline(always)]
    fn tile(&self, tile: &mut Tile<'_>) {
        let end = tile.row + tile.rows;
        let mut patch = tile.row;
        while patch < end {
            let next = self.owners.partition_point(|(first, _)| *first <= patch);
            let (first, start) = self.owners[next - 1];
            let until = self.owners.get(next).map_or(end, |(first, _)| end.min(*first));
            // SAFETY: no two tiles cover the same element, no two patches have the same row, and the
            // instructions are the kernel's.
            unsafe { tile.add_to(self.isa, &self.out, patch - tile.row..until - tile.row, start + patch - first) };
            patch = until;
        }
    }
}
