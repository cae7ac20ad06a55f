//! Self-attention within each sample of a stream.
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::elementwise::softmax_rows;
use super::matrix::{Matrix, MatrixMut, Target, product};
use super::{rows_mut, values, with_values};
use crate::engine::packed::Span;

/// `[tokens, 3 d]` of queries, keys and values to the heads' joined outputs `[tokens, d]`; a token attends to its own sample alone.
#[derive(Debug)]
pub struct Attention {
    pub spans: Arc<[Span]>,
    pub heads: usize,
}

/// One head of one sample: queries, keys, values as views `[n, d/heads]`.
struct Head<'a> {
    query: Matrix<'a>,
    key: Matrix<'a>,
    value: Matrix<'a>,
    n: usize,
    width: usize,
    scale: f32,
}

impl<'a> Head<'a> {
    fn new(qkv: &'a [f32], span: &Span, d: usize, heads: usize, head: usize) -> Self {
        let (n, width) = (span.tokens(), d / heads);
        let view = |part: usize| Matrix::new(&qkv[span.start * 3 * d + part * d + head * width..], n, width, 3 * d);
        Self { query: view(0), key: view(1), value: view(2), n, width, scale: 1.0 / (width as f32).sqrt() }
    }

    /// softmax(Q Kᵀ / √width), `[n, n]`
    fn weights(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.n * self.n];
        let out = MatrixMut::new(&mut weights, self.n, self.n, self.n);
        product(out, Target::Overwrite, self.scale, self.query, self.key.t(), false);
        softmax_rows(&mut weights, self.n);
        weights
    }

    /// `[n, width]`
    fn forward(&self) -> Vec<f32> {
        let weights = self.weights();
        let mut out = vec![0.0; self.n * self.width];
        let target = MatrixMut::new(&mut out, self.n, self.width, self.width);
        product(target, Target::Overwrite, 1.0, Matrix::new(&weights, self.n, self.n, self.n), self.value, false);
        out
    }

    /// Gradients of queries, keys and values, `[n, width]` each, one after another, given that of the output.
    fn backward(&self, grad: Matrix<'_>) -> Vec<f32> {
        let n = self.n;
        let weights = self.weights();
        let mut scores = vec![0.0; n * n];
        product(MatrixMut::new(&mut scores, n, n, n), Target::Overwrite, 1.0, grad, self.value.t(), false);
        for (s, w) in scores.chunks_exact_mut(n).zip(weights.chunks_exact(n)) {
            let dot: f32 = s.iter().zip(w).map(|(s, w)| s * w).sum();
            s.iter_mut().zip(w).for_each(|(s, w)| *s = w * (*s - dot));
        }
        let mut out = vec![0.0; 3 * n * self.width];
        let scores = Matrix::new(&scores, n, n, n);
        let weights = Matrix::new(&weights, n, n, n);
        let factors = [(self.scale, scores, self.key), (self.scale, scores.t(), self.query), (1.0, weights.t(), grad)];
        for (out, (scale, lhs, rhs)) in out.chunks_exact_mut(n * self.width).zip(factors) {
            product(MatrixMut::new(out, n, self.width, self.width), Target::Overwrite, scale, lhs, rhs, false);
        }
        out
    }
}

impl Attention {
    /// `f` of every head of every sample, on the global pool, sample by sample.
    fn each_head(&self, qkv: &[f32], d: usize, f: impl Fn(&Head<'_>, &Span, usize) -> Vec<f32> + Sync) -> Vec<Vec<f32>> {
        (0..self.spans.len() * self.heads)
            .into_par_iter()
            .map(|i| {
                let (span, head) = (&self.spans[i / self.heads], i % self.heads);
                f(&Head::new(qkv, span, d, self.heads, head), span, head)
            })
            .collect()
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = values(storage, layout)?;
        let (tokens, three_d) = layout.shape().dims2()?;
        let d = three_d / 3;
        let width = d / self.heads;
        let outputs = self.each_head(qkv, d, |head, _, _| head.forward());
        let mut out = vec![0.0; tokens * d];
        for (out, heads) in rows_mut(&mut out, &self.spans, d).into_iter().zip(outputs.chunks_exact(self.heads)) {
            for (head, values) in heads.iter().enumerate() {
                for (row, values) in out.chunks_exact_mut(d).zip(values.chunks_exact(width)) {
                    row[head * width..(head + 1) * width].copy_from_slice(values);
                }
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((tokens, d))))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let d = arg.dim(1)? / 3;
        let width = d / self.heads;
        let mut out = vec![0.0; arg.elem_count()];
        with_values(arg, |qkv| {
            with_values(grad, |grad| {
                let gradients = self.each_head(qkv, d, |head, span, index| {
                    head.backward(Matrix::new(&grad[span.start * d + index * width..], head.n, width, d))
                });
                for ((out, heads), span) in
                    rows_mut(&mut out, &self.spans, 3 * d).into_iter().zip(gradients.chunks_exact(self.heads)).zip(self.spans.iter())
                {
                    for (i, values) in heads.iter().enumerate() {
                        for (part, values) in values.chunks_exact(span.tokens() * width).enumerate() {
                            let column = part * d + i * width;
                            for (row, values) in out.chunks_exact_mut(3 * d).zip(values.chunks_exact(width)) {
                                row[column..column + width].copy_from_slice(values);
                            }
                        }
                    }
                }
            })
        })??;
        Ok(Some(Tensor::from_vec(out, arg.shape(), arg.device())?))
    }
}
