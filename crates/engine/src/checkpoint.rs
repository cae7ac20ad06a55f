//! A checkpoint directory, ready to compute with: what the service and every command load first.
use candle_core::Device;

use crate::{Engine, Options};
use delo_model::input::{InputError, InputProcessor, Limits};
use delo_model::model_dir::ModelDir;
use delo_model::vilt::{Loader, ViltError};

/// The engine of a checkpoint, and the processor that makes its samples.
pub struct Checkpoint {
    pub engine: Engine,
    pub processor: InputProcessor,
}

/// Why a checkpoint can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Backbone(#[from] ViltError),
    #[error(transparent)]
    Input(#[from] InputError),
}

impl Checkpoint {
    /// Loads a checkpoint. `limits` bound what the processor reads; for `special_tokens` see
    /// [`InputProcessor::with_special_tokens`]. Blocking.
    ///
    /// # Errors
    /// What is wrong with the backbone, its tokenizer or its image settings, or a device that does not open.
    pub fn load(dir: &ModelDir, limits: Limits, special_tokens: bool, options: Options) -> Result<Self, CheckpointError> {
        let loader = Loader::open(dir, &Device::Cpu)?;
        let (patch_size, positions) = (loader.config().patch_size, loader.config().max_position_embeddings);
        let processor = InputProcessor::load(dir, patch_size, positions, limits)?.with_special_tokens(special_tokens);
        let engine = Engine::of(loader, processor.dummy_text().to_vec(), options)?;
        Ok(Self { engine, processor })
    }
}
