//! What a method adds to one layer while it learns: low-rank updates, prompts and prefixes (METHOD.md 8).
use candle_core::{Device, Result, Tensor, bail};

use crate::packed::{Packed, Span};
use delo_model::method::FactorPairs;

/// What is added to one layer, for each sample of a packed matrix. Gradients reach all of it.
#[derive(Debug, Default)]
pub struct Additions {
    /// Low-rank updates of query, key and value.
    pub pairs: Option<FactorPairs>,
    /// Tokens that go through this layer and the following ones, behind the sample's own.
    pub prompts: Option<Prompts>,
    /// Keys and values that every token of the sample attends to in this layer, beside those of the tokens:
    /// `[rows, 2 d]`, the key, then the value. They pass through no norm and no projection.
    pub prefix: Option<SampleRows>,
}

impl Additions {
    /// Whether nothing is added.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_none() && self.prompts.is_none() && self.prefix.is_none()
    }

    /// The same numbers, which no gradient reaches: where nothing learns, layers keep nothing for a backward
    /// pass.
    #[must_use]
    pub fn detach(self) -> Self {
        let rows = |SampleRows { rows, lengths }: SampleRows| SampleRows { rows: rows.detach(), lengths };
        Self {
            pairs: self.pairs.map(|FactorPairs { a, b, pairs }| FactorPairs { a: a.detach(), b: b.detach(), pairs }),
            prompts: self.prompts.map(|prompts| match prompts {
                Prompts::Append(added) => Prompts::Append(rows(added)),
                Prompts::Replace(added) => Prompts::Replace(rows(added)),
            }),
            prefix: self.prefix.map(rows),
        }
    }
}

/// Prompts of a layer, `[rows, d]`. Attention does not see the order of its keys, and positions are part of
/// the embeddings: a prompt behind the tokens is the same as one before them.
#[derive(Debug)]
pub enum Prompts {
    /// Behind the prompts of earlier layers: the sequence grows from layer to layer.
    Append(SampleRows),
    /// In place of the prompts of earlier layers.
    Replace(SampleRows),
}

/// Rows of several samples, one sample after another. The numbers of rows may differ.
#[derive(Clone, Debug)]
pub struct SampleRows {
    /// `[Σ lengths, width]`
    pub rows: Tensor,
    /// Rows of each sample.
    pub lengths: Vec<usize>,
}

impl SampleRows {
    /// As many rows for each sample: `[samples, length, width]`.
    ///
    /// # Errors
    /// A tensor of another rank.
    pub fn equal(rows: &Tensor) -> Result<Self> {
        let (samples, length, _) = rows.dims3()?;
        Ok(Self { rows: rows.flatten(0, 1)?, lengths: vec![length; samples] })
    }

    /// Refuses rows that are not of so many samples or not so wide.
    pub(super) fn check(&self, samples: usize, width: usize) -> Result<()> {
        let total: usize = self.lengths.iter().sum();
        if self.lengths.len() != samples || self.rows.dims() != [total, width] {
            bail!(
                "rows {:?} of {} samples with {total} rows, expected {samples} samples and rows of {width} numbers",
                self.rows.dims(),
                self.lengths.len()
            );
        }
        Ok(())
    }
}

impl Prompts {
    /// The samples of `state` with these prompts behind their tokens.
    ///
    /// # Errors
    /// Prompts of another number of samples or another width.
    pub(super) fn join(&self, state: &Packed) -> Result<Packed> {
        let (SampleRows { rows, lengths }, keeps) = match self {
            Self::Append(rows) => (rows, true),
            Self::Replace(rows) => (rows, false),
        };
        let (tokens, d) = state.hidden.dims2()?;
        let (Self::Append(added) | Self::Replace(added)) = self;
        added.check(state.spans.len(), d)?;
        let (mut index, mut spans, mut next) = (Vec::new(), Vec::new(), tokens);
        for (span, &length) in state.spans.iter().zip(lengths) {
            let kept = if keeps { span.prompts } else { 0 };
            let start = index.len();
            index.extend((span.start..span.prompts().start + kept).map(|row| row as u32));
            index.extend((next..next + length).map(|row| row as u32));
            next += length;
            spans.push(Span { start, prompts: kept + length, ..*span });
        }
        let all = if rows.elem_count() == 0 { state.hidden.clone() } else { Tensor::cat(&[&state.hidden, rows], 0)? };
        let count = index.len();
        let hidden = all.index_select(&Tensor::from_vec(index, count, &Device::Cpu)?, 0)?;
        Ok(Packed { hidden, spans: spans.into() })
    }
}
