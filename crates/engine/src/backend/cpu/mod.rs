//! The backbone on a CPU: weights are packed once, and the tokens of all samples are in one matrix.
mod embed;
pub(crate) mod learning;
pub(super) mod low_rank;
mod prefixes;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Result, Tensor};

use crate::backend::{Adapters, Backend, Dummy};
use crate::packed::Span;
use crate::tensors::{values_of, with_values};
use delo_kernels::attention::{Attended, attention_with_prefixes};
use delo_kernels::elementwise::{gelu, tanh};
use delo_kernels::norm::{Norm, mean};
use delo_kernels::{
    Float, Format, Isa, Kernel, MapSink, Matrix, PANEL, PackedMatrix, Precision, ResidualSink, RowsMut, Tile, TileSink, parallel, product,
    product_panels, threads,
};
use delo_model::input::Sample;
use delo_model::method::Target;
use delo_model::vilt::{Description, LayerNorm, Linear, Loader, ViltError};
use embed::Embeddings;
use learning::LearningMatrices;
use low_rank::LayerUpdate;
use prefixes::LayerPrefixes;

/// Rows of one sample in one piece of work that normalises and projects.
const ROWS: usize = 42;
/// The most workspaces that are kept for later forwards.
const WORKSPACES: usize = 4;

/// A frozen ViLT with packed weights.
#[derive(Debug)]
pub(crate) struct CpuBackend<F: Format> {
    /// The number format `F` as a value.
    precision: Precision,
    /// Multiplies by the frozen weights.
    kernel: Kernel<F>,
    /// Multiplies where no operand is a packed weight: in attention and in low-rank updates.
    float_kernel: Kernel<F::Float>,
    heads: usize,
    embeddings: Embeddings<F>,
    layers: Vec<Arc<Layer<F>>>,
    norm: Norm,
    pooler: Arc<Map<F>>,
    learning: LearningMatrices,
    workspaces: Mutex<Vec<Workspace<F::Float>>>,
}

/// A linear map, `x Wᵀ + b`.
#[derive(Debug)]
pub(crate) struct Map<F: Format> {
    pub weight: PackedMatrix<F>,
    pub bias: Vec<f32>,
}

/// One encoder layer.
#[derive(Debug)]
pub(crate) struct Layer<F: Format> {
    pub norm_before: Norm,
    /// Query, key and value side by side: `[tokens, d]` → `[tokens, 3 d]`.
    pub qkv: Map<F>,
    pub attention_output: Map<F>,
    pub norm_after: Norm,
    pub intermediate: Map<F>,
    pub output: Map<F>,
}

/// The matrices that a forward writes in each layer. They are kept between forwards, to save allocations.
#[derive(Debug, Default)]
pub(crate) struct Workspace<E: Float> {
    /// The pixels of all patches, `[patches, 3 · patch · patch]`.
    pixels: Matrix<E>,
    /// Normalised states, then the attention's output, `[tokens, d]`.
    x: Matrix<E>,
    /// `[tokens, 3 d]`
    qkv: Matrix<E>,
    /// `[tokens, intermediate]`
    inner: Matrix<E>,
    /// α · x Aᵀ, `[tokens, targets · pairs]`, in whole panels
    u: Matrix<f32>,
    /// x, qkv and inner of the last layer's rows of text CLS, `[samples, …]`.
    cls: [Matrix<E>; 3],
    /// `u` of the same rows.
    cls_u: Matrix<f32>,
}

impl<F: Format> Map<F> {
    /// Packs one map, or several maps of the same input side by side.
    pub fn pack(maps: &[&Linear]) -> Result<Self> {
        let k = maps[0].weight.dim(1)?;
        let weights = maps.iter().map(|map| values_of(&map.weight)).collect::<Result<Vec<_>>>()?;
        let biases = maps.iter().map(|map| values_of(&map.bias)).collect::<Result<Vec<_>>>()?;
        Ok(Self { weight: PackedMatrix::new(&weights.iter().map(Vec::as_slice).collect::<Vec<_>>(), k), bias: biases.concat() })
    }
}

pub(super) fn norm(norm: &LayerNorm) -> Result<Norm> {
    Ok(Norm { weight: values_of(&norm.weight)?, bias: values_of(&norm.bias)?, eps: norm.eps as f32 })
}

impl<F: Format> CpuBackend<F> {
    /// Loads a checkpoint part by part: at most one layer is in memory in unpacked form.
    pub fn load(mut loader: Loader, isa: Isa, precision: Precision) -> std::result::Result<(Self, Description), ViltError> {
        let embeddings = Embeddings::load(&loader.embeddings()?)?;
        let layers = (0..loader.config().num_hidden_layers)
            .map(|index| {
                let layer = loader.layer(index)?;
                Ok(Arc::new(Layer {
                    norm_before: norm(&layer.layernorm_before)?,
                    qkv: Map::pack(&[&layer.query, &layer.key, &layer.value])?,
                    attention_output: Map::pack(&[&layer.attention_output])?,
                    norm_after: norm(&layer.layernorm_after)?,
                    intermediate: Map::pack(&[&layer.intermediate])?,
                    output: Map::pack(&[&layer.output])?,
                }))
            })
            .collect::<std::result::Result<Vec<_>, ViltError>>()?;
        let pooler = loader.pooler()?;
        let heads = loader.config().num_attention_heads;
        let backbone = Self {
            precision,
            kernel: F::kernel(isa),
            float_kernel: F::Float::kernel(isa),
            heads,
            embeddings,
            layers,
            norm: norm(&pooler.layernorm)?,
            pooler: Arc::new(Map::pack(&[&pooler.dense])?),
            learning: LearningMatrices::default(),
            workspaces: Mutex::default(),
        };
        Ok((backbone, loader.finish()))
    }

    /// The kernel of the frozen products.
    pub fn multiplier(&self) -> &Kernel<F> {
        &self.kernel
    }

    pub fn heads(&self) -> usize {
        self.heads
    }

    pub fn layer_at(&self, index: usize) -> Arc<Layer<F>> {
        self.layers[index].clone()
    }

    /// The norm and the map of the pooler, which follow the last layer.
    pub fn pooler(&self) -> (&Norm, &Arc<Map<F>>) {
        (&self.norm, &self.pooler)
    }

    fn take_workspace(&self) -> Workspace<F::Float> {
        self.kept_workspaces().pop().unwrap_or_default()
    }

    fn give_back(&self, workspace: Workspace<F::Float>) {
        let mut kept = self.kept_workspaces();
        if kept.len() < WORKSPACES {
            kept.push(workspace);
        }
    }

    /// The workspaces that are kept. A panic of another thread leaves the list intact, because each change of
    /// it is one call.
    fn kept_workspaces(&self) -> MutexGuard<'_, Vec<Workspace<F::Float>>> {
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_workspace<R>(&self, f: impl FnOnce(&mut Workspace<F::Float>) -> R) -> R {
        let mut workspace = self.take_workspace();
        let result = f(&mut workspace);
        self.give_back(workspace);
        result
    }

    /// Normalises every row into `x`, and projects it onto its sample's A factors into `u`.
    fn normalise(
        &self,
        norm: &Norm,
        hidden: &Matrix<f32>,
        spans: &[Span],
        update: Option<&LayerUpdate<'_, F::Float>>,
        x: &mut Matrix<F::Float>,
        u: &mut Matrix<f32>,
    ) {
        x.reshape(hidden.rows(), hidden.width());
        let (isa, x, hidden) = (self.kernel.isa, x.view_mut(), hidden.view());
        let Some(update) = update else { return norm.rows(isa, hidden, &x) };
        u.reshape(hidden.rows(), update.width());
        let u = u.view_mut();
        let pieces: Vec<(usize, usize)> = (0..spans.len())
            .flat_map(|sample| (spans[sample].start..spans[sample].end()).step_by(ROWS).map(move |first| (sample, first)))
            .collect();
        parallel(pieces.len(), |piece| {
            let (sample, first) = pieces[piece];
            let rows = first..spans[sample].end().min(first + ROWS);
            isa.run(
                #[inline(always)]
                || {
                    // SAFETY: each row belongs to one piece of work.
                    let mut x = unsafe { x.whole(rows.clone()) };
                    for row in rows.clone() {
                        norm.row(hidden.row(row), x.row_mut(row - first));
                    }
                    // SAFETY: as above.
                    unsafe { update.project(&self.float_kernel, x.view(), sample, first, &u) };
                },
            );
        });
    }

    /// One pre-norm encoder layer, in place.
    fn whole_layer(
        &self,
        index: usize,
        hidden: &mut Matrix<f32>,
        spans: &[Span],
        added: &LayerAdditions<'_, F::Float>,
        w: &mut Workspace<F::Float>,
    ) {
        let LayerAdditions { update, prefixes } = added;
        let (layer, d, update) = (&self.layers[index], hidden.width(), update.as_ref());
        self.normalise(&layer.norm_before, hidden, spans, update, &mut w.x, &mut w.u);
        w.qkv.reshape(hidden.rows(), Target::COUNT * d);
        let owners: Vec<Owner> = spans.iter().enumerate().map(|(sample, span)| Owner { sample, rows: span.start..span.end() }).collect();
        let sink = QkvSink { isa: self.kernel.isa, d, update: update.map(|update| (update, &w.u)), owners: &owners, out: w.qkv.view_mut() };
        product(&self.kernel, w.x.view(), &layer.qkv.weight, Some(&layer.qkv.bias), &sink);
        let attended = |owner: &Owner| Attended { prefix: prefixes.rows(owner.sample), ..Attended::to_itself(owner.rows.clone()) };
        let attended: Vec<Attended> = owners.iter().map(attended).collect();
        let parts = [0, 1, 2].map(|part| w.qkv.view().columns(part * d..(part + 1) * d));
        attention_with_prefixes(&self.float_kernel, parts, prefixes.parts(), &attended, self.heads, &w.x.view_mut());
        self.after_attention(layer, hidden, &mut w.x, &mut w.inner);
    }

    /// The part of a layer after attention, in place, for any rows. `x` is the output of attention.
    fn after_attention(&self, layer: &Layer<F>, hidden: &mut Matrix<f32>, x: &mut Matrix<F::Float>, inner: &mut Matrix<F::Float>) {
        let map = &layer.attention_output;
        product(&self.kernel, x.view(), &map.weight, Some(&map.bias), &ResidualSink { isa: self.kernel.isa, out: hidden.view_mut() });
        layer.norm_after.rows(self.kernel.isa, hidden.view(), &x.view_mut());
        let map = &layer.intermediate;
        inner.reshape(hidden.rows(), map.weight.n());
        product(&self.kernel, x.view(), &map.weight, Some(&map.bias), &MapSink { isa: self.kernel.isa, f: gelu, out: inner.view_mut() });
        let map = &layer.output;
        product(&self.kernel, inner.view(), &map.weight, Some(&map.bias), &ResidualSink { isa: self.kernel.isa, out: hidden.view_mut() });
    }

    /// The last layer for the text CLS of each sample alone, `[tokens, d]` → `[samples, d]`: keys and values
    /// are computed for all tokens, everything else for one row of each sample.
    fn cls_layer(
        &self,
        index: usize,
        hidden: &Matrix<f32>,
        spans: &[Span],
        added: &LayerAdditions<'_, F::Float>,
        w: &mut Workspace<F::Float>,
    ) -> Matrix<f32> {
        let LayerAdditions { update, prefixes } = added;
        let (layer, d, samples, update) = (&self.layers[index], hidden.width(), spans.len(), update.as_ref());
        self.normalise(&layer.norm_before, hidden, spans, update, &mut w.x, &mut w.u);
        w.qkv.reshape(hidden.rows(), Target::COUNT * d);
        let owners: Vec<Owner> = spans.iter().enumerate().map(|(sample, span)| Owner { sample, rows: span.start..span.end() }).collect();
        let map = &layer.qkv;
        let sink = QkvSink { isa: self.kernel.isa, d, update: update.map(|update| (update, &w.u)), owners: &owners, out: w.qkv.view_mut() };
        // A panel may hold the last columns of the query and the first of the key.
        product_panels(&self.kernel, w.x.view(), &map.weight, Some(&map.bias), d / PANEL..map.weight.panels(), &sink);

        let [x, qkv, inner] = &mut w.cls;
        let cls = || spans.iter().map(|span| span.start);
        x.gather(w.x.view(), cls());
        qkv.reshape(samples, Target::COUNT * d);
        if update.is_some() {
            w.cls_u.gather(w.u.view(), cls());
        }
        let owners: Vec<Owner> = (0..samples).map(|sample| Owner { sample, rows: sample..sample + 1 }).collect();
        let sink =
            QkvSink { isa: self.kernel.isa, d, update: update.map(|update| (update, &w.cls_u)), owners: &owners, out: qkv.view_mut() };
        product_panels(&self.kernel, x.view(), &map.weight, Some(&map.bias), 0..d.div_ceil(PANEL), &sink);

        let attended = |(i, span): (usize, &Span)| Attended { tokens: span.start..span.end(), queries: i..i + 1, prefix: prefixes.rows(i) };
        let attended: Vec<Attended> = spans.iter().enumerate().map(attended).collect();
        let all = |part: usize| w.qkv.view().columns(part * d..(part + 1) * d);
        let parts = [qkv.view().columns(0..d), all(1), all(2)];
        attention_with_prefixes(&self.float_kernel, parts, prefixes.parts(), &attended, self.heads, &x.view_mut());
        let mut hidden = Matrix::of_rows(hidden.view(), cls());
        self.after_attention(layer, &mut hidden, x, inner);
        hidden
    }

    /// tanh(pooler · layernorm(h)) of each row, `[rows, d]`.
    fn pool_rows(&self, cls: &Matrix<f32>, w: &mut Workspace<F::Float>) -> Vec<Vec<f32>> {
        let mut out = Matrix::zeros(cls.rows(), cls.width());
        let [x, ..] = &mut w.cls;
        x.reshape(cls.rows(), cls.width());
        self.norm.rows(self.kernel.isa, cls.view(), &x.view_mut());
        product(
            &self.kernel,
            x.view(),
            &self.pooler.weight,
            Some(&self.pooler.bias),
            &MapSink { isa: self.kernel.isa, f: tanh, out: out.view_mut() },
        );
        (0..out.rows()).map(|row| out.row(row).to_vec()).collect()
    }

    /// What the samples' tasks add to a layer: chooses the samples' factors, and copies their prefixes.
    fn additions<'a>(
        &self,
        layer: usize,
        hidden: &Matrix<f32>,
        spans: &[Span],
        adapters: Option<&Adapters<'a>>,
    ) -> LayerAdditions<'a, F::Float> {
        let prefixes = adapters.map_or_else(|| vec![None; spans.len()], |adapters| adapters.prefixes(layer));
        LayerAdditions {
            update: adapters.and_then(|adapters| LayerUpdate::route(self.kernel.isa, &adapters.layer(layer), hidden.view(), spans)),
            prefixes: LayerPrefixes::of(&prefixes, hidden.width()),
        }
    }
}

impl<F: Format> Backend for CpuBackend<F> {
    type Hidden = Matrix<f32>;
    type Pass<'a> = Pass<'a, F::Float>;

    fn layers(&self) -> usize {
        self.layers.len()
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn kernel(&self) -> &str {
        self.kernel.name
    }

    fn batch_tokens(&self, sample_tokens: usize) -> usize {
        sample_tokens * threads().max(2) * 3 / 4
    }

    fn backlog_batch_tokens(&self, sample_tokens: usize) -> usize {
        8 * self.batch_tokens(sample_tokens)
    }

    fn embed(&self, samples: &[&Sample], dummy: Dummy<'_>) -> Result<(Matrix<f32>, Vec<Span>)> {
        self.with_workspace(|w| self.embeddings.embed(&self.kernel, samples, dummy, &mut w.pixels))
    }

    fn start<'a>(&self, spans: &'a [Span], _: Range<usize>, _: Option<&Adapters<'_>>) -> Result<Self::Pass<'a>> {
        Ok(Pass { spans, workspace: self.take_workspace() })
    }

    fn layer(
        &self,
        pass: &mut Self::Pass<'_>,
        index: usize,
        hidden: &mut Matrix<f32>,
        mut adapters: Option<&mut Adapters<'_>>,
    ) -> Result<()> {
        let added = self.additions(index, hidden, pass.spans, adapters.as_deref());
        self.whole_layer(index, hidden, pass.spans, &added, &mut pass.workspace);
        note(&mut adapters, index, added.update);
        Ok(())
    }

    fn layer_of_cls(
        &self,
        pass: &mut Self::Pass<'_>,
        index: usize,
        hidden: &Matrix<f32>,
        mut adapters: Option<&mut Adapters<'_>>,
    ) -> Result<Matrix<f32>> {
        let added = self.additions(index, hidden, pass.spans, adapters.as_deref());
        let cls = self.cls_layer(index, hidden, pass.spans, &added, &mut pass.workspace);
        note(&mut adapters, index, added.update);
        Ok(cls)
    }

    fn finish(&self, pass: Self::Pass<'_>, _: Option<&mut Adapters<'_>>) -> Result<()> {
        self.give_back(pass.workspace);
        Ok(())
    }

    fn cls(&self, hidden: &Matrix<f32>, spans: &[Span]) -> Result<Matrix<f32>> {
        Ok(Matrix::of_rows(hidden.view(), spans.iter().map(|span| span.start)))
    }

    fn normalised(&self, cls: &Matrix<f32>) -> Result<Vec<Vec<f32>>> {
        let mut out = Matrix::<f32>::zeros(cls.rows(), cls.width());
        self.norm.rows(self.kernel.isa, cls.view(), &out.view_mut());
        Ok((0..out.rows()).map(|row| out.row(row).to_vec()).collect())
    }

    fn append(&self, hidden: &Matrix<f32>, spans: &[Span], rows: &[Vec<&[f32]>]) -> Result<Matrix<f32>> {
        let more: usize = rows.iter().map(Vec::len).sum();
        let mut out = Matrix::zeros(hidden.rows() + more, hidden.width());
        let mut next = 0;
        for (span, rows) in spans.iter().zip(rows) {
            for values in (span.start..span.end()).map(|row| hidden.row(row)).chain(rows.iter().copied()) {
                out.row_mut(next).copy_from_slice(values);
                next += 1;
            }
        }
        Ok(out)
    }

    fn pool(&self, cls: &Matrix<f32>) -> Result<Vec<Vec<f32>>> {
        Ok(self.with_workspace(|w| self.pool_rows(cls, w)))
    }

    fn means(&self, hidden: &Matrix<f32>, ranges: &[Range<usize>]) -> Result<Vec<Vec<f32>>> {
        let isa = self.kernel.isa;
        let one = |rows: &Range<usize>| {
            let mut out = vec![0.0; hidden.width()];
            isa.run(
                #[inline(always)]
                || mean(hidden.view(), rows.clone(), &mut out),
            );
            out
        };
        Ok(ranges.iter().map(one).collect())
    }

    fn select(&self, hidden: &Matrix<f32>, spans: &[Span]) -> Result<Matrix<f32>> {
        let rows: Vec<usize> = spans.iter().flat_map(|span| span.start..span.end()).collect();
        Ok(Matrix::of_rows(hidden.view(), rows.into_iter()))
    }

    fn to_tensor(&self, hidden: &Matrix<f32>) -> Result<Tensor> {
        Tensor::from_vec(hidden.to_vec(), (hidden.rows(), hidden.width()), &Device::Cpu)
    }

    fn load_tensor(&self, hidden: &Tensor) -> Result<Matrix<f32>> {
        let (rows, width) = hidden.dims2()?;
        let mut matrix = Matrix::zeros(rows, width);
        with_values(hidden, |values| {
            values.chunks_exact(width).enumerate().for_each(|(row, values)| matrix.row_mut(row).copy_from_slice(values));
        })?;
        Ok(matrix)
    }
}

/// A pass over a range of layers.
pub(crate) struct Pass<'a, E: Float> {
    spans: &'a [Span],
    workspace: Workspace<E>,
}

/// What the tasks of a batch's samples add to one layer.
struct LayerAdditions<'a, E: Float> {
    /// Low-rank updates; `None` where no sample has one.
    update: Option<LayerUpdate<'a, E>>,
    prefixes: LayerPrefixes<E>,
}

/// Notes the choices of a layer.
fn note<E: Float>(adapters: &mut Option<&mut Adapters<'_>>, layer: usize, update: Option<LayerUpdate<'_, E>>) {
    if let (Some(adapters), Some(update)) = (adapters, update) {
        adapters.note(layer, update.choices());
    }
}

/// The rows of a product that belong to one sample.
struct Owner {
    sample: usize,
    rows: Range<usize>,
}

/// Stores queries, keys and values with the low-rank update added.
struct QkvSink<'a, E: Float> {
    isa: Isa,
    d: usize,
    update: Option<(&'a LayerUpdate<'a, E>, &'a Matrix<f32>)>,
    owners: &'a [Owner],
    out: RowsMut<'a, E>,
}

impl<E: Float> TileSink for QkvSink<'_, E> {
    #[inline(always)]
    fn tile(&self, tile: &mut Tile<'_>) {
        if let Some((update, u)) = self.update {
            let covered = tile.row..tile.row + tile.rows;
            let first = self.owners.partition_point(|owner| owner.rows.end <= covered.start);
            for owner in self.owners[first..].iter().take_while(|owner| owner.rows.start < covered.end) {
                let rows = owner.rows.start.max(covered.start)..owner.rows.end.min(covered.end);
                // A panel may hold the last columns of one target and the first of the next.
                let mut column = tile.column;
                while column < tile.column + tile.columns {
                    let (target, within) = (column / self.d, column % self.d);
                    let count = (self.d - within).min(tile.column + tile.columns - column);
                    update.add(owner.sample, u, rows.clone(), target, within..within + count, column - tile.column, tile);
                    column += count;
                }
            }
        }
        // SAFETY: no two tiles cover the same element.
        unsafe { tile.store(self.isa, &self.out) };
    }
}
