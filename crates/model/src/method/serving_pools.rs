//! One layer's factor pools as the engine serves them: plain numbers in f32 or bf16, and the selected-A table in place of W_AB.
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::device_pools::{DeviceCopies, DevicePools};
use super::selection::{softmax, top};
use super::task_model::{LayerPools, POOLS, PoolSpec};
use delo_kernels::elementwise::{dot, sum};
use delo_kernels::{Float, Isa, Precision, bf16};

/// Numbers as they stay resident.
#[derive(Clone, Debug)]
pub enum Numbers {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Numbers {
    /// The numbers from `start` on, `len` of them.
    pub fn slice(&self, start: usize, len: usize) -> NumbersRef<'_> {
        match self {
            Self::F32(values) => NumbersRef::F32(&values[start..start + len]),
            Self::Bf16(values) => NumbersRef::Bf16(&values[start..start + len]),
        }
    }

    /// A copy in f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(values) => values.clone(),
            Self::Bf16(values) => values.iter().map(|x| x.get()).collect(),
        }
    }

    fn in_precision(self, precision: Precision) -> Self {
        match (self, precision) {
            (Self::F32(values), Precision::Bf16) => Self::Bf16(values.into_iter().map(bf16::of).collect()),
            (Self::Bf16(values), Precision::F32) => Self::F32(values.into_iter().map(Float::get).collect()),
            (same, _) => same,
        }
    }
}

/// Some of [`Numbers`].
#[derive(Clone, Copy, Debug)]
pub enum NumbersRef<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

impl NumbersRef<'_> {
    /// Σ x·y with a row in f32.
    #[inline(always)]
    pub fn dot(self, other: &[f32]) -> f32 {
        match self {
            Self::F32(values) => dot(values, other),
            Self::Bf16(values) => {
                let n = values.len().min(other.len());
                let (values, other) = (&values[..n], &other[..n]);
                sum(n, |i| values[i].get() * other[i])
            }
        }
    }

    /// Writes them in f32.
    #[inline(always)]
    pub fn widen(self, out: &mut [f32]) {
        match self {
            Self::F32(values) => out[..values.len()].copy_from_slice(values),
            Self::Bf16(values) => out.iter_mut().zip(values).for_each(|(o, x)| *o = x.get()),
        }
    }
}

/// One layer's pools and routers, all pools stacked: p = [`POOLS`], s = [`PoolSpec::slots`].
#[derive(Clone, Debug)]
pub struct ServingPools {
    experts: usize,
    rank: usize,
    slots: usize,
    hidden: usize,
    alpha: f32,
    /// A `[p, E, s, d]`
    a: Numbers,
    /// B `[p, E, s, d]`
    b: Numbers,
    /// W_A `[p, E, d]` and its bias `[p, E]`
    router_a: (Numbers, Vec<f32>),
    /// W_B `[p, E, d]` and its bias `[p, E]`
    router_b: (Numbers, Vec<f32>),
    /// `[p, r, E, E]`: row (i, e) is W_AB[i]ᵀ a_e, what A factor e in place i adds to the scores of B (METHOD.md 7).
    table: Vec<f32>,
    /// What devices hold of them.
    copies: DeviceCopies,
}

/// The factors chosen of one pool, in pairs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// By falling score.
    pub a: Vec<u32>,
    pub b: Vec<u32>,
}

impl ServingPools {
    pub fn new(spec: &PoolSpec, pools: &LayerPools) -> Result<Self> {
        let (e, s, d, r) = (spec.experts, spec.slots(), spec.hidden, spec.rank);
        let flat = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        let mut table = Vec::with_capacity(POOLS * r * e * e);
        for pool in 0..POOLS {
            let (a, router) = (pools.a.as_tensor().get(pool)?, pools.router_ab.as_tensor().get(pool)?);
            for place in 0..r {
                let factors = a.narrow(1, place.min(s - 1), 1)?.squeeze(1)?.contiguous()?;
                table.extend(flat(&factors.matmul(&router.get(place)?)?)?);
            }
        }
        Ok(Self {
            experts: e,
            rank: r,
            slots: s,
            hidden: d,
            alpha: spec.alpha as f32,
            a: Numbers::F32(flat(&pools.a)?),
            b: Numbers::F32(flat(&pools.b)?),
            router_a: (Numbers::F32(flat(&pools.router_a)?), flat(&pools.bias_a)?),
            router_b: (Numbers::F32(flat(&pools.router_b)?), flat(&pools.bias_b)?),
            table,
            copies: DeviceCopies::default(),
        })
    }

    /// The same pools, factors and routers in another number format.
    #[must_use]
    pub fn in_precision(self, precision: Precision) -> Self {
        let router = |(weight, bias): (Numbers, Vec<f32>)| (weight.in_precision(precision), bias);
        Self {
            a: self.a.in_precision(precision),
            b: self.b.in_precision(precision),
            router_a: router(self.router_a),
            router_b: router(self.router_b),
            copies: DeviceCopies::default(),
            ..self
        }
    }

    /// E
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// d
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// A and B, `[p, E, s, d]` each; B not yet scaled by α.
    pub fn factor_numbers(&self) -> [&Numbers; 2] {
        [&self.a, &self.b]
    }

    /// W_A and W_B, `[p, E, d]` each.
    pub fn router_numbers(&self) -> [&Numbers; 2] {
        [&self.router_a.0, &self.router_b.0]
    }

    /// The biases of W_A and W_B, `[p, E]` each.
    #[cfg(feature = "cuda")]
    pub fn router_biases(&self) -> [&[f32]; 2] {
        [&self.router_a.1, &self.router_b.1]
    }

    /// What A's factors add to the scores of B, `[p, r, E, E]`.
    #[cfg(feature = "cuda")]
    pub fn table(&self) -> &[f32] {
        &self.table
    }

    /// Slots of an expert.
    #[cfg(feature = "cuda")]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The same pools on a device, in its number format: copied at the first call, freed with these.
    ///
    /// # Errors
    /// No room on the device.
    pub fn on_device(&self, device: &Device, dtype: DType) -> Result<Arc<DevicePools>> {
        self.copies.get_or_make(device, dtype, || DevicePools::new(self, device, dtype))
    }

    /// Factor pairs that a sample uses of one target: r of each modality.
    pub fn pairs(&self) -> usize {
        2 * self.rank
    }

    /// α
    pub fn alpha(&self) -> f32 {
        self.alpha
    }

    /// g_A and g_B of one pool (METHOD.md 2), given the query signal of its modality, `[d]`.
    pub fn choose(&self, isa: Isa, pool: usize, query: &[f32]) -> Choice {
        let products = |weight: &Numbers| {
            let mut products = vec![0.0; self.experts];
            isa.run(
                #[inline(always)]
                || {
                    for (expert, product) in products.iter_mut().enumerate() {
                        *product = weight.slice((pool * self.experts + expert) * self.hidden, self.hidden).dot(query);
                    }
                },
            );
            products
        };
        self.choose_by(pool, products(&self.router_a.0), products(&self.router_b.0))
    }

    /// As [`Self::choose`], given W_A q and W_B q of the pool, `[E]` each.
    pub fn choose_by(&self, pool: usize, a: Vec<f32>, b: Vec<f32>) -> Choice {
        let e = self.experts;
        let scores = |mut scores: Vec<f32>, bias: &[f32]| {
            scores.iter_mut().zip(&bias[pool * e..(pool + 1) * e]).for_each(|(score, bias)| *score += bias);
            softmax(&mut scores);
            scores
        };
        let a: Vec<u32> = top(&scores(a, &self.router_a.1), self.rank).collect();
        let mut paired = vec![0.0; e];
        for (place, &expert) in a.iter().enumerate() {
            let row = ((pool * self.rank + place) * e + expert as usize) * e;
            paired.iter_mut().zip(&self.table[row..row + e]).for_each(|(sum, x)| *sum += x);
        }
        softmax(&mut paired);
        let mut score_b = scores(b, &self.router_b.1);
        score_b.iter_mut().zip(&paired).for_each(|(s, p)| *s += p);
        Choice { a, b: top(&score_b, self.rank).collect() }
    }

    /// The A factors chosen of a pool, in order, `[d]` each.
    pub fn a_factors<'a>(&'a self, pool: usize, choice: &'a Choice) -> impl Iterator<Item = NumbersRef<'a>> {
        self.factors(&self.a, pool, &choice.a)
    }

    /// The B factors chosen of a pool, in order, `[d]` each, not yet scaled by α.
    pub fn b_factors<'a>(&'a self, pool: usize, choice: &'a Choice) -> impl Iterator<Item = NumbersRef<'a>> {
        self.factors(&self.b, pool, &choice.b)
    }

    /// Where the factors of these experts, each in the place of its rank, stand among all factors of A or B: rows of `[p · E · s, d]`.
    pub fn factor_rows<'a>(&self, pool: usize, chosen: &'a [u32]) -> impl Iterator<Item = usize> + use<'a> {
        let (experts, slots) = (self.experts, self.slots);
        chosen.iter().enumerate().map(move |(place, &expert)| (pool * experts + expert as usize) * slots + place.min(slots - 1))
    }

    fn factors<'a>(&'a self, numbers: &'a Numbers, pool: usize, chosen: &'a [u32]) -> impl Iterator<Item = NumbersRef<'a>> {
        self.factor_rows(pool, chosen).map(move |row| numbers.slice(row * self.hidden, self.hidden))
    }
}
