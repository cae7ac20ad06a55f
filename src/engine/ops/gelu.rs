//! The exact (erf) GELU.
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::elementwise::{erf, exp, map, zip};
use super::{values, with_values};

/// `x · Φ(x)`.
#[derive(Debug)]
pub struct Gelu;

#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let mut out = vec![0.0; x.len()];
        map(
            x,
            &mut out,
            #[inline(always)]
            |x| x * normal_cdf(x),
        );
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut out = vec![0.0; arg.elem_count()];
        with_values(arg, |x| {
            with_values(grad, |g| {
                zip(
                    x,
                    g,
                    &mut out,
                    #[inline(always)]
                    |x, g| {
                        const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
                        g * (normal_cdf(x) + x * FRAC_1_SQRT_2PI * exp(-0.5 * x * x))
                    },
                );
            })
        })??;
        Ok(Some(Tensor::from_vec(out, arg.shape(), arg.device())?))
    }
}
