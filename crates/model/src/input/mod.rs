//! Makes a [`Sample`] from an image file, a text or both: decodes, resizes, normalises and tokenises, within
//! hard limits.

mod bmp;
mod decode;
mod gif;
mod guard;
mod jpeg;
mod jpeg_segments;
mod limits;
mod orientation;
mod png;
mod preprocess;
mod resize;
mod signatures;
mod text;
mod webp;

use std::borrow::Cow;

use crate::model_dir::ModelDir;
use preprocess::ImagePreprocessor;
use text::{TextTokenizer, TokenizerConfig};

pub use limits::Limits;

/// The peak memory of decoding, as a multiple of the bytes of the decoded pixels.
const DECODING_PEAK: u64 = 3;

/// One sample, ready for the backbone. At least one modality is present.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Token ids, `[CLS] … [SEP]`, no padding, at most the backbone's text positions; `None` where the text
    /// is missing.
    pub text: Option<Vec<u32>>,
    /// Normalised pixels; `None` where the image is missing.
    pub image: Option<Pixels>,
}

/// A preprocessed image: RGB planes `[3, height, width]`, normalised by the checkpoint's mean and standard
/// deviation; both sides are multiples of the patch size.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// In pixels, a multiple of the patch size.
    pub height: usize,
    /// In pixels, a multiple of the patch size.
    pub width: usize,
    /// The planes, row-major `[3, height, width]`.
    pub data: Vec<f32>,
}

impl Pixels {
    /// The dummy image that stands in for a missing one, of this height and width in pixels. It is white:
    /// every normalised value is 1 (METHOD.md 3).
    pub fn dummy(height: usize, width: usize) -> Self {
        Self { height, width, data: vec![1.0; 3 * height * width] }
    }
}

/// How much of a text is in the token ids of its sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextReading {
    /// Tokens of the text after truncation, without `[CLS]` and `[SEP]`.
    pub tokens: usize,
    /// Those of the tokens that are `[UNK]`: words that are not in the vocabulary.
    pub unknown_tokens: usize,
    /// Whether the text was truncated, because it has more tokens than the backbone has text positions.
    pub truncated: bool,
}

impl TextReading {
    /// Whether at least one token is in the vocabulary.
    pub fn understood(&self) -> bool {
        self.unknown_tokens < self.tokens
    }
}

/// A sample, and how its text was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocessed {
    /// The sample.
    pub sample: Sample,
    /// How the text was read; `None` where the sample has no text.
    pub text: Option<TextReading>,
}

/// The modality pattern of a sample: which modalities are present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Image and text.
    Complete,
    /// The image; the text is missing.
    ImageOnly,
    /// The text; the image is missing.
    TextOnly,
}

impl Sample {
    /// The memory of its pixels and token ids, in bytes.
    pub fn bytes(&self) -> usize {
        let (pixels, ids) = (self.image.as_ref().map(|p| p.data.as_slice()), self.text.as_deref());
        pixels.map_or(0, size_of_val) + ids.map_or(0, size_of_val)
    }

    /// Its modality pattern.
    pub fn presence(&self) -> Presence {
        match (&self.text, &self.image) {
            (Some(_), None) => Presence::TextOnly,
            (None, _) => Presence::ImageOnly,
            (Some(_), Some(_)) => Presence::Complete,
        }
    }
}

/// Makes samples as a checkpoint's own `ViltProcessor` does, with the checkpoint's image settings and
/// tokenizer. It is immutable and can be shared. A photograph takes milliseconds of processor time: an
/// asynchronous caller runs it on a blocking pool.
#[derive(Debug)]
pub struct InputProcessor {
    image: ImagePreprocessor,
    text: TextTokenizer,
    limits: Limits,
}

impl InputProcessor {
    /// Reads `preprocessor_config.json` (the defaults of `transformers` where it is missing),
    /// `tokenizer.json` or else `vocab.txt`, and `tokenizer_config.json` if there is one. `patch_size`, in
    /// pixels, and `max_positions`, the number of text positions, are those of the backbone.
    ///
    /// # Errors
    /// [`InputError::Checkpoint`]: a file is missing, unreadable or does not make sense.
    pub fn load(dir: &ModelDir, patch_size: usize, max_positions: usize, limits: Limits) -> Result<Self, InputError> {
        let broken = |file: &'static str| {
            let dir = dir.display();
            move |reason: String| InputError::Checkpoint { dir, file, reason }
        };
        let read = |file| dir.read(file).map_err(|e| broken(file)(e.to_string()));

        const IMAGE: &str = "preprocessor_config.json";
        let image = ImagePreprocessor::new(&read(IMAGE)?.unwrap_or(Cow::Borrowed(b"{}")), patch_size).map_err(broken(IMAGE))?;

        const TEXT: &str = "tokenizer_config.json";
        let config: TokenizerConfig = match read(TEXT)? {
            Some(json) => serde_json::from_slice(&json).map_err(|e| broken(TEXT)(e.to_string()))?,
            None => TokenizerConfig::default(),
        };
        let text = if let Some(json) = read("tokenizer.json")? {
            TextTokenizer::from_json(&json, &config, max_positions).map_err(broken("tokenizer.json"))?
        } else if let Some(vocab) = read("vocab.txt")? {
            let vocab = std::str::from_utf8(&vocab).map_err(|e| broken("vocab.txt")(e.to_string()))?;
            TextTokenizer::from_vocab(vocab, &config, max_positions).map_err(broken("vocab.txt"))?
        } else {
            return Err(broken("tokenizer.json")(
                "neither it nor vocab.txt is there; copy the checkpoint's tokenizer into the directory".to_owned(),
            ));
        };
        Ok(Self { image, text, limits })
    }

    /// This processor with another reading of special tokens in texts. False, the default: `[SEP]`, `[PAD]`,
    /// `[MASK]`, `[CLS]` and `[UNK]` in a text are ordinary words, so that no text can end itself or hide a
    /// part of itself. True: they are the special tokens that they name, as in `transformers`.
    #[must_use]
    pub fn with_special_tokens(mut self, special_tokens: bool) -> Self {
        self.text.set_special_tokens(special_tokens);
        self
    }

    /// Whether special tokens in a text are read as special tokens, see [`Self::with_special_tokens`].
    pub fn special_tokens(&self) -> bool {
        self.text.special_tokens()
    }

    /// A sample of an image file, a text or both. A text without a token counts as missing: it equals the
    /// dummy of a missing text (METHOD.md 3).
    ///
    /// # Errors
    /// [`InputError::Empty`] without image and text; [`InputError::NoWord`] for a text without a token and no
    /// image; otherwise the error of the image or the text, see [`InputError::field`].
    pub fn sample(&self, image: Option<&[u8]>, text: Option<&str>) -> Result<Sample, InputError> {
        Ok(self.preprocess(image, text)?.sample)
    }

    /// As [`Self::sample`]; also gives how the text was read.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn preprocess(&self, image: Option<&[u8]>, text: Option<&str>) -> Result<Preprocessed, InputError> {
        self.preprocess_in_steps(image, text, || {})
    }

    /// As [`Self::preprocess`]; calls `text_read` between its two steps, when the text is read.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn preprocess_in_steps(
        &self,
        image: Option<&[u8]>,
        text: Option<&str>,
        text_read: impl FnOnce(),
    ) -> Result<Preprocessed, InputError> {
        // The text first: it is cheap to refuse.
        let read = text.map(|text| self.read(text)).transpose()?.filter(|(_, reading)| reading.tokens > 0);
        text_read();
        if image.is_none() && read.is_none() {
            return Err(if text.is_some() { InputError::NoWord } else { InputError::Empty });
        }
        let image = image.map(|bytes| self.pixels(bytes)).transpose()?;
        let (ids, reading) = read.unzip();
        Ok(Preprocessed { sample: Sample { text: ids, image }, text: reading })
    }

    /// An upper bound of the memory that [`Self::sample`] needs, in bytes, according to the image's header;
    /// nothing is decoded.
    ///
    /// # Errors
    /// The errors of the image that its header shows, see [`InputError::field`].
    pub fn memory(&self, image: Option<&[u8]>, text: Option<&str>) -> Result<usize, InputError> {
        let decoded = image.map_or(Ok(0), |bytes| decode::decoded_bytes(bytes, &self.limits))?;
        // Twice, because some decoders get a copy of the parts of the file that hold pixels.
        let given = 2 * image.map_or(0, <[u8]>::len) + text.map_or(0, str::len);
        Ok(usize::try_from(decoded.saturating_mul(DECODING_PEAK)).unwrap_or(usize::MAX).saturating_add(given))
    }

    fn read(&self, text: &str) -> Result<(Vec<u32>, TextReading), InputError> {
        self.limits.check_text(text.len())?;
        self.text.read(text).map_err(InputError::Untokenisable)
    }

    fn pixels(&self, bytes: &[u8]) -> Result<Pixels, InputError> {
        self.image.pixels(decode::decode(bytes, &self.limits)?, &self.limits)
    }

    /// The dummy text that stands in for a missing one: the empty text, `[CLS][SEP]` (METHOD.md 3).
    pub fn dummy_text(&self) -> &[u32] {
        self.text.empty()
    }

    /// The length in pixels to which the shorter edge of an image is resized.
    pub fn shortest_edge(&self) -> usize {
        self.image.shortest_edge()
    }

    /// One more than the largest token id of the tokenizer. A backbone with fewer word embeddings does not
    /// fit this tokenizer.
    pub fn vocab_size(&self) -> usize {
        self.text.vocab_size()
    }
}

/// Why no sample is made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what it is and names its fields")]
pub enum InputError {
    #[error("the sample has neither an image nor a text; send at least one of them")]
    Empty,
    #[error("the text has no word (blanks and control characters are not words); send a text with a word, an image, or both")]
    NoWord,
    #[error("the image has {bytes} bytes, more than the {limit} allowed; send a smaller file")]
    ImageBytes { bytes: usize, limit: usize },
    #[error("{found}; the supported file types are {}", decode::SUPPORTED)]
    ImageType { found: String },
    #[error("the image is {width} x {height} pixels; send an image that has at least one pixel")]
    ImageEmpty { width: u32, height: u32 },
    #[error("the image is {width} x {height} pixels, which exceeds the limit of {limit}; send a smaller one")]
    ImageSize { width: u32, height: u32, limit: String },
    #[error("decoding the image takes more than the {limit} bytes of memory allowed; send a smaller one")]
    ImageMemory { limit: u64 },
    #[error("the image cannot be read as {format}: {reason}; send an undamaged file")]
    Undecodable { format: &'static str, reason: String },
    /// The file is valid, but of a kind that is not supported.
    #[error("{format} with {feature} is not supported; save it as a baseline JPEG or PNG")]
    Unsupported { format: &'static str, feature: String },
    #[error("the image is {width} x {height} pixels, smaller than one patch of {patch} x {patch}; send a larger one")]
    ImageTooSmall { width: usize, height: usize, patch: usize },
    #[error("the image has {patches} patches, more than the {limit} allowed; send a smaller one")]
    ImagePatches { patches: usize, limit: usize },
    #[error("the text has {bytes} bytes, more than the {limit} allowed; send a shorter one")]
    TextBytes { bytes: usize, limit: usize },
    #[error("the text cannot be tokenised: {0}")]
    Untokenisable(String),
    #[error("{file} of the checkpoint {dir}: {reason}")]
    Checkpoint { dir: String, file: &'static str, reason: String },
}

impl InputError {
    /// The field of the request that the error is about: `image` or `text`, and `image` where both are
    /// missing. `backbone` for a checkpoint that does not load, which no request causes.
    pub fn field(&self) -> &'static str {
        match self {
            Self::NoWord | Self::TextBytes { .. } | Self::Untokenisable(_) => "text",
            Self::Checkpoint { .. } => "backbone",
            Self::Empty
            | Self::ImageBytes { .. }
            | Self::ImageType { .. }
            | Self::ImageEmpty { .. }
            | Self::ImageSize { .. }
            | Self::ImageMemory { .. }
            | Self::Undecodable { .. }
            | Self::Unsupported { .. }
            | Self::ImageTooSmall { .. }
            | Self::ImagePatches { .. } => "image",
        }
    }
}
