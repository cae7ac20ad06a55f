//! From token ids and pixels to the hidden states that enter layer 0, all samples in one packed matrix.
use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::{cast, normalise};
use crate::backend::Dummy;
use crate::backend::patches::cut_patch;
use crate::packed::Span;
use delo_model::input::{Pixels, Sample};
use delo_model::vilt;

/// The embeddings of text and patches on a device.
#[derive(Debug)]
pub(crate) struct Embeddings {
    /// Word table and patch projection in the products' format, the rest in f32.
    tables: vilt::Embeddings,
    dtype: DType,
}

/// Images to cut into patches.
pub(crate) struct Patches<'a> {
    /// Each image with its rows and columns of patches; `None` is a white image.
    images: Vec<(Option<&'a Pixels>, (usize, usize))>,
    /// Height and width of a patch, in pixels.
    side: usize,
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
    /// `upload` copies the patches to the device, `[patches, 3 · patch · patch]`, in the products' format.
    ///
    /// # Errors
    /// More tokens than positions, an id outside the vocabulary, or an image whose sides are no multiples of
    /// the patch.
    pub fn embed<'a>(
        &self,
        samples: &[&'a Sample],
        dummy: Dummy<'_>,
        upload: impl FnOnce(&Patches<'a>) -> Result<Tensor>,
    ) -> Result<(Tensor, Vec<Span>)> {
        let mut spans: Vec<Span> = Vec::with_capacity(samples.len());
        let (mut ids, mut positions, mut images) = (Vec::new(), Vec::new(), Vec::with_capacity(samples.len()));
        // The different grids with the first row of each in a table of all grids' positions; and for each
        // patch, its row in that table.
        let mut grids: Vec<((usize, usize), u32)> = Vec::new();
        let mut grid_rows: Vec<u32> = Vec::new();
        for &sample in samples {
            let text = sample.text.as_deref().unwrap_or(dummy.text);
            self.tables.check_text(text)?;
            ids.extend_from_slice(text);
            positions.extend(0..text.len() as u32);
            let grid = self.patch_grid(sample, dummy)?;
            let patches = grid.0 * grid.1;
            let first = grids.iter().find(|(known, _)| *known == grid).map(|(_, first)| *first).unwrap_or_else(|| {
                let first = grids.last().map_or(0, |((rows, columns), first)| first + (rows * columns) as u32);
                grids.push((grid, first));
                first
            });
            grid_rows.extend(first..first + patches as u32);
            images.push((sample.image.as_ref(), grid));
            let start = spans.last().map_or(0, Span::end);
            spans.push(Span { start, text: text.len(), image: 1 + patches, prompts: 0, presence: sample.presence() });
        }
        let grids = grids.iter().map(|((rows, columns), _)| self.tables.grids.grid(*rows, *columns)).collect::<Result<Vec<_>>>()?;
        let grids = Tensor::cat(&grids, 0)?.index_select(&self.rows(grid_rows)?, 0)?;
        let patches = self.tables.patch_projection.forward(&upload(&Patches { images, side: self.tables.patch_size })?)?;
        let patches = (patches.to_dtype(DType::F32)? + grids)?;
        let texts = self.texts(ids, positions)?;
        let rows = self.rows(order(&spans, texts.dim(0)? as u32))?;
        Ok((Tensor::cat(&[&texts, &self.tables.image_cls, &patches], 0)?.index_select(&rows, 0)?, spans))
    }

    fn patch_grid(&self, sample: &Sample, dummy: Dummy<'_>) -> Result<(usize, usize)> {
        let [height, width] = sample.image.as_ref().map_or(dummy.image, |pixels| [pixels.height, pixels.width]);
        let numbers = sample.image.as_ref().map_or(3 * height * width, |pixels| pixels.data.len());
        self.tables.patch_grid([height, width], numbers)
    }

    /// layernorm(word + token type + position) + modality type of the tokens of all texts, `[tokens, d]`.
    fn texts(&self, ids: Vec<u32>, positions: Vec<u32>) -> Result<Tensor> {
        let tables = &self.tables;
        let words = tables.word.index_select(&self.rows(ids)?, 0)?.to_dtype(DType::F32)?;
        let sum = (words + tables.text_position.index_select(&self.rows(positions)?, 0)?)?;
        normalise(&tables.text_layernorm, &sum)?.broadcast_add(&tables.text_modality)
    }

    /// Row numbers as a tensor on the device.
    fn rows(&self, rows: Vec<u32>) -> Result<Tensor> {
        let count = rows.len();
        Tensor::from_vec(rows, count, self.tables.word.device())
    }

    /// Cuts the patches on the CPU, then copies them to the device.
    pub fn upload(&self, patches: &Patches<'_>) -> Result<Tensor> {
        let (count, width) = patches.shape();
        let mut numbers = vec![0f32; count * width];
        patches.cut_into(&mut numbers, |x| x)?;
        let device: &Device = self.tables.word.device();
        Tensor::from_vec(numbers, (count, width), device)?.to_dtype(self.dtype)
    }
}

impl<'a> Patches<'a> {
    /// The same images in parts of at most `images` each.
    #[cfg(any(test, feature = "cuda"))]
    pub fn parts(&self, images: usize) -> impl Iterator<Item = Patches<'a>> {
        self.images.chunks(images).map(|images| Patches { images: images.to_vec(), side: self.side })
    }

    /// Number of patches, and of the numbers in each.
    pub fn shape(&self) -> (usize, usize) {
        (self.images.iter().map(|(_, (rows, columns))| rows * columns).sum(), 3 * self.side * self.side)
    }

    /// Writes all patches, image by image and row by row: `[patches, 3, side, side]`.
    ///
    /// # Errors
    /// `memory` of another length than all patches together.
    pub fn cut_into<T: Copy + Send>(&self, memory: &mut [T], of: impl Fn(f32) -> T + Sync) -> Result<()> {
        let (count, width) = self.shape();
        if memory.len() != count * width {
            candle_core::bail!("{count} patches of {width} numbers do not fill {}", memory.len());
        }
        let (mut rest, mut strips) = (memory, Vec::new());
        for (pixels, (rows, columns)) in &self.images {
            for row in 0..*rows {
                let (strip, after) = std::mem::take(&mut rest).split_at_mut(columns * width);
                strips.push((strip, *pixels, row * columns));
                rest = after;
            }
        }
        strips.into_par_iter().for_each(|(strip, pixels, first)| {
            for (column, patch) in strip.chunks_exact_mut(width).enumerate() {
                cut_patch(pixels, first + column, self.side, patch, &of);
            }
        });
        Ok(())
    }
}

/// For each row of the packed matrix, its row in a table of `texts` rows of text tokens, one image CLS, and
/// the patches of all images.
fn order(spans: &[Span], texts: u32) -> Vec<u32> {
    let (mut rows, mut text, mut patch) = (Vec::new(), 0, texts + 1);
    for span in spans {
        let (words, patches) = (span.text as u32, span.image as u32 - 1);
        rows.extend(text..text + words);
        rows.push(texts);
        rows.extend(patch..patch + patches);
        (text, patch) = (text + words, patch + patches);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use delo_model::input::Presence;

    #[test]
    fn patches_are_cut_row_by_row_channel_by_channel_and_white_where_there_is_no_image() {
        let pixels = Pixels { height: 4, width: 6, data: (0..72u8).map(f32::from).collect() };
        let patches = Patches { images: vec![(None, (1, 1)), (Some(&pixels), (2, 3))], side: 2 };
        let mut memory = [0.0; 7 * 12];
        patches.cut_into(&mut memory, |x| x).unwrap();
        assert_eq!(memory[..12], [1.0; 12]);
        assert_eq!(memory[48..60], [12., 13., 18., 19., 36., 37., 42., 43., 60., 61., 66., 67.]);
        assert_eq!(memory[60..64], [14., 15., 20., 21.]);
        assert!(patches.cut_into(&mut memory[1..], |x| x).is_err());
        assert!(patches.parts(1).map(|part| part.shape()).eq([(1, 12), (6, 12)]));
    }

    #[test]
    fn texts_image_cls_and_patches_of_each_sample_follow_each_other() {
        let span = |start, text, image| Span { start, text, image, prompts: 0, presence: Presence::Complete };
        assert_eq!(order(&[span(0, 2, 3), span(5, 1, 2)], 3), [0, 1, 3, 4, 5, 2, 3, 6]);
    }
}
