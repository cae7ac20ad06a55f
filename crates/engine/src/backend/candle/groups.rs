//! Samples of as many tokens, side by side: what a stream's samples do each on their own, such a group does as one batch, and nothing is padded.
use candle_core::{Result, Tensor};

use crate::packed::Span;

/// The samples of a stream that have one number of tokens.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Their places in the batch, rising.
    pub samples: Vec<usize>,
    /// The first row of each in the stream.
    starts: Vec<usize>,
    /// Rows of each.
    pub rows: usize,
}

impl Group {
    /// All samples, in groups by the first of each.
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

    /// The same samples in a stream that holds one row of each.
    pub fn of_one_row(&self) -> Self {
        Self { samples: self.samples.clone(), starts: self.samples.clone(), rows: 1 }
    }

    /// Out of a stream: `[tokens, width]` → `[samples, rows, width]`.
    pub fn take(&self, stream: &Tensor) -> Result<Tensor> {
        let (samples, width) = (self.samples.len(), stream.dim(1)?);
        let adjoin = self.starts.windows(2).all(|pair| pair[0] + self.rows == pair[1]);
        let rows = if adjoin {
            stream.narrow(0, self.starts[0], samples * self.rows)?
        } else {
            pick(stream, self.starts.iter().map(|&start| (start, self.rows)))?
        };
        rows.reshape((samples, self.rows, width))
    }
}

/// Back into one stream, sample by sample: `[samples, rows, width]` of each group → `[tokens, width]`.
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

/// Some ranges of rows, (start, rows) each, one after another.
pub(super) fn pick(stream: &Tensor, ranges: impl Iterator<Item = (usize, usize)>) -> Result<Tensor> {
    let parts = ranges.map(|(start, rows)| stream.narrow(0, start, rows)).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, 0)
}
