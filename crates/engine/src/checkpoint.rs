//! Loading a checkpoint directory: the service and every command begin with it.
use candle_core::Device;

use crate::{Engine, Options};
use delo_model::input::{InputError, InputProcessor, Limits};
use delo_model::model_dir::ModelDir;
use delo_model::vilt::{Loader, ViltError};

/// The engine of a checkpoint, and the processor that makes its samples from bytes.
pub struct Checkpoint {
    /// The frozen backbone, ready to compute.
    pub engine: Engine,
    /// Decodes, resizes and tokenises by the checkpoint's settings.
    pub processor: InputProcessor,
}

/// How texts are read. All partitions that serve together were trained on texts that were read alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextOptions {
    /// Whether special tokens in a text are read as such, see [`InputProcessor::with_special_tokens`].
    pub special_tokens: bool,
    /// The tokens of the longest text, CLS and SEP included, see [`Loader::with_text_positions`]; longer
    /// texts are cut. `None`: the checkpoint's own number.
    pub positions: Option<usize>,
}

/// Why a checkpoint can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The backbone's configuration or tensors, or a device that does not open.
    #[error(transparent)]
    Backbone(#[from] ViltError),
    /// The tokenizer or the image settings.
    #[error(transparent)]
    Input(#[from] InputError),
}

impl Checkpoint {
    /// Loads a checkpoint. `limits` bound the inputs that the processor accepts. Blocking.
    ///
    /// # Errors
    /// An invalid backbone, tokenizer or image setting, a number of text positions that the checkpoint can't
    /// be interpolated to, or a device that does not open.
    pub fn load(dir: &ModelDir, limits: Limits, texts: TextOptions, options: Options) -> Result<Self, CheckpointError> {
        let loader = Loader::open(dir, &Device::Cpu)?.with_text_positions(texts.positions)?;
        let (patch_size, positions) = (loader.config().patch_size, loader.config().max_position_embeddings);
        let processor = InputProcessor::load(dir, patch_size, positions, limits)?.with_special_tokens(texts.special_tokens);
        let engine = Engine::of(loader, processor.dummy_text().to_vec(), options)?;
        Ok(Self { engine, processor })
    }
}
