//! Texts become BERT token ids exactly as `BertTokenizerFast` makes them.
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::json;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{Tokenizer, TruncationParams};

/// What `tokenizer_config.json` says about the normaliser and the special tokens; all else in it is ignored.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    do_lower_case: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    /// The outer level tells a missing field (keep what the tokenizer has) from null (strip accents where text is lower-cased).
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
    fn or<'a>(&'a self, default: &'a str) -> &'a str {
        match self {
            Self::Plain(token) | Self::Described { content: token } => token,
            Self::Unstated => default,
        }
    }
}

/// The text side of a checkpoint's preprocessing.
#[derive(Debug)]
pub(super) struct TextTokenizer {
    tokenizer: Tokenizer,
    /// `[CLS][SEP]`.
    empty: Vec<u32>,
    vocab_size: usize,
}

impl TextTokenizer {
    /// From the bytes of a `tokenizer.json`. What `tokenizer_config.json` states about the normaliser wins over the file, as upstream.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn from_json(json: &[u8], config: &TokenizerConfig, max_positions: usize) -> Result<Self, String> {
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
        if let Some(NormalizerWrapper::BertNormalizer(in_file)) = tokenizer.get_normalizer() {
            let mut normalizer = *in_file;
            normalizer.handle_chinese_chars = config.tokenize_chinese_chars.unwrap_or(normalizer.handle_chinese_chars);
            normalizer.strip_accents = config.strip_accents.unwrap_or(normalizer.strip_accents);
            normalizer.lowercase = config.do_lower_case.unwrap_or(normalizer.lowercase);
            tokenizer.with_normalizer(Some(normalizer)).map_err(|e| e.to_string())?;
        }
        Self::new(tokenizer, max_positions)
    }

    /// From the text of a `vocab.txt`, one token a line, whose line number is its id: the `tokenizer.json` that upstream converts it to.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn from_vocab(vocab: &str, config: &TokenizerConfig, max_positions: usize) -> Result<Self, String> {
        let ids: BTreeMap<&str, usize> = vocab.lines().enumerate().map(|(id, token)| (token.trim_end(), id)).collect();
        let required = |token| ids.get(token).copied().ok_or_else(|| format!("it has no token {token}"));
        let (cls, sep, unk) = (config.cls_token.or("[CLS]"), config.sep_token.or("[SEP]"), config.unk_token.or("[UNK]"));
        required(unk)?;
        let added: Vec<_> = [config.pad_token.or("[PAD]"), unk, cls, sep, config.mask_token.or("[MASK]")]
            .into_iter()
            .filter_map(|token| Some((token, ids.get(token)?)))
            .map(|(content, id)| {
                json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
            })
            .collect();
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": [sep, required(sep)?], "cls": [cls, required(cls)?]},
            "model": {"type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": ids},
        });
        Self::from_json(tokenizer.to_string().as_bytes(), config, max_positions)
    }

    /// Replaces whatever padding and truncation the tokenizer came with: no padding, and at most `max_positions` tokens, `[SEP]` kept.
    fn new(mut tokenizer: Tokenizer, max_positions: usize) -> Result<Self, String> {
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        let empty = tokenizer.encode_fast("", true).map_err(|e| e.to_string())?.get_ids().to_vec();
        if empty.len() != 2 {
            return Err(format!("it makes {} tokens of an empty text; a ViLT tokenizer makes [CLS] and [SEP]", empty.len()));
        }
        if max_positions < empty.len() {
            return Err(format!("{max_positions} text positions leave no room for [CLS] and [SEP]"));
        }
        tokenizer.with_truncation(Some(TruncationParams { max_length: max_positions, ..Default::default() })).map_err(|e| e.to_string())?;
        let vocab_size = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(Self { tokenizer, empty, vocab_size })
    }

    /// `[CLS] … [SEP]`, at most `max_positions` ids.
    ///
    /// # Errors
    /// What the tokenizer says, which happens only where its vocabulary lacks the unknown token.
    pub(super) fn ids(&self, text: &str) -> Result<Vec<u32>, String> {
        self.tokenizer.encode_fast(text, true).map(|encoding| encoding.get_ids().to_vec()).map_err(|e| e.to_string())
    }

    /// `[CLS][SEP]`.
    pub(super) fn empty(&self) -> &[u32] {
        &self.empty
    }

    /// One more than the largest id this tokenizer can give.
    pub(super) fn vocab_size(&self) -> usize {
        self.vocab_size
    }
}
