//! The low-rank update of query, key and value in a batch of any tasks: routers and factors stay on the device, the hard choice is made on the
//! CPU from the routers' products.
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::super::cpu::low_rank::query_rows;
use super::super::packed::Span;
use super::groups::Group;
use delo_model::method::device_pools::DevicePools;
use delo_model::method::serving_pools::{Choice, ServingPools};
use delo_model::method::task_model::{MODALITIES, POOLS, TARGETS};

/// Reads the query signals of a group's samples off a stream.
#[derive(Debug)]
pub(super) struct Averages(Tensor);

/// Every sample's update in one layer.
pub(super) struct LayerUpdate {
    /// Of each group; `None` where no sample of it is adapted.
    pub groups: Vec<Option<Factors>>,
    /// What was chosen, sample by sample.
    pub chosen: Vec<Option<Vec<Choice>>>,
}

/// The factors of a group's samples, padded with zeros to as many pairs as any of them has.
#[derive(Debug)]
pub(super) struct Factors {
    /// `[samples, targets, pairs, d]`
    a: Tensor,
    /// α B, likewise.
    b: Tensor,
}

/// Neighbours in a group that share their pools.
struct Run<'a> {
    /// Places in the group.
    places: Range<usize>,
    /// The pools, here and on the device; `None` where the task does not adapt this layer.
    pools: Option<(&'a ServingPools, Arc<DevicePools>)>,
}

impl Averages {
    /// The weights whose product with a sample's tokens is q^v and q^t (METHOD.md 3): `[samples, 2, tokens]`.
    pub fn of(group: &Group, spans: &[Span], device: &Device) -> Result<Self> {
        let mut weights = vec![0f32; group.samples.len() * MODALITIES.len() * group.rows];
        for (weights, &sample) in weights.chunks_exact_mut(MODALITIES.len() * group.rows).zip(&group.samples) {
            let start = spans[sample].start;
            for (weights, rows) in weights.chunks_exact_mut(group.rows).zip(query_rows(&spans[sample])) {
                let share = 1.0 / rows.len().max(1) as f32;
                weights[rows.start - start..rows.end - start].fill(share);
            }
        }
        Ok(Self(Tensor::from_vec(weights, (group.samples.len(), MODALITIES.len(), group.rows), device)?))
    }

    /// `[samples, 2, d]`
    fn queries(&self, group: &Group, hidden: &Tensor) -> Result<Tensor> {
        self.0.matmul(&group.take(hidden)?)
    }
}

impl LayerUpdate {
    /// Routes every sample by the state entering the layer (METHOD.md 2 and 3); `None` where no sample is adapted.
    pub fn route(
        pools: &[Option<&ServingPools>],
        groups: &[Group],
        averages: &[Averages],
        hidden: &Tensor,
        dtype: DType,
    ) -> Result<Option<Self>> {
        if pools.iter().all(Option::is_none) {
            return Ok(None);
        }
        let runs = groups.iter().map(|group| runs(group, pools, hidden.device(), dtype)).collect::<Result<Vec<_>>>()?;
        let mut products = products(&runs, groups, averages, hidden)?.into_iter();
        let mut chosen = vec![None; pools.len()];
        for (group, runs) in groups.iter().zip(&runs) {
            for run in runs {
                let Some((pools, _)) = &run.pools else { continue };
                for place in run.places.clone() {
                    let products: Vec<f32> = products.by_ref().take(MODALITIES.len() * 2 * POOLS * pools.experts()).collect();
                    chosen[group.samples[place]] = Some(choose(pools, &products));
                }
            }
        }
        let factors = groups.iter().zip(&runs).map(|(group, runs)| Factors::gather(group, runs, &chosen, hidden.device(), dtype));
        Ok(Some(Self { groups: factors.collect::<Result<_>>()?, chosen }))
    }
}

impl Factors {
    /// Copies the chosen factors, one selection from each run's pools.
    fn gather(group: &Group, runs: &[Run<'_>], chosen: &[Option<Vec<Choice>>], device: &Device, dtype: DType) -> Result<Option<Self>> {
        let adapted = || runs.iter().filter_map(|run| Some((run, run.pools.as_ref()?)));
        let Some((pairs, d)) = adapted().map(|(_, (pools, _))| (pools.pairs(), pools.hidden())).max() else { return Ok(None) };
        let mut rows: Vec<u32> = Vec::new();
        for (run, (pools, on_device)) in adapted() {
            let choices = || group.samples[run.places.clone()].iter().filter_map(|&sample| chosen[sample].as_ref());
            choices().for_each(|choices| push_rows(&mut rows, pools, on_device, choices, pairs, 0, |choice| &choice.a));
            choices().for_each(|choices| push_rows(&mut rows, pools, on_device, choices, pairs, on_device.first_b(), |choice| &choice.b));
        }
        let (rows, mut taken) = (Tensor::new(rows, device)?, 0);
        let mut parts = Vec::with_capacity(runs.len());
        for run in runs {
            let shape = (2, run.places.len(), TARGETS.len(), pairs, d);
            parts.push(match &run.pools {
                Some((_, on_device)) => {
                    let count = 2 * run.places.len() * TARGETS.len() * pairs;
                    let factors = on_device.factors(&rows.narrow(0, taken, count)?)?;
                    taken += count;
                    factors.reshape(shape)?
                }
                None => Tensor::zeros(shape, dtype, device)?,
            });
        }
        let factors = Tensor::cat(&parts, 1)?;
        Ok(Some(Self { a: factors.get(0)?, b: factors.get(1)? }))
    }

    /// α x Aᵀ B of some targets: `[samples, rows, d]` → `[samples, targets, rows, d]`.
    pub fn apply(&self, x: &Tensor, targets: Range<usize>) -> Result<Tensor> {
        let (samples, _, pairs, d) = self.a.dims4()?;
        let (rows, count) = (x.dim(1)?, targets.len());
        let part = |factors: &Tensor| factors.narrow(1, targets.start, count)?.contiguous();
        let a = part(&self.a)?.reshape((samples, count * pairs, d))?;
        let u = x.matmul(&a.transpose(1, 2)?)?.reshape((samples, rows, count, pairs))?.transpose(1, 2)?.contiguous()?;
        u.matmul(&part(&self.b)?)
    }
}

fn runs<'a>(group: &Group, pools: &[Option<&'a ServingPools>], device: &Device, dtype: DType) -> Result<Vec<Run<'a>>> {
    let mut runs: Vec<Run<'a>> = Vec::new();
    for (place, &sample) in group.samples.iter().enumerate() {
        let pools = pools[sample];
        match runs.last_mut() {
            Some(run) if same(run.pools.as_ref().map(|(pools, _)| *pools), pools) => run.places.end = place + 1,
            _ => {
                let pools = pools.map(|pools| Ok::<_, candle_core::Error>((pools, pools.on_device(device, dtype)?))).transpose()?;
                runs.push(Run { places: place..place + 1, pools });
            }
        }
    }
    Ok(runs)
}

fn same(one: Option<&ServingPools>, other: Option<&ServingPools>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => std::ptr::eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// The routers' products with q^v and q^t, `[2, 2 · p · E]` of each adapted sample, in the order of groups and runs: one copy to the CPU.
fn products(runs: &[Vec<Run<'_>>], groups: &[Group], averages: &[Averages], hidden: &Tensor) -> Result<Vec<f32>> {
    let mut products = Vec::new();
    for ((group, runs), averages) in groups.iter().zip(runs).zip(averages) {
        if runs.iter().all(|run| run.pools.is_none()) {
            continue;
        }
        let queries = averages.queries(group, hidden)?;
        for run in runs {
            let Some((_, on_device)) = &run.pools else { continue };
            let queries = queries.narrow(0, run.places.start, run.places.len())?.flatten(0, 1)?;
            products.push(on_device.router_products(&queries)?.flatten_all()?);
        }
    }
    Tensor::cat(&products, 0)?.to_vec1()
}

/// Every pool's choice of one sample, given `[2, 2 · p · E]`.
fn choose(pools: &ServingPools, products: &[f32]) -> Vec<Choice> {
    let (e, width) = (pools.experts(), 2 * POOLS * pools.experts());
    let of_pool = |pool: usize| {
        let row = &products[pool % MODALITIES.len() * width..][..width];
        let part = |router: usize| row[(router * POOLS + pool) * e..][..e].to_vec();
        pools.choose_by(pool, part(0), part(1))
    };
    (0..POOLS).map(of_pool).collect()
}

/// Appends the rows of one sample's factors of A or of B, `[targets, pairs]`: those of both modalities, then zeros.
fn push_rows(
    rows: &mut Vec<u32>,
    pools: &ServingPools,
    on_device: &DevicePools,
    choices: &[Choice],
    pairs: usize,
    first: usize,
    side: fn(&Choice) -> &[u32],
) {
    for (target, choices) in choices.chunks_exact(MODALITIES.len()).enumerate() {
        let full = rows.len() + pairs;
        for (modality, choice) in choices.iter().enumerate() {
            rows.extend(pools.factor_rows(target * MODALITIES.len() + modality, side(choice)).map(|row| (first + row) as u32));
        }
        rows.resize(full, on_device.zero() as u32);
    }
}
