//! The low-rank update of query, key and value in training: each sample's own factors over its own tokens
//! (METHOD.md 2).
use super::small_product::{Assign, Strided, StridedMut, product};
use delo_model::method::Target;

/// One sample's operands: `x` is `[tokens, d]`, `a` and `b` are `[targets · pairs, d]`.
#[derive(Clone, Copy)]
pub struct SampleOperands<'a> {
    pub x: Strided<'a>,
    pub a: Strided<'a>,
    pub b: &'a [f32],
    pub tokens: usize,
    pub pairs: usize,
    pub d: usize,
}

impl<'a> SampleOperands<'a> {
    fn b(&self, target: usize) -> Strided<'a> {
        Strided::new(&self.b[target * self.pairs * self.d..], self.pairs, self.d, self.d)
    }

    /// u = x Aᵀ, `[tokens, targets · pairs]`
    fn down(&self) -> Vec<f32> {
        let width = Target::COUNT * self.pairs;
        let mut u = vec![0.0; self.tokens * width];
        product(StridedMut::new(&mut u, self.tokens, width, width), Assign::Overwrite, 1.0, self.x, self.a.t());
        u
    }

    /// Adds x Aᵀ B to `out`, `[tokens, targets · d]`. The start of a row is `stride` numbers after the one
    /// before.
    pub fn forward(&self, out: &mut [f32], stride: usize) {
        let (u, width, d) = (self.down(), Target::COUNT * self.pairs, self.d);
        for target in 0..Target::COUNT {
            let out = StridedMut::new(&mut out[target * d..], self.tokens, d, stride);
            let u = Strided::new(&u[target * self.pairs..], self.tokens, self.pairs, width);
            product(out, Assign::Add, 1.0, u, self.b(target));
        }
    }

    /// Given the gradient of the output (stride `grad_stride`), adds the gradient of x to `dx` (with its
    /// stride; `None` where it is not needed) and writes the gradients of A and B to `da` and `db`.
    pub fn backward(&self, grad: &[f32], grad_stride: usize, dx: Option<(&mut [f32], usize)>, da: &mut [f32], db: &mut [f32]) {
        let (u, width, d) = (self.down(), Target::COUNT * self.pairs, self.d);
        let mut du = vec![0.0; self.tokens * width];
        for target in 0..Target::COUNT {
            let grad = Strided::new(&grad[target * d..], self.tokens, d, grad_stride);
            let columns = StridedMut::new(&mut du[target * self.pairs..], self.tokens, self.pairs, width);
            product(columns, Assign::Overwrite, 1.0, grad, self.b(target).t());
            let rows = StridedMut::new(&mut db[target * self.pairs * d..], self.pairs, d, d);
            let u = Strided::new(&u[target * self.pairs..], self.tokens, self.pairs, width);
            product(rows, Assign::Overwrite, 1.0, u.t(), grad);
        }
        let du = Strided::new(&du, self.tokens, width, width);
        if let Some((dx, stride)) = dx {
            product(StridedMut::new(dx, self.tokens, d, stride), Assign::Add, 1.0, du, self.a);
        }
        product(StridedMut::new(da, width, d, d), Assign::Overwrite, 1.0, du.t(), self.x);
    }
}
