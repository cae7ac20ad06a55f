//! The embeddings: from token ids and pixels to the hidden states that enter layer 0.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{D, Device, Result, Tensor};

use super::checkpoint::Checkpoint;
use super::{LayerNorm, Linear, ViltConfig, ViltError};
use crate::input::Pixels;

/// The largest number of patch grids whose position embeddings are kept. Clients choose the sizes of images,
/// so the number needs a bound.
const CACHED_GRIDS: usize = 64;

/// The embeddings of text and image, for one sample at a time, without padding.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// The word embeddings, `[vocabulary, d]`.
    pub word: Tensor,
    /// The position embeddings of text, `[text positions, d]`.
    pub text_position: Tensor,
    /// The embedding of BERT's token type 0, `[d]`.
    pub token_type: Tensor,
    /// The layer norm of the text embeddings.
    pub text_layernorm: LayerNorm,
    /// The embedding of the modality type text, `[d]`.
    pub text_modality: Tensor,
    /// The projection of patches, with the weight `[d, channels · patch · patch]`.
    pub patch_projection: Linear,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// The image CLS: the sum of its token, position and modality type, `[1, d]`.
    pub image_cls: Tensor,
    /// The position embeddings of patches.
    pub grids: PatchGrids,
}

/// The position embeddings of patches, for any grid.
#[derive(Clone, Debug)]
pub struct PatchGrids {
    /// The position embeddings of the checkpoint's square grid, `[side · side, d]`.
    position: Tensor,
    /// Patches along one side of the checkpoint's grid.
    side: usize,
    /// The embedding of the modality type image, `[d]`.
    modality: Tensor,
    /// Patch grid (rows, columns) → its position embeddings plus the modality type, `[rows · columns, d]`.
    known: Arc<Mutex<HashMap<(usize, usize), Tensor>>>,
}

impl Embeddings {
    pub(super) fn load(checkpoint: &mut Checkpoint, config: &ViltConfig) -> std::result::Result<Self, ViltError> {
        let d = config.hidden_size;
        let (patch, side) = (config.patch_size, config.patches_per_side());
        let mut take = |name: &str, shape: &[usize]| checkpoint.take(&format!("embeddings.{name}"), shape);
        let word = take("text_embeddings.word_embeddings.weight", &[config.vocab_size, d])?;
        let text_position = take("text_embeddings.position_embeddings.weight", &[config.max_position_embeddings, d])?;
        let token_type = take("text_embeddings.token_type_embeddings.weight", &[config.type_vocab_size, d])?.get(0)?;
        let modality = take("token_type_embeddings.weight", &[config.modality_type_vocab_size, d])?;
        let (text_modality, image_modality) = (modality.get(0)?, modality.get(1)?);
        let cls = take("cls_token", &[1, 1, d])?.squeeze(0)?;
        let position = take("position_embeddings", &[1, side * side + 1, d])?.squeeze(0)?;
        let kernel = take("patch_embeddings.projection.weight", &[d, config.num_channels, patch, patch])?;
        let bias = take("patch_embeddings.projection.bias", &[d])?;
        Ok(Self {
            word,
            text_position,
            token_type,
            text_layernorm: LayerNorm::load(checkpoint, "embeddings.text_embeddings.LayerNorm", config)?,
            text_modality,
            patch_projection: Linear { weight: kernel.flatten_from(1)?, bias },
            patch_size: patch,
            image_cls: (cls + position.narrow(0, 0, 1)?)?.broadcast_add(&image_modality)?,
            grids: PatchGrids {
                position: position.narrow(0, 1, side * side)?.contiguous()?,
                side,
                modality: image_modality,
                known: Arc::default(),
            },
        })
    }

    /// The same embeddings for texts of up to `positions` tokens. The position table is interpolated
    /// linearly, its first and last position stay as they are (METHOD.md 1).
    ///
    /// # Errors
    /// `positions` is 0, or a tensor operation fails.
    pub fn with_text_positions(&self, positions: usize) -> Result<Self> {
        if positions == 0 {
            candle_core::bail!("a text needs at least one position");
        }
        let from = self.text_positions();
        let text_position = if positions == from {
            self.text_position.clone()
        } else {
            interpolation(from, positions, self.word.device())?.matmul(&self.text_position)?
        };
        Ok(Self { text_position, ..self.clone() })
    }

    /// The tokens of the longest text, CLS and SEP included.
    pub fn text_positions(&self) -> usize {
        self.text_position.dims()[0]
    }

    /// Checks that the text positions and the vocabulary suffice for these token ids.
    ///
    /// # Errors
    /// There are more tokens than positions, or an id is outside the vocabulary.
    pub fn check_text(&self, ids: &[u32]) -> Result<()> {
        let (vocabulary, positions) = (self.word.dim(0)?, self.text_positions());
        if ids.len() > positions {
            candle_core::bail!("a text of {} tokens, but the backbone has {positions} positions: truncate it", ids.len());
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            candle_core::bail!("token {id} is outside the vocabulary of {vocabulary}: the tokenizer is another checkpoint's");
        }
        Ok(())
    }

    /// The states of a text, `[tokens, d]`: layernorm(word + token type + position) + modality type.
    ///
    /// # Errors
    /// As [`Self::check_text`].
    pub fn text(&self, ids: &[u32]) -> Result<Tensor> {
        self.check_text(ids)?;
        let ids = Tensor::new(ids, self.word.device())?;
        let positions = self.text_position.narrow(0, 0, ids.dim(0)?)?;
        let sum = (self.word.index_select(&ids, 0)?.broadcast_add(&self.token_type)? + positions)?;
        self.text_layernorm.forward(&sum)?.broadcast_add(&self.text_modality)
    }

    /// The rows and columns of patches of an image of this height and width in pixels, whose data has
    /// `numbers` numbers.
    ///
    /// # Errors
    /// A side is not a positive multiple of the patch size, or the data is not `[3, height, width]`.
    pub fn patch_grid(&self, [height, width]: [usize; 2], numbers: usize) -> Result<(usize, usize)> {
        let p = self.patch_size;
        let whole = |side: usize| side > 0 && side.is_multiple_of(p);
        if !whole(height) || !whole(width) || numbers != 3 * height * width {
            candle_core::bail!("an image of {height} × {width} and {numbers} numbers, but patches are of {p} × {p} in 3 channels");
        }
        Ok((height / p, width / p))
    }

    /// The patches of an image, row by row, `[patches, 3 · patch · patch]`.
    ///
    /// # Errors
    /// As [`Self::patch_grid`].
    pub fn cut(&self, pixels: &Pixels) -> Result<Tensor> {
        let (p, Pixels { height, width, data }) = (self.patch_size, pixels);
        let (rows, columns) = self.patch_grid([*height, *width], data.len())?;
        Tensor::from_slice(data, (3, rows, p, columns, p), self.word.device())?
            .permute((1, 3, 0, 2, 4))?
            .reshape((rows * columns, 3 * p * p))
    }

    /// The states of an image, `[1 + patches, d]`: the image CLS, then the patches row by row, each its
    /// projection + position + modality type.
    ///
    /// # Errors
    /// As [`Self::patch_grid`].
    pub fn image(&self, pixels: &Pixels) -> Result<Tensor> {
        let (rows, columns) = self.patch_grid([pixels.height, pixels.width], pixels.data.len())?;
        let patches = (self.patch_projection.forward(&self.cut(pixels)?)? + self.grids.grid(rows, columns)?)?;
        Tensor::cat(&[&self.image_cls, &patches], 0)
    }
}

impl PatchGrids {
    /// The position embeddings of a patch grid plus the modality type, `[rows · columns, d]`. They are
    /// interpolated bilinearly from the checkpoint's grid; the corners stay as they are (`align_corners` =
    /// true, METHOD.md 1).
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn grid(&self, rows: usize, columns: usize) -> Result<Tensor> {
        // The map is valid also after a panic, because each of its changes is a single call.
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(grid) = lock().get(&(rows, columns)) {
            return Ok(grid.clone());
        }
        let (side, d) = (self.side, self.position.dim(D::Minus1)?);
        let vertical = interpolation(side, rows, self.position.device())?;
        let horizontal = interpolation(side, columns, self.position.device())?;
        // [rows, side · d], then [columns, d] for each row.
        let grid = vertical.matmul(&self.position.reshape((side, side * d))?)?.reshape((rows, side, d))?;
        let grid = horizontal.broadcast_left(rows)?.contiguous()?.matmul(&grid)?.reshape((rows * columns, d))?;
        let grid = grid.broadcast_add(&self.modality)?;
        let mut grids = lock();
        if grids.len() >= CACHED_GRIDS {
            grids.clear();
        }
        grids.insert((rows, columns), grid.clone());
        Ok(grid)
    }
}

/// The linear interpolation of `from` points to `to` points with aligned corners, as a matrix `[to, from]`.
fn interpolation(from: usize, to: usize, device: &Device) -> Result<Tensor> {
    let step = if to > 1 { (from - 1) as f32 / (to - 1) as f32 } else { 0.0 };
    let mut weights = vec![0.0; to * from];
    for (i, row) in weights.chunks_mut(from).enumerate() {
        let at = i as f32 * step;
        let lower = (at as usize).min(from - 1);
        let share = at - lower as f32;
        row[lower] = 1.0 - share;
        if lower + 1 < from {
            row[lower + 1] = share;
        }
    }
    Tensor::from_vec(weights, (to, from), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolation_keeps_the_ends_and_is_the_identity_for_equal_sizes() {
        let rows = |from, to| interpolation(from, to, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows(3, 3), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        assert_eq!(rows(2, 3), [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]);
        assert_eq!(rows(3, 1), [[1.0, 0.0, 0.0]]);
        assert_eq!(rows(1, 2), [[1.0], [1.0]]);
    }
}
