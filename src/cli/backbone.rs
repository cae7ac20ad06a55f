//! What every command that computes loads first.
use std::path::Path;

use super::Failure;
use delo_engine::checkpoint::Checkpoint;
use delo_engine::{Engine, Options};
use delo_model::input::{InputProcessor, Limits};
use delo_model::model_dir::ModelDir;

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
        let Checkpoint { engine, processor } = Checkpoint::load(&dir, Limits::default(), special_tokens, options)?;
        Ok(Self { engine, processor, name: dir.display() })
    }
}
