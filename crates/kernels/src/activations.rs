//! The rows of a product in the number format of its kernel.
use super::{Format, Isa, Matrix, Number, RowsMut, RowsRef, parallel};

/// Rows `[rows, k]` as a kernel multiplies them, with the scale of each row.
#[derive(Debug)]
pub struct Activations<'a, F: Format> {
    values: Values<'a, F::Activation>,
    scales: Vec<F::RowScale>,
}

#[derive(Debug)]
enum Values<'a, T: Number> {
    AsStored(RowsRef<'a, T>),
    Quantised(Matrix<T>),
}

impl<'a, F: Format> Activations<'a, F> {
    /// Rows that are stored as they are multiplied, without scales.
    pub fn as_stored(rows: RowsRef<'a, F::Activation>) -> Self {
        Self { values: Values::AsStored(rows), scales: vec![F::RowScale::default(); rows.rows()] }
    }

    /// Brings each row into the format: `quantise` writes the row of numbers and returns its scale. It is
    /// compiled for `isa` where it is `#[inline(always)]`.
    pub fn quantised(
        isa: Isa,
        rows: RowsRef<'_, F::Float>,
        quantise: impl Fn(&[F::Float], &mut [F::Activation]) -> F::RowScale + Sync,
    ) -> Self {
        let mut values = Matrix::zeros(rows.rows(), rows.width());
        let mut scales = vec![F::RowScale::default(); rows.rows()];
        {
            let (values, scales) = (values.view_mut(), RowsMut::new(&mut scales, rows.rows(), 1, 1));
            parallel(rows.rows(), |row| {
                // SAFETY: each row and its scale belong to one task.
                let (to, scale) = unsafe { (values.part(row, 0..rows.width()), scales.part(row, 0..1)) };
                scale[0] = isa.run(
                    #[inline(always)]
                    || quantise(rows.row(row), to),
                );
            });
        }
        Self { values: Values::Quantised(values), scales }
    }

    /// The rows.
    pub fn rows(&self) -> RowsRef<'_, F::Activation> {
        match &self.values {
            Values::AsStored(rows) => *rows,
            Values::Quantised(matrix) => matrix.view(),
        }
    }

    /// The scale of each row.
    pub fn scales(&self) -> &[F::RowScale] {
        &self.scales
    }
}
