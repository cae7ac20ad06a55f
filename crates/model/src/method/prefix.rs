//! Keys and values that a method puts beside those of a sample's tokens in one layer.
use delo_kernels::Precision;

use super::numbers::{Numbers, NumbersRef};

/// The prefix of one layer, ready to serve: every token of a sample attends to its keys and values, as to
/// those of the sample's tokens. They pass through no norm and no projection.
#[derive(Clone, Debug)]
pub struct Prefix {
    hidden: usize,
    /// `[length, d]`
    keys: Numbers,
    /// `[length, d]`
    values: Numbers,
}

impl Prefix {
    /// A prefix of keys and values `[length, d]`, d = `hidden`.
    ///
    /// # Panics
    /// If there are not as many values as keys, or no whole rows.
    pub fn new(hidden: usize, keys: Vec<f32>, values: Vec<f32>) -> Self {
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(hidden), "{} and {} numbers", keys.len(), values.len());
        Self { hidden, keys: Numbers::F32(keys), values: Numbers::F32(values) }
    }

    /// How many keys, and as many values, it has.
    pub fn length(&self) -> usize {
        self.keys.len() / self.hidden
    }

    /// One row of the keys and one of the values, `[d]` each.
    pub fn row(&self, row: usize) -> [NumbersRef<'_>; 2] {
        [&self.keys, &self.values].map(|numbers| numbers.slice(row * self.hidden, self.hidden))
    }

    /// The same numbers in another format.
    #[must_use]
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { keys: self.keys.in_precision(precision), values: self.values.in_precision(precision), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_key_and_its_value_in_either_format() {
        let prefix = Prefix::new(2, vec![1.0, 2.0, 3.0, 4.0], vec![5.0, 6.0, 7.0, 8.0]);
        for prefix in [prefix.clone(), prefix.in_precision(Precision::Bf16)] {
            assert_eq!(prefix.length(), 2);
            let row = prefix.row(1).map(|row| {
                let mut out = [0.0; 2];
                row.widen(&mut out);
                out
            });
            assert_eq!(row, [[3.0, 4.0], [7.0, 8.0]]);
        }
    }

    #[test]
    #[should_panic(expected = "4 and 2 numbers")]
    fn a_key_without_a_value_is_refused() {
        Prefix::new(2, vec![0.0; 4], vec![0.0; 2]);
    }
}
