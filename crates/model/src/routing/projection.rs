//! The sparse random projection that keeps the statistics of a wide signal small.
//!
//! Inner products are kept in the mean (Achlioptas 2003, "Database-friendly random projections"; Kane and
//! Nelson 2014, "Sparser Johnson-Lindenstrauss transforms").

/// The number of outputs that each input is added to.
const COPIES: u64 = 4;

/// `x` projected to `width` values: each input is added to [`COPIES`] outputs, with a sign and divided by
/// √COPIES. Outputs and signs come from a hash of the input's index: they are the same on every machine.
pub fn project(x: &[f32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; width];
    let scale = 1.0 / (COPIES as f32).sqrt();
    for (i, x) in x.iter().enumerate() {
        for copy in 0..COPIES {
            let hash = mixed(i as u64 * COPIES + copy);
            let value = if hash & 1 == 0 { scale * x } else { -scale * x };
            out[((hash >> 1) % width as u64) as usize] += value;
        }
    }
    out
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(x: &[f32], y: &[f32]) -> f32 {
        x.iter().zip(y).map(|(x, y)| x * y).sum()
    }

    #[test]
    fn inner_products_survive_the_projection() {
        // Two unit vectors at 60°, 3,840 wide.
        let unit = |phase: f32| (0..3840).map(|i| (i as f32 * 0.7 + phase).sin() / 1920f32.sqrt()).collect::<Vec<_>>();
        let (x, y) = (unit(0.0), unit(std::f32::consts::FRAC_PI_3));
        assert!((dot(&x, &y) - 0.5).abs() < 0.01);
        let (px, py) = (project(&x, 1024), project(&y, 1024));
        for (found, expected) in [(dot(&px, &px), 1.0), (dot(&px, &py), 0.5), (dot(&py, &py), 1.0)] {
            assert!((found - expected).abs() < 0.1, "{found} for {expected}");
        }
    }
}
