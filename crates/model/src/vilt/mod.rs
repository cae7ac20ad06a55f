//! The frozen backbone: ViLT, one transformer over text tokens and image patches. Knows nothing of DeLo.
//!
//! It reads any Hugging Face checkpoint of the family and computes what `transformers` computes (METHOD.md 1).
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

/// What identifies a backbone.
#[derive(Clone, Debug)]
pub struct Description {
    pub config: ViltConfig,
    /// SHA-256, hexadecimal, over the tensors: in order of their names without prefix, each name and the SHA-256 of its shape and its
    /// values in f32. The same weights have the same fingerprint in one file or in shards, with or without prefix, in f16 or f32.
    pub fingerprint: String,
}

/// A checkpoint that is being loaded, part by part: whoever packs its weights anew need not hold all of them twice.
pub struct Loader {
    config: ViltConfig,
    checkpoint: Checkpoint,
}

/// What stands after the last layer.
#[derive(Clone, Debug)]
pub struct Pooler {
    pub layernorm: LayerNorm,
    /// `pooled = tanh(dense · layernorm(h)[text CLS])`
    pub dense: Linear,
}

/// A loaded, frozen ViLT, as plain candle operations: the reference for every faster way.
#[derive(Debug)]
pub struct Vilt {
    pub description: Description,
    pub embeddings: Embeddings,
    pub layers: Vec<EncoderLayer>,
    pub pooler: Pooler,
}

/// Both inputs of one sample; a missing modality has its dummy.
#[derive(Clone, Debug, PartialEq)]
pub struct PaddedInput {
    /// `[CLS] … [SEP]`
    pub text: Vec<u32>,
    pub image: Pixels,
}

/// What a padded batch gives.
#[derive(Clone, Debug)]
pub struct Output {
    /// The states entering each layer, then the state after the last: layers + 1 of `[batch, tokens, d]`.
    pub states: Vec<Tensor>,
    /// The last state after the final layer norm, `[batch, tokens, d]`.
    pub hidden: Tensor,
    /// `[batch, tokens]`: 1 where a token is real, 0 where it is padding.
    pub mask: Tensor,
    /// `[batch, d]`
    pub pooled: Tensor,
}

/// Why a checkpoint does not load.
#[derive(Debug, thiserror::Error)]
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
    #[error("tensor {name} has shape {found:?}, config.json asks for {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("tensor {name} is of type {found}: save the checkpoint in f32, f16 or bf16")]
    Dtype { name: String, found: String },
    #[error("tensor {0} holds a number that is not finite: the checkpoint is damaged")]
    NotFinite(String),
    #[error("the backbone's tensors cannot be placed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Loader {
    /// Reads the configuration and the tensors' places; tensors will go to `device` in f32.
    ///
    /// # Errors
    /// See [`ViltError`].
    pub fn open(dir: &ModelDir, device: &Device) -> std::result::Result<Self, ViltError> {
        let config = dir
            .read("config.json")
            .map_err(|source| ViltError::Read { file: "config.json".to_owned(), source })?
            .ok_or_else(|| ViltError::NoConfig { dir: dir.display() })?;
        Ok(Self { config: ViltConfig::from_json(&config)?, checkpoint: Checkpoint::open(dir, device)? })
    }

    /// A backbone of random weights, to measure speed with. Its fingerprint is that of no checkpoint.
    pub fn random(config: ViltConfig, seed: u64, device: &Device) -> Self {
        Self { config, checkpoint: Checkpoint::random(seed, device) }
    }

    pub fn config(&self) -> &ViltConfig {
        &self.config
    }

    /// The parts that are still to be loaded will go to this device.
    #[must_use]
    pub fn onto(mut self, device: &Device) -> Self {
        self.checkpoint.onto(device);
        self
    }

    /// # Errors
    /// See [`ViltError`]; what is wrong with a tensor names it.
    pub fn embeddings(&mut self) -> std::result::Result<Embeddings, ViltError> {
        Embeddings::load(&mut self.checkpoint, &self.config)
    }

    /// # Errors
    /// As [`Self::embeddings`].
    pub fn layer(&mut self, index: usize) -> std::result::Result<EncoderLayer, ViltError> {
        EncoderLayer::load(&mut self.checkpoint, index, &self.config)
    }

    /// # Errors
    /// As [`Self::embeddings`].
    pub fn pooler(&mut self) -> std::result::Result<Pooler, ViltError> {
        let d = self.config.hidden_size;
        let layernorm = LayerNorm::load(&mut self.checkpoint, "layernorm", &self.config)?;
        let dense = Linear::load(&mut self.checkpoint, "pooler.dense", d, d).map_err(|e| match e {
            ViltError::MissingTensor(_) => ViltError::NoPooler,
            other => other,
        })?;
        Ok(Pooler { layernorm, dense })
    }

    /// What was loaded; call it when every part has been.
    pub fn finish(self) -> Description {
        Description { fingerprint: self.checkpoint.fingerprint(), config: self.config }
    }
}

impl Vilt {
    /// Loads a checkpoint directory in f32.
    ///
    /// # Errors
    /// See [`ViltError`]; what is wrong with a tensor names it.
    pub fn load(dir: &ModelDir, device: &Device) -> std::result::Result<Self, ViltError> {
        Self::of(Loader::open(dir, device)?)
    }

    /// Everything that a loader has.
    ///
    /// # Errors
    /// See [`ViltError`].
    pub fn of(mut loader: Loader) -> std::result::Result<Self, ViltError> {
        let embeddings = loader.embeddings()?;
        let layers = (0..loader.config.num_hidden_layers).map(|i| loader.layer(i)).collect::<std::result::Result<_, _>>()?;
        let pooler = loader.pooler()?;
        Ok(Self { embeddings, layers, pooler, description: loader.finish() })
    }

    /// Where the tensors live.
    pub fn device(&self) -> &Device {
        self.pooler.dense.weight.device()
    }

    /// The pooled output of text CLS states after the last layer: `[samples, d]` → `[samples, d]`.
    pub fn pool(&self, text_cls: &Tensor) -> Result<Tensor> {
        self.pooler.dense.forward(&self.pooler.layernorm.forward(text_cls)?)?.tanh()
    }

    /// The whole backbone over a padded batch, as the paper writes it: the reference for every faster way. Texts are padded to the
    /// longest text, images to the longest run of patches: `[text CLS, text…, SEP, pad…][image CLS, patches…, pad…]`.
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

/// Sequences `[tokens, d]` under each other, zeros after the shorter ones, and their mask: `[batch, longest, d]`, `[batch, longest]`.
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
