//! exp, erf, tanh and the GELU in f32, with stated error bounds, in forms that the compiler vectorises; and
//! sums in a fixed order of lanes.
/// Partial sums of a reduction: two of the widest registers. Their number does not depend on the processor,
/// so that the order of a sum does not either.
const LANES: usize = 32;

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

/// The hyperbolic tangent; absolute error below 3e-7.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let e = exp(2.0 * x.clamp(-10.0, 10.0));
    (e - 1.0) / (e + 1.0)
}

/// Φ(x), the normal distribution function; absolute error below 3e-7.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The exact (erf) GELU, `x · Φ(x)`.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    x * normal_cdf(x)
}

/// The derivative of [`gelu`].
#[inline(always)]
pub fn gelu_slope(x: f32) -> f32 {
    const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
    normal_cdf(x) + x * FRAC_1_SQRT_2PI * exp(-0.5 * x * x)
}

/// Adds `term(i)` for all i below `n`: [`LANES`] partial sums, then those by halves.
#[inline(always)]
pub fn sum(n: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = n / LANES * LANES;
    let mut first = 0;
    while first < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(first + lane);
        }
        first += LANES;
    }
    for (i, sum) in (whole..n).zip(&mut lanes) {
        *sum += term(i);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Σ x·y
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    let n = x.len().min(y.len());
    let (x, y) = (&x[..n], &y[..n]);
    sum(n, |i| x[i] * y[i])
}

/// The largest of `x`, or −∞.
#[inline(always)]
pub fn maximum(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(m, &x)| *m = larger(*m, x));
    }
    rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |m, &x| larger(m, x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

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
    fn tanh_keeps_its_error_bound() {
        for i in -120_000..120_000 {
            let x = i as f32 / 10_000.0;
            let (got, want) = (f64::from(tanh(x)), f64::from(x).tanh());
            assert!((got - want).abs() < 3e-7, "tanh({x}): {got} for {want}");
        }
    }

    #[test]
    fn sums_and_maxima_take_every_number_once() {
        for n in [0, 1, 31, 32, 33, 95, 200] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37) % 64) as f32).collect();
            assert_eq!(sum(n, |i| x[i]), x.iter().sum::<f32>());
            assert_eq!(dot(&x, &x), x.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(maximum(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }

    #[test]
    fn every_set_of_instructions_gives_the_same_numbers() {
        let x: Vec<f32> = (-600..600).map(|i| i as f32 / 37.0).collect();
        let of = |isa: Isa| {
            let mut out = vec![0f32; x.len()];
            isa.run(
                #[inline(always)]
                || out.iter_mut().zip(&x).for_each(|(o, &x)| *o = gelu(x) + tanh(x) + exp(x.min(3.0))),
            );
            out
        };
        let portable = of(Isa::Portable);
        for isa in Isa::available() {
            let worst = of(isa).iter().zip(&portable).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-5, "{isa}: {worst}");
        }
    }
}
