//! Layer normalisation with frozen weight and bias.
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{values, with_values};
use crate::vilt::LayerNorm;

/// Rows that one task of the pool handles.
const ROWS: usize = 16;

/// `(x − mean) / √(var + ε) · weight + bias` over the last dimension of `[tokens, d]`.
#[derive(Debug)]
pub struct FrozenLayerNorm(pub LayerNorm);

/// Mean and 1/√(var + ε) of a row.
#[inline(always)]
fn moments(row: &[f32], eps: f32) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = row.iter().sum::<f32>() / n;
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
    (mean, 1.0 / (variance + eps).sqrt())
}

impl FrozenLayerNorm {
    fn width_and_eps(&self) -> Result<(usize, f32)> {
        Ok((self.0.weight.dim(0)?, self.0.eps as f32))
    }
}

impl CustomOp1 for FrozenLayerNorm {
    fn name(&self) -> &'static str {
        "frozen-layer-norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let (d, eps) = self.width_and_eps()?;
        let mut out = vec![0.0; x.len()];
        with_values(&self.0.weight, |weight| {
            with_values(&self.0.bias, |bias| {
                let arch = pulp::Arch::new();
                out.par_chunks_mut(ROWS * d).zip(x.par_chunks(ROWS * d)).for_each(|(out, x)| {
                    arch.dispatch(
                        #[inline(always)]
                        || {
                            for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                                let (mean, scale) = moments(x, eps);
                                for (((o, &x), &w), &b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                                    *o = (x - mean) * scale * w + b;
                                }
                            }
                        },
                    );
                });
            })
        })??;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (d, eps) = self.width_and_eps()?;
        let mut out = vec![0.0; arg.elem_count()];
        with_values(arg, |x| {
            with_values(grad, |grad| {
                with_values(&self.0.weight, |weight| {
                    let arch = pulp::Arch::new();
                    let rows = x.par_chunks(ROWS * d).zip(grad.par_chunks(ROWS * d));
                    out.par_chunks_mut(ROWS * d).zip(rows).for_each(|(out, (x, grad))| {
                        arch.dispatch(
                            #[inline(always)]
                            || {
                                for ((out, x), grad) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(grad.chunks_exact(d)) {
                                    row_gradient(out, x, grad, weight, eps);
                                }
                            },
                        );
                    });
                })
            })
        })???;
        Ok(Some(Tensor::from_vec(out, arg.shape(), arg.device())?))
    }
}

/// With x̂ the normalised row and u = grad · weight: `dx = (u − mean(u) − x̂ · mean(u · x̂)) / √(var + ε)`.
#[inline(always)]
fn row_gradient(out: &mut [f32], x: &[f32], grad: &[f32], weight: &[f32], eps: f32) {
    let (mean, scale) = moments(x, eps);
    let n = x.len() as f32;
    let (mut sum, mut dot) = (0.0, 0.0);
    for ((&x, &g), &w) in x.iter().zip(grad).zip(weight) {
        sum += g * w;
        dot += g * w * (x - mean) * scale;
    }
    let (sum, dot) = (sum / n, dot / n);
    for (((o, &x), &g), &w) in out.iter_mut().zip(x).zip(grad).zip(weight) {
        *o = (g * w - sum - (x - mean) * scale * dot) * scale;
    }
}
