//! The description of a batch that the kernels read: groups, tiles, ranges and pools, in one copy to the
//! device.
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::gpu::{Gpu, TILE};
use crate::backend::Adapters;
use crate::backend::candle::DeviceFactors;
use crate::packed::Span;
use delo_model::method::PoolId;
use delo_model::method::factors::{BankShape, CPU_ALONE, Choice, FactorBank};

/// Samples whose numbers of tokens round up to the same multiple of this are one group: their attention runs
/// as one batched operation, padded to the longest of them.
const ALIKE: usize = 64;
/// Rows of a group are padded to a multiple of this: such shapes cuBLAS multiplies at full speed on tensor
/// cores of every generation.
const ALIGNED: usize = 8;
/// `u32` words of `Pools` in `kernels.cu`.
const POOLS_WORDS: usize = 12;
/// A and B.
const SIDES: usize = 2;
/// The most groups of factors of a layer.
pub(super) const POOLS: usize = PoolId::COUNT;

/// Samples whose attention runs as one batched operation.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Their numbers in the batch, in ascending order.
    pub samples: Vec<usize>,
    /// All their rows.
    pub members: Members,
    /// Their text CLS alone, in a matrix that holds one row of each sample of the batch.
    pub cls: Members,
}

/// The rows of a group's samples in a matrix.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Members {
    /// Device address of an array of `Member` (`kernels.cu`), one for each sample.
    pub address: u64,
    /// Rows of the longest sample, rounded up to a multiple of `ALIGNED`; 1 for the text CLS.
    pub padded: usize,
}

/// A batch as the kernels read it.
pub(crate) struct Plan<'a> {
    pub spans: &'a [Span],
    pub(super) groups: Vec<Group>,
    /// Device address of the ranges whose means are q^v and q^t of each sample (METHOD.md 3).
    pub queries: u64,
    /// Device address of an array of `Tile` (`kernels.cu`), and its length.
    pub tiles: (u64, usize),
    /// `None` where no sample is adapted in any of the layers.
    pub(super) routing: Option<Routing>,
    /// The memory of the addresses above, kept as long as they are used.
    _words: Tensor,
}

/// The pools of a pass over a range of layers, and the factors that are chosen of them.
pub(super) struct Routing {
    layers: Range<usize>,
    samples: usize,
    /// Device address of `Pools` (`kernels.cu`) for each layer and sample.
    address: u64,
    /// The most experts of any pool.
    pub experts: usize,
    /// The largest rank of any pool.
    pub rank: usize,
    /// The chosen factors, `[layers, samples, pools, 2, rank]`.
    chosen: Tensor,
    chosen_address: u64,
    /// For each layer, whether it adapts any sample.
    adapted: Vec<bool>,
    /// Kept until the last kernel that reads them is launched.
    _factors: Vec<Arc<DeviceFactors>>,
}

impl Routing {
    /// Device address of a layer's pools, one for each sample.
    pub fn pools(&self, layer: usize) -> u64 {
        self.address + ((layer - self.layers.start) * self.samples * POOLS_WORDS * size_of::<u32>()) as u64
    }

    /// Device address of the factors that are chosen in a layer.
    pub fn chosen(&self, layer: usize) -> u64 {
        let of_layer = self.samples * POOLS * SIDES * self.rank;
        self.chosen_address + ((layer - self.layers.start) * of_layer * size_of::<u32>()) as u64
    }

    /// Whether a layer adapts any sample.
    pub fn adapts(&self, layer: usize) -> bool {
        self.adapted[layer - self.layers.start]
    }

    /// Copies the choices from the device, and notes them. Blocks until the device has computed them.
    pub fn note(&self, adapters: &mut Adapters<'_>) -> Result<()> {
        let chosen = self.chosen.flatten_all()?.to_vec1::<u32>()?;
        let mut of_samples = chosen.chunks_exact(POOLS * SIDES * self.rank);
        for layer in self.layers.clone() {
            let banks = adapters.layer(layer);
            let of_layer = banks.iter().zip(of_samples.by_ref()).map(|(bank, numbers)| bank.map(|bank| self.choices(bank, numbers)));
            adapters.note(layer, of_layer.collect());
        }
        Ok(())
    }

    /// One sample's choice in every group of its bank, given `[pools, 2, rank]`.
    fn choices(&self, bank: &FactorBank, numbers: &[u32]) -> Vec<Choice> {
        let rank = bank.shape().rank;
        let of_group = |sides: &[u32]| Choice { a: sides[..rank].to_vec(), b: sides[self.rank..][..rank].to_vec() };
        numbers.chunks_exact(SIDES * self.rank).take(bank.shape().all_groups()).map(of_group).collect()
    }
}

impl<'a> Plan<'a> {
    /// Describes a batch for a pass over `layers`, and copies the description to the device.
    ///
    /// # Errors
    /// Too little memory on the device.
    pub(super) fn new(gpu: &Gpu, spans: &'a [Span], layers: Range<usize>, adapters: Option<&Adapters<'_>>, dtype: DType) -> Result<Self> {
        let banks: Vec<Vec<Option<&FactorBank>>> = adapters.map_or_else(Vec::new, |a| layers.clone().map(|layer| a.layer(layer)).collect());
        let all = || banks.iter().flatten().flatten();
        let (mut words, mut kept) = (Vec::new(), Vec::new());
        if all().next().is_some() {
            for of_sample in banks.iter().flatten() {
                words.extend(bank_words(gpu, *of_sample, dtype, &mut kept)?);
            }
        }
        let mut groups: Vec<Group> = Vec::new();
        for (sample, span) in spans.iter().enumerate() {
            let size = |span: &Span| span.tokens().div_ceil(ALIKE);
            match groups.iter_mut().find(|group| size(&spans[group.samples[0]]) == size(span)) {
                Some(group) => group.samples.push(sample),
                None => groups.push(Group { samples: vec![sample], members: Members::default(), cls: Members::default() }),
            }
        }
        let bytes = |words: &[u32]| size_of_val(words) as u64;
        for group in &mut groups {
            let longest = group.samples.iter().map(|&sample| spans[sample].tokens()).max().unwrap_or(0);
            group.members = Members { address: bytes(&words), padded: longest.next_multiple_of(ALIGNED) };
            words.extend(
                group.samples.iter().flat_map(|&sample| member(spans[sample].start, &spans[sample], spans[sample].tokens(), sample)),
            );
            group.cls = Members { address: bytes(&words), padded: 1 };
            words.extend(group.samples.iter().flat_map(|&sample| member(sample, &spans[sample], 1, sample)));
        }
        let (tiles_at, before) = (bytes(&words), words.len());
        for (sample, span) in spans.iter().enumerate() {
            let tile = |first: usize| [sample as u32, first as u32, TILE.min(span.end() - first) as u32, 0];
            words.extend((span.start..span.end()).step_by(TILE).flat_map(tile));
        }
        let tiles = (words.len() - before) / 4;
        let queries_at = bytes(&words);
        words.extend(range_words(spans.iter().flat_map(|span| span.query_rows().iter().map(|(_, rows)| rows.clone()).collect::<Vec<_>>())));

        let count = words.len();
        let words = Tensor::from_vec(words, count, &gpu.device())?;
        let base = gpu.address(&words)?;
        for group in &mut groups {
            group.members.address += base;
            group.cls.address += base;
        }
        let most = |of: fn(&BankShape) -> usize| all().map(|bank| of(bank.shape())).max();
        let routing = match (most(|shape| shape.experts), most(|shape| shape.rank)) {
            (Some(experts), Some(rank)) => {
                let chosen = gpu.empty(DType::U32, (layers.len(), spans.len(), POOLS, SIDES, rank))?;
                let adapted = banks.iter().map(|of_samples| of_samples.iter().any(Option::is_some)).collect();
                let chosen_address = gpu.address(&chosen)?;
                Some(Routing {
                    layers,
                    samples: spans.len(),
                    address: base,
                    experts,
                    rank,
                    chosen,
                    chosen_address,
                    adapted,
                    _factors: kept,
                })
            }
            _ => None,
        };
        Ok(Self { spans, groups, queries: base + queries_at, tiles: (base + tiles_at, tiles), routing, _words: words })
    }

    /// The routing of a layer; `None` where the layer adapts no sample.
    pub(super) fn routing(&self, layer: usize) -> Option<&Routing> {
        self.routing.as_ref().filter(|routing| routing.adapts(layer))
    }
}

/// A `Member` of `kernels.cu`.
fn member(mapped: usize, span: &Span, rows: usize, sample: usize) -> [u32; 4] {
    [mapped as u32, span.start as u32, rows as u32, sample as u32]
}

/// For each range, its first number and one past its last.
pub(super) fn range_words(ranges: impl IntoIterator<Item = Range<usize>>) -> impl Iterator<Item = u32> {
    ranges.into_iter().flat_map(|range| [range.start as u32, range.end as u32])
}

/// One sample's `Pools` of `kernels.cu`; zeros where its task adds nothing to the layer. The device's copy of
/// the bank is added to `kept`.
fn bank_words(gpu: &Gpu, bank: Option<&FactorBank>, dtype: DType, kept: &mut Vec<Arc<DeviceFactors>>) -> Result<[u32; POOLS_WORDS]> {
    let mut words = [0; POOLS_WORDS];
    let Some(bank) = bank else { return Ok(words) };
    if bank.needs_cpu() {
        candle_core::bail!("{CPU_ALONE}");
    }
    let on_device = DeviceFactors::of(bank, &gpu.device(), dtype)?;
    let routers = on_device.routers().map(|routers| [&routers.weights, &routers.biases, &routers.table]);
    let tensors = [on_device.all()].into_iter().chain(routers.into_iter().flatten());
    for (words, tensor) in words.chunks_exact_mut(2).zip(tensors) {
        let address = gpu.address(tensor)?;
        words.copy_from_slice(&[address as u32, (address >> u32::BITS) as u32]);
    }
    let BankShape { groups, experts, rank, slots, .. } = *bank.shape();
    words[8..].copy_from_slice(&[experts, rank, slots, groups].map(|number| number as u32));
    kept.push(on_device);
    Ok(words)
}
