//! Gaussian numbers that are the same on every machine for the same seed.
use candle_core::{Device, Result, Shape, Tensor};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// The standard deviation σ of the parameters that are Gaussian before the first step.
const INITIAL_DEVIATION: f32 = 0.02;

/// A tensor of Gaussian numbers, mean 0 and σ = 0.02.
///
/// # Errors
/// The tensor cannot be made.
pub fn gaussian(rng: &mut ChaCha8Rng, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let values: Vec<f32> = normals(rng, shape.elem_count()).into_iter().map(|x| x * INITIAL_DEVIATION).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

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

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn the_numbers_have_the_mean_the_deviation_and_the_tails_of_a_gaussian() {
        let n = 20_001;
        let values: Vec<f32> = gaussian(&mut ChaCha8Rng::seed_from_u64(7), n).unwrap().to_vec1().unwrap();
        assert_eq!(values.len(), n);
        let moment = |power: i32| values.iter().map(|&x| (f64::from(x) / 0.02).powi(power)).sum::<f64>() / n as f64;
        for (power, expected, bar) in [(1, 0.0, 0.03), (2, 1.0, 0.04), (3, 0.0, 0.1), (4, 3.0, 0.2)] {
            let found = moment(power);
            assert!((found - expected).abs() < bar, "moment {power} is {found}");
        }
        let neighbours = values.windows(2).map(|pair| f64::from(pair[0] * pair[1]) / 0.0004).sum::<f64>() / n as f64;
        assert!(neighbours.abs() < 0.03, "neighbours are uncorrelated: {neighbours}");
    }
}
