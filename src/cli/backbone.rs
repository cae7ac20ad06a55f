//! What every command that computes loads first.
use std::path::Path;

use candle_core::Device;

use super::Failure;
use delo_engine::{Engine, Options};
use delo_model::input::{InputProcessor, Limits};
use delo_model::model_dir::ModelDir;
use delo_model::vilt::Loader;

/// A checkpoint, ready to compute with.
pub struct Backbone {
    pub engine: Engine,
    pub processor: InputProcessor,
    /// To show to people.
    pub name: String,
}

impl Backbone {
    /// Loads the checkpoint of a directory, or the one in the program. `special_tokens`: see
    /// [`InputProcessor::with_special_tokens`].
    pub fn load(dir: Option<&Path>, special_tokens: bool, options: Options) -> Result<Self, Failure> {
        let dir = ModelDir::from(dir);
        let loader = Loader::open(&dir, &Device::Cpu)?;
        let config = loader.config();
        let processor = InputProcessor::load(&dir, config.patch_size, config.max_position_embeddings, Limits::default())?;
        let processor = processor.with_special_tokens(special_tokens);
        let engine = Engine::of(loader, processor.dummy_text().to_vec(), options)?;
        Ok(Self { engine, processor, name: dir.display() })
    }
}
