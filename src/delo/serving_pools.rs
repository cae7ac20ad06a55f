//! One layer's factor pools as the engine serves them: plain numbers, and the selected-A table in place of W_AB.
use candle_core::{Result, Tensor};

use super::selection::{softmax, top};
use super::task_model::{LayerPools, POOLS, PoolSpec};

/// One layer's pools and routers, all pools stacked: p = [`POOLS`], s = [`PoolSpec::slots`].
#[derive(Debug)]
pub struct ServingPools {
    experts: usize,
    rank: usize,
    slots: usize,
    hidden: usize,
    /// A `[p, E, s, d]`
    a: Vec<f32>,
    /// α·B `[p, E, s, d]`
    b: Vec<f32>,
    /// W_A `[p, E, d]` and its bias `[p, E]`
    router_a: (Vec<f32>, Vec<f32>),
    /// W_B `[p, E, d]` and its bias `[p, E]`
    router_b: (Vec<f32>, Vec<f32>),
    /// `[p, r, E, E]`: row (i, e) is W_AB[i]ᵀ a_e, what A factor e in place i adds to the scores of B (METHOD.md 7).
    table: Vec<f32>,
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
            a: flat(&pools.a)?,
            b: flat(&(pools.b.as_tensor() * spec.alpha)?)?,
            router_a: (flat(&pools.router_a)?, flat(&pools.bias_a)?),
            router_b: (flat(&pools.router_b)?, flat(&pools.bias_b)?),
            table,
        })
    }

    /// Factor pairs that a sample uses of one target: r of each modality.
    pub fn pairs(&self) -> usize {
        2 * self.rank
    }

    /// Routes one sample by its query signals `[d]` and appends its factors, `[p · r, d]` each, to `a` and `b` (b scaled by α).
    pub fn select(&self, visual: &[f32], textual: &[f32], a: &mut Vec<f32>, b: &mut Vec<f32>) -> Vec<Choice> {
        (0..POOLS)
            .map(|pool| {
                let choice = self.choose(pool, if pool % 2 == 0 { visual } else { textual });
                self.append(&self.a, pool, &choice.a, a);
                self.append(&self.b, pool, &choice.b, b);
                choice
            })
            .collect()
    }

    /// g_A and g_B of one pool (METHOD.md 2).
    fn choose(&self, pool: usize, query: &[f32]) -> Choice {
        let e = self.experts;
        let scores = |(weight, bias): &(Vec<f32>, Vec<f32>)| {
            let rows = weight[pool * e * self.hidden..(pool + 1) * e * self.hidden].chunks_exact(self.hidden);
            let mut scores: Vec<f32> = rows.zip(&bias[pool * e..]).map(|(row, b)| b + dot(row, query)).collect();
            softmax(&mut scores);
            scores
        };
        let a: Vec<u32> = top(&scores(&self.router_a), self.rank).collect();
        let mut paired = vec![0.0; e];
        for (place, &expert) in a.iter().enumerate() {
            let row = ((pool * self.rank + place) * e + expert as usize) * e;
            paired.iter_mut().zip(&self.table[row..row + e]).for_each(|(sum, x)| *sum += x);
        }
        softmax(&mut paired);
        let mut score_b = scores(&self.router_b);
        score_b.iter_mut().zip(&paired).for_each(|(s, p)| *s += p);
        Choice { a, b: top(&score_b, self.rank).collect() }
    }

    fn append(&self, pool_values: &[f32], pool: usize, chosen: &[u32], out: &mut Vec<f32>) {
        for (place, &expert) in chosen.iter().enumerate() {
            let row = (pool * self.experts + expert as usize) * self.slots + place.min(self.slots - 1);
            out.extend_from_slice(&pool_values[row * self.hidden..(row + 1) * self.hidden]);
        }
    }
}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}
