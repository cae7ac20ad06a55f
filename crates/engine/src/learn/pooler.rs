//! What follows the last layer: the backbone's final norm, and the pooler, as operations of candle's graph.
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::products::{affine, linear};
use crate::backend::cpu::Map;
use crate::tensors::{values, with_values};
use delo_kernels::norm::Norm;
use delo_kernels::{Kernel, Matrix, PackedMatrix, RowsRef};

/// layernorm(h) of each row, `[rows, d]`.
pub struct FinalNorm {
    pub kernel: Kernel<f32>,
    pub norm: Norm,
}

impl CustomOp1 for FinalNorm {
    fn name(&self) -> &'static str {
        "final-norm"
    }

    fn cpu_fwd(&self, h: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, d) = layout.shape().dims2()?;
        let mut x = Matrix::<f32>::zeros(rows, d);
        self.norm.rows(self.kernel.isa, RowsRef::new(values(h, layout)?, rows, d, d), &x.view_mut());
        Ok((CpuStorage::F32(x.to_vec()), layout.shape().clone()))
    }

    fn bwd(&self, h: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, d) = h.dims2()?;
        let mut out = vec![0.0; rows * d];
        with_values(grad, |grad| {
            with_values(h, |h| {
                for ((out, h), grad) in out.chunks_exact_mut(d).zip(h.chunks_exact(d)).zip(grad.chunks_exact(d)) {
                    self.norm.add_gradient(h, grad, out);
                }
            })
        })??;
        Ok(Some(Tensor::from_vec(out, h.shape(), h.device())?))
    }
}

/// tanh(pooler · layernorm(h)) of each row, `[rows, d]`.
pub struct Pool {
    pub kernel: Kernel<f32>,
    pub norm: Norm,
    pub pooler: Arc<Map<f32>>,
    pub back: Arc<PackedMatrix<f32>>,
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, h: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, d) = layout.shape().dims2()?;
        let h = RowsRef::new(values(h, layout)?, rows, d, d);
        let mut x = Matrix::<f32>::zeros(rows, d);
        self.norm.rows(self.kernel.isa, h, &x.view_mut());
        let out = affine(&self.kernel, x.view(), &self.pooler, delo_kernels::elementwise::tanh);
        Ok((CpuStorage::F32(out.to_vec()), layout.shape().clone()))
    }

    fn bwd(&self, h: &Tensor, pooled: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, d) = h.dims2()?;
        let before_tanh = (grad * (1.0 - pooled.sqr()?)?)?;
        let mut out = vec![0.0; rows * d];
        with_values(&before_tanh, |grad| {
            with_values(h, |h| {
                let x = linear(&self.kernel, RowsRef::new(grad, rows, d, d), &self.back);
                for (row, (out, h)) in out.chunks_exact_mut(d).zip(h.chunks_exact(d)).enumerate() {
                    self.norm.add_gradient(h, x.row(row), out);
                }
            })
        })??;
        Ok(Some(Tensor::from_vec(out, h.shape(), h.device())?))
    }
}
