//! The packed matrix: the tokens of several samples, one sample after another. Operations on single tokens
//! run once over the whole matrix; attention runs for each sample.
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use delo_model::PerModality;
use delo_model::input::Presence;

/// The rows of one sample in the packed matrix: `[text CLS, text…, SEP][image CLS, patches…]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The row of the text CLS.
    pub start: usize,
    /// Number of text tokens, including CLS and SEP.
    pub text: usize,
    /// Number of image tokens, including CLS.
    pub image: usize,
    /// The modality pattern. The query of a missing modality is replaced by its proxy (METHOD.md 3).
    pub presence: Presence,
}

impl Span {
    /// Number of rows of this sample.
    pub fn tokens(&self) -> usize {
        self.text + self.image
    }

    /// One past the last row of this sample.
    pub fn end(&self) -> usize {
        self.start + self.tokens()
    }

    /// Rows of the text tokens, without CLS and SEP.
    pub fn words(&self) -> Range<usize> {
        self.start + 1..(self.start + self.text - 1).max(self.start + 1)
    }

    /// The row of the image CLS.
    pub fn image_cls(&self) -> usize {
        self.start + self.text
    }

    /// Rows of the patches.
    pub fn patches(&self) -> Range<usize> {
        self.image_cls() + 1..self.start + self.tokens()
    }

    /// For each modality, the rows whose mean is its query: its own rows, or the proxy's where the modality
    /// is missing (METHOD.md 3).
    pub fn query_rows(&self) -> PerModality<Range<usize>> {
        let (image, text) = (self.patches(), self.words());
        match self.presence {
            Presence::Complete => PerModality { image, text },
            Presence::ImageOnly => PerModality { image: image.clone(), text: image },
            Presence::TextOnly => PerModality { image: text.clone(), text },
        }
    }
}

/// Hidden states of several samples in one packed matrix.
#[derive(Clone, Debug)]
pub struct Packed {
    /// `[tokens, d]`
    pub hidden: Tensor,
    /// The rows of each sample, in order; together they cover all rows of `hidden`.
    pub spans: Arc<[Span]>,
}

impl Packed {
    /// The samples of all `parts` in one packed matrix, in order.
    ///
    /// # Errors
    /// No part, or parts of different widths.
    pub fn concat(parts: &[Packed]) -> Result<Packed> {
        let hidden = Tensor::cat(&parts.iter().map(|p| &p.hidden).collect::<Vec<_>>(), 0)?;
        let mut start = 0;
        let mut spans = Vec::with_capacity(parts.iter().map(|p| p.spans.len()).sum());
        for span in parts.iter().flat_map(|p| p.spans.iter()) {
            spans.push(Span { start, ..*span });
            start += span.tokens();
        }
        Ok(Packed { hidden, spans: spans.into() })
    }

    /// The samples with these numbers, in this order; a sample may be named more than once.
    ///
    /// # Errors
    /// No sample.
    ///
    /// # Panics
    /// If there is no sample of such a number.
    pub fn select(&self, samples: &[usize]) -> Result<Packed> {
        let parts: Vec<_> = samples.iter().map(|&index| self.sample(index)).collect::<Result<_>>()?;
        Self::concat(&parts)
    }

    /// One sample as a packed matrix of its own, which shares the storage.
    ///
    /// # Errors
    /// A span outside `hidden`.
    ///
    /// # Panics
    /// If there is no sample of this number.
    pub fn sample(&self, index: usize) -> Result<Packed> {
        let span = self.spans[index];
        let hidden = self.hidden.narrow(0, span.start, span.tokens())?;
        Ok(Packed { hidden, spans: [Span { start: 0, ..span }].into() })
    }

    /// The same samples with other hidden states, `[tokens, d]`.
    pub fn with_hidden(&self, hidden: Tensor) -> Packed {
        Packed { hidden, spans: self.spans.clone() }
    }

    /// The same hidden states with other modality patterns, one for each sample.
    pub fn with_presence(&self, presence: &[Presence]) -> Packed {
        let spans = self.spans.iter().zip(presence).map(|(span, &presence)| Span { presence, ..*span }).collect();
        Packed { hidden: self.hidden.clone(), spans }
    }
}
