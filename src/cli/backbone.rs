//! What every command that computes loads first.
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use super::Failure;
use crate::engine::Engine;
use crate::input::{InputProcessor, Limits};
use crate::model_dir::ModelDir;
use crate::vilt::Vilt;

/// A checkpoint, ready to compute with.
pub struct Backbone {
    pub engine: Engine,
    pub processor: InputProcessor,
    /// To show to people.
    pub name: String,
}

impl Backbone {
    /// Loads the checkpoint of a directory, or the one in the program.
    pub fn load(dir: Option<&Path>) -> Result<Self, Failure> {
        let dir = ModelDir::from(dir);
        let vilt = Vilt::load(&dir, &Device::Cpu)?;
        let processor = InputProcessor::load(&dir, vilt.config.patch_size, vilt.config.max_position_embeddings, Limits::default())?;
        let engine = Engine::new(Arc::new(vilt), processor.dummy_text().to_vec());
        Ok(Self { engine, processor, name: dir.display() })
    }
}
