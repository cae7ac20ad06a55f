//! Products and walks over rows that forward and backward passes share.
use std::sync::Arc;

use crate::backend::cpu::learning::{HalfLayer, LayerMatrices};
use crate::backend::cpu::{CpuBackend, Layer, Map};
use delo_kernels::elementwise::gelu_slope;
use delo_kernels::{
    Float, Format, Kernel, MapSink, Matrix, PackedMatrix, Precision, RowsMut, RowsRef, Tile, TileSink, bf16, parallel, product,
};

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

/// A linear map of a layer.
#[derive(Clone, Copy, Debug)]
pub enum LayerMap {
    Qkv,
    AttentionOutput,
    Intermediate,
    Output,
}

/// The frozen linear maps of one layer, forward and backward, in the number format of the products.
#[derive(Clone)]
pub struct LayerProducts {
    kernel: Kernel<f32>,
    layer: Arc<Layer<f32>>,
    matrices: Matrices,
}

#[derive(Clone)]
enum Matrices {
    F32 { back: Arc<LayerMatrices<f32>> },
    Bf16(Arc<HalfLayer>),
}

impl LayerProducts {
    /// Those of a layer. Where nothing `learns`, they are as exact as in the frozen layers.
    pub fn of(backbone: &CpuBackend<f32>, index: usize, learns: bool) -> Self {
        let matrices = match if learns { backbone.learning_precision() } else { Precision::F32 } {
            Precision::F32 => Matrices::F32 { back: backbone.transposed_layer(index) },
            Precision::Bf16 => Matrices::Bf16(backbone.half_layer(index)),
        };
        Self { kernel: *backbone.multiplier(), layer: backbone.layer_at(index), matrices }
    }

    /// `x Wᵀ + b`
    pub fn forward(&self, map: LayerMap, x: RowsRef<'_, f32>) -> Matrix<f32> {
        let of_layer = match map {
            LayerMap::Qkv => &self.layer.qkv,
            LayerMap::AttentionOutput => &self.layer.attention_output,
            LayerMap::Intermediate => &self.layer.intermediate,
            LayerMap::Output => &self.layer.output,
        };
        match &self.matrices {
            Matrices::F32 { .. } => affine(&self.kernel, x, of_layer, |x| x),
            Matrices::Bf16(half) => {
                let mut out = Matrix::zeros(x.rows(), of_layer.weight.n());
                let sink = MapSink { isa: self.kernel.isa, f: |x| x, out: out.view_mut() };
                product(&half.kernel, self.rounded(x).view(), map.of(&half.forward), Some(&of_layer.bias), &sink);
                out
            }
        }
    }

    /// `grad W`, block by block into `sink`.
    pub fn backward_into(&self, map: LayerMap, grad: RowsRef<'_, f32>, sink: &impl TileSink) {
        match &self.matrices {
            Matrices::F32 { back } => product(&self.kernel, grad, map.of(back), None, sink),
            Matrices::Bf16(half) => product(&half.kernel, self.rounded(grad).view(), map.of(&half.back), None, sink),
        }
    }

    /// `grad W`
    pub fn backward(&self, map: LayerMap, grad: RowsRef<'_, f32>) -> Matrix<f32> {
        let width = match map {
            LayerMap::Output => self.layer.output.weight.k(),
            LayerMap::Qkv | LayerMap::AttentionOutput | LayerMap::Intermediate => self.layer.qkv.weight.k(),
        };
        let mut out = Matrix::zeros(grad.rows(), width);
        self.backward_into(map, grad, &MapSink { isa: self.kernel.isa, f: |x| x, out: out.view_mut() });
        out
    }

    /// The rows in bf16.
    fn rounded(&self, x: RowsRef<'_, f32>) -> Matrix<bf16> {
        let mut out = Matrix::zeros(x.rows(), x.width());
        each_row(&self.kernel, x, &out.view_mut(), |x, out| out.iter_mut().zip(x).for_each(|(o, &x)| *o = bf16::of(x)));
        out
    }
}

impl LayerMap {
    fn of<F: Format>(self, matrices: &LayerMatrices<F>) -> &PackedMatrix<F> {
        match self {
            Self::Qkv => &matrices.qkv,
            Self::AttentionOutput => &matrices.attention_output,
            Self::Intermediate => &matrices.intermediate,
            Self::Output => &matrices.output,
        }
    }
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
pub fn each_row<E: Float>(kernel: &Kernel<f32>, x: RowsRef<'_, f32>, out: &RowsMut<'_, E>, f: impl Fn(&[f32], &mut [E]) + Sync) {
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
