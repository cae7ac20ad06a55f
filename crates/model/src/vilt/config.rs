//! `config.json` of a Hugging Face ViLT checkpoint.
use serde::{Deserialize, Serialize};

use super::ViltError;

/// The architecture of a ViLT, as in its `config.json`. Absent fields have the defaults of `transformers`
/// (ViLT-B/32), unknown fields are ignored.
///
/// <https://github.com/huggingface/transformers/blob/v4.57.6/src/transformers/models/vilt/configuration_vilt.py>
///
/// `max_image_length`, by which `transformers` chooses patches at random, is ignored: every patch is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ViltConfig {
    /// `vilt`
    pub model_type: String,
    /// Rows of the word embeddings: the size of the vocabulary.
    pub vocab_size: usize,
    /// Rows of BERT's token-type table. Text always has type 0.
    pub type_vocab_size: usize,
    /// Rows of the modality-type table: 0 text, 1 image, 2 a second image (unused here).
    pub modality_type_vocab_size: usize,
    /// Text positions: the tokens of the longest text, CLS and SEP included.
    pub max_position_embeddings: usize,
    /// `absolute`
    pub position_embedding_type: String,
    /// d: the width of the hidden states.
    pub hidden_size: usize,
    /// L: encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads of a layer.
    pub num_attention_heads: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// `gelu`: the exact GELU, by erf.
    pub hidden_act: String,
    /// ε of all layer norms.
    pub layer_norm_eps: f64,
    /// Side of the square images of the position embeddings, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// 3: red, green and blue.
    pub num_channels: usize,
    /// Whether query, key and value have biases.
    pub qkv_bias: bool,
}

impl Default for ViltConfig {
    fn default() -> Self {
        Self {
            model_type: "vilt".to_owned(),
            vocab_size: 30522,
            type_vocab_size: 2,
            modality_type_vocab_size: 2,
            max_position_embeddings: 40,
            position_embedding_type: "absolute".to_owned(),
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            image_size: 384,
            patch_size: 32,
            num_channels: 3,
            qkv_bias: true,
        }
    }
}

impl ViltConfig {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// [`ViltError::Config`] with the path of a field that cannot be read; [`ViltError::Unsupported`] for an
    /// architecture that this backbone does not compute.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ViltError> {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let config: Self = serde_path_to_error::deserialize(&mut json)
            .map_err(|e| ViltError::Config { field: e.path().to_string(), reason: e.inner().to_string() })?;
        config.check()?;
        Ok(config)
    }

    /// Patches along one side of the square grid of the checkpoint's position embeddings.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Tokens of a sample whose text fills all positions and whose image has `image_size`.
    pub fn sample_tokens(&self) -> usize {
        self.max_position_embeddings + 1 + self.patches_per_side().pow(2)
    }

    /// The width of one attention head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Refuses an architecture that this backbone does not compute.
    fn check(&self) -> Result<(), ViltError> {
        let unsupported =
            |field: &'static str, value: String, supported: &'static str| Err(ViltError::Unsupported { field, value, supported });
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("type_vocab_size", self.type_vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("patch_size", self.patch_size),
        ] {
            if value == 0 {
                return unsupported(field, "0".to_owned(), "at least 1");
            }
        }
        if self.model_type != "vilt" {
            return unsupported("model_type", self.model_type.clone(), "\"vilt\"");
        }
        if self.hidden_act != "gelu" {
            return unsupported("hidden_act", self.hidden_act.clone(), "\"gelu\"");
        }
        if self.position_embedding_type != "absolute" {
            return unsupported("position_embedding_type", self.position_embedding_type.clone(), "\"absolute\"");
        }
        if self.num_channels != 3 {
            return unsupported("num_channels", self.num_channels.to_string(), "3 (RGB)");
        }
        if self.modality_type_vocab_size < 2 {
            return unsupported("modality_type_vocab_size", self.modality_type_vocab_size.to_string(), "at least 2 (text and image)");
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return unsupported("num_attention_heads", self.num_attention_heads.to_string(), "a divisor of hidden_size");
        }
        if self.image_size < self.patch_size {
            return unsupported("image_size", self.image_size.to_string(), "at least patch_size");
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps > 0.0) {
            return unsupported("layer_norm_eps", self.layer_norm_eps.to_string(), "a positive number");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_fields_are_vilt_b32_and_unknown_ones_are_ignored() {
        let config = ViltConfig::from_json(br#"{"architectures": ["ViltModel"], "num_images": -1, "pad_token_id": null}"#).unwrap();
        assert_eq!(config, ViltConfig::default());
        assert_eq!((config.patches_per_side(), config.head_size()), (12, 64));
    }

    #[test]
    fn an_unsupported_architecture_is_refused_with_the_name_of_the_field() {
        for (json, field) in [
            (r#"{"hidden_act": "relu"}"#, "hidden_act"),
            (r#"{"num_attention_heads": 7}"#, "num_attention_heads"),
            (r#"{"num_attention_heads": 0}"#, "num_attention_heads"),
            (r#"{"model_type": "bert"}"#, "model_type"),
            (r#"{"num_channels": 1}"#, "num_channels"),
            (r#"{"image_size": 16}"#, "image_size"),
            (r#"{"image_size": [384, 384]}"#, "image_size"),
            (r#"{"layer_norm_eps": -1.0}"#, "layer_norm_eps"),
        ] {
            let message = ViltConfig::from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
    }
}
