//! Prefixes of keys and values in the first layers, as DualPrompt has them (Wang et al., ECCV 2022; METHOD.md
//! 8): 5 rows in layers 0 and 1, 20 in layers 2 to 4, the same for all samples of a task.
//!
//! A partition has prefixes of its own, independent of those of other tasks, and the server's rule decides
//! the task. The published continual learner shares the prefixes of the first layers between its sessions and
//! decides by keys of its own: that one is the peer `dualprompt` of the benchmark.
use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::additions::{Additions, LayerInput, SampleRows};
use super::normal::gaussian;
use super::prefix::Prefix;
use super::{Adapter, BackboneShape, Learner, LossTerm, MethodKind, MethodSpec, Target, Tensors, flat, tensor_of};

/// The lengths of METHOD.md 8: a general prefix in layers 0 and 1, an expert one in layers 2 to 4.
const LENGTHS: [usize; 5] = [5, 5, 20, 20, 20];
/// The longest prefix.
const MAX_LENGTH: usize = 1024;

/// The prefixes of one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DualPromptSpec {
    /// Keys, and as many values, of the prefix of each layer from 0 on. The layers that follow have none.
    pub lengths: Vec<usize>,
    /// The number of the backbone's layers.
    pub layers: usize,
    /// d: the backbone's width.
    pub hidden: usize,
}

impl DualPromptSpec {
    /// The prefixes of METHOD.md 8 in the layers that the backbone has.
    pub fn of(layers: usize, hidden: usize) -> Self {
        Self { lengths: LENGTHS.into_iter().take(layers).collect(), layers, hidden }
    }

    /// The names of a layer's keys and values in the artifact, `[length, d]` each: `layers.0.key.prefix` and
    /// `layers.0.value.prefix`.
    fn names(layer: usize) -> [String; 2] {
        [Target::Key, Target::Value].map(|target| format!("layers.{layer}.{}.prefix", target.name()))
    }

    /// The keys and the values of a layer, `[length, d]` each.
    fn prefix<'a>(&self, tensors: &'a Tensors, layer: usize) -> Result<[&'a Tensor; 2]> {
        let [keys, values] = Self::names(layer);
        let shape = [self.lengths[layer], self.hidden];
        Ok([tensor_of(tensors, &keys, &shape)?, tensor_of(tensors, &values, &shape)?])
    }
}

impl MethodSpec for DualPromptSpec {
    fn kind(&self) -> MethodKind {
        MethodKind::DualPrompt
    }

    fn field(&self) -> &'static str {
        "dualprompt"
    }

    fn backbone(&self) -> BackboneShape {
        BackboneShape { layers: self.layers, hidden: self.hidden }
    }

    fn first_adapted_layer(&self) -> usize {
        0
    }

    fn targets(&self) -> &'static [Target] {
        &[]
    }

    fn validate(&self) -> std::result::Result<(), String> {
        let Self { lengths, layers, .. } = self;
        if lengths.is_empty() || lengths.len() > *layers {
            return Err(format!("prefixes of {} layers: a backbone of {layers} layers has them in 1 to {layers}", lengths.len()));
        }
        match lengths.iter().find(|length| !(1..=MAX_LENGTH).contains(*length)) {
            Some(length) => Err(format!("a prefix of {length} keys: it has 1 to {MAX_LENGTH}")),
            None => Ok(()),
        }
    }

    fn terms(&self) -> &'static [LossTerm] {
        &[]
    }

    fn summary(&self) -> String {
        let lengths: Vec<String> = self.lengths.iter().map(usize::to_string).collect();
        format!("prefixes of {} keys and values in the first {} of {} layers", lengths.join(", "), lengths.len(), self.layers)
    }

    /// Keys and values are Gaussian (σ = 0.02).
    fn start(&self, rng: &mut ChaCha8Rng) -> Result<Box<dyn Learner>> {
        let prefixes = self.lengths.iter().map(|&length| Var::from_tensor(&gaussian(rng, (length, 2 * self.hidden))?));
        Ok(Box::new(Prefixes { prefixes: prefixes.collect::<Result<_>>()?, spec: self.clone() }))
    }

    fn learner(&self, tensors: &Tensors) -> Result<Box<dyn Learner>> {
        let prefixes = (0..self.lengths.len()).map(|layer| Var::from_tensor(&Tensor::cat(&self.prefix(tensors, layer)?, 1)?));
        Ok(Box::new(Prefixes { prefixes: prefixes.collect::<Result<_>>()?, spec: self.clone() }))
    }

    fn adapter(&self, tensors: &Tensors) -> Result<Adapter> {
        let prefixes = (0..self.lengths.len()).map(|layer| {
            let [keys, values] = self.prefix(tensors, layer)?;
            Ok(Prefix::new(self.hidden, flat(keys)?, flat(values)?))
        });
        Ok(Adapter::prefixes(0, prefixes.collect::<Result<_>>()?))
    }
}

/// The prefixes of one task.
#[derive(Debug)]
struct Prefixes {
    spec: DualPromptSpec,
    /// Of each layer from 0 on, `[length, 2 d]`: a key, then its value.
    prefixes: Vec<Var>,
}

impl Learner for Prefixes {
    fn vars(&self) -> BTreeMap<String, Var> {
        let named = |(layer, prefix): (usize, &Var)| (format!("layers.{layer}.prefix"), prefix.clone());
        self.prefixes.iter().enumerate().map(named).collect()
    }

    fn tensors(&self) -> Result<Tensors> {
        let mut out = Tensors::new();
        for (layer, prefix) in self.prefixes.iter().enumerate() {
            for (part, name) in DualPromptSpec::names(layer).into_iter().enumerate() {
                out.insert(name, prefix.as_tensor().narrow(1, part * self.spec.hidden, self.spec.hidden)?.contiguous()?);
            }
        }
        Ok(out)
    }

    fn additions(&self, layer: usize, input: LayerInput<'_>) -> Result<Additions> {
        let of_layer = self.prefixes.get(layer);
        let prefix = of_layer.map(|prefix| SampleRows::repeated(prefix, input.samples()?)).transpose()?;
        Ok(Additions { prefix, ..Additions::default() })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::method::{Method, TaskModel};
    use crate::modality::PerModality;

    fn spec(lengths: &[usize]) -> DualPromptSpec {
        DualPromptSpec { lengths: lengths.to_vec(), layers: 3, hidden: 4 }
    }

    #[test]
    fn a_backbone_has_the_prefixes_of_the_paper_in_the_layers_that_it_has() {
        assert_eq!(DualPromptSpec::of(12, 768).lengths, [5, 5, 20, 20, 20]);
        assert_eq!(DualPromptSpec::of(3, 8).lengths, [5, 5, 20]);
        let model = TaskModel::init(Method::DualPrompt { dualprompt: DualPromptSpec::of(12, 768) }, 4, 0).unwrap();
        assert_eq!(model.adapter_parameters(), 70 * 2 * 768);
    }

    #[test]
    fn artifact_tensors_give_the_same_parameters_back_and_are_served_as_they_were_learnt() {
        let spec = spec(&[3, 2]);
        let model = TaskModel::init(Method::DualPrompt { dualprompt: spec.clone() }, 4, 7).unwrap();
        let tensors = model.to_tensors().unwrap();
        assert_eq!(tensors["layers.0.key.prefix"].dims(), [3, 4]);
        assert_eq!(tensors["layers.1.value.prefix"].dims(), [2, 4]);
        let back = TaskModel::from_tensors(model.method().clone(), 4, &tensors).unwrap();
        for (name, var) in model.vars() {
            assert_eq!(flat(&var).unwrap(), flat(&back.vars()[&name]).unwrap(), "{name}");
        }
        let adapter = spec.adapter(&tensors).unwrap();
        assert!(adapter.layers().is_empty() && adapter.prefix(2).is_none());
        let query = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
        let input = LayerInput { queries: PerModality { image: &query, text: &query }, frozen_cls: None };
        for layer in 0..2 {
            let learnt = model.additions(layer, input).unwrap().prefix.unwrap();
            assert_eq!(learnt.lengths, [spec.lengths[layer]; 2]);
            let served = adapter.prefix(layer).unwrap();
            let mut row = [0.0; 8];
            for i in 0..2 * served.length() {
                let [key, value] = served.row(i % served.length());
                key.widen(&mut row[..4]);
                value.widen(&mut row[4..]);
                assert_eq!(row.to_vec(), flat(&learnt.rows.get(i).unwrap()).unwrap(), "layer {layer}, row {i}");
            }
        }
        assert!(model.additions(2, input).unwrap().is_empty());
    }

    #[test]
    fn lengths_at_their_bounds_are_valid_and_those_beyond_are_refused_with_what_they_must_be() {
        for valid in [&[1][..], &[1024, 1, 7]] {
            assert_eq!(spec(valid).validate(), Ok(()));
        }
        let refused = |lengths: &[usize]| spec(lengths).validate().unwrap_err();
        assert_eq!(refused(&[]), "prefixes of 0 layers: a backbone of 3 layers has them in 1 to 3");
        assert_eq!(refused(&[1; 4]), "prefixes of 4 layers: a backbone of 3 layers has them in 1 to 3");
        assert_eq!(refused(&[5, 0]), "a prefix of 0 keys: it has 1 to 1024");
        assert_eq!(refused(&[1025]), "a prefix of 1025 keys: it has 1 to 1024");
    }
}
