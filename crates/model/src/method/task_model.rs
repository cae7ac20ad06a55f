//! What one task learns: factor pools and routers of every adapted layer, and a head.
use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::ops::softmax;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::normal::normals;
use super::selection::top;

/// The adapted maps of a layer, in the order in which pools are stacked.
pub const TARGETS: [&str; 3] = ["query", "key", "value"];
/// The modalities of a pool, in the order in which pools are stacked.
pub const MODALITIES: [&str; 2] = ["visual", "textual"];
/// Pools of a layer: one for each target and modality; pool `2 · target + modality`.
pub const POOLS: usize = TARGETS.len() * MODALITIES.len();
/// Standard deviation of A and of the routers at the start.
const INITIAL_DEVIATION: f32 = 0.02;

/// How a pool is laid out (METHOD.md 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Layout {
    /// The paper's equations: A is `[E, d_in]`, B is `[E, d_out]`.
    #[default]
    RankOne,
    /// The paper's parameter counts: A is `[E, r, d_in]`, B is `[E, d_out, r]`.
    Slotted,
}

/// The shape of one task's pools.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolSpec {
    pub layout: Layout,
    /// E: factors in a pool.
    pub experts: usize,
    /// r: factors selected of a pool.
    pub rank: usize,
    /// α: scale of the update.
    pub alpha: f64,
    /// s: adapters from this layer on. Equal to the number of layers: no adapter at all, a linear head on the frozen pooled output.
    pub first_adapted_layer: usize,
    /// Of the backbone.
    pub layers: usize,
    /// Of the backbone: d.
    pub hidden: usize,
}

impl PoolSpec {
    /// Slots of an expert: r where it holds a factor for each place of the adapter, else 1.
    pub fn slots(&self) -> usize {
        match self.layout {
            Layout::RankOne => 1,
            Layout::Slotted => self.rank,
        }
    }

    /// The layers that have pools.
    pub fn adapted_layers(&self) -> std::ops::Range<usize> {
        self.first_adapted_layer..self.layers
    }

    /// Whether the numbers make sense together.
    ///
    /// # Errors
    /// A sentence naming the number that does not.
    pub fn validate(&self) -> std::result::Result<(), String> {
        let Self { experts, rank, alpha, first_adapted_layer, layers, .. } = self;
        if *rank == 0 || rank > experts {
            return Err(format!("rank {rank} must be between 1 and the {experts} experts of a pool"));
        }
        if *experts > 4096 {
            return Err(format!("{experts} experts in a pool are more than the 4,096 that are supported"));
        }
        if first_adapted_layer > layers {
            return Err(format!("first adapted layer {first_adapted_layer} must be at most {layers}, the backbone's layers"));
        }
        if !alpha.is_finite() {
            return Err(format!("alpha {alpha} must be a finite number"));
        }
        Ok(())
    }
}

/// One layer's factor pools and routers, all pools stacked: p = [`POOLS`], s = [`PoolSpec::slots`].
#[derive(Debug)]
pub struct LayerPools {
    /// A `[p, E, s, d]`
    pub a: Var,
    /// B `[p, E, s, d]`; slots stand before d, so that a factor is contiguous.
    pub b: Var,
    /// W_A `[p, E, d]`
    pub router_a: Var,
    /// `[p, E]`
    pub bias_a: Var,
    /// W_B `[p, E, d]`
    pub router_b: Var,
    /// `[p, E]`
    pub bias_b: Var,
    /// W_AB `[p, r, d, E]`
    pub router_ab: Var,
}

/// The factors that some samples use in one layer, ready for the low-rank product; each is `[samples, p · r, d]`.
pub struct Selected {
    pub a: Tensor,
    /// Scaled by α and by the straight-through coefficients, whose value is 1.
    pub b: Tensor,
}

/// The parameters of one task, as variables that can learn.
#[derive(Debug)]
pub struct TaskModel {
    pub spec: PoolSpec,
    /// From layer `first_adapted_layer` on.
    pub layers: Vec<LayerPools>,
    /// `[classes, d]`
    pub head_weight: Var,
    /// `[classes]`
    pub head_bias: Var,
}

impl LayerPools {
    fn init(spec: &PoolSpec, rng: &mut ChaCha8Rng) -> Result<Self> {
        let (e, s, d, r) = (spec.experts, spec.slots(), spec.hidden, spec.rank);
        let mut gaussian = |shape: &[usize]| {
            let values = normals(rng, shape.iter().product()).into_iter().map(|x| x * INITIAL_DEVIATION).collect::<Vec<_>>();
            Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)
        };
        let (a, router_a, router_b, router_ab) =
            (gaussian(&[POOLS, e, s, d])?, gaussian(&[POOLS, e, d])?, gaussian(&[POOLS, e, d])?, gaussian(&[POOLS, r, d, e])?);
        let zeros = |shape: &[usize]| Var::zeros(shape, candle_core::DType::F32, &Device::Cpu);
        Ok(Self {
            a,
            b: zeros(&[POOLS, e, s, d])?,
            router_a,
            bias_a: zeros(&[POOLS, e])?,
            router_b,
            bias_b: zeros(&[POOLS, e])?,
            router_ab,
        })
    }

    /// From the artifact's tensors of one layer; `find` gives a tensor of a name and shape.
    fn from_tensors<'a>(spec: &PoolSpec, layer: usize, find: impl Fn(&str, &[usize]) -> Result<&'a Tensor>) -> Result<Self> {
        let (e, d, r) = (spec.experts, spec.hidden, spec.rank);
        let stack = |name: &str, shape: &[usize]| {
            let parts = pool_prefixes(layer).map(|(_, prefix)| stacked(name, find(&format!("{prefix}.{name}"), shape)?, spec.layout));
            Var::from_tensor(&Tensor::stack(&parts.collect::<Result<Vec<_>>>()?, 0)?)
        };
        let (a, b) = match spec.layout {
            Layout::RankOne => (vec![e, d], vec![e, d]),
            Layout::Slotted => (vec![e, r, d], vec![e, d, r]),
        };
        Ok(Self {
            a: stack("a", &a)?,
            b: stack("b", &b)?,
            router_a: stack("router_a.weight", &[e, d])?,
            bias_a: stack("router_a.bias", &[e])?,
            router_b: stack("router_b.weight", &[e, d])?,
            bias_b: stack("router_b.bias", &[e])?,
            router_ab: stack("router_ab", &[r, d, e])?,
        })
    }

    /// Every variable with its name.
    pub fn named(&self) -> [(&'static str, &Var); 7] {
        [
            ("a", &self.a),
            ("b", &self.b),
            ("router_a.weight", &self.router_a),
            ("router_a.bias", &self.bias_a),
            ("router_b.weight", &self.router_b),
            ("router_b.bias", &self.bias_b),
            ("router_ab", &self.router_ab),
        ]
    }

    /// Routes by the query signals `[samples, d]` and gathers the factors (METHOD.md 2), differentiably: a selected factor weighs exactly 1,
    /// and the backward pass goes straight through to the scores.
    pub fn select(&self, spec: &PoolSpec, visual: &Tensor, textual: &Tensor) -> Result<Selected> {
        let (samples, d) = visual.dims2()?;
        let (e, r) = (spec.experts, spec.rank);
        // Pools alternate between the modalities: [p, samples, d].
        let q = Tensor::stack(&[visual, textual], 0)?.unsqueeze(0)?.expand((TARGETS.len(), 2, samples, d))?;
        let q = q.reshape((POOLS, samples, d))?;
        let scores = |weight: &Var, bias: &Var| -> Result<Tensor> {
            let logits = q.matmul(&weight.as_tensor().transpose(1, 2)?)?.broadcast_add(&bias.as_tensor().unsqueeze(1)?)?;
            softmax(&logits, D::Minus1)
        };
        let score_a = scores(&self.router_a, &self.bias_a)?;
        let top_a = top_of_each_row(&score_a, r)?;
        let a = gather(&self.a, spec, &top_a, samples)?;
        // The places of W_AB and of the selected A factors pair up, so both sums are one product.
        let selected = a.detach().reshape((POOLS, samples, r * d))?;
        let paired = selected.matmul(&self.router_ab.as_tensor().reshape((POOLS, r * d, e))?)?;
        let score_b = (scores(&self.router_b, &self.bias_b)? + softmax(&paired, D::Minus1)?)?;
        let top_b = top_of_each_row(&score_b, r)?;
        let b = gather(&self.b, spec, &top_b, samples)?;
        let coefficient = (straight_through(&score_a, &top_a)? * straight_through(&score_b, &top_b)?)?;
        let b = b.broadcast_mul(&(coefficient * spec.alpha)?.unsqueeze(3)?)?;
        let by_sample = |t: Tensor| t.transpose(0, 1)?.contiguous()?.reshape((samples, POOLS * r, d));
        Ok(Selected { a: by_sample(a)?, b: by_sample(b)? })
    }
}

/// The r best of each row of `[p, samples, E]`, by falling score, ties to the lower index: `[p, samples, r]` of u32.
fn top_of_each_row(scores: &Tensor, r: usize) -> Result<Tensor> {
    let (pools, samples, e) = scores.dims3()?;
    let values = scores.flatten_all()?.to_vec1::<f32>()?;
    let indices: Vec<u32> = values.chunks_exact(e).flat_map(|row| top(row, r)).collect();
    Tensor::from_vec(indices, (pools, samples, r), scores.device())
}

/// The chosen factors `[p, samples, r, d]` of a pool `[p, E, s, d]`; the i-th chosen expert gives its i-th slot.
fn gather(pool: &Var, spec: &PoolSpec, chosen: &Tensor, samples: usize) -> Result<Tensor> {
    let (e, s, d, r) = (spec.experts, spec.slots(), spec.hidden, spec.rank);
    let rows: Vec<u32> = chosen
        .flatten_all()?
        .to_vec1::<u32>()?
        .into_iter()
        .enumerate()
        .map(|(i, expert)| {
            let (pool, place) = (i / (samples * r), i % r);
            ((pool * e + expert as usize) * s + place.min(s - 1)) as u32
        })
        .collect();
    let rows = Tensor::from_vec(rows, POOLS * samples * r, pool.device())?;
    pool.as_tensor().reshape((POOLS * e * s, d))?.index_select(&rows, 0)?.reshape((POOLS, samples, r, d))
}

/// 1 + s − stop_gradient(s) of the chosen scores, `[p, samples, r]`.
fn straight_through(scores: &Tensor, chosen: &Tensor) -> Result<Tensor> {
    let s = scores.contiguous()?.gather(chosen, 2)?;
    let zero = (&s - s.detach())?;
    zero + 1.0
}

impl TaskModel {
    /// Parameters at the start: A and routers Gaussian (σ = 0.02), B zero, head uniform in ±1/√d; the same for the same seed on any machine.
    pub fn init(spec: PoolSpec, classes: usize, seed: u64) -> Result<Self> {
        use rand::Rng;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let layers = spec.adapted_layers().map(|_| LayerPools::init(&spec, &mut rng)).collect::<Result<_>>()?;
        let bound = 1.0 / (spec.hidden as f32).sqrt();
        let mut uniform = |n: usize| (0..n).map(|_| bound * (2.0 * rng.random::<f32>() - 1.0)).collect::<Vec<_>>();
        let weight = Tensor::from_vec(uniform(classes * spec.hidden), (classes, spec.hidden), &Device::Cpu)?;
        let bias = Tensor::from_vec(uniform(classes), classes, &Device::Cpu)?;
        Ok(Self { layers, head_weight: Var::from_tensor(&weight)?, head_bias: Var::from_tensor(&bias)?, spec })
    }

    /// Every learning parameter by a name of its own, pools of a layer stacked: what an optimiser walks over.
    pub fn vars(&self) -> BTreeMap<String, Var> {
        let mut out = BTreeMap::new();
        for (layer, pools) in self.spec.adapted_layers().zip(&self.layers) {
            out.extend(pools.named().map(|(name, var)| (format!("layers.{layer}.{name}"), var.clone())));
        }
        out.insert("head.weight".to_owned(), self.head_weight.clone());
        out.insert("head.bias".to_owned(), self.head_bias.clone());
        out
    }

    /// `[samples, classes]` from the pooled output `[samples, d]`.
    pub fn head(&self, pooled: &Tensor) -> Result<Tensor> {
        pooled.matmul(&self.head_weight.as_tensor().t()?)?.broadcast_add(self.head_bias.as_tensor())
    }

    /// The parameters by their names in the artifact (`layers.0.query.visual.a`, `head.weight`, …), each pool a tensor of its own in the shape
    /// of METHOD.md 2: A `[E, d]` or `[E, r, d]`, B `[E, d]` or `[E, d, r]`, routers `[E, d]`, biases `[E]`, W_AB `[r, d, E]`.
    pub fn to_tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut out = BTreeMap::new();
        for (layer, pools) in self.spec.adapted_layers().zip(&self.layers) {
            for (name, var) in pools.named() {
                for (pool, prefix) in pool_prefixes(layer) {
                    let tensor = var.as_tensor().get(pool)?;
                    out.insert(format!("{prefix}.{name}"), published(name, tensor, self.spec.layout)?.copy()?);
                }
            }
        }
        out.insert("head.weight".to_owned(), self.head_weight.as_tensor().copy()?);
        out.insert("head.bias".to_owned(), self.head_bias.as_tensor().copy()?);
        Ok(out)
    }

    /// The parameters from tensors of the artifact's names and shapes.
    ///
    /// # Errors
    /// A tensor that is absent or has another shape.
    pub fn from_tensors(spec: PoolSpec, classes: usize, tensors: &BTreeMap<String, Tensor>) -> Result<Self> {
        let find = |name: &str, shape: &[usize]| {
            let tensor = tensors.get(name).ok_or_else(|| candle_core::Error::Msg(format!("tensor {name} is missing")))?;
            if tensor.dims() != shape {
                candle_core::bail!("tensor {name} has shape {:?}, not {shape:?}", tensor.dims());
            }
            Ok(tensor)
        };
        let layers = spec.adapted_layers().map(|layer| LayerPools::from_tensors(&spec, layer, find)).collect::<Result<_>>()?;
        Ok(Self {
            head_weight: Var::from_tensor(find("head.weight", &[classes, spec.hidden])?)?,
            head_bias: Var::from_tensor(find("head.bias", &[classes])?)?,
            layers,
            spec,
        })
    }

    /// Learning parameters, without the head.
    pub fn pool_parameters(&self) -> usize {
        self.layers.iter().flat_map(LayerPools::named).map(|(_, var)| var.elem_count()).sum()
    }
}

/// The stacked index and the artifact's name prefix of each pool of a layer.
pub fn pool_prefixes(layer: usize) -> impl Iterator<Item = (usize, String)> {
    (0..POOLS).map(move |pool| (pool, format!("layers.{layer}.{}.{}", TARGETS[pool / 2], MODALITIES[pool % 2])))
}

/// A pool's tensor as the artifact holds it, from one slice of the stack.
fn published(name: &str, tensor: Tensor, layout: Layout) -> Result<Tensor> {
    match (name, layout) {
        ("a" | "b", Layout::RankOne) => tensor.squeeze(1),
        ("b", Layout::Slotted) => tensor.transpose(1, 2)?.contiguous(),
        _ => Ok(tensor),
    }
}

/// The slice of the stack, from the artifact's tensor.
fn stacked(name: &str, tensor: &Tensor, layout: Layout) -> Result<Tensor> {
    match (name, layout) {
        ("a" | "b", Layout::RankOne) => tensor.unsqueeze(1),
        ("b", Layout::Slotted) => tensor.transpose(1, 2)?.contiguous(),
        _ => Ok(tensor.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vilt_b32(layout: Layout, experts: usize, rank: usize) -> PoolSpec {
        PoolSpec { layout, experts, rank, alpha: 2.0, first_adapted_layer: 0, layers: 12, hidden: 768 }
    }

    #[test]
    fn slotted_pools_have_the_parameter_counts_of_table_5() {
        let counts = [(16, 2, 7.1), (16, 4, 12.4), (16, 8, 23.0), (32, 2, 14.2), (32, 4, 24.8), (32, 8, 46.0)];
        for (experts, rank, millions) in counts {
            let count = TaskModel::init(vilt_b32(Layout::Slotted, experts, rank), 1, 0).unwrap().pool_parameters();
            assert_eq!(count, 6 * 12 * experts * (3 * rank * 768 + 2 * 769));
            assert_eq!(format!("{:.1}", count as f64 / 1e6), format!("{millions:.1}"));
        }
        assert_eq!(TaskModel::init(vilt_b32(Layout::Slotted, 16, 4), 1, 0).unwrap().pool_parameters(), 12_388_608);
    }

    #[test]
    fn artifact_tensors_give_the_same_parameters_back() {
        for layout in [Layout::RankOne, Layout::Slotted] {
            let spec = PoolSpec { layout, experts: 5, rank: 2, alpha: 2.0, first_adapted_layer: 1, layers: 3, hidden: 8 };
            let model = TaskModel::init(spec.clone(), 3, 7).unwrap();
            model.layers[1].b.set(&Tensor::randn(0f32, 1.0, model.layers[1].b.shape(), &Device::Cpu).unwrap()).unwrap();
            let tensors = model.to_tensors().unwrap();
            let shape = if layout == Layout::Slotted { vec![5, 8, 2] } else { vec![5, 8] };
            assert_eq!(tensors["layers.2.value.textual.b"].dims(), shape);
            let back = TaskModel::from_tensors(spec, 3, &tensors).unwrap();
            for (name, var) in model.vars() {
                let values = |v: &Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(values(&var), values(&back.vars()[&name]), "{name}");
            }
        }
    }
}
