//! Gaussian numbers that are the same for the same seed on every machine.
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// `n` draws of the standard normal distribution (Box and Muller, in f64).
pub fn normals(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
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
