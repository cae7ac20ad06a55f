//! What every command that computes loads first.
use std::path::PathBuf;

use super::Failure;
use delo_engine::checkpoint::{Checkpoint, CheckpointError, TextOptions};
use delo_engine::{Engine, Options};
use delo_model::input::{InputProcessor, Limits};
use delo_model::model_dir::ModelDir;
use delo_model::vilt::ViltError;

/// Which checkpoint computes, and how long its texts are.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Backbone")]
pub struct BackboneArgs {
    /// A Hugging Face ViLT checkpoint directory; the one in the program if left out
    #[arg(long, value_name = "DIR")]
    backbone: Option<PathBuf>,
    /// Tokens of the longest text, [CLS] and [SEP] included; what a text has more is cut off. The
    /// checkpoint's position table is interpolated to this number. A partition says which it was trained
    /// with, and goes with servers that have the same (model.text_positions) [default: the checkpoint's own
    /// number]
    #[arg(long, value_name = "N")]
    text_positions: Option<usize>,
}

/// A checkpoint, ready to compute with.
pub struct Backbone {
    pub engine: Engine,
    pub processor: InputProcessor,
    /// To show to people.
    pub name: String,
}

impl BackboneArgs {
    /// Loads the checkpoint. `special_tokens`: see [`InputProcessor::with_special_tokens`].
    pub fn load(&self, special_tokens: bool, options: Options) -> Result<Backbone, Failure> {
        let dir = ModelDir::from(self.backbone.as_deref());
        let texts = TextOptions { special_tokens, positions: self.text_positions };
        let loaded = Checkpoint::load(&dir, Limits::default(), texts, options);
        let Checkpoint { engine, processor } = loaded.map_err(|e| match e {
            CheckpointError::Backbone(e @ ViltError::TextPositions { .. }) => Failure::usage(format!("--text-positions: {e}")),
            other => other.into(),
        })?;
        Ok(Backbone { engine, processor, name: dir.display() })
    }
}
