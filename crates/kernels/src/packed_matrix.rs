//! Weights in the order in which a product reads them.
use std::sync::{Mutex, PoisonError};

use aligned_vec::{AVec, ConstAlign};

use super::{Format, PANEL, parallel};

/// A matrix `[n, k]` (a linear map's weight), packed once, with the scale of each of its rows, which are the
/// columns of a product's results.
///
/// [`PANEL`] rows make a panel. In a panel stand [`Format::K_INTERLEAVE`] neighbours in k of each of its
/// rows, then the next neighbours of each of them. k is padded with zeros to whole steps, n to whole panels.
/// Every kernel of a format reads this one layout.
#[derive(Debug)]
pub struct PackedMatrix<F: Format> {
    panels: AVec<F::Weight, ConstAlign<64>>,
    /// One for each column of each panel, padding included.
    scales: Vec<F::ColumnScale>,
    n: usize,
    k: usize,
    padded_k: usize,
}

impl<F: Format> PackedMatrix<F> {
    /// Packs the rows below each other of several `[n_i, k]` matrices, row-major.
    ///
    /// # Panics
    /// Where a matrix is no multiple of `k` long.
    pub fn new(parts: &[&[f32]], k: usize) -> Self {
        assert!(k > 0 && parts.iter().all(|part| part.len() % k == 0), "rows of {k}");
        let rows: Vec<&[f32]> = parts.iter().flat_map(|part| part.chunks_exact(k)).collect();
        let (n, padded_k) = (rows.len(), k.next_multiple_of(F::K_STEP));
        let count = n.div_ceil(PANEL);
        let mut panels: AVec<F::Weight, ConstAlign<64>> = AVec::new(64);
        panels.resize(count * padded_k * PANEL, F::Weight::default());
        let mut scales = vec![F::ColumnScale::default(); count * PANEL];
        let targets = panels.chunks_exact_mut(padded_k * PANEL).zip(scales.chunks_exact_mut(PANEL));
        let targets: Vec<_> = targets.map(Mutex::new).collect();
        parallel(targets.len(), |panel| {
            let rows = &rows[panel * PANEL..n.min((panel + 1) * PANEL)];
            // One thread packs a panel; no other thread ever takes its lock.
            let mut target = targets[panel].lock().unwrap_or_else(PoisonError::into_inner);
            let (values, scales) = &mut *target;
            for (column, row) in rows.iter().enumerate() {
                let scale = F::column_scale(row);
                scales[column] = scale;
                pack_column::<F>(values, column, row.iter().map(|&x| F::weight(x, scale)));
            }
        });
        drop(targets);
        Self { panels, scales, n, k, padded_k }
    }

    /// The numbers that the weights stand for, `[n, k]`, row-major.
    pub fn unpack(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n * self.k];
        for (row, values) in out.chunks_exact_mut(self.k).enumerate() {
            let (panel, column) = (self.panel(row / PANEL), row % PANEL);
            for (k, value) in values.iter_mut().enumerate() {
                let index = (k / F::K_INTERLEAVE * PANEL + column) * F::K_INTERLEAVE + k % F::K_INTERLEAVE;
                *value = F::weight_value(panel[index], self.scales[row]);
            }
        }
        out
    }

    /// The transpose, packed: the weight of the backward pass.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let from = self.unpack();
        let mut turned = vec![0.0; from.len()];
        for (i, row) in from.chunks_exact(self.k).enumerate() {
            row.iter().enumerate().for_each(|(j, &x)| turned[j * self.n + i] = x);
        }
        Self::new(&[&turned], self.n)
    }

    /// Rows of the matrix, which are columns of a product's results.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns of the matrix.
    pub fn k(&self) -> usize {
        self.k
    }

    /// k with its padding.
    pub fn padded_k(&self) -> usize {
        self.padded_k
    }

    /// The number of panels.
    pub fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// The weights of a panel, `padded_k · PANEL` of them.
    ///
    /// # Panics
    /// Beyond the last panel.
    pub fn panel(&self, panel: usize) -> &[F::Weight] {
        &self.panels[panel * self.padded_k * PANEL..(panel + 1) * self.padded_k * PANEL]
    }

    /// The scales of a panel's columns.
    ///
    /// # Panics
    /// Beyond the last panel.
    pub fn scales(&self, panel: usize) -> &[F::ColumnScale; PANEL] {
        &self.scales.as_chunks().0[panel]
    }
}

/// Writes one column of a panel.
#[inline(always)]
pub fn pack_column<F: Format>(panel: &mut [F::Weight], column: usize, mut values: impl Iterator<Item = F::Weight>) {
    for group in panel.chunks_exact_mut(PANEL * F::K_INTERLEAVE) {
        for cell in &mut group[column * F::K_INTERLEAVE..(column + 1) * F::K_INTERLEAVE] {
            let Some(value) = values.next() else { return };
            *cell = value;
        }
    }
}
