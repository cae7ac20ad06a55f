//! The low-rank update of query, key and value in a batch of any tasks. Routers and factors stay on the
//! device; the CPU chooses the factors from the routers' products.
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::factors::DeviceFactors;
use super::groups::Group;
use crate::packed::Span;
use delo_model::Modality;
use delo_model::method::Target;
use delo_model::method::factors::{CPU_ALONE, Choice, FactorBank, Routers};

/// Weights `[samples, modalities, rows]` that average the rows of each sample of a group into its queries.
#[derive(Debug)]
pub(super) struct Averages(Tensor);

/// Every sample's update in one layer.
pub(super) struct LayerUpdate {
    /// For each group; `None` where no sample of it is adapted.
    pub groups: Vec<Option<Factors>>,
    /// For each sample, its choices; `None` where its task adds nothing to the layer.
    pub chosen: Vec<Option<Vec<Choice>>>,
}

/// The factors of a group's samples. Zeros pad each sample to the most pairs that any of them has.
#[derive(Debug)]
pub(super) struct Factors {
    /// `[samples, targets, pairs, d]`
    pub a: Tensor,
    /// α B, `[samples, targets, pairs, d]`
    pub b: Tensor,
}

/// Consecutive samples of a group that have the same task.
struct Run<'a> {
    /// Their places in the group.
    places: Range<usize>,
    /// The factors on the CPU and their copy on the device; `None` where the task adds nothing to this layer.
    bank: Option<(&'a FactorBank, Arc<DeviceFactors>)>,
}

impl Averages {
    /// The weights whose product with a sample's rows is q^v and q^t (METHOD.md 3): `[samples, 2, rows]`.
    pub fn of(group: &Group, spans: &[Span], device: &Device) -> Result<Self> {
        let mut weights = vec![0f32; group.samples.len() * Modality::ALL.len() * group.rows];
        for (weights, &sample) in weights.chunks_exact_mut(Modality::ALL.len() * group.rows).zip(&group.samples) {
            let start = spans[sample].start;
            for (weights, (_, rows)) in weights.chunks_exact_mut(group.rows).zip(spans[sample].query_rows().iter()) {
                let share = 1.0 / rows.len().max(1) as f32;
                weights[rows.start - start..rows.end - start].fill(share);
            }
        }
        Ok(Self(Tensor::from_vec(weights, (group.samples.len(), Modality::ALL.len(), group.rows), device)?))
    }

    /// The queries of the group's samples: `[tokens, d]` → `[samples, 2, d]`.
    pub fn queries(&self, group: &Group, hidden: &Tensor) -> Result<Tensor> {
        self.0.matmul(&group.take(hidden)?)
    }
}

impl LayerUpdate {
    /// Chooses every sample's factors by the state that enters the layer (METHOD.md 2 and 3); `None` where no
    /// sample is adapted.
    pub fn route(
        banks: &[Option<&FactorBank>],
        groups: &[Group],
        averages: &[Averages],
        hidden: &Tensor,
        dtype: DType,
    ) -> Result<Option<Self>> {
        if banks.iter().all(Option::is_none) {
            return Ok(None);
        }
        if banks.iter().flatten().any(|bank| bank.needs_cpu()) {
            candle_core::bail!("{CPU_ALONE}");
        }
        let runs = groups.iter().map(|group| runs(group, banks, hidden.device(), dtype)).collect::<Result<Vec<_>>>()?;
        let mut products = products(&runs, groups, averages, hidden)?.into_iter();
        let mut chosen = vec![None; banks.len()];
        for (group, runs) in groups.iter().zip(&runs) {
            for run in runs {
                let Some((bank, _)) = &run.bank else { continue };
                for place in run.places.clone() {
                    chosen[group.samples[place]] = Some(match bank.routers() {
                        Some(routers) => {
                            let count = Modality::ALL.len() * 2 * bank.shape().all_groups() * bank.shape().experts;
                            choose(bank, routers, &products.by_ref().take(count).collect::<Vec<_>>())
                        }
                        None => bank.unrouted(),
                    });
                }
            }
        }
        let factors = groups.iter().zip(&runs).map(|(group, runs)| Factors::gather(group, runs, &chosen, hidden.device(), dtype));
        Ok(Some(Self { groups: factors.collect::<Result<_>>()?, chosen }))
    }
}

impl Factors {
    /// Copies the chosen factors into one tensor, with one selection of rows for each run.
    fn gather(group: &Group, runs: &[Run<'_>], chosen: &[Option<Vec<Choice>>], device: &Device, dtype: DType) -> Result<Option<Self>> {
        let adapted = || runs.iter().filter_map(|run| Some((run, run.bank.as_ref()?)));
        let Some((pairs, d)) = adapted().map(|(_, (bank, _))| (bank.pairs(), bank.shape().hidden)).max() else { return Ok(None) };
        let mut rows: Vec<u32> = Vec::new();
        for (run, (bank, on_device)) in adapted() {
            let choices = || group.samples[run.places.clone()].iter().filter_map(|&sample| chosen[sample].as_ref());
            choices().for_each(|choices| push_rows(&mut rows, bank, on_device, choices, pairs, 0, |choice| &choice.a));
            choices().for_each(|choices| push_rows(&mut rows, bank, on_device, choices, pairs, on_device.first_b(), |choice| &choice.b));
        }
        let (rows, mut taken) = (Tensor::new(rows, device)?, 0);
        let mut parts = Vec::with_capacity(runs.len());
        for run in runs {
            let shape = (2, run.places.len(), Target::COUNT, pairs, d);
            parts.push(match &run.bank {
                Some((_, on_device)) => {
                    let count = 2 * run.places.len() * Target::COUNT * pairs;
                    let factors = on_device.rows(&rows.narrow(0, taken, count)?)?;
                    taken += count;
                    factors.reshape(shape)?
                }
                None => Tensor::zeros(shape, dtype, device)?,
            });
        }
        let factors = Tensor::cat(&parts, 1)?;
        Ok(Some(Self { a: factors.get(0)?, b: factors.get(1)? }))
    }

    /// α x Aᵀ B for a range of targets: `[samples, rows, d]` → `[samples, targets, rows, d]`.
    pub fn apply(&self, x: &Tensor, targets: Range<usize>) -> Result<Tensor> {
        let (samples, _, pairs, d) = self.a.dims4()?;
        let (rows, count) = (x.dim(1)?, targets.len());
        let part = |factors: &Tensor| factors.narrow(1, targets.start, count)?.contiguous();
        let a = part(&self.a)?.reshape((samples, count * pairs, d))?;
        let u = x.matmul(&a.transpose(1, 2)?)?.reshape((samples, rows, count, pairs))?.transpose(1, 2)?.contiguous()?;
        u.matmul(&part(&self.b)?)
    }
}

/// The samples of a group in runs of the same task.
fn runs<'a>(group: &Group, banks: &[Option<&'a FactorBank>], device: &Device, dtype: DType) -> Result<Vec<Run<'a>>> {
    let mut runs: Vec<Run<'a>> = Vec::new();
    for (place, &sample) in group.samples.iter().enumerate() {
        let bank = banks[sample];
        match runs.last_mut() {
            Some(run) if same(run.bank.as_ref().map(|(bank, _)| *bank), bank) => run.places.end = place + 1,
            _ => {
                let bank = bank.map(|bank| Ok::<_, candle_core::Error>((bank, DeviceFactors::of(bank, device, dtype)?))).transpose()?;
                runs.push(Run { places: place..place + 1, bank });
            }
        }
    }
    Ok(runs)
}

/// Whether both are the same bank, or both none.
fn same(one: Option<&FactorBank>, other: Option<&FactorBank>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => std::ptr::eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// The routers' products with the query of each modality, `[modalities, 2 · g · E]` for each sample that has
/// routers, in the order of groups and runs. One copy from the device to the CPU.
fn products(runs: &[Vec<Run<'_>>], groups: &[Group], averages: &[Averages], hidden: &Tensor) -> Result<Vec<f32>> {
    let mut products = Vec::new();
    for ((group, runs), averages) in groups.iter().zip(runs).zip(averages) {
        let routed = |run: &Run<'_>| run.bank.as_ref().is_some_and(|(bank, _)| bank.routers().is_some());
        if !runs.iter().any(routed) {
            continue;
        }
        let queries = averages.queries(group, hidden)?;
        for run in runs {
            let Some(routers) = run.bank.as_ref().and_then(|(_, on_device)| on_device.routers()) else { continue };
            let queries = queries.narrow(0, run.places.start, run.places.len())?.flatten(0, 1)?;
            products.push(routers.products(&queries)?.flatten_all()?);
        }
    }
    if products.is_empty() { Ok(Vec::new()) } else { Tensor::cat(&products, 0)?.to_vec1() }
}

/// One sample's choice in every group of its bank, given the routers' products `[modalities, 2 · g · E]`.
fn choose(bank: &FactorBank, routers: &Routers, products: &[f32]) -> Vec<Choice> {
    let (experts, groups) = (bank.shape().experts, bank.shape().all_groups());
    let of_group = |group: usize| {
        let row = &products[bank.modality(group) as usize * 2 * groups * experts..][..2 * groups * experts];
        let part = |router: usize| row[(router * groups + group) * experts..][..experts].to_vec();
        bank.choose_in(group, routers, part(0), part(1))
    };
    (0..groups).map(of_group).collect()
}

/// Appends the rows of one sample's A or B factors, `[targets, pairs]`: for each target those of all its
/// groups, then the row of zeros. `first` is the first row of A or B; `side` takes A or B of a choice.
fn push_rows(
    rows: &mut Vec<u32>,
    bank: &FactorBank,
    on_device: &DeviceFactors,
    choices: &[Choice],
    pairs: usize,
    first: usize,
    side: fn(&Choice) -> &[u32],
) {
    let groups = bank.shape().groups;
    for (target, choices) in choices.chunks_exact(groups).enumerate() {
        let full = rows.len() + pairs;
        for (group, choice) in choices.iter().enumerate() {
            rows.extend(bank.factor_rows(target * groups + group, side(choice)).map(|row| (first + row) as u32));
        }
        rows.resize(full, on_device.zero() as u32);
    }
}
