//! The product of rows with packed weights, block by block; each block is handed on while it is in the cache.
use std::ops::Range;

use super::matrix::LINE;
use super::micro::{Kernel, Start};
use super::{Float, Format, Isa, Number, PANEL, PackedMatrix, RowsMut, RowsRef, parallel, threads};

/// Bytes of rows that a thread reads again for each panel: half of a small second-level cache.
const ROWS_IN_CACHE: usize = 384 << 10;
/// Rows of its own that a thread has at least. With fewer, reading the rows from a thread's own cache gains
/// less than is lost since each thread then reads all weights.
const OWN_ROWS: usize = 32;
/// Rows of one block of results, at most: they stay in the first-level cache.
const BLOCK: usize = 128;

/// A block of results: `[rows, PANEL]` of f32; the first `columns` of each row belong to the product, the
/// rest is padding.
pub struct Tile<'a> {
    /// The product's row that is the tile's first.
    pub row: usize,
    /// Rows of the tile.
    pub rows: usize,
    /// The product's column that is the tile's first.
    pub column: usize,
    /// Columns of the tile, at most [`PANEL`].
    pub columns: usize,
    values: &'a mut [[f32; PANEL]],
}

impl Tile<'_> {
    /// One row of results, as wide as a panel.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[f32; PANEL] {
        &self.values[row]
    }

    /// One row of results, to change.
    #[inline(always)]
    pub fn row_mut(&mut self, row: usize) -> &mut [f32; PANEL] {
        &mut self.values[row]
    }

    /// Rounds the results into the same cells of `out`.
    ///
    /// # Safety
    /// No two threads write the same cells at the same time.
    #[inline(always)]
    pub unsafe fn store<E: Float>(&self, isa: Isa, out: &RowsMut<'_, E>) {
        for row in 0..self.rows {
            // SAFETY: by the caller's promise.
            let out = unsafe { out.part(self.row + row, self.column..self.column + self.columns) };
            if let Ok(out) = out.try_into() {
                E::round(isa, self.row(row), out);
            } else {
                let mut rounded = [E::default(); PANEL];
                E::round(isa, self.row(row), &mut rounded);
                out.copy_from_slice(&rounded[..out.len()]);
            }
        }
    }

    /// Adds `rows` of the tile to the rows of `out` from `to` on.
    ///
    /// # Safety
    /// As [`Self::store`], and the processor has the instructions `isa`.
    #[inline(always)]
    pub unsafe fn add_to(&self, isa: Isa, out: &RowsMut<'_, f32>, rows: Range<usize>, to: usize) {
        if self.columns == PANEL {
            // SAFETY: by the caller's promise.
            unsafe { out.add(isa, &self.values[rows], to, self.column) };
            return;
        }
        for (row, to) in rows.zip(to..) {
            // SAFETY: by the caller's promise.
            let out = unsafe { out.part(to, self.column..self.column + self.columns) };
            out.iter_mut().zip(self.row(row)).for_each(|(o, x)| *o += x);
        }
    }

    /// Changes every number.
    #[inline(always)]
    pub fn map(&mut self, f: impl Fn(f32) -> f32) {
        self.values.as_flattened_mut().iter_mut().for_each(|x| *x = f(*x));
    }

    /// All rows from one on, flat.
    #[inline(always)]
    pub fn rows_from(&mut self, row: usize) -> &mut [f32] {
        self.values[row..].as_flattened_mut()
    }
}

/// What is done with each block of results. Blocks come in any order, from several threads, and no two cover
/// the same cell. Implementations are `#[inline(always)]`, so that they are compiled for the kernel's
/// instructions.
pub trait TileSink: Sync {
    /// Takes one block.
    fn tile(&self, tile: &mut Tile<'_>);
}

/// `x Wᵀ + bias`, block by block into `sink`: x is `[rows, k]`, W `[n, k]`, the bias `[n]` or zeros. Each
/// number is one chain over k, in the same order whatever rows are beside it.
///
/// # Panics
/// Where the widths differ.
pub fn product<F: Format>(
    kernel: &Kernel<F>,
    x: RowsRef<'_, F::Float>,
    weights: &PackedMatrix<F>,
    bias: Option<&[f32]>,
    sink: &impl TileSink,
) {
    product_panels(kernel, x, weights, bias, 0..weights.panels(), sink);
}

/// Some of the panels of columns of [`product`].
///
/// # Panics
/// As there.
pub fn product_panels<F: Format>(
    kernel: &Kernel<F>,
    x: RowsRef<'_, F::Float>,
    weights: &PackedMatrix<F>,
    bias: Option<&[f32]>,
    chosen: Range<usize>,
    sink: &impl TileSink,
) {
    // A step of k ends within the zeros that follow a row.
    const { assert!(LINE.is_multiple_of(F::K_STEP * size_of::<F::Activation>())) };
    assert_eq!(x.width(), weights.k(), "width of the rows and of the weights");
    assert!(chosen.end <= weights.panels(), "panels of the weights");
    let (rows, panels) = (x.rows(), chosen.len());
    if rows == 0 || panels == 0 {
        return;
    }
    let activations = F::activations(kernel.isa, x);
    let (x, row_scales) = (activations.rows(), activations.scales());
    // Threads that have rows of their own.
    let owners = threads().min(rows / OWN_ROWS).max(1);
    let block = block_rows(kernel.rows, rows, owners);
    let blocks = rows.div_ceil(block);
    // Row blocks that stay in the cache together.
    let cached = (ROWS_IN_CACHE / (block * x.stride() * size_of::<F::Activation>())).clamp(1, blocks.div_ceil(owners));
    let row_pieces = blocks.div_ceil(cached);
    // Enough pieces that the last one does not make the other threads wait, few enough to keep rows in the
    // cache.
    let wanted = (8 * threads()).div_ceil(row_pieces);
    let run = panels.div_ceil(wanted.min(panels));
    let runs = panels.div_ceil(run);
    parallel(row_pieces * runs, |task| {
        let mut sums = Sums([F::Accumulator::default(); BLOCK * PANEL]);
        let (first_block, first_panel) = (task / runs * cached, chosen.start + task % runs * run);
        for panel in first_panel..chosen.end.min(first_panel + run) {
            let column = panel * PANEL;
            let columns = PANEL.min(weights.n() - column);
            let mut panel_bias = [0.0; PANEL];
            if let Some(bias) = bias {
                panel_bias[..columns].copy_from_slice(&bias[column..column + columns]);
            }
            let column_scales = weights.scales(panel);
            let start = F::start(&panel_bias, column_scales);
            for index in first_block..blocks.min(first_block + cached) {
                let row = index * block;
                let count = block.min(rows - row);
                kernel.multiply(
                    x.range(row..row + count),
                    weights.padded_k(),
                    weights.panel(panel),
                    Start::Columns(&start),
                    &mut sums.0[..count * PANEL],
                    PANEL,
                );
                let sums = &mut sums.0.as_chunks_mut().0[..count];
                kernel.isa.run(
                    #[inline(always)]
                    || {
                        let values = F::finish(sums, &row_scales[row..row + count], column_scales, &panel_bias);
                        sink.tile(&mut Tile { row, rows: count, column, columns, values });
                    },
                );
            }
        }
    });
}

/// On a cache line, where vector stores are fastest.
#[repr(align(64))]
struct Sums<A: Number>([A; BLOCK * PANEL]);

/// Rows of a block: a multiple of what the kernel does at once. Blocks are about equally long, and each owner
/// has equally many.
fn block_rows(step: usize, rows: usize, owners: usize) -> usize {
    let most = (BLOCK / step).max(1) * step;
    let blocks = rows.div_ceil(most).next_multiple_of(owners);
    rows.div_ceil(blocks).next_multiple_of(step).min(most)
}
