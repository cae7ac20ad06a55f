//! Gaussian numbers that are the same on every machine for the same seed.
use candle_core::{Device, Result, Shape, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// The standard deviation σ of the parameters that are Gaussian before the first step.
const INITIAL_DEVIATION: f32 = 0.02;

/// A tensor of Gaussian numbers, mean 0 and σ = 0.02.
pub(super) fn gaussian(rng: &mut ChaCha8Rng, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let values: Vec<f32> = normals(rng, shape.elem_count()).into_iter().map(|x| x * INITIAL_DEVIATION).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// `n` draws of the standard normal distribution (Box and Muller, in f64).
fn normals(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(n + 1);
    while out.len() < n {
        // 1 − u lies in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
        out.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    out.truncate(n);
    out
}
