//! Makes BERT token ids from texts exactly as `BertTokenizerFast` does.
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer};
use serde_json::json;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{Tokenizer, TruncationParams};

use super::TextReading;

/// The normaliser and the special tokens of `tokenizer_config.json`; its other fields are ignored.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    do_lower_case: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    /// `None`: the field is missing, and the tokenizer's own setting stays. `Some(None)`: the field is null,
    /// and accents are stripped where text is lower-cased.
    #[serde(default, deserialize_with = "stated")]
    strip_accents: Option<Option<bool>>,
    #[serde(default)]
    cls_token: Special,
    #[serde(default)]
    sep_token: Special,
    #[serde(default)]
    unk_token: Special,
    #[serde(default)]
    pad_token: Special,
    #[serde(default)]
    mask_token: Special,
}

/// A field that is present: its value, or `Some(None)` for null.
fn stated<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<bool>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// `"[CLS]"`, `{"content": "[CLS]", …}` or null.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged)]
enum Special {
    Plain(String),
    Described {
        content: String,
    },
    #[default]
    Unstated,
}

impl Special {
    /// The token's text, or `default` where it is not stated.
    fn or<'a>(&'a self, default: &'a str) -> &'a str {
        match self {
            Self::Plain(token) | Self::Described { content: token } => token,
            Self::Unstated => default,
        }
    }
}

/// A checkpoint's preprocessing of texts.
#[derive(Debug)]
pub(super) struct TextTokenizer {
    tokenizer: Tokenizer,
    /// The token ids of the empty text, `[CLS][SEP]`.
    empty: Vec<u32>,
    vocab_size: usize,
    /// The token of a word that is not in the vocabulary, where the tokenizer has one.
    unknown: Option<u32>,
    /// `[CLS]`, `[SEP]`, `[PAD]`, `[MASK]` and the tokenizer's further special tokens; never `unknown`.
    special: BTreeSet<u32>,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`. As in `transformers`, the settings of the normaliser in
    /// `tokenizer_config.json` take precedence.
    ///
    /// # Errors
    /// A sentence about what is wrong with the file.
    pub(super) fn from_json(json: &[u8], config: &TokenizerConfig, max_positions: usize) -> Result<Self, String> {
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
        if let Some(NormalizerWrapper::BertNormalizer(in_file)) = tokenizer.get_normalizer() {
            let mut normalizer = *in_file;
            normalizer.handle_chinese_chars = config.tokenize_chinese_chars.unwrap_or(normalizer.handle_chinese_chars);
            normalizer.strip_accents = config.strip_accents.unwrap_or(normalizer.strip_accents);
            normalizer.lowercase = config.do_lower_case.unwrap_or(normalizer.lowercase);
            tokenizer.with_normalizer(Some(normalizer)).map_err(|e| e.to_string())?;
        }
        Self::new(tokenizer, config, max_positions)
    }

    /// Reads a `vocab.txt`, one token on each line; its id is the number of the line, from 0. The vocabulary
    /// is converted to the same `tokenizer.json` as by `transformers`.
    ///
    /// # Errors
    /// A sentence about what is wrong with the file.
    pub(super) fn from_vocab(vocab: &str, config: &TokenizerConfig, max_positions: usize) -> Result<Self, String> {
        let ids: BTreeMap<&str, usize> = vocab.lines().enumerate().map(|(id, token)| (token.trim_end(), id)).collect();
        let required = |token| ids.get(token).copied().ok_or_else(|| format!("it has no token {token}"));
        let (cls, sep, unk) = (config.cls_token.or("[CLS]"), config.sep_token.or("[SEP]"), config.unk_token.or("[UNK]"));
        required(unk)?;
        let added: Vec<_> = [config.pad_token.or("[PAD]"), unk, cls, sep, config.mask_token.or("[MASK]")]
            .into_iter()
            .filter_map(|token| Some((token, ids.get(token)?)))
            .map(|(content, id)| {
                json!({
                    "id": id, "content": content, "special": true,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                })
            })
            .collect();
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": [sep, required(sep)?], "cls": [cls, required(cls)?]},
            "model": {
                "type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": ids,
            },
        });
        Self::from_json(tokenizer.to_string().as_bytes(), config, max_positions)
    }

    /// Replaces the padding and truncation of the tokenizer's file: no padding, and at most `max_positions`
    /// tokens, of which the last is `[SEP]`. Special tokens in a text are read as ordinary words.
    fn new(mut tokenizer: Tokenizer, config: &TokenizerConfig, max_positions: usize) -> Result<Self, String> {
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.set_encode_special_tokens(true);
        let empty = tokenizer.encode_fast("", true).map_err(|e| e.to_string())?.get_ids().to_vec();
        if empty.len() != 2 {
            return Err(format!("it makes {} tokens of an empty text; a ViLT tokenizer makes [CLS] and [SEP]", empty.len()));
        }
        if max_positions < empty.len() {
            return Err(format!("{max_positions} text positions leave no room for [CLS] and [SEP]"));
        }
        tokenizer.with_truncation(Some(TruncationParams { max_length: max_positions, ..Default::default() })).map_err(|e| e.to_string())?;
        let vocab_size = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let unknown = unknown_token(&tokenizer).and_then(|token| tokenizer.token_to_id(&token));
        let stated = [&config.cls_token, &config.sep_token, &config.pad_token, &config.mask_token].into_iter();
        let stated =
            stated.zip(["[CLS]", "[SEP]", "[PAD]", "[MASK]"]).filter_map(|(token, default)| tokenizer.token_to_id(token.or(default)));
        let added = tokenizer.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special).map(|(id, _)| id);
        let special = stated.chain(added).chain(empty.iter().copied()).filter(|id| Some(*id) != unknown).collect();
        Ok(Self { tokenizer, empty, vocab_size, unknown, special })
    }

    /// Sets whether a special token in a text, `[SEP]` for example, is read as that token, as `transformers`
    /// does by default, or as ordinary words, as `transformers` does with `split_special_tokens=True`.
    pub(super) fn set_special_tokens(&mut self, special_tokens: bool) {
        self.tokenizer.set_encode_special_tokens(!special_tokens);
    }

    /// Whether special tokens in a text are read as special tokens.
    pub(super) fn special_tokens(&self) -> bool {
        !self.tokenizer.get_encode_special_tokens()
    }

    /// The token ids of a text, `[CLS] … [SEP]`, at most `max_positions`, and how much of the text is in
    /// them.
    ///
    /// # Errors
    /// The tokenizer's message; it fails only if its vocabulary lacks the unknown token.
    pub(super) fn read(&self, text: &str) -> Result<(Vec<u32>, TextReading), String> {
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|e| e.to_string())?;
        let mut ids = encoding.get_ids().to_vec();
        // The mask marks the tokens that the post-processor adds: [CLS] and [SEP] around the text.
        let added = encoding.get_special_tokens_mask();
        // A tokenizer that does not split at punctuation finds "[SEP]" in its vocabulary as a word.
        if let Some(unknown) = self.unknown.filter(|_| !self.special_tokens()) {
            let injected = ids.iter_mut().zip(added).filter(|(id, added)| **added == 0 && self.special.contains(id));
            injected.for_each(|(id, _)| *id = unknown);
        }
        let of_text = || ids.iter().zip(added).filter(|(_, added)| **added == 0).map(|(id, _)| *id);
        let reading = TextReading {
            tokens: of_text().count(),
            unknown_tokens: of_text().filter(|id| Some(*id) == self.unknown).count(),
            truncated: !encoding.get_overflowing().is_empty(),
        };
        Ok((ids, reading))
    }

    /// The token ids of the empty text, `[CLS][SEP]`.
    pub(super) fn empty(&self) -> &[u32] {
        &self.empty
    }

    /// One more than the largest token id of this tokenizer.
    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}

/// The model's token for a word that is not in the vocabulary.
fn unknown_token(tokenizer: &Tokenizer) -> Option<String> {
    match tokenizer.get_model() {
        ModelWrapper::WordPiece(model) => Some(model.unk_token.clone()),
        ModelWrapper::WordLevel(model) => Some(model.unk_token.clone()),
        ModelWrapper::BPE(model) => model.unk_token.clone(),
        ModelWrapper::Unigram(_) => None,
    }
}
