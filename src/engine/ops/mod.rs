//! The differentiable pieces of the packed forward, as candle operations over streams `[tokens, d]`. Weights of the backbone are frozen: the
//! backward pass of each operation yields gradients of its inputs alone.
pub mod attention;
pub mod elementwise;
pub mod gelu;
pub mod layer_norm;
pub mod linear;
pub mod low_rank;
pub mod matrix;
pub mod segment_mean;

pub use attention::Attention;
pub use gelu::Gelu;
pub use layer_norm::FrozenLayerNorm;
pub use linear::FrozenLinear;
pub use low_rank::LowRank;
pub use segment_mean::SegmentMean;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};

use super::packed::Span;

/// The values of a contiguous f32 operand.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (from, to) =
        layout.contiguous_offsets().ok_or_else(|| candle_core::Error::Msg("packed operations take contiguous tensors".to_owned()))?;
    Ok(&storage.as_slice::<f32>()?[from..to])
}

/// Calls `f` with the values of a contiguous f32 tensor on the CPU.
pub(crate) fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(values(storage, layout)?)),
        _ => Err(candle_core::Error::Msg("the packed forward runs on the CPU: load the backbone on the CPU device".to_owned())),
    }
}

/// One mutable slice of rows for each span, in order. Spans follow one another and cover all rows.
fn rows_mut<'a>(mut rest: &'a mut [f32], spans: &[Span], width: usize) -> Vec<&'a mut [f32]> {
    let mut out = Vec::with_capacity(spans.len());
    for span in spans {
        let (head, tail) = rest.split_at_mut(span.tokens() * width);
        out.push(head);
        rest = tail;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::Presence;
    use crate::vilt::{LayerNorm, Linear};
    use candle_core::{Device, Var};
    use std::sync::Arc;

    fn random(shape: &[usize], seed: u64) -> Tensor {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn spans(sizes: &[(usize, usize)]) -> Arc<[Span]> {
        let mut start = 0;
        let span = |&(text, image): &(usize, usize)| {
            let span = Span { start, text, image, presence: Presence::Complete };
            start += span.tokens();
            span
        };
        sizes.iter().map(span).collect()
    }

    /// Compares the gradient of a random weighting of `f(x)` with central differences.
    fn check_gradient(shape: &[usize], f: impl Fn(&Tensor) -> Result<Tensor>) {
        let x = Var::from_tensor(&random(shape, 1)).unwrap();
        let weights = random(f(&x).unwrap().dims(), 2);
        let value = |x: &Tensor| (f(x).unwrap() * &weights).unwrap().sum_all().unwrap();
        let gradient = value(&x).backward().unwrap().get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let at = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for i in 0..at.len() {
            let moved = |by: f32| {
                let mut at = at.clone();
                at[i] += by;
                f64::from(value(&Tensor::from_vec(at, shape, &Device::Cpu).unwrap()).to_scalar::<f32>().unwrap())
            };
            let numeric = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((numeric - f64::from(gradient[i])).abs() < 4e-3 * (1.0 + numeric.abs()), "[{i}]: {} for {numeric}", gradient[i]);
        }
    }

    #[test]
    fn gelu_has_the_gradient_of_its_values() {
        check_gradient(&[3, 5], |x| (x * 3.0)?.apply_op1(Gelu));
    }

    #[test]
    fn layer_norm_has_the_gradient_of_its_values() {
        let norm = LayerNorm { weight: random(&[6], 3), bias: random(&[6], 4), eps: 1e-12 };
        check_gradient(&[4, 6], |x| x.apply_op1(FrozenLayerNorm(norm.clone())));
    }

    #[test]
    fn linear_has_the_gradient_of_its_values() {
        let map = |seed| Linear { weight: random(&[3, 4], seed), bias: random(&[3], seed + 1) };
        let maps = vec![map(5), map(7)];
        check_gradient(&[5, 4], |x| x.apply_op1(FrozenLinear(maps.clone())));
    }

    #[test]
    fn segment_mean_has_the_gradient_of_its_values() {
        let spans = spans(&[(4, 3), (2, 5)]);
        check_gradient(&[14, 3], |x| x.apply_op1(SegmentMean(spans.clone())));
    }

    #[test]
    fn attention_has_the_gradient_of_its_values() {
        let spans = spans(&[(3, 2), (2, 2)]);
        check_gradient(&[9, 12], |x| x.apply_op1(Attention { spans: spans.clone(), heads: 2 }));
    }

    #[test]
    fn low_rank_has_the_gradients_of_its_values() {
        let spans = spans(&[(3, 2), (2, 2), (2, 3)]);
        let pairs: Arc<[usize]> = [2, 0, 3].into();
        let op = || LowRank { spans: spans.clone(), pairs: pairs.clone() };
        let (x, a, b) = (random(&[14, 4], 8), random(&[15, 4], 9), random(&[15, 4], 10));
        check_gradient(&[14, 4], |x| x.apply_op3(&a, &b, op()));
        check_gradient(&[15, 4], |a| x.apply_op3(a, &b, op()));
        check_gradient(&[15, 4], |b| x.apply_op3(&a, b, op()));
    }

    #[test]
    fn attention_stays_within_a_sample() {
        let (one, two) = (spans(&[(3, 2)]), spans(&[(3, 2), (2, 2)]));
        let qkv = random(&[9, 12], 11);
        let alone = qkv.narrow(0, 0, 5).unwrap().apply_op1(Attention { spans: one, heads: 2 }).unwrap();
        let together = qkv.apply_op1(Attention { spans: two, heads: 2 }).unwrap().narrow(0, 0, 5).unwrap();
        assert_eq!(alone.to_vec2::<f32>().unwrap(), together.to_vec2::<f32>().unwrap());
    }
}
