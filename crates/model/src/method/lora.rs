//! Static LoRA: one update of rank r for each task, the same for every sample (Hu et al. 2021; the ablation
//! DeLo-LoRA of METHOD.md 8).
use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::factors::{BankShape, FactorBank};
use super::normal::gaussian;
use super::{
    Adapter, Additions, BackboneShape, FactorPairs, LayerInput, Learner, LossTerm, MethodKind, MethodSpec, Target, Tensors, check_update,
    flat, tensor_of,
};

/// The shape of one task's update: ΔW = α Σ_i b_i ⊗ a_i for query, key and value in each adapted layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraSpec {
    /// r: the rank of the update.
    pub rank: usize,
    /// α: scale of the update.
    pub alpha: f64,
    /// The first layer with an update.
    pub first_adapted_layer: usize,
    /// The number of the backbone's layers.
    pub layers: usize,
    /// d: the backbone's width.
    pub hidden: usize,
}

/// The largest rank.
const MAX_RANK: usize = 4096;

impl LoraSpec {
    fn adapted_layers(&self) -> Range<usize> {
        self.first_adapted_layer..self.layers
    }

    /// The names of a target's A `[r, d]` and B `[d, r]` in the artifact.
    fn names(layer: usize, target: Target) -> [String; 2] {
        ["lora_a", "lora_b"].map(|side| format!("layers.{layer}.{}.{side}", target.name()))
    }

    /// A and B of a layer, `[targets, r, d]` each.
    fn factors(&self, tensors: &Tensors, layer: usize) -> Result<[Tensor; 2]> {
        let (r, d) = (self.rank, self.hidden);
        let names = Target::ALL.map(|target| Self::names(layer, target));
        let a = names.iter().map(|[a, _]| tensor_of(tensors, a, &[r, d])).collect::<Result<Vec<_>>>()?;
        let b = names.iter().map(|[_, b]| tensor_of(tensors, b, &[d, r])?.t()).collect::<Result<Vec<_>>>()?;
        Ok([Tensor::stack(&a, 0)?, Tensor::stack(&b, 0)?])
    }
}

impl MethodSpec for LoraSpec {
    fn kind(&self) -> MethodKind {
        MethodKind::Lora
    }

    fn field(&self) -> &'static str {
        "lora"
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
        let Self { rank, .. } = self;
        if *rank == 0 || *rank > MAX_RANK {
            return Err(format!("rank {rank} must be between 1 and {MAX_RANK}"));
        }
        check_update(self.alpha, self.first_adapted_layer, self.layers)
    }

    fn terms(&self) -> &'static [LossTerm] {
        &[]
    }

    fn summary(&self) -> String {
        let Self { rank, alpha, first_adapted_layer, layers, .. } = self;
        format!("rank {rank}, alpha {alpha}, from layer {first_adapted_layer} of {layers}")
    }

    /// A is Gaussian (σ = 0.02), B is zero.
    fn start(&self, rng: &mut ChaCha8Rng) -> Result<Box<dyn Learner>> {
        let shape = (Target::COUNT, self.rank, self.hidden);
        let layers = self
            .adapted_layers()
            .map(|_| Ok(LayerLora { a: Var::from_tensor(&gaussian(rng, shape)?)?, b: Var::zeros(shape, DType::F32, &Device::Cpu)? }));
        Ok(Box::new(Lora { layers: layers.collect::<Result<_>>()?, spec: self.clone() }))
    }

    fn learner(&self, tensors: &Tensors) -> Result<Box<dyn Learner>> {
        let layers = self.adapted_layers().map(|layer| {
            let [a, b] = self.factors(tensors, layer)?;
            Ok(LayerLora { a: Var::from_tensor(&a)?, b: Var::from_tensor(&b)? })
        });
        Ok(Box::new(Lora { layers: layers.collect::<Result<_>>()?, spec: self.clone() }))
    }

    /// A bank with one group for each target; every sample uses all r experts of a group.
    fn adapter(&self, tensors: &Tensors) -> Result<Adapter> {
        let shape = BankShape { groups: 1, experts: self.rank, rank: self.rank, slots: 1, hidden: self.hidden };
        let banks = self.adapted_layers().map(|layer| {
            let [a, b] = self.factors(tensors, layer)?;
            Ok(FactorBank::new(shape, self.alpha as f32, flat(&a)?, flat(&b)?, None))
        });
        Ok(Adapter::low_rank(self.first_adapted_layer, banks.collect::<Result<_>>()?))
    }
}

/// The factors of one layer, for all targets.
#[derive(Debug)]
struct LayerLora {
    /// `[targets, r, d]`
    a: Var,
    /// `[targets, r, d]`
    b: Var,
}

/// The parameters of all adapted layers.
#[derive(Debug)]
struct Lora {
    spec: LoraSpec,
    /// The first entry is of layer `first_adapted_layer`.
    layers: Vec<LayerLora>,
}

impl Learner for Lora {
    fn vars(&self) -> BTreeMap<String, Var> {
        let of_layer = |(layer, LayerLora { a, b }): (usize, &LayerLora)| {
            [(format!("layers.{layer}.lora_a"), a.clone()), (format!("layers.{layer}.lora_b"), b.clone())]
        };
        self.spec.adapted_layers().zip(&self.layers).flat_map(of_layer).collect()
    }

    fn tensors(&self) -> Result<Tensors> {
        let mut out = Tensors::new();
        for (layer, LayerLora { a, b }) in self.spec.adapted_layers().zip(&self.layers) {
            for target in Target::ALL {
                let [name_a, name_b] = LoraSpec::names(layer, target);
                out.insert(name_a, a.as_tensor().get(target as usize)?.copy()?);
                out.insert(name_b, b.as_tensor().get(target as usize)?.t()?.contiguous()?);
            }
        }
        Ok(out)
    }

    fn additions(&self, layer: usize, input: LayerInput<'_>) -> Result<Additions> {
        let LoraSpec { rank, alpha, hidden, first_adapted_layer, .. } = &self.spec;
        let LayerLora { a, b } = &self.layers[layer - first_adapted_layer];
        let (samples, rows) = (input.samples()?, Target::COUNT * rank);
        let of_all = |factors: &Tensor| factors.reshape((1, rows, *hidden))?.expand((samples, rows, *hidden))?.contiguous();
        Ok(FactorPairs { a: of_all(a)?, b: of_all(&(b.as_tensor() * *alpha)?)?, pairs: *rank }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{Method, TaskModel};
    use crate::modality::PerModality;

    #[test]
    fn artifact_tensors_give_the_same_parameters_back_and_are_served_as_they_were_learnt() {
        let spec = LoraSpec { rank: 3, alpha: 1.5, first_adapted_layer: 1, layers: 3, hidden: 8 };
        let model = TaskModel::init(Method::Lora { lora: spec.clone() }, 4, 7).unwrap();
        for (name, var) in model.vars().iter().filter(|(name, _)| name.ends_with("lora_b")) {
            var.set(&Tensor::randn(0f32, 1.0, var.shape(), &Device::Cpu).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let tensors = model.to_tensors().unwrap();
        assert_eq!(tensors["layers.2.key.lora_a"].dims(), [3, 8]);
        assert_eq!(tensors["layers.2.key.lora_b"].dims(), [8, 3]);
        let back = TaskModel::from_tensors(model.method().clone(), 4, &tensors).unwrap();
        for (name, var) in model.vars() {
            assert_eq!(flat(&var).unwrap(), flat(&back.vars()[&name]).unwrap(), "{name}");
        }
        let query = Tensor::zeros((2, 8), DType::F32, &Device::Cpu).unwrap();
        let adapter = spec.adapter(&tensors).unwrap();
        assert_eq!(adapter.layers(), 1..3);
        for layer in adapter.layers() {
            let queries = PerModality { image: &query, text: &query };
            let learnt = model.additions(layer, LayerInput { queries, frozen_cls: None }).unwrap().pairs.unwrap();
            let bank = adapter.bank(layer).unwrap();
            let mut served = vec![0.0; 8];
            for (group, choice) in bank.unrouted().iter().enumerate() {
                for (place, factor) in bank.a_factors(group, choice).enumerate() {
                    factor.widen(&mut served);
                    assert_eq!(served, flat(&learnt.a.get(1).unwrap().get(group * 3 + place).unwrap()).unwrap());
                }
                for (place, factor) in bank.b_factors(group, choice).enumerate() {
                    factor.widen(&mut served);
                    let learnt = flat(&learnt.b.get(0).unwrap().get(group * 3 + place).unwrap()).unwrap();
                    assert!(served.iter().zip(learnt).all(|(served, learnt)| served * bank.alpha() == learnt));
                }
            }
        }
    }
}
