//! Products and walks over rows that forward and backward passes share.
use crate::backend::cpu::Map;
use delo_kernels::elementwise::gelu_slope;
use delo_kernels::{Kernel, MapSink, Matrix, PackedMatrix, RowsMut, RowsRef, Tile, TileSink, parallel, product};

/// Rows of one piece of work.
const ROWS: usize = 32;

/// `f(x Wᵀ + b)`
pub fn affine(kernel: &Kernel<f32>, x: RowsRef<'_, f32>, map: &Map<f32>, f: impl Fn(f32) -> f32 + Sync) -> Matrix<f32> {
    let mut out = Matrix::zeros(x.rows(), map.weight.n());
    product(kernel, x, &map.weight, Some(&map.bias), &MapSink { isa: kernel.isa, f, out: out.view_mut() });
    out
}

/// `x Wᵀ`
pub fn linear(kernel: &Kernel<f32>, x: RowsRef<'_, f32>, weight: &PackedMatrix<f32>) -> Matrix<f32> {
    let mut out = Matrix::zeros(x.rows(), weight.n());
    product(kernel, x, weight, None, &MapSink { isa: kernel.isa, f: |x| x, out: out.view_mut() });
    out
}

/// Calls `f` with the number of each row, on the compute pool, compiled for the kernel's instructions.
pub fn pieces(kernel: &Kernel<f32>, rows: usize, f: impl Fn(usize) + Sync) {
    parallel(rows.div_ceil(ROWS), |piece| {
        kernel.isa.run(
            #[inline(always)]
            || (piece * ROWS..rows.min((piece + 1) * ROWS)).for_each(&f),
        );
    });
}

/// Calls `f(row of x, row of out)` for every row.
pub fn each_row(kernel: &Kernel<f32>, x: RowsRef<'_, f32>, out: &RowsMut<'_, f32>, f: impl Fn(&[f32], &mut [f32]) + Sync) {
    // SAFETY: each row belongs to one piece of work.
    pieces(kernel, x.rows(), |row| f(x.row(row), unsafe { out.part(row, 0..x.width()) }));
}

/// `out = (grad Wᵀ) · gelu'(x)`
pub struct SlopeSink<'a> {
    pub x: RowsRef<'a, f32>,
    pub out: RowsMut<'a, f32>,
}

impl TileSink for SlopeSink<'_> {
    #[inline(always)]
    fn tile(&self, tile: &mut Tile<'_>) {
        let columns = tile.column..tile.column + tile.columns;
        for row in 0..tile.rows {
            // SAFETY: no two tiles cover the same element.
            let out = unsafe { self.out.part(tile.row + row, columns.clone()) };
            let x = &self.x.row(tile.row + row)[columns.clone()];
            out.iter_mut().zip(tile.row(row)).zip(x).for_each(|((o, &grad), &x)| *o = grad * gelu_slope(x));
        }
    }
}
