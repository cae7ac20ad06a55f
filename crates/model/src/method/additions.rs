//! What a method adds to one layer while it learns: low-rank updates, prompts and prefixes (METHOD.md 2, 8).
use candle_core::{Result, Tensor, bail};

use crate::modality::PerModality;

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

/// What decides a sample's part of a method in a layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerInput<'a> {
    /// The queries of the state that enters the layer, `[samples, d]` for each modality (METHOD.md 2, 3).
    pub queries: PerModality<&'a Tensor>,
    /// The text CLS of the frozen backbone after its final norm, `[samples, d]`; `Some` where the method
    /// chooses prompts by it ([`super::MethodSpec::reads_frozen_cls`]).
    pub frozen_cls: Option<&'a Tensor>,
}

/// The low-rank updates of some samples in one layer. The update of a target is Σ b ⊗ a over its pairs.
#[derive(Debug)]
pub struct FactorPairs {
    /// The factors a, `[samples, targets · pairs, d]`, target by target.
    pub a: Tensor,
    /// The factors b, multiplied by α, in the same shape and order.
    pub b: Tensor,
    /// Pairs of one target.
    pub pairs: usize,
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

/// The keys of the prompts that some samples take, each beside the sample that takes it. The loss draws them
/// to one another: METHOD.md 8.
#[derive(Debug)]
pub struct ChosenKeys {
    /// `[samples · chosen, d]`; gradients reach them.
    pub keys: Tensor,
    /// The frozen text CLS of the sample, `[samples · chosen, d]`.
    pub queries: Tensor,
    /// Keys of one sample.
    pub chosen: usize,
}

/// Rows of several samples, one sample after another. The numbers of rows may differ.
#[derive(Clone, Debug)]
pub struct SampleRows {
    /// `[Σ lengths, width]`
    pub rows: Tensor,
    /// Rows of each sample.
    pub lengths: Vec<usize>,
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

impl From<FactorPairs> for Additions {
    fn from(pairs: FactorPairs) -> Self {
        Self { pairs: Some(pairs), ..Self::default() }
    }
}

impl LayerInput<'_> {
    /// The number of samples.
    ///
    /// # Errors
    /// Queries of another rank.
    pub fn samples(&self) -> Result<usize> {
        self.queries.image.dim(0)
    }
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

    /// The same rows for each of some samples: `[length, width]`.
    ///
    /// # Errors
    /// A tensor of another rank.
    pub fn repeated(rows: &Tensor, samples: usize) -> Result<Self> {
        let (length, width) = rows.dims2()?;
        Self::equal(&rows.unsqueeze(0)?.expand((samples, length, width))?.contiguous()?)
    }

    /// Refuses rows that are not of so many samples or not so wide.
    ///
    /// # Errors
    /// A sentence with what was found and what was expected.
    pub fn check(&self, samples: usize, width: usize) -> Result<()> {
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
