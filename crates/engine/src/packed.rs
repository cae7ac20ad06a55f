//! The packed matrix: the tokens of several samples, one sample after another. Operations on single tokens
//! run once over the whole matrix; attention runs for each sample.
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use delo_model::PerModality;
use delo_model::input::Presence;

/// The rows of one sample in the packed matrix: `[text CLS, text…, SEP][image CLS, patches…][prompts…]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The row of the text CLS.
    pub start: usize,
    /// Number of text tokens, including CLS and SEP.
    pub text: usize,
    /// Number of image tokens, including CLS.
    pub image: usize,
    /// Number of prompts: tokens that a method adds. They are part of no query.
    pub prompts: usize,
    /// The modality pattern. The query of a missing modality is replaced by its proxy (METHOD.md 3).
    pub presence: Presence,
}

impl Span {
    /// Number of rows of this sample.
    pub fn tokens(&self) -> usize {
        self.text + self.image + self.prompts
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
        self.image_cls() + 1..self.image_cls() + self.image
    }

    /// Rows of the prompts.
    pub fn prompts(&self) -> Range<usize> {
        self.image_cls() + self.image..self.end()
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

    /// For each modality, its own rows, also where it is missing: those of its dummy. An empty text has CLS
    /// and SEP alone, which then count.
    pub fn own_rows(&self) -> PerModality<Range<usize>> {
        let words = self.words();
        let text = if words.is_empty() { self.start..self.start + self.text } else { words };
        PerModality { image: self.patches(), text }
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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Rows 5..9 are the text (CLS, two words, SEP) and rows 9..12 the image (CLS, two patches).
    const SPAN: Span = Span { start: 5, text: 4, image: 3, prompts: 0, presence: Presence::Complete };

    #[test]
    fn a_span_has_the_rows_of_each_part_of_its_sample() {
        assert_eq!((SPAN.tokens(), SPAN.end(), SPAN.image_cls()), (7, 12, 9));
        assert_eq!((SPAN.words(), SPAN.patches()), (6..8, 10..12));
        let of_empty_text = Span { text: 2, ..SPAN }.words();
        assert!(of_empty_text.is_empty() && of_empty_text.start == 6, "CLS and SEP alone: {of_empty_text:?}");
        assert!(Span { text: 1, ..SPAN }.words().is_empty(), "CLS alone");
        let prompted = Span { prompts: 3, ..SPAN };
        assert_eq!((prompted.tokens(), prompted.end(), prompted.patches(), prompted.prompts()), (10, 15, 10..12, 12..15));
    }

    #[test]
    fn the_query_of_a_missing_modality_is_made_of_the_rows_of_the_other() {
        let rows = |presence| Span { presence, ..SPAN }.query_rows();
        assert_eq!(rows(Presence::Complete), PerModality { image: 10..12, text: 6..8 });
        assert_eq!(rows(Presence::ImageOnly), PerModality { image: 10..12, text: 10..12 });
        assert_eq!(rows(Presence::TextOnly), PerModality { image: 6..8, text: 6..8 });
        let own = |text| Span { text, presence: Presence::ImageOnly, ..SPAN }.own_rows();
        assert_eq!(own(4), PerModality { image: 10..12, text: 6..8 });
        assert_eq!(own(2), PerModality { image: 8..10, text: 5..7 }, "CLS and SEP of an empty text");
    }

    /// Samples of these numbers of text and image tokens. Each row holds its number in this matrix.
    fn packed(first_row: usize, sizes: &[(usize, usize)]) -> Packed {
        let mut start = 0;
        let mut spans = Vec::new();
        for &(text, image) in sizes {
            spans.push(Span { start, text, image, prompts: 0, presence: Presence::Complete });
            start += text + image;
        }
        let numbers: Vec<f32> = (first_row..first_row + start).map(|row| row as f32).collect();
        Packed { hidden: Tensor::from_vec(numbers, (start, 1), &Device::Cpu).unwrap(), spans: spans.into() }
    }

    fn numbers(packed: &Packed) -> Vec<f32> {
        packed.hidden.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn starts(packed: &Packed) -> Vec<usize> {
        packed.spans.iter().map(|span| span.start).collect()
    }

    #[test]
    fn concatenated_matrices_hold_all_samples_in_order() {
        let both = Packed::concat(&[packed(0, &[(2, 2), (3, 1)]), packed(8, &[(2, 1)])]).unwrap();
        assert_eq!(starts(&both), [0, 4, 8]);
        assert_eq!(numbers(&both), (0..11).map(|row| row as f32).collect::<Vec<_>>());
        assert!(Packed::concat(&[]).is_err());
    }

    #[test]
    fn selected_samples_have_their_rows_in_the_order_of_the_selection() {
        let chosen = packed(0, &[(2, 2), (2, 1), (1, 1)]).select(&[2, 0, 2]).unwrap();
        assert_eq!(starts(&chosen), [0, 2, 6]);
        assert_eq!(numbers(&chosen), [7.0, 8.0, 0.0, 1.0, 2.0, 3.0, 7.0, 8.0]);
    }

    #[test]
    fn other_states_or_patterns_leave_the_rest_as_it_is() {
        let plain = packed(0, &[(2, 2), (2, 1)]);
        let moved = plain.with_hidden(packed(100, &[(2, 2), (2, 1)]).hidden);
        assert_eq!((numbers(&moved)[0], &moved.spans), (100.0, &plain.spans));
        let missing = plain.with_presence(&[Presence::TextOnly, Presence::ImageOnly]);
        assert_eq!(numbers(&missing), numbers(&plain));
        let patterns: Vec<Presence> = missing.spans.iter().map(|span| span.presence).collect();
        assert_eq!((patterns, starts(&missing)), (vec![Presence::TextOnly, Presence::ImageOnly], starts(&plain)));
    }
}
