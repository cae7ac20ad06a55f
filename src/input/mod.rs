//! An image or a text from outside becomes a [`Sample`]: decode, resize, normalise, tokenise, within hard limits.

/// One sample, ready for the backbone. At least one modality is present.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Token ids, `[CLS] … [SEP]`, no padding, at most the backbone's text positions; `None` where the text is missing.
    pub text: Option<Vec<u32>>,
    /// Normalised pixels; `None` where the image is missing.
    pub image: Option<Pixels>,
}

/// A preprocessed image: RGB planes `[3, height, width]`, normalised by the checkpoint's mean and standard deviation; both sides are
/// multiples of the patch size.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    pub height: usize,
    pub width: usize,
    /// Row-major `[3, height, width]`.
    pub data: Vec<f32>,
}

impl Pixels {
    /// The dummy image that stands in for a missing one: every value 1 after normalisation, that is white (METHOD.md 3).
    pub fn dummy(height: usize, width: usize) -> Self {
        Self { height, width, data: vec![1.0; 3 * height * width] }
    }
}

/// Which modalities a sample has: its modality pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    Complete,
    ImageOnly,
    TextOnly,
}

impl Sample {
    /// The modality pattern of this sample.
    pub fn presence(&self) -> Presence {
        match (&self.text, &self.image) {
            (Some(_), None) => Presence::TextOnly,
            (None, _) => Presence::ImageOnly,
            (Some(_), Some(_)) => Presence::Complete,
        }
    }
}
