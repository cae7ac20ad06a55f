//! Groups of samples with the same number of tokens. Attention and low-rank updates, which run for each
//! sample, run for a whole group as one batched operation, without padding.
use candle_core::{Result, Tensor};

use crate::packed::Span;

/// The samples of a batch that have the same number of tokens.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Their numbers in the batch, in ascending order.
    pub samples: Vec<usize>,
    /// The first row of each in the packed matrix.
    starts: Vec<usize>,
    /// Number of rows of each.
    pub rows: usize,
}

impl Group {
    /// All samples of a batch in groups, in the order of the first sample of each group.
    pub fn of(spans: &[Span]) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        for (sample, span) in spans.iter().enumerate() {
            let rows = span.tokens();
            let group = groups.iter().position(|group| group.rows == rows).unwrap_or_else(|| {
                groups.push(Self { samples: Vec::new(), starts: Vec::new(), rows });
                groups.len() - 1
            });
            groups[group].samples.push(sample);
            groups[group].starts.push(span.start);
        }
        groups
    }

    /// The same samples in a matrix that holds one row of each sample of the batch.
    pub fn of_one_row(&self) -> Self {
        Self { samples: self.samples.clone(), starts: self.samples.clone(), rows: 1 }
    }

    /// The group's rows of a packed matrix: `[tokens, width]` → `[samples, rows, width]`.
    pub fn take(&self, packed: &Tensor) -> Result<Tensor> {
        let (samples, width) = (self.samples.len(), packed.dim(1)?);
        let adjoin = self.starts.windows(2).all(|pair| pair[0] + self.rows == pair[1]);
        let rows = if adjoin {
            packed.narrow(0, self.starts[0], samples * self.rows)?
        } else {
            pick(packed, self.starts.iter().map(|&start| (start, self.rows)))?
        };
        rows.reshape((samples, self.rows, width))
    }
}

/// Puts the groups' rows back into one packed matrix, sample by sample: `[samples, rows, width]` of each
/// group → `[tokens, width]`.
pub(super) fn merge(groups: &[Group], parts: &[Tensor]) -> Result<Tensor> {
    if let [part] = parts {
        return part.flatten(0, 1);
    }
    let places = groups.iter().zip(parts).flat_map(|(group, part)| group.samples.iter().enumerate().map(move |at| (at, part)));
    let mut places: Vec<((usize, &usize), &Tensor)> = places.collect();
    places.sort_by_key(|((_, sample), _)| **sample);
    let rows = places.into_iter().map(|((at, _), part)| part.get(at)).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&rows, 0)
}

/// Ranges of rows of a packed matrix, each as (first row, number of rows), one after another.
pub(super) fn pick(packed: &Tensor, ranges: impl Iterator<Item = (usize, usize)>) -> Result<Tensor> {
    let parts = ranges.map(|(start, rows)| packed.narrow(0, start, rows)).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, 0)
}
