//! One encoder layer as an operation of candle's graph: frozen weights, and what a method adds to it.
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::attention;
use super::low_rank::SampleOperands;
use super::products::{LayerMap, LayerProducts, SlopeSink, each_row, pieces};
use super::small_product::Strided;
use crate::backend::cpu::{CpuBackend, Layer};
use crate::packed::Packed;
use crate::tensors::{values, with_values};
use delo_kernels::attention::{Attended, attention as attend};
use delo_kernels::elementwise::gelu;
use delo_kernels::{Kernel, Matrix, RowsMut, RowsRef, parallel};
use delo_model::method::{FactorPairs, SampleRows, Target};

/// One frozen layer.
#[derive(Clone)]
struct FrozenLayer {
    kernel: Kernel<f32>,
    heads: usize,
    layer: Arc<Layer<f32>>,
    products: LayerProducts,
}

/// One pre-norm encoder layer: `(h, learnt)` → the state after it. `h` is `[tokens, d]`. `learnt` is
/// `[rows, d]`: the factors a of the low-rank updates, `[samples · targets · pairs, d]`, sample by sample and
/// target by target; as many factors b; then the prefixes, a key and its value in turn. The result has one
/// row for each token, or one for each text CLS.
pub(super) struct LearningLayer {
    frozen: FrozenLayer,
    samples: Vec<SampleRanges>,
    /// Factor pairs of a target; 0 where the layer has no low-rank update.
    pairs: usize,
    /// Whether the input needs a gradient.
    input_learns: bool,
    /// Whether a backward pass can follow.
    learns: bool,
    /// Whether only the row of each text CLS is computed.
    cls_alone: bool,
    /// Written by the forward pass, read by the backward pass.
    kept: Mutex<Option<Kept>>,
}

/// Where one sample's rows are.
struct SampleRanges {
    /// In the state.
    tokens: Range<usize>,
    /// In the matrix of keys and values: its tokens, then its prefix.
    keys: Range<usize>,
}

/// The values that the forward pass of a layer keeps for the backward pass.
struct Kept {
    /// The normalised state, `[tokens, d]`.
    x: Matrix<f32>,
    /// Queries, keys and values, `[keys, 3 d]`: the rows of each sample's tokens, then those of its prefix.
    qkv: Matrix<f32>,
    /// The state after the attention, `[rows, d]`.
    middle: Matrix<f32>,
    /// The input of the GELU, `[rows, intermediate]`.
    inner: Matrix<f32>,
}

impl LearningLayer {
    /// Runs a layer over a state with what is added to it. With `cls_alone`, the result is `[samples, d]`.
    ///
    /// # Errors
    /// Updates or prefixes that do not fit the samples.
    pub fn run(
        backbone: &CpuBackend<f32>,
        index: usize,
        state: &Packed,
        pairs: Option<&FactorPairs>,
        prefix: Option<&SampleRows>,
        cls_alone: bool,
    ) -> Result<Tensor> {
        let (samples, d) = (state.spans.len(), state.hidden.dim(1)?);
        let mut learnt = Vec::new();
        if let Some(FactorPairs { a, b, pairs }) = pairs {
            let rows = samples * Target::COUNT * pairs;
            learnt.extend([a.reshape((rows, d))?, b.reshape((rows, d))?]);
        }
        if let Some(prefix) = prefix {
            prefix.check(samples, 2 * d)?;
            let rows = prefix.rows.dim(0)?;
            learnt.push(prefix.rows.reshape((2 * rows, d))?);
        }
        let mut behind = 0;
        let ranges = state.spans.iter().enumerate().map(|(sample, span)| {
            let start = span.start + behind;
            behind += prefix.map_or(0, |prefix| prefix.lengths[sample]);
            SampleRanges { tokens: span.start..span.end(), keys: start..span.end() + behind }
        });
        let learnt = if learnt.is_empty() { None } else { Some(Tensor::cat(&learnt, 0)?) };
        let learns = state.hidden.track_op() || learnt.as_ref().is_some_and(Tensor::track_op);
        let operation = Self {
            samples: ranges.collect(),
            frozen: FrozenLayer {
                kernel: *backbone.multiplier(),
                heads: backbone.heads(),
                layer: backbone.layer_at(index),
                products: LayerProducts::of(backbone, index, learns),
            },
            pairs: pairs.map_or(0, |pairs| pairs.pairs),
            input_learns: state.hidden.track_op(),
            learns,
            cls_alone,
            kept: Mutex::default(),
        };
        match &learnt {
            None => state.hidden.apply_op1(operation),
            Some(learnt) => state.hidden.apply_op2(learnt, operation),
        }
    }

    /// Rows of keys and values of each sample, and those of its queries and results.
    fn attended(&self) -> Vec<Attended> {
        let of_sample = |(i, sample): (usize, &SampleRanges)| Attended {
            tokens: sample.keys.clone(),
            queries: if self.cls_alone { i..i + 1 } else { sample.tokens.clone() },
            prefix: 0..0,
        };
        self.samples.iter().enumerate().map(of_sample).collect()
    }

    /// For each row of the result, the row of its token in `h`.
    fn rows(&self) -> Vec<usize> {
        if self.cls_alone {
            return self.samples.iter().map(|sample| sample.tokens.start).collect();
        }
        (0..self.samples.last().map_or(0, |sample| sample.tokens.end)).collect()
    }

    /// For each token, its row in the matrix of keys and values.
    fn rows_among_keys(&self) -> Vec<usize> {
        self.samples.iter().flat_map(|sample| sample.keys.clone().take(sample.tokens.len())).collect()
    }

    /// For each row of the prefixes, its row in the matrix of keys and values.
    fn prefix_rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.samples.iter().flat_map(|sample| sample.keys.clone().skip(sample.tokens.len()))
    }

    /// Numbers of one sample's factors a, and of its factors b.
    fn factors(&self, d: usize) -> usize {
        Target::COUNT * self.pairs * d
    }

    /// The factors a, the factors b and the prefixes.
    fn parts<'a>(&self, learnt: &'a [f32], d: usize) -> [&'a [f32]; 3] {
        let (a, rest) = learnt.split_at(self.samples.len() * self.factors(d));
        let (b, prefixes) = rest.split_at(a.len());
        [a, b, prefixes]
    }

    /// One sample's low-rank operands.
    fn operands<'a>(&self, x: RowsRef<'a, f32>, a: &'a [f32], b: &'a [f32], sample: usize) -> SampleOperands<'a> {
        let (d, tokens) = (x.width(), self.samples[sample].tokens.clone());
        let factors = sample * self.factors(d)..(sample + 1) * self.factors(d);
        SampleOperands {
            tokens: tokens.len(),
            x: x.range(tokens).into(),
            a: Strided::new(&a[factors.clone()], Target::COUNT * self.pairs, d, d),
            b: &b[factors],
            pairs: self.pairs,
            d,
        }
    }

    /// Queries, keys and values of the tokens, with each sample's prefix behind its tokens.
    fn with_prefixes(&self, qkv: Matrix<f32>, prefixes: &[f32]) -> Matrix<f32> {
        if prefixes.is_empty() {
            return qkv;
        }
        let d = qkv.width() / Target::COUNT;
        let mut joined = Matrix::zeros(qkv.rows() + prefixes.len() / (2 * d), qkv.width());
        self.rows_among_keys().into_iter().enumerate().for_each(|(token, row)| joined.row_mut(row).copy_from_slice(qkv.row(token)));
        self.prefix_rows().zip(prefixes.chunks_exact(2 * d)).for_each(|(row, prefix)| joined.row_mut(row)[d..].copy_from_slice(prefix));
        joined
    }

    fn forward(&self, h: RowsRef<'_, f32>, learnt: &[f32]) -> (Vec<f32>, Kept) {
        let FrozenLayer { kernel, heads, layer, products } = &self.frozen;
        let (tokens, d, isa) = (h.rows(), h.width(), kernel.isa);
        let [a, b, prefixes] = self.parts(learnt, d);
        let mut x = Matrix::zeros(tokens, d);
        layer.norm_before.rows(isa, h, &x.view_mut());
        let mut qkv = products.forward(LayerMap::Qkv, x.view());
        if self.pairs > 0 {
            let (stride, rows) = (qkv.view().stride(), qkv.view_mut());
            parallel(self.samples.len(), |sample| {
                // SAFETY: the rows of two samples are disjoint.
                let mut rows = unsafe { rows.whole(self.samples[sample].tokens.clone()) };
                self.operands(x.view(), a, b, sample).forward(rows.values_mut(), stride);
            });
        }
        let (attended, rows) = (self.attended(), self.rows());
        // The query of a result's row is in the row of its token.
        let queries = Matrix::of_rows(qkv.view(), rows.iter().copied());
        let qkv = self.with_prefixes(qkv, prefixes);
        let part = |part: usize| qkv.view().columns(part * d..(part + 1) * d);
        let mut context = Matrix::zeros(rows.len(), d);
        attend(kernel, [queries.view().columns(0..d), part(1), part(2)], &attended, *heads, &context.view_mut());
        let mut middle = products.forward(LayerMap::AttentionOutput, context.view());
        for (row, &token) in rows.iter().enumerate() {
            middle.row_mut(row).iter_mut().zip(h.row(token)).for_each(|(m, h)| *m += h);
        }
        let mut normalised = Matrix::zeros(rows.len(), d);
        layer.norm_after.rows(isa, middle.view(), &normalised.view_mut());
        let inner = products.forward(LayerMap::Intermediate, normalised.view());
        let mut activated = Matrix::zeros(rows.len(), inner.width());
        each_row(kernel, inner.view(), &activated.view_mut(), |x, out| out.iter_mut().zip(x).for_each(|(o, &x)| *o = gelu(x)));
        let out = products.forward(LayerMap::Output, activated.view());
        let mut flat = Vec::with_capacity(rows.len() * d);
        for row in 0..rows.len() {
            flat.extend(out.row(row).iter().zip(middle.row(row)).map(|(o, m)| o + m));
        }
        (flat, Kept { x, qkv, middle, inner })
    }

    /// Gradients of h (`None` where it needs none) and of what is learnt.
    fn backward(&self, kept: &Kept, h: RowsRef<'_, f32>, learnt: &[f32], grad: RowsRef<'_, f32>) -> (Option<Vec<f32>>, Vec<f32>) {
        let FrozenLayer { kernel, heads, layer, products } = &self.frozen;
        let (tokens, d) = (h.rows(), h.width());
        let rows = self.rows();
        let mut inner = Matrix::zeros(rows.len(), kept.inner.width());
        products.backward_into(LayerMap::Output, grad, &SlopeSink { x: kept.inner.view(), out: inner.view_mut() });
        let normalised = products.backward(LayerMap::Intermediate, inner.view());
        let mut middle = Matrix::zeros(rows.len(), d);
        {
            let middle = middle.view_mut();
            pieces(kernel, rows.len(), |row| {
                // SAFETY: each row belongs to one piece of work.
                let out = unsafe { middle.part(row, 0..d) };
                out.copy_from_slice(grad.row(row));
                layer.norm_after.add_gradient(kept.middle.row(row), normalised.row(row), out);
            });
        }
        let context = products.backward(LayerMap::AttentionOutput, middle.view());
        let mut qkv = Matrix::zeros(kept.qkv.rows(), Target::COUNT * d);
        attention::backward(kernel, kept.qkv.view(), &self.attended(), *heads, context.view(), &qkv.view_mut());
        let mut dlearnt = vec![0.0; learnt.len()];
        let factors = 2 * self.samples.len() * self.factors(d);
        if learnt.len() > factors {
            let prefixes = dlearnt[factors..].chunks_exact_mut(2 * d);
            self.prefix_rows().zip(prefixes).for_each(|(row, prefix)| prefix.copy_from_slice(&qkv.row(row)[d..]));
            qkv = Matrix::of_rows(qkv.view(), self.rows_among_keys().into_iter());
        }
        let mut x = if self.input_learns { products.backward(LayerMap::Qkv, qkv.view()) } else { Matrix::default() };
        if self.pairs > 0 {
            self.low_rank_backward(kept, learnt, &qkv, &mut x, &mut dlearnt[..factors]);
        }
        if !self.input_learns {
            return (None, dlearnt);
        }
        let mut dh = vec![0.0; tokens * d];
        {
            let dh = RowsMut::new(&mut dh, tokens, d, d);
            let mut row_of = vec![None; tokens];
            rows.iter().enumerate().for_each(|(row, &token)| row_of[token] = Some(row));
            pieces(kernel, tokens, |token| {
                // SAFETY: each row belongs to one piece of work.
                let out = unsafe { dh.part(token, 0..d) };
                if let Some(row) = row_of[token] {
                    out.copy_from_slice(middle.row(row));
                }
                layer.norm_before.add_gradient(h.row(token), x.row(token), out);
            });
        }
        (Some(dh), dlearnt)
    }

    /// Given the gradient of the tokens' queries, keys and values, writes those of the factors to `dfactors`
    /// and adds that of the normalised state to `dx`.
    fn low_rank_backward(&self, kept: &Kept, learnt: &[f32], dqkv: &Matrix<f32>, dx: &mut Matrix<f32>, dfactors: &mut [f32]) {
        let d = kept.x.width();
        let [a, b, _] = self.parts(learnt, d);
        let (x_stride, grad_stride) = (dx.view().stride(), dqkv.view().stride());
        let (dx, factors, samples) = (dx.view_mut(), self.factors(d), self.samples.len());
        let (da, db) = dfactors.split_at_mut(samples * factors);
        let (da, db) = (RowsMut::new(da, samples, factors, factors), RowsMut::new(db, samples, factors, factors));
        parallel(samples, |sample| {
            let tokens = self.samples[sample].tokens.clone();
            let operands = self.operands(kept.x.view(), a, b, sample);
            let grad = dqkv.view().range(tokens.clone());
            // SAFETY: the rows of two samples are disjoint, in the tokens and in the factors.
            unsafe {
                let mut dx = self.input_learns.then(|| dx.whole(tokens));
                let dx = dx.as_mut().map(|dx| (dx.values_mut(), x_stride));
                operands.backward(grad.values(), grad_stride, dx, da.part(sample, 0..factors), db.part(sample, 0..factors));
            }
        });
    }

    fn forward_kept(&self, h: &CpuStorage, layout: &Layout, learnt: &[f32]) -> Result<(CpuStorage, Shape)> {
        let (tokens, d) = layout.shape().dims2()?;
        let (out, kept) = self.forward(RowsRef::new(values(h, layout)?, tokens, d, d), learnt);
        if self.learns {
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
        let rows = out.len() / d;
        Ok((CpuStorage::F32(out), Shape::from((rows, d))))
    }

    fn backward_kept(&self, h: &Tensor, learnt: &[f32], grad: &Tensor) -> Result<(Option<Tensor>, Vec<f32>)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.as_ref().ok_or_else(|| candle_core::Error::Msg("a backward pass without its forward pass".to_owned()))?;
        let (rows, d) = grad.dims2()?;
        let (dh, dlearnt) = with_values(h, |h| {
            with_values(grad, |grad| self.backward(kept, RowsRef::new(h, h.len() / d, d, d), learnt, RowsRef::new(grad, rows, d, d)))
        })??;
        Ok((dh.map(|dh| Tensor::from_vec(dh, h.shape(), h.device())).transpose()?, dlearnt))
    }
}

impl CustomOp1 for LearningLayer {
    fn name(&self) -> &'static str {
        "learning-layer"
    }

    fn cpu_fwd(&self, h: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward_kept(h, layout, &[])
    }

    fn bwd(&self, h: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.backward_kept(h, &[], grad)?.0)
    }
}

impl CustomOp2 for LearningLayer {
    fn name(&self) -> &'static str {
        "learning-layer"
    }

    fn cpu_fwd(&self, h: &CpuStorage, h_layout: &Layout, learnt: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward_kept(h, h_layout, values(learnt, layout)?)
    }

    fn bwd(&self, h: &Tensor, learnt: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dh, dlearnt) = with_values(learnt, |values| self.backward_kept(h, values, grad))??;
        Ok((dh, Some(Tensor::from_vec(dlearnt, learnt.shape(), learnt.device())?)))
    }
}

impl fmt::Debug for LearningLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LearningLayer").field("pairs", &self.pairs).finish_non_exhaustive()
    }
}
