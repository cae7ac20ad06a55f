//! Weights in the order in which a product reads them.
use aligned_vec::{AVec, ConstAlign};

use super::{Element, PANEL, parallel};

/// A matrix `[n, k]` (a linear map's weight) packed once: panels of [`PANEL`] of its rows, and in a panel, k group by group, each group
/// [`Element::GROUP`] long, for all its rows. k is padded with zeros to whole steps, n to whole panels. One layout serves every kernel.
#[derive(Debug)]
pub struct PackedMatrix<E: Element> {
    panels: AVec<E, ConstAlign<64>>,
    n: usize,
    k: usize,
    steps_k: usize,
}

impl<E: Element> PackedMatrix<E> {
    /// Packs the rows below each other of several `[n_i, k]` matrices, row-major.
    ///
    /// # Panics
    /// Where a matrix is no multiple of `k` long.
    pub fn new(parts: &[&[f32]], k: usize) -> Self {
        assert!(k > 0 && parts.iter().all(|part| part.len() % k == 0), "rows of {k}");
        let rows: Vec<&[f32]> = parts.iter().flat_map(|part| part.chunks_exact(k)).collect();
        let (n, steps_k) = (rows.len(), k.next_multiple_of(E::STEP));
        let mut panels: AVec<E, ConstAlign<64>> = AVec::new(64);
        panels.resize(n.div_ceil(PANEL) * steps_k * PANEL, E::default());
        let targets: Vec<_> = panels.chunks_exact_mut(steps_k * PANEL).map(std::sync::Mutex::new).collect();
        parallel(targets.len(), |panel| {
            let rows = &rows[panel * PANEL..n.min((panel + 1) * PANEL)];
            // Each panel is packed by one thread; nobody else ever takes its lock.
            let mut target = targets[panel].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (column, row) in rows.iter().enumerate() {
                pack_column(&mut target, column, row.iter().map(|&x| E::of(x)));
            }
        });
        drop(targets);
        Self { panels, n, k, steps_k }
    }

    /// The matrix `[n, k]`, row-major, as it was packed.
    pub fn unpack(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n * self.k];
        for (row, values) in out.chunks_exact_mut(self.k).enumerate() {
            let (panel, column) = (self.panel(row / PANEL), row % PANEL);
            for (k, value) in values.iter_mut().enumerate() {
                *value = panel[(k / E::GROUP * PANEL + column) * E::GROUP + k % E::GROUP].get();
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

    pub fn n(&self) -> usize {
        self.n
    }

    pub fn k(&self) -> usize {
        self.k
    }

    /// k with its padding.
    pub fn steps_k(&self) -> usize {
        self.steps_k
    }

    pub fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    pub fn panel(&self, panel: usize) -> &[E] {
        &self.panels[panel * self.steps_k * PANEL..(panel + 1) * self.steps_k * PANEL]
    }
}

/// Writes one column of a panel.
#[inline(always)]
pub fn pack_column<E: Element>(panel: &mut [E], column: usize, mut values: impl Iterator<Item = E>) {
    for group in panel.chunks_exact_mut(PANEL * E::GROUP) {
        for cell in &mut group[column * E::GROUP..(column + 1) * E::GROUP] {
            let Some(value) = values.next() else { return };
            *cell = value;
        }
    }
}
