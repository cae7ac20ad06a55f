//! The low-rank update of query, key and value: each sample's own factors over its own tokens (METHOD.md 2).
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::matrix::{Matrix, MatrixMut, Target, product};
use super::{rows_mut, values, with_values};
use crate::engine::packed::Span;

/// Adapted maps of a layer: query, key, value.
const TARGETS: usize = 3;

/// `(x, a, b)` to `[tokens, 3 d]`: for sample s and target t, `x_s · A_{s,t}ᵀ · B_{s,t}`, with the pairs of both modalities among the rows of
/// A and B. `x` is `[tokens, d]`, `a` and `b` are `[Σ_s 3 · pairs_s, d]`: sample by sample, target by target.
#[derive(Debug)]
pub struct LowRank {
    pub spans: Arc<[Span]>,
    /// Factor pairs of a target, of each sample: 2 r where its task is adapted in this layer, else 0.
    pub pairs: Arc<[usize]>,
}

/// One sample's share of the operands.
struct Share<'a> {
    x: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
    tokens: usize,
    pairs: usize,
    d: usize,
}

impl<'a> Share<'a> {
    fn x(&self) -> Matrix<'a> {
        Matrix::new(self.x, self.tokens, self.d, self.d)
    }

    fn a(&self) -> Matrix<'a> {
        Matrix::new(self.a, TARGETS * self.pairs, self.d, self.d)
    }

    fn b(&self, target: usize) -> Matrix<'a> {
        Matrix::new(&self.b[target * self.pairs * self.d..], self.pairs, self.d, self.d)
    }

    /// u = x Aᵀ, `[tokens, 3 · pairs]`
    fn down(&self) -> Vec<f32> {
        let width = TARGETS * self.pairs;
        let mut u = vec![0.0; self.tokens * width];
        product(MatrixMut::new(&mut u, self.tokens, width, width), Target::Overwrite, 1.0, self.x(), self.a().t(), false);
        u
    }

    fn forward(&self, out: &mut [f32]) {
        let (u, width, d) = (self.down(), TARGETS * self.pairs, self.d);
        for target in 0..TARGETS {
            let out = MatrixMut::new(&mut out[target * d..], self.tokens, d, TARGETS * d);
            let u = Matrix::new(&u[target * self.pairs..], self.tokens, self.pairs, width);
            product(out, Target::Overwrite, 1.0, u, self.b(target), false);
        }
    }

    /// Writes the gradients of x, A and B, given that of the output.
    fn backward(&self, grad: &[f32], dx: &mut [f32], da: &mut [f32], db: &mut [f32]) {
        let (u, width, d) = (self.down(), TARGETS * self.pairs, self.d);
        let mut du = vec![0.0; self.tokens * width];
        for target in 0..TARGETS {
            let grad = Matrix::new(&grad[target * d..], self.tokens, d, TARGETS * d);
            let columns = MatrixMut::new(&mut du[target * self.pairs..], self.tokens, self.pairs, width);
            product(columns, Target::Overwrite, 1.0, grad, self.b(target).t(), false);
            let rows = MatrixMut::new(&mut db[target * self.pairs * d..], self.pairs, d, d);
            let u = Matrix::new(&u[target * self.pairs..], self.tokens, self.pairs, width);
            product(rows, Target::Overwrite, 1.0, u.t(), grad, false);
        }
        let du = Matrix::new(&du, self.tokens, width, width);
        product(MatrixMut::new(dx, self.tokens, d, d), Target::Overwrite, 1.0, du, self.a(), false);
        product(MatrixMut::new(da, width, d, d), Target::Overwrite, 1.0, du.t(), self.x(), false);
    }
}

impl LowRank {
    fn shares<'a>(&'a self, x: &'a [f32], a: &'a [f32], b: &'a [f32], d: usize) -> Vec<Share<'a>> {
        let mut row = 0;
        self.spans
            .iter()
            .zip(self.pairs.iter())
            .map(|(span, &pairs)| {
                let factors = row * d..(row + TARGETS * pairs) * d;
                row += TARGETS * pairs;
                let x = &x[span.start * d..(span.start + span.tokens()) * d];
                Share { x, a: &a[factors.clone()], b: &b[factors], tokens: span.tokens(), pairs, d }
            })
            .collect()
    }

    /// One mutable slice of factor rows for each sample.
    fn factors_mut<'a>(&self, mut rest: &'a mut [f32], d: usize) -> Vec<&'a mut [f32]> {
        let mut out = Vec::with_capacity(self.pairs.len());
        for pairs in self.pairs.iter() {
            let (head, tail) = rest.split_at_mut(TARGETS * pairs * d);
            out.push(head);
            rest = tail;
        }
        out
    }
}

impl CustomOp3 for LowRank {
    fn name(&self) -> &'static str {
        "low-rank"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, d) = x_layout.shape().dims2()?;
        let mut out = vec![0.0; tokens * TARGETS * d];
        let shares = self.shares(values(x, x_layout)?, values(a, a_layout)?, values(b, b_layout)?, d);
        shares
            .into_par_iter()
            .zip(rows_mut(&mut out, &self.spans, TARGETS * d))
            .filter(|(share, _)| share.pairs > 0)
            .for_each(|(share, out)| share.forward(out));
        Ok((CpuStorage::F32(out), Shape::from((tokens, TARGETS * d))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let d = x.dim(1)?;
        let (mut dx, mut da, mut db) = (vec![0.0; x.elem_count()], vec![0.0; a.elem_count()], vec![0.0; b.elem_count()]);
        with_values(grad, |grad| {
            with_values(x, |x| {
                with_values(a, |a| {
                    with_values(b, |b| {
                        let targets = rows_mut(&mut dx, &self.spans, d)
                            .into_par_iter()
                            .zip(self.factors_mut(&mut da, d).into_par_iter().zip(self.factors_mut(&mut db, d)));
                        self.shares(x, a, b, d)
                            .into_par_iter()
                            .zip(self.spans.par_iter())
                            .zip(targets)
                            .filter(|((share, _), _)| share.pairs > 0)
                            .for_each(|((share, span), (dx, (da, db)))| {
                                share.backward(&grad[span.start * TARGETS * d..], dx, da, db);
                            });
                    })
                })
            })
        })????;
        let device = x.device();
        let like = |values, t: &Tensor| Tensor::from_vec(values, t.shape(), device).map(Some);
        Ok((like(dx, x)?, like(da, a)?, like(db, b)?))
    }
}
