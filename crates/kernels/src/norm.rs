//! Layer normalisation and means of rows.
use super::elementwise::sum;
use super::{Float, Isa, RowsMut, RowsRef, parallel};

/// Rows that one piece of work covers.
const ROWS: usize = 32;

/// Frozen weight and bias of a layer norm, `[d]` each.
#[derive(Clone, Debug)]
pub struct Norm {
    /// What the normalised row is multiplied by.
    pub weight: Vec<f32>,
    /// What is added to it.
    pub bias: Vec<f32>,
    /// ε, added to the variance.
    pub eps: f32,
}

impl Norm {
    /// `(x − mean) / √(var + ε) · weight + bias`, in two passes over the row, mean before variance.
    #[inline(always)]
    pub fn row<E: Float>(&self, x: &[f32], out: &mut [E]) {
        let (mean, scale) = self.moments(x);
        for (((out, &x), &w), &b) in out.iter_mut().zip(x).zip(&self.weight).zip(&self.bias) {
            *out = E::of((x - mean) * scale * w + b);
        }
    }

    /// Mean and 1/√(var + ε) of a row.
    #[inline(always)]
    fn moments(&self, x: &[f32]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = sum(x.len(), |i| x[i]) / n;
        let variance = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / n;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }

    /// Adds the gradient of `x` to `out`, given that of the output: with x̂ the normalised row and u = grad ·
    /// weight, `(u − mean(u) − x̂ · mean(u · x̂)) / √(var + ε)`.
    #[inline(always)]
    pub fn add_gradient(&self, x: &[f32], grad: &[f32], out: &mut [f32]) {
        let (mean, scale) = self.moments(x);
        let (d, w) = (x.len(), &self.weight[..x.len()]);
        let (grad, out) = (&grad[..d], &mut out[..d]);
        let plain = sum(d, |i| grad[i] * w[i]) / d as f32;
        let along = sum(d, |i| grad[i] * w[i] * (x[i] - mean)) * scale / d as f32;
        for i in 0..d {
            out[i] += (grad[i] * w[i] - plain - (x[i] - mean) * scale * along) * scale;
        }
    }

    /// Every row of `x`, into the same rows of `out`.
    pub fn rows<E: Float>(&self, isa: Isa, x: RowsRef<'_, f32>, out: &RowsMut<'_, E>) {
        let d = x.width();
        parallel(x.rows().div_ceil(ROWS), |piece| {
            isa.run(
                #[inline(always)]
                || {
                    for row in piece * ROWS..x.rows().min((piece + 1) * ROWS) {
                        // SAFETY: each row belongs to one piece.
                        self.row(x.row(row), unsafe { out.part(row, 0..d) });
                    }
                },
            );
        });
    }
}

/// The mean of some rows, `[d]`; zero where there are none.
#[inline(always)]
pub fn mean(x: RowsRef<'_, f32>, rows: std::ops::Range<usize>, out: &mut [f32]) {
    out.fill(0.0);
    let scale = 1.0 / rows.len().max(1) as f32;
    for row in rows {
        out.iter_mut().zip(x.row(row)).for_each(|(o, &x)| *o += x);
    }
    out.iter_mut().for_each(|o| *o *= scale);
}
