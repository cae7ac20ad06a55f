//! Frozen linear maps of one input, side by side.
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::matrix::{Matrix, MatrixMut, Target, product};
use super::{values, with_values};
use crate::vilt::Linear;

/// `[x W₁ᵀ + b₁ | x W₂ᵀ + b₂ | …]` of `[tokens, d_in]`: one map, or query, key and value of a layer in one stream.
#[derive(Debug)]
pub struct FrozenLinear(pub Vec<Linear>);

impl FrozenLinear {
    /// Width of the output, all maps together.
    fn width(&self) -> Result<usize> {
        self.0.iter().map(|l| l.weight.dim(0)).sum()
    }
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let (tokens, d_in) = layout.shape().dims2()?;
        let width = self.width()?;
        let mut out = vec![0.0; tokens * width];
        let mut column = 0;
        for linear in &self.0 {
            let d_out = linear.weight.dim(0)?;
            with_values(&linear.bias, |bias| {
                out.chunks_exact_mut(width).for_each(|row| row[column..column + d_out].copy_from_slice(bias));
            })?;
            with_values(&linear.weight, |weight| {
                product(
                    MatrixMut::new(&mut out[column..], tokens, d_out, width),
                    Target::Add,
                    1.0,
                    Matrix::new(x, tokens, d_in, d_in),
                    Matrix::new(weight, d_out, d_in, d_in).t(),
                    true,
                );
            })?;
            column += d_out;
        }
        Ok((CpuStorage::F32(out), Shape::from((tokens, width))))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (tokens, d_in) = arg.dims2()?;
        let width = self.width()?;
        let mut out = vec![0.0; tokens * d_in];
        with_values(grad, |grad| {
            let mut column = 0;
            for linear in &self.0 {
                let d_out = linear.weight.dim(0)?;
                with_values(&linear.weight, |weight| {
                    product(
                        MatrixMut::new(&mut out, tokens, d_in, d_in),
                        Target::Add,
                        1.0,
                        Matrix::new(&grad[column..], tokens, d_out, width),
                        Matrix::new(weight, d_out, d_in, d_in),
                        true,
                    );
                })?;
                column += d_out;
            }
            Ok::<_, candle_core::Error>(())
        })??;
        Ok(Some(Tensor::from_vec(out, (tokens, d_in), arg.device())?))
    }
}
