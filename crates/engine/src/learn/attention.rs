//! The backward pass of attention, head by head.
use super::small_product::{Assign, Strided, StridedMut, product};
use delo_kernels::attention::{Attended, weights};
use delo_kernels::{Kernel, RowsMut, RowsRef, parallel};

/// Writes the gradients of queries, keys and values to `grad_qkv` `[tokens, 3 d]`, given those of the outputs
/// `[rows, d]`. The i-th query of a sample is in row `tokens.start + i` of `qkv`. Elements of `grad_qkv` that
/// belong to no query, key or value are not written.
pub fn backward(
    kernel: &Kernel<f32>,
    qkv: RowsRef<'_, f32>,
    samples: &[Attended],
    heads: usize,
    grad: RowsRef<'_, f32>,
    grad_qkv: &RowsMut<'_, f32>,
) {
    let d = qkv.width() / 3;
    let width = d / heads;
    parallel(samples.len() * heads, |task| {
        let (Attended { tokens, queries, .. }, head) = (&samples[task / heads], task % heads);
        let columns = |part: usize| part * d + head * width..part * d + (head + 1) * width;
        let query_rows = tokens.start..tokens.start + queries.len();
        let (q, k) = (qkv.range(query_rows.clone()).columns(columns(0)), qkv.range(tokens.clone()).columns(columns(1)));
        let probabilities = weights(kernel, q, k);
        let (rows, n) = (queries.len(), tokens.len());
        let (q, k, v) = (Strided::from(q), Strided::from(k), Strided::from(qkv.range(tokens.clone()).columns(columns(2))));
        let grad = Strided::from(grad.range(queries.clone()).columns(head * width..(head + 1) * width));
        let mut scores = vec![0.0; rows * n];
        product(StridedMut::new(&mut scores, rows, n, n), Assign::Overwrite, 1.0, grad, v.t());
        for (s, w) in scores.chunks_exact_mut(n).zip(probabilities.chunks_exact(n)) {
            let dot: f32 = s.iter().zip(w).map(|(s, w)| s * w).sum();
            s.iter_mut().zip(w).for_each(|(s, w)| *s = w * (*s - dot));
        }
        let (scores, probabilities) = (Strided::new(&scores, rows, n, n), Strided::new(&probabilities, rows, n, n));
        let scale = 1.0 / (width as f32).sqrt();
        let mut out = vec![0.0; n * width];
        let results = [
            (0, query_rows, scale, scores, k),
            (1, tokens.clone(), scale, scores.t(), q),
            (2, tokens.clone(), 1.0, probabilities.t(), grad),
        ];
        for (part, rows, scale, lhs, rhs) in results {
            product(StridedMut::new(&mut out, rows.len(), width, width), Assign::Overwrite, scale, lhs, rhs);
            for (row, values) in rows.zip(out.chunks_exact(width)) {
                // SAFETY: each pair of a sample and a head is one piece of work, and each of the three parts
                // of its rows is written by one product.
                unsafe { grad_qkv.part(row, columns(part)) }.copy_from_slice(values);
            }
        }
    });
}
