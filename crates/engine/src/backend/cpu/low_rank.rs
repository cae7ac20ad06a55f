//! The low-rank update of query, key and value in a batch of any tasks. Every sample's own B factors are read
//! from its partition, without a copy.
use std::ops::Range;
use std::sync::OnceLock;

use aligned_vec::{AVec, ConstAlign};

use crate::packed::Span;
use delo_kernels::norm::mean;
use delo_kernels::{Float, Format, Isa, Kernel, Matrix, PANEL, RowsMut, RowsRef, Start, Tile, pack_column, parallel};
use delo_model::PerModality;
use delo_model::method::Target;
use delo_model::method::factors::{Choice, FactorBank};
use delo_model::method::numbers::NumbersRef;

/// Factor pairs that are added to a tile of results at once.
const AT_ONCE: usize = 8;

/// One sample's factors in one layer.
struct Factors<'a, E: Float> {
    bank: &'a FactorBank,
    /// The choice in every group of the bank.
    choices: Vec<Choice>,
    /// The chosen A factors as packed columns, target by target: `targets · pairs` columns, in panels.
    down: AVec<E, ConstAlign<64>>,
}

/// Every sample's update in one layer.
pub(super) struct LayerUpdate<'a, E: Float> {
    samples: Vec<Option<Factors<'a, E>>>,
    /// The most factor pairs of a target in any sample.
    pairs: usize,
    /// Multiplies u by B factors.
    kernel: Kernel<f32>,
}

impl<'a, E: Float> LayerUpdate<'a, E> {
    /// Chooses every sample's factors by the state that enters the layer (METHOD.md 2 and 3); `None` where no
    /// sample is adapted.
    pub fn route(isa: Isa, banks: &[Option<&'a FactorBank>], hidden: RowsRef<'_, f32>, spans: &[Span]) -> Option<Self> {
        let pairs = banks.iter().flatten().map(|bank| bank.pairs()).max()?;
        let d = hidden.width();
        let samples: Vec<OnceLock<Factors<'a, E>>> = banks.iter().map(|_| OnceLock::new()).collect();
        parallel(spans.len(), |sample| {
            let Some(bank) = banks[sample] else { return };
            let mut queries = PerModality { image: vec![0.0; d], text: vec![0.0; d] };
            let rows = if bank.guided() { spans[sample].query_rows() } else { spans[sample].own_rows() };
            isa.run(
                #[inline(always)]
                || {
                    for (modality, rows) in rows.iter() {
                        mean(hidden, rows.clone(), &mut queries[modality]);
                    }
                },
            );
            let choices = bank.choose(isa, &queries);
            let down = pack_factors(bank, &choices, d);
            // Each sample is one piece of work, so that its cell is empty here.
            let _ = samples[sample].set(Factors { bank, choices, down });
        });
        Some(Self { samples: samples.into_iter().map(OnceLock::into_inner).collect(), pairs, kernel: f32::kernel(isa) })
    }

    /// Number of columns of the results of [`Self::project`].
    pub fn width(&self) -> usize {
        (Target::COUNT * self.pairs).next_multiple_of(PANEL)
    }

    /// Writes α · x Aᵀ of rows of one sample to the rows of `u` from `first` on. `x` is the layer's
    /// normalised input.
    ///
    /// # Safety
    /// No two threads write the same rows of `u` at the same time.
    #[inline(always)]
    pub unsafe fn project(&self, kernel: &Kernel<E>, x: RowsRef<'_, E>, sample: usize, first: usize, u: &RowsMut<'_, f32>) {
        let Some(factors) = &self.samples[sample] else { return };
        let alpha = factors.bank.alpha();
        let k = x.width().next_multiple_of(E::K_STEP);
        let mut results = vec![0f32; x.rows() * PANEL];
        for (index, panel) in factors.down.chunks_exact(k * PANEL).enumerate() {
            kernel.multiply(x, k, panel, Start::Zero, &mut results, PANEL);
            for (row, results) in results.chunks_exact(PANEL).enumerate() {
                // SAFETY: the caller promises that only this thread writes these rows.
                let out = unsafe { u.part(first + row, index * PANEL..(index + 1) * PANEL) };
                out.iter_mut().zip(results).for_each(|(o, &x)| *o = alpha * x);
            }
        }
    }

    /// Adds the update of `target`'s `columns` to a tile, from the tile's column `at` on. `rows` are rows of
    /// the product and of `u`; they lie in the tile and belong to one sample.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "all of them place one piece of one product")]
    pub fn add(
        &self,
        sample: usize,
        u: &Matrix<f32>,
        rows: Range<usize>,
        target: usize,
        columns: Range<usize>,
        at: usize,
        tile: &mut Tile<'_>,
    ) {
        let Some(Factors { bank, choices, .. }) = &self.samples[sample] else { return };
        let mut factors = FactorPanel([[0.0; PANEL]; AT_ONCE]);
        let mut filled = 0;
        let (groups, mut done) = (bank.shape().groups, target * bank.pairs());
        for (group, choice) in choices.iter().enumerate().skip(target * groups).take(groups) {
            for factor in bank.b_factors(group, choice) {
                part(factor, &columns).widen(&mut factors.0[filled][at..]);
                filled += 1;
                if filled == AT_ONCE {
                    self.add_factors(&factors.0, u, rows.clone(), done, tile);
                    done += filled;
                    filled = 0;
                }
            }
        }
        self.add_factors(&factors.0[..filled], u, rows, done, tile);
    }

    /// Adds `Σ_i u[row, first + i] · factors[i]` to each of these rows of a tile.
    #[inline(always)]
    fn add_factors(&self, factors: &[[f32; PANEL]], u: &Matrix<f32>, rows: Range<usize>, first: usize, tile: &mut Tile<'_>) {
        let at = rows.start - tile.row;
        let u = u.view().range(rows).columns(first..first + factors.len());
        self.kernel.multiply(u, factors.len(), factors.as_flattened(), Start::Results, tile.rows_from(at), PANEL);
    }

    /// For each sample, its choices; `None` where its task adds nothing to the layer.
    pub fn choices(self) -> Vec<Option<Vec<Choice>>> {
        self.samples.into_iter().map(|factors| factors.map(|f| f.choices)).collect()
    }
}

/// B factors in f32, as a panel of a product: `[factors, columns]`.
#[repr(align(64))]
struct FactorPanel([[f32; PANEL]; AT_ONCE]);

/// A range of a factor's numbers.
#[inline(always)]
fn part<'a>(factor: NumbersRef<'a>, columns: &Range<usize>) -> NumbersRef<'a> {
    match factor {
        NumbersRef::F32(values) => NumbersRef::F32(&values[columns.clone()]),
        NumbersRef::Bf16(values) => NumbersRef::Bf16(&values[columns.clone()]),
    }
}

/// The chosen A factors of all groups as packed columns, group by group.
fn pack_factors<E: Float>(bank: &FactorBank, choices: &[Choice], d: usize) -> AVec<E, ConstAlign<64>> {
    let (k, columns) = (d.next_multiple_of(E::K_STEP), Target::COUNT * bank.pairs());
    let mut panels: AVec<E, ConstAlign<64>> = AVec::new(64);
    panels.resize(columns.div_ceil(PANEL) * k * PANEL, E::default());
    let factors = choices.iter().enumerate().flat_map(|(group, choice)| bank.a_factors(group, choice));
    for (column, factor) in factors.enumerate() {
        let panel = &mut panels[column / PANEL * k * PANEL..][..k * PANEL];
        match factor {
            NumbersRef::F32(values) => pack_column::<E>(panel, column % PANEL, values.iter().map(|&x| E::of(x))),
            NumbersRef::Bf16(values) => pack_column::<E>(panel, column % PANEL, values.iter().map(|x| E::of(x.get()))),
        }
    }
    panels
}
