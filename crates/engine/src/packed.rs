//! Several samples' tokens in one stream: what is computed per token runs once over everything, attention runs per sample.
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use delo_model::PerModality;
use delo_model::input::Presence;

/// Where one sample stands in the stream: `[text CLS, text…, SEP][image CLS, patches…]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The row of the text CLS.
    pub start: usize,
    /// Text tokens, CLS and SEP included.
    pub text: usize,
    /// Image tokens, CLS included.
    pub image: usize,
    /// Which query signals are true; the other is replaced by its proxy (METHOD.md 3).
    pub presence: Presence,
}

impl Span {
    /// Rows of this sample.
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

    /// The rows whose mean is the query of each modality: its own, or the proxy's where it is missing (METHOD.md 3).
    pub fn query_rows(&self) -> PerModality<Range<usize>> {
        let (image, text) = (self.patches(), self.words());
        match self.presence {
            Presence::Complete => PerModality { image, text },
            Presence::ImageOnly => PerModality { image: image.clone(), text: image },
            Presence::TextOnly => PerModality { image: text.clone(), text },
        }
    }
}

/// Hidden states of several samples, one after another.
#[derive(Clone, Debug)]
pub struct Packed {
    /// `[tokens, d]`
    pub hidden: Tensor,
    /// One for each sample, in order; together they cover all rows.
    pub spans: Arc<[Span]>,
}

impl Packed {
    /// One stream from several, in order.
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

    /// The samples at `rows`, in that order; a sample may come more than once.
    pub fn select(&self, rows: &[usize]) -> Result<Packed> {
        let parts: Vec<_> = rows.iter().map(|&row| self.sample(row)).collect::<Result<_>>()?;
        Self::concat(&parts)
    }

    /// One sample as a stream of its own; shares the storage.
    pub fn sample(&self, row: usize) -> Result<Packed> {
        let span = self.spans[row];
        let hidden = self.hidden.narrow(0, span.start, span.tokens())?;
        Ok(Packed { hidden, spans: [Span { start: 0, ..span }].into() })
    }

    /// The same stream with another hidden state.
    pub fn with_hidden(&self, hidden: Tensor) -> Packed {
        Packed { hidden, spans: self.spans.clone() }
    }

    /// The same stream with these modality patterns, one for each sample.
    pub fn with_presence(&self, presence: &[Presence]) -> Packed {
        let spans = self.spans.iter().zip(presence).map(|(span, &presence)| Span { presence, ..*span }).collect();
        Packed { hidden: self.hidden.clone(), spans }
    }
}
