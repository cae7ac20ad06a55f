//! DeLo: factor pools of rank-one experts, chosen for each sample by routers (METHOD.md 2, 3).
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::ops::softmax;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::factors::{BankShape, FactorBank, Routers};
use super::normal::gaussian;
use super::numbers::Numbers;
use super::selection::top;
use super::{
    Adapter, Additions, BackboneShape, FactorPairs, LayerInput, Learner, LossTerm, MethodKind, MethodSpec, PoolId, Target, Tensors,
    check_update, flat, tensor_of,
};
use crate::modality::{Modality, PerModality};

/// The largest number of experts in a pool.
const MAX_EXPERTS: usize = 4096;

/// How a pool is laid out (METHOD.md 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// The paper's equations: A is `[E, d_in]`, B is `[E, d_out]`.
    #[default]
    RankOne,
    /// The paper's parameter counts: A is `[E, r, d_in]`, B is `[E, d_out, r]`.
    Slotted,
}

impl Layout {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::RankOne, Self::Slotted];
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RankOne => "rank_one",
            Self::Slotted => "slotted",
        })
    }
}

impl FromStr for Layout {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|layout| layout.to_string() == text)
            .ok_or_else(|| format!("{text:?} is no layout: give rank_one or slotted"))
    }
}

/// The shape of one task's pools.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// How a pool's factors are laid out.
    pub layout: Layout,
    /// E: experts in a pool.
    pub experts: usize,
    /// r: experts that are selected from a pool for a sample.
    pub rank: usize,
    /// α: scale of the update.
    pub alpha: f64,
    /// s: the first layer with pools. Equal to `layers`: no layer has pools, and the task is a linear head on
    /// the frozen pooled output.
    pub first_adapted_layer: usize,
    /// The number of the backbone's layers.
    pub layers: usize,
    /// d: the backbone's width.
    pub hidden: usize,
    /// A missing modality's query is its proxy's (METHOD.md 3). Without it, an ablation: the query is that of
    /// the modality's own dummy.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub cross_modal_guide: bool,
    /// A target has a pool for each modality. Without them, an ablation: it has one pool, whose query is the
    /// mean of both.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub modality_pools: bool,
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

impl PoolSpec {
    /// The pools of a target, G.
    fn groups(&self) -> usize {
        if self.modality_pools { Modality::ALL.len() } else { 1 }
    }

    /// The pools of a layer, p.
    fn pools(&self) -> usize {
        Target::COUNT * self.groups()
    }

    /// The beginnings of the names of each pool's tensors, in the order of the stack:
    /// `layers.0.query.visual`, or `layers.0.query.joint` where a target has one pool.
    fn prefixes(&self, layer: usize) -> Vec<String> {
        if self.modality_pools {
            return PoolId::all().map(|pool| pool.prefix(layer)).collect();
        }
        Target::ALL.map(|target| format!("layers.{layer}.{}.joint", target.name())).to_vec()
    }

    /// Slots of an expert, s: r in the layout `slotted`, else 1.
    pub fn slots(&self) -> usize {
        match self.layout {
            Layout::RankOne => 1,
            Layout::Slotted => self.rank,
        }
    }

    fn adapted_layers(&self) -> Range<usize> {
        self.first_adapted_layer..self.layers
    }

    /// The shapes of A and B in the artifact.
    fn factor_shapes(&self) -> [Vec<usize>; 2] {
        let (e, d, r) = (self.experts, self.hidden, self.rank);
        match self.layout {
            Layout::RankOne => [vec![e, d], vec![e, d]],
            Layout::Slotted => [vec![e, r, d], vec![e, d, r]],
        }
    }

    /// The tensors of one layer; each stacks those of all pools.
    fn stacked(&self, tensors: &Tensors, layer: usize) -> Result<Stacked<Tensor>> {
        let (e, d, r) = (self.experts, self.hidden, self.rank);
        let [a, b] = self.factor_shapes();
        let stack = |name: &str, shape: &[usize]| {
            let of_pool = |pool: &String| in_stack(name, tensor_of(tensors, &format!("{pool}.{name}"), shape)?, self.layout);
            Tensor::stack(&self.prefixes(layer).iter().map(of_pool).collect::<Result<Vec<_>>>()?, 0)
        };
        Ok(Stacked {
            a: stack("a", &a)?,
            b: stack("b", &b)?,
            router_a: stack("router_a.weight", &[e, d])?,
            bias_a: stack("router_a.bias", &[e])?,
            router_b: stack("router_b.weight", &[e, d])?,
            bias_b: stack("router_b.bias", &[e])?,
            router_ab: stack("router_ab", &[r, d, e])?,
        })
    }
}

impl MethodSpec for PoolSpec {
    fn kind(&self) -> MethodKind {
        MethodKind::Delo
    }

    fn field(&self) -> &'static str {
        "pools"
    }

    fn backbone(&self) -> BackboneShape {
        BackboneShape { layers: self.layers, hidden: self.hidden }
    }

    fn first_adapted_layer(&self) -> usize {
        self.first_adapted_layer
    }

    fn targets(&self) -> &'static [Target] {
        &Target::ALL
    }

    fn validate(&self) -> std::result::Result<(), String> {
        let Self { experts, rank, .. } = self;
        if *rank == 0 || rank > experts {
            return Err(format!("rank {rank} must be between 1 and the {experts} experts of a pool"));
        }
        if *experts > MAX_EXPERTS {
            return Err(format!("{experts} experts in a pool are more than the 4,096 that are supported"));
        }
        check_update(self.alpha, self.first_adapted_layer, self.layers)
    }

    fn terms(&self) -> &'static [LossTerm] {
        // Without the guide no query is replaced by its proxy: a proxied copy predicts what its original
        // does.
        if self.cross_modal_guide { &[LossTerm::Alignment, LossTerm::Consistency] } else { &[LossTerm::Alignment] }
    }

    fn cross_modal_guide(&self) -> bool {
        self.cross_modal_guide
    }

    fn ablation(&self) -> Option<&'static str> {
        match (self.cross_modal_guide, self.modality_pools) {
            (true, true) => None,
            (false, _) => Some("the cross-modal guide"),
            (true, false) => Some("a pool for each modality"),
        }
    }

    fn summary(&self) -> String {
        let Self { experts, rank, alpha, first_adapted_layer, layers, .. } = self;
        let without = self.ablation().map_or(String::new(), |part| format!(", without {part}"));
        format!("{experts} experts, rank {rank}, alpha {alpha}, from layer {first_adapted_layer} of {layers}{without}")
    }

    /// A and the routers are Gaussian (σ = 0.02); B and the biases are zero (METHOD.md 2).
    fn start(&self, rng: &mut ChaCha8Rng) -> Result<Box<dyn Learner>> {
        let layers = self.adapted_layers().map(|_| LayerPools::init(self, rng)).collect::<Result<_>>()?;
        Ok(Box::new(Experts { spec: self.clone(), layers }))
    }

    fn learner(&self, tensors: &Tensors) -> Result<Box<dyn Learner>> {
        let of_layer = |layer| self.stacked(tensors, layer)?.try_map(Var::from_tensor);
        let layers = self.adapted_layers().map(of_layer).collect::<Result<_>>()?;
        Ok(Box::new(Experts { spec: self.clone(), layers }))
    }

    fn adapter(&self, tensors: &Tensors) -> Result<Adapter> {
        let banks = self.adapted_layers().map(|layer| self.stacked(tensors, layer)?.bank(self)).collect::<Result<_>>()?;
        Ok(Adapter::low_rank(self.first_adapted_layer, banks))
    }
}

/// One layer's factor pools and routers. Each tensor stacks those of all pools: p = [`PoolSpec::pools`],
/// s = [`PoolSpec::slots`].
#[derive(Debug)]
struct Stacked<T> {
    /// A `[p, E, s, d]`
    a: T,
    /// B `[p, E, s, d]`. Slots come before d, so that a factor is contiguous.
    b: T,
    /// W_A `[p, E, d]`
    router_a: T,
    /// The bias of W_A, `[p, E]`
    bias_a: T,
    /// W_B `[p, E, d]`
    router_b: T,
    /// The bias of W_B, `[p, E]`
    bias_b: T,
    /// W_AB `[p, r, d, E]`
    router_ab: T,
}

/// The parameters of one layer.
type LayerPools = Stacked<Var>;

impl<T> Stacked<T> {
    fn try_map<U>(self, f: impl Fn(&T) -> Result<U>) -> Result<Stacked<U>> {
        Ok(Stacked {
            a: f(&self.a)?,
            b: f(&self.b)?,
            router_a: f(&self.router_a)?,
            bias_a: f(&self.bias_a)?,
            router_b: f(&self.router_b)?,
            bias_b: f(&self.bias_b)?,
            router_ab: f(&self.router_ab)?,
        })
    }

    /// Each tensor with its name in the artifact.
    fn named(&self) -> [(&'static str, &T); 7] {
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
}

impl Stacked<Tensor> {
    /// The same numbers, ready to serve: the table of W_AB[i]ᵀ a_e replaces W_AB (METHOD.md 7).
    fn bank(&self, spec: &PoolSpec) -> Result<FactorBank> {
        let (experts, slots, hidden, rank) = (spec.experts, spec.slots(), spec.hidden, spec.rank);
        let mut table = Vec::with_capacity(spec.pools() * rank * experts * experts);
        for pool in 0..spec.pools() {
            let (a, router) = (self.a.get(pool)?, self.router_ab.get(pool)?);
            for place in 0..rank {
                let factors = a.narrow(1, place.min(slots - 1), 1)?.squeeze(1)?.contiguous()?;
                table.extend(flat(&factors.matmul(&router.get(place)?)?)?);
            }
        }
        let routers = Routers {
            a: Numbers::F32(flat(&self.router_a)?),
            bias_a: flat(&self.bias_a)?,
            b: Numbers::F32(flat(&self.router_b)?),
            bias_b: flat(&self.bias_b)?,
            table,
        };
        let shape = BankShape { groups: spec.groups(), experts, rank, slots, hidden };
        let bank = FactorBank::new(shape, spec.alpha as f32, flat(&self.a)?, flat(&self.b)?, Some(routers));
        Ok(if spec.cross_modal_guide { bank } else { bank.without_guide() })
    }
}

/// The parameters of all adapted layers.
#[derive(Debug)]
struct Experts {
    spec: PoolSpec,
    /// The first entry is of layer `first_adapted_layer`.
    layers: Vec<LayerPools>,
}

impl Learner for Experts {
    fn vars(&self) -> BTreeMap<String, Var> {
        let mut out = BTreeMap::new();
        for (layer, pools) in self.spec.adapted_layers().zip(&self.layers) {
            out.extend(pools.named().map(|(name, var)| (format!("layers.{layer}.{name}"), var.clone())));
        }
        out
    }

    /// `layers.0.query.visual.a`, …: one tensor for each pool, in the shapes of METHOD.md 2: A `[E, d]` or
    /// `[E, r, d]`, B `[E, d]` or `[E, d, r]`, routers `[E, d]`, biases `[E]`, W_AB `[r, d, E]`.
    fn tensors(&self) -> Result<Tensors> {
        let mut out = Tensors::new();
        for (layer, pools) in self.spec.adapted_layers().zip(&self.layers) {
            for (name, var) in pools.named() {
                for (index, pool) in self.spec.prefixes(layer).iter().enumerate() {
                    let tensor = in_artifact(name, var.as_tensor().get(index)?, self.spec.layout)?;
                    out.insert(format!("{pool}.{name}"), tensor.copy()?);
                }
            }
        }
        Ok(out)
    }

    fn additions(&self, layer: usize, input: LayerInput<'_>) -> Result<Additions> {
        Ok(self.layers[layer - self.spec.first_adapted_layer].pairs(&self.spec, input.queries)?.into())
    }
}

impl LayerPools {
    fn init(spec: &PoolSpec, rng: &mut ChaCha8Rng) -> Result<Self> {
        let (e, s, d, r, p) = (spec.experts, spec.slots(), spec.hidden, spec.rank, spec.pools());
        let mut gaussian = |shape: &[usize]| Var::from_tensor(&gaussian(rng, shape)?);
        let (a, router_a, router_b, router_ab) =
            (gaussian(&[p, e, s, d])?, gaussian(&[p, e, d])?, gaussian(&[p, e, d])?, gaussian(&[p, r, d, e])?);
        let zeros = |shape: &[usize]| Var::zeros(shape, DType::F32, &Device::Cpu);
        Ok(Self { a, b: zeros(&[p, e, s, d])?, router_a, bias_a: zeros(&[p, e])?, router_b, bias_b: zeros(&[p, e])?, router_ab })
    }

    /// Selects the experts by the queries `[samples, d]` and gathers their factors (METHOD.md 2).
    /// Differentiable: the forward weight of a selected factor is exactly 1, and the backward pass goes
    /// straight through to the scores.
    fn pairs(&self, spec: &PoolSpec, queries: PerModality<&Tensor>) -> Result<FactorPairs> {
        let (samples, d) = queries.image.dims2()?;
        let (e, r, pools) = (spec.experts, spec.rank, spec.pools());
        // [p, samples, d]: pools alternate between the modalities.
        let of_groups = if spec.modality_pools {
            queries.iter().map(|(_, query)| (*query).clone()).collect::<Vec<Tensor>>()
        } else {
            vec![((queries.image + queries.text)? * 0.5)?]
        };
        let q = Tensor::stack(&of_groups, 0)?.unsqueeze(0)?.expand((Target::COUNT, of_groups.len(), samples, d))?;
        let q = q.reshape((pools, samples, d))?;
        let scores = |weight: &Var, bias: &Var| -> Result<Tensor> {
            let logits = q.matmul(&weight.as_tensor().transpose(1, 2)?)?.broadcast_add(&bias.as_tensor().unsqueeze(1)?)?;
            softmax(&logits, D::Minus1)
        };
        let score_a = scores(&self.router_a, &self.bias_a)?;
        let top_a = top_of_each_row(&score_a, r)?;
        let a = gather(&self.a, spec, &top_a, samples)?;
        // Σ_i W_AB[i]ᵀ a_i: the sums over the places i and over d are one product.
        let selected = a.detach().reshape((pools, samples, r * d))?;
        let paired = selected.matmul(&self.router_ab.as_tensor().reshape((pools, r * d, e))?)?;
        let score_b = (scores(&self.router_b, &self.bias_b)? + softmax(&paired, D::Minus1)?)?;
        let top_b = top_of_each_row(&score_b, r)?;
        let b = gather(&self.b, spec, &top_b, samples)?;
        let coefficient = (straight_through(&score_a, &top_a)? * straight_through(&score_b, &top_b)?)?;
        let b = b.broadcast_mul(&(coefficient * spec.alpha)?.unsqueeze(3)?)?;
        let by_sample = |t: Tensor| t.transpose(0, 1)?.contiguous()?.reshape((samples, pools * r, d));
        Ok(FactorPairs { a: by_sample(a)?, b: by_sample(b)?, pairs: spec.groups() * r })
    }
}

/// The indices of the r highest scores of each row of `[p, samples, E]`, the highest first, ties to the lower
/// index: `[p, samples, r]` of u32.
fn top_of_each_row(scores: &Tensor, r: usize) -> Result<Tensor> {
    let (pools, samples, e) = scores.dims3()?;
    let values = scores.flatten_all()?.to_vec1::<f32>()?;
    let indices: Vec<u32> = values.chunks_exact(e).flat_map(|row| top(row, r)).collect();
    Tensor::from_vec(indices, (pools, samples, r), scores.device())
}

/// The factors `[p, samples, r, d]` of the chosen experts `[p, samples, r]` of the pools `[p, E, s, d]`: slot
/// i of the i-th chosen expert.
fn gather(pool: &Var, spec: &PoolSpec, chosen: &Tensor, samples: usize) -> Result<Tensor> {
    let (e, s, d, r, pools) = (spec.experts, spec.slots(), spec.hidden, spec.rank, spec.pools());
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
    let rows = Tensor::from_vec(rows, pools * samples * r, pool.device())?;
    pool.as_tensor().reshape((pools * e * s, d))?.index_select(&rows, 0)?.reshape((pools, samples, r, d))
}

/// 1 + s − stop_gradient(s) of the chosen scores, `[p, samples, r]`.
fn straight_through(scores: &Tensor, chosen: &Tensor) -> Result<Tensor> {
    let s = scores.contiguous()?.gather(chosen, 2)?;
    let zero = (&s - s.detach())?;
    zero + 1.0
}

/// A pool's tensor in the shape of the artifact, from its slice of the stack.
fn in_artifact(name: &str, tensor: Tensor, layout: Layout) -> Result<Tensor> {
    match (name, layout) {
        ("a" | "b", Layout::RankOne) => tensor.squeeze(1),
        ("b", Layout::Slotted) => tensor.transpose(1, 2)?.contiguous(),
        _ => Ok(tensor),
    }
}

/// A pool's slice of the stack, from its tensor in the shape of the artifact.
fn in_stack(name: &str, tensor: &Tensor, layout: Layout) -> Result<Tensor> {
    match (name, layout) {
        ("a" | "b", Layout::RankOne) => tensor.unsqueeze(1),
        ("b", Layout::Slotted) => tensor.transpose(1, 2)?.contiguous(),
        _ => Ok(tensor.clone()),
    }
}

#[cfg(test)]
mod tests {
    use delo_kernels::Isa;
    use rand::SeedableRng;

    use super::*;
    use crate::method::{Method, TaskModel};

    fn vilt_b32(layout: Layout, experts: usize, rank: usize) -> PoolSpec {
        PoolSpec {
            layout,
            experts,
            rank,
            alpha: 2.0,
            first_adapted_layer: 0,
            layers: 12,
            hidden: 768,
            cross_modal_guide: true,
            modality_pools: true,
        }
    }

    fn parameters(experts: usize, rank: usize) -> usize {
        TaskModel::init(Method::Delo { pools: vilt_b32(Layout::Slotted, experts, rank) }, 1, 0).unwrap().adapter_parameters()
    }

    #[test]
    fn slotted_pools_have_the_parameter_counts_of_table_5() {
        let counts = [(16, 2, 7.1), (16, 4, 12.4), (16, 8, 23.0), (32, 2, 14.2), (32, 4, 24.8), (32, 8, 46.0)];
        for (experts, rank, millions) in counts {
            let count = parameters(experts, rank);
            assert_eq!(count, 6 * 12 * experts * (3 * rank * 768 + 2 * 769));
            assert_eq!(format!("{:.1}", count as f64 / 1e6), format!("{millions:.1}"));
        }
        assert_eq!(parameters(16, 4), 12_388_608);
    }

    #[test]
    fn artifact_tensors_give_the_same_parameters_back() {
        for layout in [Layout::RankOne, Layout::Slotted] {
            let spec = PoolSpec {
                layout,
                experts: 5,
                rank: 2,
                alpha: 2.0,
                first_adapted_layer: 1,
                layers: 3,
                hidden: 8,
                cross_modal_guide: true,
                modality_pools: true,
            };
            let method = Method::Delo { pools: spec };
            let model = TaskModel::init(method.clone(), 3, 7).unwrap();
            let b = &model.vars()["layers.2.b"];
            b.set(&Tensor::randn(0f32, 1.0, b.shape(), &Device::Cpu).unwrap()).unwrap();
            let tensors = model.to_tensors().unwrap();
            let shape = if layout == Layout::Slotted { vec![5, 8, 2] } else { vec![5, 8] };
            assert_eq!(tensors["layers.2.value.textual.b"].dims(), shape);
            let back = TaskModel::from_tensors(method, 3, &tensors).unwrap();
            for (name, var) in model.vars() {
                let values = |v: &Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(values(&var), values(&back.vars()[&name]), "{name}");
            }
        }
    }

    #[test]
    fn b_and_the_biases_begin_at_zero_and_all_else_does_not() {
        let spec = PoolSpec {
            layout: Layout::Slotted,
            experts: 5,
            rank: 2,
            alpha: 2.0,
            first_adapted_layer: 1,
            layers: 3,
            hidden: 8,
            cross_modal_guide: true,
            modality_pools: true,
        };
        let vars = TaskModel::init(Method::Delo { pools: spec }, 3, 7).unwrap().vars();
        let names = ["a", "b", "router_a.weight", "router_a.bias", "router_b.weight", "router_b.bias", "router_ab"];
        assert_eq!(vars.len(), 2 * names.len() + 2, "two layers and the head");
        for layer in [1, 2] {
            for name in names {
                let values = flat(&vars[&format!("layers.{layer}.{name}")]).unwrap();
                let is_zero = values.iter().all(|&x| x == 0.0);
                assert_eq!(is_zero, name == "b" || name.ends_with("bias"), "{name}");
            }
        }
    }

    #[test]
    fn the_served_factors_are_those_that_the_learning_model_chooses() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut random = |shape: &[usize]| (gaussian(&mut rng, shape).unwrap() * 50.0).unwrap();
        for (layout, modality_pools) in [(Layout::RankOne, true), (Layout::Slotted, true), (Layout::RankOne, false)] {
            let spec = PoolSpec {
                layout,
                experts: 5,
                rank: 2,
                alpha: 1.5,
                first_adapted_layer: 1,
                layers: 3,
                hidden: 8,
                cross_modal_guide: true,
                modality_pools,
            };
            let model = TaskModel::init(Method::Delo { pools: spec.clone() }, 3, 7).unwrap();
            model.vars().values().for_each(|var| var.set(&random(var.dims())).unwrap());
            let adapter = spec.adapter(&model.to_tensors().unwrap()).unwrap();
            let queries = PerModality { image: random(&[3, 8]), text: random(&[3, 8]) };
            for layer in adapter.layers() {
                let of_layer = PerModality { image: &queries.image, text: &queries.text };
                let learnt = model.additions(layer, LayerInput { queries: of_layer, frozen_cls: None }).unwrap().pairs.unwrap();
                assert_eq!(learnt.pairs, if modality_pools { 4 } else { 2 }, "two of each pool");
                let bank = adapter.bank(layer).unwrap();
                for sample in 0..3 {
                    let of_sample = |query: &Tensor| flat(&query.get(sample).unwrap()).unwrap();
                    let choices =
                        bank.choose(Isa::detect(), &PerModality { image: of_sample(&queries.image), text: of_sample(&queries.text) });
                    let mut factor = vec![0f32; 8];
                    let (mut a, mut b) = (Vec::new(), Vec::new());
                    for (group, choice) in choices.iter().enumerate() {
                        for numbers in bank.a_factors(group, choice) {
                            numbers.widen(&mut factor);
                            a.extend_from_slice(&factor);
                        }
                        for numbers in bank.b_factors(group, choice) {
                            numbers.widen(&mut factor);
                            b.extend(factor.iter().map(|x| x * bank.alpha()));
                        }
                    }
                    assert_eq!(a, of_sample(&learnt.a), "A of {layout}, layer {layer}, sample {sample}");
                    assert_eq!(b, of_sample(&learnt.b), "B of {layout}, layer {layer}, sample {sample}");
                }
            }
        }
    }
}
