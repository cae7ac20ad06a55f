//! The prefixes of a batch's samples in one layer: keys and values beside those of their tokens.
use std::ops::Range;

use delo_kernels::{Float, Matrix, RowsRef};
use delo_model::method::numbers::NumbersRef;
use delo_model::method::prefix::Prefix;

/// Every sample's prefix in one layer, one after another, in the format in which attention multiplies.
pub(super) struct LayerPrefixes<E: Float> {
    /// `[rows, d]`
    keys: Matrix<E>,
    /// `[rows, d]`
    values: Matrix<E>,
    /// The rows of each sample; empty where its task adds no prefix to the layer.
    rows: Vec<Range<usize>>,
}

impl<E: Float> LayerPrefixes<E> {
    /// Copies the prefixes of some samples, whose keys are `d` wide.
    pub fn of(prefixes: &[Option<&Prefix>], d: usize) -> Self {
        let mut end = 0;
        let range = |prefix: &Option<&Prefix>| {
            let start = end;
            end += prefix.map_or(0, Prefix::length);
            start..end
        };
        let rows: Vec<Range<usize>> = prefixes.iter().map(range).collect();
        let mut out = Self { keys: Matrix::zeros(end, d), values: Matrix::zeros(end, d), rows };
        for (prefix, rows) in prefixes.iter().zip(&out.rows) {
            let Some(prefix) = prefix else { continue };
            for (number, row) in rows.clone().enumerate() {
                let [key, value] = prefix.row(number);
                write(key, out.keys.row_mut(row));
                write(value, out.values.row_mut(row));
            }
        }
        out
    }

    /// The keys and the values of all prefixes.
    pub fn parts(&self) -> [RowsRef<'_, E>; 2] {
        [self.keys.view(), self.values.view()]
    }

    /// The rows of a sample's prefix.
    pub fn rows(&self, sample: usize) -> Range<usize> {
        self.rows[sample].clone()
    }
}

fn write<E: Float>(from: NumbersRef<'_>, to: &mut [E]) {
    match from {
        NumbersRef::F32(values) => to.iter_mut().zip(values).for_each(|(to, &x)| *to = E::of(x)),
        NumbersRef::Bf16(values) => to.iter_mut().zip(values).for_each(|(to, x)| *to = E::of(x.get())),
    }
}
