//! Vectorised exp and erf in f32, with stated error bounds, dispatched at run time to the widest registers the processor has.
use rayon::prelude::*;

/// Values that one task of the pool handles: large enough to hide its cost.
const CHUNK: usize = 1 << 14;

/// `eˣ`; relative error below 2e-7 for −87 ≤ x ≤ 88, clamped outside.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 · 2²³ rounds to an integer that then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    p * scale
}

/// The error function; absolute error below 5e-7.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    // Rational approximation x·P(x²)/Q(x²) on [−4, 4], beyond which erf is ±1 in f32.
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = -2.726_142_3e-10;
    let p = p * s + 2.770_681_4e-8;
    let p = p * s - 2.101_024e-6;
    let p = p * s - 5.692_506_5e-5;
    let p = p * s - 7.349_906_4e-4;
    let p = p * s - 2.954_6e-3;
    let p = p * s - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * s - 2.133_740_6e-4;
    let q = q * s - 1.682_827e-3;
    let q = q * s - 7.373_329_3e-3;
    let q = q * s - 1.426_473_9e-2;
    x * p / q
}

/// `out[i] = f(x[i])`, on the global pool where it pays.
pub fn map(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32 + Copy + Sync + Send) {
    let arch = pulp::Arch::new();
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| {
        arch.dispatch(
            #[inline(always)]
            || out.iter_mut().zip(x).for_each(|(o, &x)| *o = f(x)),
        );
    });
}

/// `out[i] = f(x[i], y[i])`, on the global pool where it pays.
pub fn zip(x: &[f32], y: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32 + Copy + Sync + Send) {
    let arch = pulp::Arch::new();
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK))).for_each(|(out, (x, y))| {
        arch.dispatch(
            #[inline(always)]
            || out.iter_mut().zip(x.iter().zip(y)).for_each(|(o, (&x, &y))| *o = f(x, y)),
        );
    });
}

/// Softmax of each row of `width` values, in place.
pub fn softmax_rows(values: &mut [f32], width: usize) {
    if width == 0 {
        return;
    }
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for row in values.chunks_exact_mut(width) {
                let top = row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
                row.iter_mut().for_each(|x| *x = exp(*x - top));
                let scale = 1.0 / row.iter().sum::<f32>();
                row.iter_mut().for_each(|x| *x *= scale);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_keeps_its_error_bound() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 2e-7, "exp({x}): {got} for {want}");
        }
        assert!(exp(-1e30) < 1e-37 && exp(f32::NEG_INFINITY) >= 0.0);
    }

    #[test]
    fn erf_keeps_its_error_bound() {
        for i in -60_000..60_000 {
            let x = i as f32 / 10_000.0;
            let (got, want) = (f64::from(erf(x)), libm::erf(f64::from(x)));
            assert!((got - want).abs() < 5e-7, "erf({x}): {got} for {want}");
        }
    }

    #[test]
    fn softmax_of_a_row_sums_to_one() {
        let mut x = vec![1.0, 2.0, 3.0, -1000.0, 1000.0, 1000.0];
        softmax_rows(&mut x, 3);
        assert!((x[..3].iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(x[3] < 1e-30 && (x[4] - 0.5).abs() < 1e-6);
    }
}
