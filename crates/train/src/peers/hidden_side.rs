//! Copies of embedded samples without one modality, made of the rows that are there: before layer 0, no token
//! has seen another.
use candle_core::{Result, Tensor};

use crate::training::Session;
use delo_engine::{Packed, Span};
use delo_model::input::{Pixels, Presence, Sample};

/// The embedded rows of the dummies.
#[derive(Debug)]
pub(super) struct HiddenSide {
    /// `[tokens of the empty text, d]`
    text: Tensor,
    /// `[CLS and patches of the dummy image, d]`
    image: Tensor,
}

impl HiddenSide {
    /// The dummies of a session.
    ///
    /// # Errors
    /// A failed embedding.
    pub fn of(session: &Session<'_>) -> Result<Self> {
        let [height, width] = session.dummy_image();
        // Only the rows of the missing modality are kept of each.
        let without_text = Sample { text: None, image: Some(Pixels::dummy(height, width)) };
        let without_image = Sample { text: Some(session.processor.dummy_text().to_vec()), image: None };
        let state = session.engine.embed(&[without_text, without_image], [height, width])?;
        Ok(Self { text: Sides::of(&state.sample(0)?)?.text, image: Sides::of(&state.sample(1)?)?.image })
    }

    /// A copy of one complete sample that keeps one modality. Both are states that enter layer 0.
    ///
    /// # Errors
    /// A state that is not of one sample.
    pub fn copy(&self, sample: &Packed, keeps: Presence) -> Result<Packed> {
        let own = Sides::of(sample)?;
        let (text, image) = match keeps {
            Presence::Complete => return Ok(sample.clone()),
            Presence::ImageOnly => (&self.text, &own.image),
            Presence::TextOnly => (&own.text, &self.image),
        };
        let span = Span { start: 0, text: text.dim(0)?, image: image.dim(0)?, prompts: 0, presence: keeps };
        Ok(Packed { hidden: Tensor::cat(&[text, image], 0)?, spans: [span].into() })
    }
}

/// The rows of the modalities of one sample.
struct Sides {
    text: Tensor,
    image: Tensor,
}

impl Sides {
    fn of(sample: &Packed) -> Result<Self> {
        let span = sample.spans[0];
        let rows = |first: usize, count: usize| sample.hidden.narrow(0, first, count);
        Ok(Self { text: rows(span.start, span.text)?, image: rows(span.image_cls(), span.image)? })
    }
}
