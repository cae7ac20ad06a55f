//! The frozen backbone: ViLT, one transformer over text tokens and image patches. It knows no method.
//!
//! It loads any Hugging Face ViLT checkpoint and computes what `transformers` computes (METHOD.md 1).
mod checkpoint;
mod config;
mod embeddings;
mod encoder;

use candle_core::{Device, Result, Tensor};

use checkpoint::Checkpoint;
pub use config::ViltConfig;
pub use embeddings::{Embeddings, PatchGrids};
pub use encoder::{EncoderLayer, LayerNorm, Linear};

use crate::input::Pixels;
use crate::model_dir::ModelDir;

/// The architecture of a backbone and the fingerprint of its weights.
#[derive(Clone, Debug)]
pub struct Description {
    /// The architecture. Its `max_position_embeddings` is the number of text positions that the backbone is
    /// loaded with ([`Loader::with_text_positions`]).
    pub config: ViltConfig,
    /// The number of text positions of the checkpoint itself.
    pub checkpoint_positions: usize,
    /// The SHA-256 over the tensors, in hexadecimal digits: in the order of the names without the prefix
    /// `vilt.`, each name and the SHA-256 of its shape and its values in f32. The same weights have the same
    /// fingerprint in one file or in shards, with or without prefix; f16 and bf16 weights have that of their
    /// f32 copy.
    pub fingerprint: String,
}

/// Loads a checkpoint part by part. A backend that packs the weights in a layout of its own can drop each
/// part before it loads the next, and never holds all weights twice.
pub struct Loader {
    config: ViltConfig,
    /// See [`Description::checkpoint_positions`].
    checkpoint_positions: usize,
    checkpoint: Checkpoint,
}

/// The largest number of text positions to which a table is interpolated. It bounds the memory of attention,
/// which on GPUs grows with the square of a sample's tokens.
pub const MOST_TEXT_POSITIONS: usize = 8192;

/// The final layer norm and the pooler, after the last layer: `pooled = tanh(dense(layernorm(h)[text CLS]))`.
#[derive(Clone, Debug)]
pub struct Pooler {
    /// The final layer norm.
    pub layernorm: LayerNorm,
    /// The pooler's map, `[d, d]`.
    pub dense: Linear,
}

/// A loaded, frozen ViLT in plain candle operations: the reference for the faster implementations.
#[derive(Debug)]
pub struct Vilt {
    /// Its architecture and fingerprint.
    pub description: Description,
    /// The embeddings, before layer 0.
    pub embeddings: Embeddings,
    /// The encoder layers, in order.
    pub layers: Vec<EncoderLayer>,
    /// The final layer norm and the pooler.
    pub pooler: Pooler,
}

/// The inputs of one sample. A missing modality is replaced by its dummy (METHOD.md 3).
#[derive(Clone, Debug, PartialEq)]
pub struct PaddedInput {
    /// The token ids, `[CLS] … [SEP]`.
    pub text: Vec<u32>,
    /// The pixels.
    pub image: Pixels,
}

/// The output for a padded batch.
#[derive(Clone, Debug)]
pub struct Output {
    /// The state that enters each layer, then the state after the last layer: L + 1 of `[batch, tokens, d]`.
    pub states: Vec<Tensor>,
    /// The last state after the final layer norm, `[batch, tokens, d]`.
    pub hidden: Tensor,
    /// `[batch, tokens]`: 1 for a real token, 0 for padding.
    pub mask: Tensor,
    /// The pooled output, `[batch, d]`.
    pub pooled: Tensor,
}

/// Why a checkpoint is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what it is and names its fields")]
pub enum ViltError {
    #[error("{dir} has no config.json: give the directory of a Hugging Face ViLT checkpoint")]
    NoConfig { dir: String },
    #[error("{dir} has no {file}: save the checkpoint with `model.save_pretrained(…, safe_serialization=True)` and give that directory")]
    NoWeights { dir: String, file: String },
    #[error("config.json, {field}: {reason}")]
    Config { field: String, reason: String },
    #[error("config.json, {field}: {value} is not supported, only {supported}")]
    Unsupported { field: &'static str, value: String, supported: &'static str },
    #[error("cannot read {file}: {source}")]
    Read { file: String, source: std::io::Error },
    #[error("{file} is damaged or of another format: {reason}")]
    Malformed { file: String, reason: String },
    #[error("the checkpoint lacks the tensor {0}: it is no ViLT, or its config.json is another model's")]
    MissingTensor(String),
    #[error("the checkpoint has no pooler: save it from a ViltModel with add_pooling_layer=True")]
    NoPooler,
    #[error("tensor {name} has shape {found:?}, but config.json requires {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensor {name} is of type {found}: save the checkpoint in f32, f16 or bf16")]
    Dtype { name: String, found: String },
    #[error("tensor {0} holds a number that is not finite: the checkpoint is damaged")]
    NotFinite(String),
    #[error("{found} text positions: give {own}, those of the checkpoint, to {MOST_TEXT_POSITIONS}")]
    TextPositions { found: usize, own: usize },
    #[error("the backbone's tensors cannot be placed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Loader {
    /// Reads the configuration and the headers of the weights. Tensors will be placed on `device` in f32.
    ///
    /// # Errors
    /// See [`ViltError`].
    pub fn open(dir: &ModelDir, device: &Device) -> std::result::Result<Self, ViltError> {
        let config = dir
            .read("config.json")
            .map_err(|source| ViltError::Read { file: "config.json".to_owned(), source })?
            .ok_or_else(|| ViltError::NoConfig { dir: dir.display() })?;
        Ok(Self::of(ViltConfig::from_json(&config)?, Checkpoint::open(dir, device)?))
    }

    /// A loader of random weights, for measurements of speed. Its fingerprint is that of no checkpoint.
    pub fn random(config: ViltConfig, seed: u64, device: &Device) -> Self {
        Self::of(config, Checkpoint::random(seed, device))
    }

    fn of(config: ViltConfig, checkpoint: Checkpoint) -> Self {
        Self { checkpoint_positions: config.max_position_embeddings, config, checkpoint }
    }

    /// The same loader for texts of up to `positions` tokens, CLS and SEP included: the checkpoint's position
    /// table is interpolated to so many ([`Embeddings::with_text_positions`]). `None` means the checkpoint's
    /// own number, whose table stays as it is.
    ///
    /// # Errors
    /// [`ViltError::TextPositions`]: fewer positions than the checkpoint's own, or more than
    /// [`MOST_TEXT_POSITIONS`].
    pub fn with_text_positions(mut self, positions: Option<usize>) -> std::result::Result<Self, ViltError> {
        let own = self.checkpoint_positions;
        let positions = positions.unwrap_or(own);
        if positions != own && !(own..=MOST_TEXT_POSITIONS).contains(&positions) {
            return Err(ViltError::TextPositions { found: positions, own });
        }
        self.config.max_position_embeddings = positions;
        Ok(self)
    }

    /// The architecture, with the number of text positions that the backbone is loaded with.
    pub fn config(&self) -> &ViltConfig {
        &self.config
    }

    /// The same loader; parts that are loaded from now on are placed on this device.
    #[must_use]
    pub fn onto(mut self, device: &Device) -> Self {
        self.checkpoint.onto(device);
        self
    }

    /// Loads the embeddings.
    ///
    /// # Errors
    /// See [`ViltError`]; a message about a tensor names it.
    pub fn embeddings(&mut self) -> std::result::Result<Embeddings, ViltError> {
        let stored = ViltConfig { max_position_embeddings: self.checkpoint_positions, ..self.config.clone() };
        let embeddings = Embeddings::load(&mut self.checkpoint, &stored)?;
        Ok(embeddings.with_text_positions(self.config.max_position_embeddings)?)
    }

    /// Loads one encoder layer.
    ///
    /// # Errors
    /// As [`Self::embeddings`].
    pub fn layer(&mut self, index: usize) -> std::result::Result<EncoderLayer, ViltError> {
        EncoderLayer::load(&mut self.checkpoint, index, &self.config)
    }

    /// Loads the final layer norm and the pooler.
    ///
    /// # Errors
    /// As [`Self::embeddings`]; [`ViltError::NoPooler`] for a checkpoint without a pooler.
    pub fn pooler(&mut self) -> std::result::Result<Pooler, ViltError> {
        let d = self.config.hidden_size;
        let layernorm = LayerNorm::load(&mut self.checkpoint, "layernorm", &self.config)?;
        let dense = Linear::load(&mut self.checkpoint, "pooler.dense", d, d).map_err(|e| match e {
            ViltError::MissingTensor(_) => ViltError::NoPooler,
            other => other,
        })?;
        Ok(Pooler { layernorm, dense })
    }

    /// The description of the backbone. Call it after all parts were loaded: the fingerprint is over the
    /// tensors that were read.
    pub fn finish(self) -> Description {
        let Self { config, checkpoint_positions, checkpoint } = self;
        Description { fingerprint: checkpoint.fingerprint(), checkpoint_positions, config }
    }
}

impl Description {
    /// The number of text positions that the backbone is loaded with, where it is not the checkpoint's own.
    pub fn text_positions(&self) -> Option<usize> {
        Some(self.config.max_position_embeddings).filter(|&positions| positions != self.checkpoint_positions)
    }
}

impl Vilt {
    /// Loads a checkpoint directory in f32.
    ///
    /// # Errors
    /// See [`ViltError`]; a message about a tensor names it.
    pub fn load(dir: &ModelDir, device: &Device) -> std::result::Result<Self, ViltError> {
        Self::of(Loader::open(dir, device)?)
    }

    /// Loads all parts.
    ///
    /// # Errors
    /// See [`ViltError`].
    pub fn of(mut loader: Loader) -> std::result::Result<Self, ViltError> {
        let embeddings = loader.embeddings()?;
        let layers = (0..loader.config.num_hidden_layers).map(|i| loader.layer(i)).collect::<std::result::Result<_, _>>()?;
        let pooler = loader.pooler()?;
        Ok(Self { embeddings, layers, pooler, description: loader.finish() })
    }

    /// The device that holds the tensors.
    pub fn device(&self) -> &Device {
        self.pooler.dense.weight.device()
    }

    /// The pooled output for text CLS states after the last layer: `[samples, d]` → `[samples, d]`.
    ///
    /// # Errors
    /// The states are not of width d.
    pub fn pool(&self, text_cls: &Tensor) -> Result<Tensor> {
        self.pooler.dense.forward(&self.pooler.layernorm.forward(text_cls)?)?.tanh()
    }

    /// The whole backbone over a padded batch, as in the paper. Texts are padded to the longest text, images
    /// to the largest number of patches: `[text CLS, text…, SEP, pad…][image CLS, patches…, pad…]`.
    ///
    /// # Errors
    /// A text or an image does not fit, see [`Embeddings::text`] and [`Embeddings::image`]; the batch is
    /// empty.
    pub fn forward(&self, batch: &[PaddedInput]) -> Result<Output> {
        let texts = batch.iter().map(|s| self.embeddings.text(&s.text)).collect::<Result<Vec<_>>>()?;
        let images = batch.iter().map(|s| self.embeddings.image(&s.image)).collect::<Result<Vec<_>>>()?;
        let ((texts, text_mask), (images, image_mask)) = (pad(&texts)?, pad(&images)?);
        let mask = Tensor::cat(&[text_mask, image_mask], 1)?;
        let mut states = vec![Tensor::cat(&[texts, images], 1)?];
        for layer in &self.layers {
            states.push(layer.forward(&states[states.len() - 1], &mask, self.description.config.num_attention_heads)?);
        }
        let last = &states[states.len() - 1];
        let (hidden, pooled) = (self.pooler.layernorm.forward(last)?, self.pool(&last.narrow(1, 0, 1)?.squeeze(1)?)?);
        Ok(Output { states, hidden, mask, pooled })
    }
}

/// Stacks sequences `[tokens, d]` with zeros after the shorter ones, and gives their mask:
/// `[batch, longest, d]` and `[batch, longest]`.
fn pad(sequences: &[Tensor]) -> Result<(Tensor, Tensor)> {
    let longest = sequences.iter().map(|s| s.dims()[0]).max().unwrap_or(0);
    let mut padded = Vec::with_capacity(sequences.len());
    let mut mask = Vec::with_capacity(sequences.len() * longest);
    for sequence in sequences {
        let tokens = sequence.dim(0)?;
        padded.push(sequence.pad_with_zeros(0, 0, longest - tokens)?);
        mask.extend((0..longest).map(|i| if i < tokens { 1f32 } else { 0.0 }));
    }
    let padded = Tensor::stack(&padded, 0)?;
    let mask = Tensor::from_vec(mask, (sequences.len(), longest), padded.device())?;
    Ok((padded, mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_in_a_padded_batch_is_the_sample_alone() {
        let vilt = Vilt::load(&ModelDir::Embedded, &Device::Cpu).unwrap();
        let short = PaddedInput { text: vec![101, 102], image: Pixels::dummy(16, 24) };
        let long = PaddedInput { text: vec![101, 7592, 2088, 102], image: Pixels::dummy(64, 64) };
        let alone = vilt.forward(std::slice::from_ref(&short)).unwrap().pooled;
        let together = vilt.forward(&[long, short]).unwrap().pooled.narrow(0, 1, 1).unwrap();
        let difference = (alone - together).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-5, "{difference}");
    }
}
