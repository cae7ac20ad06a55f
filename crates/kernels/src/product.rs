//! The product of rows with packed weights, block by block, each block handed on while it is in the cache.
use std::ops::Range;

use super::micro::{Element, Kernel, Start};
use super::{Isa, PANEL, PackedMatrix, RowsMut, RowsRef, parallel, threads};

/// Bytes of rows that a thread walks over again and again while panels pass by: half of a small second-level cache.
const ROWS_IN_CACHE: usize = 384 << 10;
/// Rows of its own that a thread has at least: with fewer, what it saves on rows is lost on weights, which each thread then reads whole.
const OWN_ROWS: usize = 32;
/// Rows of one block of results, at most: they stay in the first-level cache.
const BLOCK: usize = 128;

/// A block of results: `[rows, PANEL]` of f32, of which the first `columns` count.
pub struct Tile<'a> {
    pub row: usize,
    pub rows: usize,
    pub column: usize,
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
    pub unsafe fn store<E: Element>(&self, isa: Isa, out: &RowsMut<'_, E>) {
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

    /// Adds the results to `out`, whose row `to` is that of the tile's first.
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

/// What is done with each block of results. Blocks come in any order, from several threads, and no two cover the same cell.
/// Implementations are `#[inline(always)]`, so that they are compiled for the kernel's instructions.
pub trait TileSink: Sync {
    fn tile(&self, tile: &mut Tile<'_>);
}

/// `x Wᵀ + bias`, block by block into `sink`. Each number is one chain over k, in the same order whatever rows are beside it.
///
/// # Panics
/// Where the widths differ.
pub fn product<E: Element>(kernel: &Kernel<E>, x: RowsRef<'_, E>, weights: &PackedMatrix<E>, bias: Option<&[f32]>, sink: &impl TileSink) {
    product_panels(kernel, x, weights, bias, 0..weights.panels(), sink);
}

/// Some of the panels of columns of [`product`].
///
/// # Panics
/// As there.
pub fn product_panels<E: Element>(
    kernel: &Kernel<E>,
    x: RowsRef<'_, E>,
    weights: &PackedMatrix<E>,
    bias: Option<&[f32]>,
    chosen: Range<usize>,
    sink: &impl TileSink,
) {
    assert_eq!(x.width(), weights.k(), "width of the rows and of the weights");
    assert!(chosen.end <= weights.panels(), "panels of the weights");
    let (rows, panels) = (x.rows(), chosen.len());
    if rows == 0 || panels == 0 {
        return;
    }
    // Threads that have rows of their own.
    let owners = threads().min(rows / OWN_ROWS).max(1);
    let block = block_rows(kernel.rows, rows, owners);
    let blocks = rows.div_ceil(block);
    // Row blocks that stay in the cache together.
    let group = (ROWS_IN_CACHE / (block * x.stride() * size_of::<E>())).clamp(1, blocks.div_ceil(owners));
    let groups = blocks.div_ceil(group);
    // Enough pieces that the last one does not make the other threads wait, few enough to keep rows in the cache.
    let wanted = (8 * threads()).div_ceil(groups);
    let run = panels.div_ceil(wanted.min(panels));
    let runs = panels.div_ceil(run);
    parallel(groups * runs, |task| {
        let mut values = Results([0.0; BLOCK * PANEL]);
        let (first_block, first_panel) = (task / runs * group, chosen.start + task % runs * run);
        for panel in first_panel..chosen.end.min(first_panel + run) {
            let column = panel * PANEL;
            let columns = PANEL.min(weights.n() - column);
            let mut start = [0.0; PANEL];
            if let Some(bias) = bias {
                start[..columns].copy_from_slice(&bias[column..column + columns]);
            }
            for index in first_block..blocks.min(first_block + group) {
                let row = index * block;
                let count = block.min(rows - row);
                kernel.multiply(
                    x.range(row..row + count),
                    weights.steps_k(),
                    weights.panel(panel),
                    Start::Bias(&start),
                    &mut values.0[..count * PANEL],
                    PANEL,
                );
                let mut tile = Tile { row, rows: count, column, columns, values: &mut values.0.as_chunks_mut().0[..count] };
                kernel.isa.run(
                    #[inline(always)]
                    || sink.tile(&mut tile),
                );
            }
        }
    });
}

/// On a cache line, as vector stores like it.
#[repr(align(64))]
struct Results([f32; BLOCK * PANEL]);

/// Rows of a block: a multiple of what the kernel does at once, and blocks about equally long, as many for each owner.
fn block_rows(step: usize, rows: usize, owners: usize) -> usize {
    let most = (BLOCK / step).max(1) * step;
    let blocks = rows.div_ceil(most).next_multiple_of(owners);
    rows.div_ceil(blocks).next_multiple_of(step).min(most)
}
