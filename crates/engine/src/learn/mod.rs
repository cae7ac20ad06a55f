//! One task's layers during training: the frozen products forward and backward on packed weights, and
//! gradients of the state and the low-rank factors.
//!
//! A layer is one operation of candle's graph. Its backward pass uses the values that its forward pass kept,
//! and the transposes of the weights, which are packed at the first call of [`Engine::run_task`].
mod attention;
mod low_rank;
mod segment_mean;
mod small_product;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Device, Layout, Result, Shape, Tensor};

use self::low_rank::SampleOperands;
use self::small_product::Strided;
use super::backend::cpu::{CpuBackend, Map};
use super::packed::{Packed, Span};
use super::tensors::{values, with_values};
use crate::Engine;
use crate::compute::Compute;
use delo_kernels::attention::{Attended, attention as attend};
use delo_kernels::elementwise::{gelu, gelu_slope};
use delo_kernels::norm::Norm;
use delo_kernels::{Kernel, MapSink, Matrix, PackedMatrix, RowsMut, RowsRef, Tile, TileSink, parallel, product};
use delo_model::PerModality;
use delo_model::input::Presence;
use delo_model::method::{FactorPairs, Target, TaskModel};
use segment_mean::SegmentMean;

/// Rows of one piece of work.
const ROWS: usize = 32;

/// The output of one task's layers and head for each sample.
#[derive(Debug)]
pub struct TaskOutput {
    /// `[samples, classes]`
    pub logits: Tensor,
    /// For each adapted layer, the queries of the state that enters it, `[samples, d]` for each modality; the
    /// proxy's query where the modality is missing (METHOD.md 3).
    pub queries: Vec<PerModality<Tensor>>,
}

impl Engine {
    /// Runs one task's adapted layers and its head. `packed` is the state that enters the task's first
    /// adapted layer. The output is differentiable in the task's variables. Blocking.
    ///
    /// # Errors
    /// An engine that does not compute in f32 on the CPU.
    pub fn run_task(&self, packed: &Packed, task: &TaskModel) -> Result<TaskOutput> {
        let Compute::F32(backbone) = &self.compute else {
            candle_core::bail!("training computes in f32 on the CPU: load the backbone with that precision and device");
        };
        let (first_layer, layers) = (task.method().first_adapted_layer(), self.backbone.config.num_hidden_layers);
        let (samples, d) = (packed.spans.len(), self.backbone.config.hidden_size);
        let spans: Arc<[Span]> = packed.spans.clone();
        let mut hidden = packed.hidden.clone();
        let mut of_layers = Vec::new();
        for layer in first_layer..layers {
            let queries = queries(&hidden, &spans, task.method().cross_modal_guide())?;
            let FactorPairs { a, b, pairs } = task.pairs(layer, queries.as_ref())?;
            let rows = samples * Target::COUNT * pairs;
            let (a, b) = (a.reshape((rows, d))?, b.reshape((rows, d))?);
            let operation = AdaptedLayer {
                layer: LearningLayer::of(backbone, layer),
                spans: spans.clone(),
                pairs,
                // Layers before the first adapted one have no trainable parameter, and the pooler reads only
                // the text CLS of the last one.
                first: layer == first_layer,
                last: layer + 1 == layers,
                kept: Mutex::default(),
            };
            hidden = hidden.apply_op3(&a, &b, operation)?;
            of_layers.push(queries);
        }
        if of_layers.is_empty() {
            let rows: Vec<u32> = spans.iter().map(|span| span.start as u32).collect();
            hidden = hidden.index_select(&Tensor::from_vec(rows, samples, &Device::Cpu)?, 0)?;
        }
        let (norm, pooler) = backbone.pooler();
        let operation =
            Pool { norm: norm.clone(), kernel: *backbone.multiplier(), pooler: pooler.clone(), back: backbone.transposes().pooler.clone() };
        Ok(TaskOutput { logits: task.head(&hidden.apply_op1(operation)?)?, queries: of_layers })
    }
}

/// The queries of each sample, `[samples, d]` for each modality. Where the modality is missing: the proxy's
/// query (METHOD.md 3) or, not `guided`, that of its dummy.
fn queries(hidden: &Tensor, spans: &Arc<[Span]>, guided: bool) -> Result<PerModality<Tensor>> {
    let means = hidden.apply_op1(SegmentMean(spans.clone()))?;
    let samples = spans.len();
    let chosen = |first: usize, instead: usize, lost: Presence| {
        let index: Vec<u32> = spans
            .iter()
            .enumerate()
            .map(|(i, span)| (i + if guided && span.presence == lost { instead } else { first } * samples) as u32)
            .collect();
        means.index_select(&Tensor::from_vec(index, samples, &Device::Cpu)?, 0)
    };
    Ok(PerModality { image: chosen(0, 1, Presence::TextOnly)?, text: chosen(1, 0, Presence::ImageOnly)? })
}

/// One frozen layer and the transposed weights of its backward pass.
#[derive(Clone)]
struct LearningLayer {
    kernel: Kernel<f32>,
    heads: usize,
    layer: Arc<super::backend::cpu::Layer<f32>>,
    back: Arc<super::backend::cpu::TransposedLayer>,
}

impl LearningLayer {
    fn of(backbone: &CpuBackend<f32>, index: usize) -> Self {
        let back = backbone.transposes().layers[index].clone();
        Self { kernel: *backbone.multiplier(), heads: backbone.heads(), layer: backbone.layer_at(index), back }
    }
}

/// One pre-norm encoder layer: `(h, a, b)` → the state after it. `h` is `[tokens, d]`; `a` and `b` are
/// `[samples · targets · pairs, d]`, sample by sample, target by target. The result has one row for each
/// token, or one for each text CLS where the layer is the last.
struct AdaptedLayer {
    layer: LearningLayer,
    spans: Arc<[Span]>,
    /// Factor pairs of a target.
    pairs: usize,
    /// Whether no trainable parameter precedes this layer. Its input then needs no gradient.
    first: bool,
    /// Whether this is the last layer, of which only the row of each text CLS is computed.
    last: bool,
    /// Written by the forward pass, read by the backward pass.
    kept: Mutex<Option<Kept>>,
}

/// The values that the forward pass of a layer keeps for the backward pass.
struct Kept {
    /// The normalised state, `[tokens, d]`.
    x: Matrix<f32>,
    /// `[tokens, 3 d]`
    qkv: Matrix<f32>,
    /// The state after the attention, `[rows, d]`.
    middle: Matrix<f32>,
    /// The input of the GELU, `[rows, intermediate]`.
    inner: Matrix<f32>,
}

impl AdaptedLayer {
    /// Tokens of each sample, and the rows of its queries and results.
    fn attended(&self) -> Vec<Attended> {
        let of_sample = |(i, span): (usize, &Span)| {
            let tokens = span.start..span.end();
            Attended { queries: if self.last { i..i + 1 } else { tokens.clone() }, tokens }
        };
        self.spans.iter().enumerate().map(of_sample).collect()
    }

    /// For each row of the result, the row of its token in `h`.
    fn rows(&self) -> Vec<usize> {
        if self.last {
            return self.spans.iter().map(|span| span.start).collect();
        }
        (0..self.spans.last().map_or(0, Span::end)).collect()
    }

    /// One sample's low-rank operands.
    fn operands<'a>(&self, x: RowsRef<'a, f32>, a: &'a [f32], b: &'a [f32], sample: usize) -> SampleOperands<'a> {
        let (d, span) = (x.width(), &self.spans[sample]);
        let factors = sample * Target::COUNT * self.pairs * d..(sample + 1) * Target::COUNT * self.pairs * d;
        SampleOperands {
            x: x.range(span.start..span.end()).into(),
            a: Strided::new(&a[factors.clone()], Target::COUNT * self.pairs, d, d),
            b: &b[factors],
            tokens: span.tokens(),
            pairs: self.pairs,
            d,
        }
    }

    fn forward(&self, h: RowsRef<'_, f32>, a: &[f32], b: &[f32]) -> (Vec<f32>, Kept) {
        let LearningLayer { kernel, heads, layer, .. } = &self.layer;
        let (tokens, d, isa) = (h.rows(), h.width(), kernel.isa);
        let mut x = Matrix::zeros(tokens, d);
        layer.norm_before.rows(isa, h, &x.view_mut());
        let mut qkv = affine(kernel, x.view(), &layer.qkv, |x| x);
        {
            let (stride, rows) = (qkv.view().stride(), qkv.view_mut());
            parallel(self.spans.len(), |sample| {
                let span = &self.spans[sample];
                // SAFETY: the rows of two samples are disjoint.
                let mut rows = unsafe { rows.whole(span.start..span.end()) };
                self.operands(x.view(), a, b, sample).forward(rows.values_mut(), stride);
            });
        }
        let (attended, rows) = (self.attended(), self.rows());
        // The query of a result's row is in the row of its token.
        let queries = Matrix::of_rows(qkv.view(), rows.iter().copied());
        let part = |part: usize| qkv.view().columns(part * d..(part + 1) * d);
        let mut context = Matrix::zeros(rows.len(), d);
        attend(kernel, [queries.view().columns(0..d), part(1), part(2)], &attended, *heads, &context.view_mut());
        let mut middle = affine(kernel, context.view(), &layer.attention_output, |x| x);
        for (row, &token) in rows.iter().enumerate() {
            middle.row_mut(row).iter_mut().zip(h.row(token)).for_each(|(m, h)| *m += h);
        }
        let mut normalised = Matrix::zeros(rows.len(), d);
        layer.norm_after.rows(isa, middle.view(), &normalised.view_mut());
        let inner = affine(kernel, normalised.view(), &layer.intermediate, |x| x);
        let mut activated = Matrix::zeros(rows.len(), inner.width());
        each_row(kernel, inner.view(), &activated.view_mut(), |x, out| out.iter_mut().zip(x).for_each(|(o, &x)| *o = gelu(x)));
        let out = affine(kernel, activated.view(), &layer.output, |x| x);
        let mut flat = Vec::with_capacity(rows.len() * d);
        for row in 0..rows.len() {
            flat.extend(out.row(row).iter().zip(middle.row(row)).map(|(o, m)| o + m));
        }
        (flat, Kept { x, qkv, middle, inner })
    }

    /// Gradients of h (`None` in the first adapted layer), a and b.
    fn backward(
        &self,
        kept: &Kept,
        h: RowsRef<'_, f32>,
        a: &[f32],
        b: &[f32],
        grad: RowsRef<'_, f32>,
    ) -> (Option<Vec<f32>>, Vec<f32>, Vec<f32>) {
        let LearningLayer { kernel, heads, layer, back } = &self.layer;
        let (tokens, d) = (h.rows(), h.width());
        let rows = self.rows();
        let mut inner = Matrix::zeros(rows.len(), kept.inner.width());
        product(kernel, grad, &back.output, None, &SlopeSink { x: kept.inner.view(), out: inner.view_mut() });
        let normalised = linear(kernel, inner.view(), &back.intermediate);
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
        let context = linear(kernel, middle.view(), &back.attention_output);
        let mut qkv = Matrix::zeros(tokens, Target::COUNT * d);
        attention::backward(kernel, kept.qkv.view(), &self.attended(), *heads, context.view(), &qkv.view_mut());
        let mut x = if self.first { Matrix::default() } else { linear(kernel, qkv.view(), &back.qkv) };
        let (mut da, mut db) = (vec![0.0; a.len()], vec![0.0; b.len()]);
        {
            let (x_stride, grad_stride) = (x.view().stride(), qkv.view().stride());
            let (x, factors) = (x.view_mut(), Target::COUNT * self.pairs * d);
            let (da, db) =
                (RowsMut::new(&mut da, self.spans.len(), factors, factors), RowsMut::new(&mut db, self.spans.len(), factors, factors));
            parallel(self.spans.len(), |sample| {
                let span = &self.spans[sample];
                let operands = self.operands(kept.x.view(), a, b, sample);
                let grad = qkv.view().range(span.start..span.end());
                // SAFETY: the rows of two samples are disjoint, in the tokens and in the factors.
                unsafe {
                    let mut dx = (!self.first).then(|| x.whole(span.start..span.end()));
                    let dx = dx.as_mut().map(|dx| (dx.values_mut(), x_stride));
                    operands.backward(grad.values(), grad_stride, dx, da.part(sample, 0..factors), db.part(sample, 0..factors));
                }
            });
        }
        if self.first {
            return (None, da, db);
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
        (Some(dh), da, db)
    }
}

impl CustomOp3 for AdaptedLayer {
    fn name(&self) -> &'static str {
        "adapted-layer"
    }

    fn cpu_fwd(
        &self,
        h: &CpuStorage,
        h_layout: &Layout,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, d) = h_layout.shape().dims2()?;
        let h = RowsRef::new(values(h, h_layout)?, tokens, d, d);
        let (out, kept) = self.forward(h, values(a, a_layout)?, values(b, b_layout)?);
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        let rows = out.len() / d;
        Ok((CpuStorage::F32(out), Shape::from((rows, d))))
    }

    fn bwd(
        &self,
        h: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = kept.as_ref().ok_or_else(|| candle_core::Error::Msg("a backward pass without its forward pass".to_owned()))?;
        let (rows, d) = grad.dims2()?;
        let (dh, da, db) = with_values(h, |h_values| {
            with_values(a, |a| {
                with_values(b, |b| {
                    with_values(grad, |grad| {
                        let h = RowsRef::new(h_values, h_values.len() / d, d, d);
                        self.backward(kept, h, a, b, RowsRef::new(grad, rows, d, d))
                    })
                })
            })
        })????;
        let like = |values: Vec<f32>, t: &Tensor| Tensor::from_vec(values, t.shape(), t.device()).map(Some);
        Ok((dh.map(|dh| like(dh, h)).transpose()?.flatten(), like(da, a)?, like(db, b)?))
    }
}

/// tanh(pooler · layernorm(h)) of each row, `[rows, d]`.
struct Pool {
    kernel: Kernel<f32>,
    norm: Norm,
    pooler: Arc<Map<f32>>,
    back: Arc<PackedMatrix<f32>>,
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, h: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, d) = layout.shape().dims2()?;
        let h = RowsRef::new(values(h, layout)?, rows, d, d);
        let mut x = Matrix::<f32>::zeros(rows, d);
        self.norm.rows(self.kernel.isa, h, &x.view_mut());
        let out = affine(&self.kernel, x.view(), &self.pooler, delo_kernels::elementwise::tanh);
        Ok((CpuStorage::F32(out.to_vec()), layout.shape().clone()))
    }

    fn bwd(&self, h: &Tensor, pooled: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, d) = h.dims2()?;
        let before_tanh = (grad * (1.0 - pooled.sqr()?)?)?;
        let mut out = vec![0.0; rows * d];
        with_values(&before_tanh, |grad| {
            with_values(h, |h| {
                let x = linear(&self.kernel, RowsRef::new(grad, rows, d, d), &self.back);
                for (row, (out, h)) in out.chunks_exact_mut(d).zip(h.chunks_exact(d)).enumerate() {
                    self.norm.add_gradient(h, x.row(row), out);
                }
            })
        })??;
        Ok(Some(Tensor::from_vec(out, h.shape(), h.device())?))
    }
}

/// `f(x Wᵀ + b)`
fn affine(kernel: &Kernel<f32>, x: RowsRef<'_, f32>, map: &Map<f32>, f: impl Fn(f32) -> f32 + Sync) -> Matrix<f32> {
    let mut out = Matrix::zeros(x.rows(), map.weight.n());
    product(kernel, x, &map.weight, Some(&map.bias), &MapSink { isa: kernel.isa, f, out: out.view_mut() });
    out
}

/// `x Wᵀ`
fn linear(kernel: &Kernel<f32>, x: RowsRef<'_, f32>, weight: &PackedMatrix<f32>) -> Matrix<f32> {
    let mut out = Matrix::zeros(x.rows(), weight.n());
    product(kernel, x, weight, None, &MapSink { isa: kernel.isa, f: |x| x, out: out.view_mut() });
    out
}

/// Calls `f` with the number of each row, on the compute pool, compiled for the kernel's instructions.
fn pieces(kernel: &Kernel<f32>, rows: usize, f: impl Fn(usize) + Sync) {
    parallel(rows.div_ceil(ROWS), |piece| {
        kernel.isa.run(
            #[inline(always)]
            || (piece * ROWS..rows.min((piece + 1) * ROWS)).for_each(&f),
        );
    });
}

/// Calls `f(row of x, row of out)` for every row.
fn each_row(kernel: &Kernel<f32>, x: RowsRef<'_, f32>, out: &RowsMut<'_, f32>, f: impl Fn(&[f32], &mut [f32]) + Sync) {
    // SAFETY: each row belongs to one piece of work.
    pieces(kernel, x.rows(), |row| f(x.row(row), unsafe { out.part(row, 0..x.width()) }));
}

/// `out = (grad Wᵀ) · gelu'(x)`
struct SlopeSink<'a> {
    x: RowsRef<'a, f32>,
    out: RowsMut<'a, f32>,
}

impl TileSink for SlopeSink<'_> {
    #[inline(always)]
    fn tile(&self, tile: &mut Tile<'_>) {
        let columns = tile.column..tile.column + tile.columns;
        for row in 0..tile.rows {
            // SAFETY: no two tiles cover the same element.
            let out = unsafe { self.out.part(tile.row + row, columns.clone()) };
            let x = &self.x.row(tile.row + row)[columns.clone()];
            out.iter_mut().zip(tile.row(row)).zip(x).for_each(|((o, &grad), &x)| *o = grad * gelu_slope(x));
        }
    }
}

impl fmt::Debug for AdaptedLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdaptedLayer").field("pairs", &self.pairs).finish_non_exhaustive()
    }
}
