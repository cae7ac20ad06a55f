//! Numbers of a resident partition, in f32 or bf16.
use delo_kernels::elementwise::{dot, sum};
use delo_kernels::{Float, Precision, bf16};

/// Numbers of a resident partition.
#[derive(Clone, Debug)]
pub enum Numbers {
    /// In f32.
    F32(Vec<f32>),
    /// In bf16.
    Bf16(Vec<bf16>),
}

impl Numbers {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `len` numbers from `start` on.
    pub fn slice(&self, start: usize, len: usize) -> NumbersRef<'_> {
        match self {
            Self::F32(values) => NumbersRef::F32(&values[start..start + len]),
            Self::Bf16(values) => NumbersRef::Bf16(&values[start..start + len]),
        }
    }

    /// A copy in f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(values) => values.clone(),
            Self::Bf16(values) => values.iter().map(|x| x.get()).collect(),
        }
    }

    /// The same numbers in another format.
    #[must_use]
    pub fn in_precision(self, precision: Precision) -> Self {
        match (self, precision) {
            (Self::F32(values), Precision::Bf16) => Self::Bf16(values.into_iter().map(bf16::of).collect()),
            (Self::Bf16(values), Precision::F32) => Self::F32(values.into_iter().map(Float::get).collect()),
            (same, _) => same,
        }
    }
}

/// A range of [`Numbers`], borrowed.
#[derive(Clone, Copy, Debug)]
pub enum NumbersRef<'a> {
    /// In f32.
    F32(&'a [f32]),
    /// In bf16.
    Bf16(&'a [bf16]),
}

impl NumbersRef<'_> {
    /// Σ x·y with numbers in f32, summed in the fixed order of [`sum`].
    #[inline(always)]
    pub fn dot(self, other: &[f32]) -> f32 {
        match self {
            Self::F32(values) => dot(values, other),
            Self::Bf16(values) => {
                let n = values.len().min(other.len());
                let (values, other) = (&values[..n], &other[..n]);
                sum(n, |i| values[i].get() * other[i])
            }
        }
    }

    /// Writes the numbers to the start of `out` in f32.
    ///
    /// # Panics
    /// If `out` is shorter.
    #[inline(always)]
    pub fn widen(self, out: &mut [f32]) {
        match self {
            Self::F32(values) => out[..values.len()].copy_from_slice(values),
            Self::Bf16(values) => out.iter_mut().zip(values).for_each(|(o, x)| *o = x.get()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that bf16 holds exactly.
    const VALUES: [f32; 6] = [0.5, -2.0, 3.0, 1.25, -0.75, 8.0];

    #[test]
    fn numbers_that_bf16_holds_are_the_same_in_both_formats() {
        let plain = Numbers::F32(VALUES.to_vec());
        let half = plain.clone().in_precision(Precision::Bf16);
        assert!(matches!(half, Numbers::Bf16(_)), "{half:?}");
        assert!(matches!(half.clone().in_precision(Precision::F32), Numbers::F32(_)));
        for numbers in [plain, half] {
            assert_eq!(numbers.to_f32(), VALUES);
            let middle = numbers.slice(1, 3);
            let mut out = [9.0; 4];
            middle.widen(&mut out);
            assert_eq!(out, [-2.0, 3.0, 1.25, 9.0], "the rest of `out` is left");
            assert_eq!(middle.dot(&[1.0, 2.0, 4.0]), 9.0);
        }
    }
}
