//! The parameters of one task: those of its method, and a linear head.
use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Additions, ChosenKeys, LayerInput, Learner, Method, Tensors, tensor_of};

/// The parameters of one task, as variables that can learn.
#[derive(Debug)]
pub struct TaskModel {
    method: Method,
    learner: Box<dyn Learner>,
    /// The head's weight, `[classes, d]`.
    pub head_weight: Var,
    /// The head's bias, `[classes]`.
    pub head_bias: Var,
}

impl TaskModel {
    /// The parameters before the first step: those of the method, then the head, uniform in ±1/√d. They are
    /// the same on every machine for the same seed.
    ///
    /// # Errors
    /// The tensors cannot be made.
    pub fn init(method: Method, classes: usize, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let learner = method.start(&mut rng)?;
        let hidden = method.backbone().hidden;
        let bound = 1.0 / (hidden as f32).sqrt();
        let mut uniform = |n: usize| (0..n).map(|_| bound * (2.0 * rng.random::<f32>() - 1.0)).collect::<Vec<_>>();
        let weight = Tensor::from_vec(uniform(classes * hidden), (classes, hidden), &Device::Cpu)?;
        let bias = Tensor::from_vec(uniform(classes), classes, &Device::Cpu)?;
        Ok(Self { method, learner, head_weight: Var::from_tensor(&weight)?, head_bias: Var::from_tensor(&bias)? })
    }

    /// The parameters from an artifact's tensors.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn from_tensors(method: Method, classes: usize, tensors: &Tensors) -> Result<Self> {
        let hidden = method.backbone().hidden;
        Ok(Self {
            head_weight: Var::from_tensor(tensor_of(tensors, "head.weight", &[classes, hidden])?)?,
            head_bias: Var::from_tensor(tensor_of(tensors, "head.bias", &[classes])?)?,
            learner: method.learner(tensors)?,
            method,
        })
    }

    /// The same parameters as variables on a device, which learn there; `self` where they are on it.
    ///
    /// # Errors
    /// The device refuses a copy.
    pub fn onto(self, device: &Device) -> Result<Self> {
        if self.head_bias.device().same_device(device) { Ok(self) } else { self.copied_to(device) }
    }

    /// A copy of these parameters on a device.
    fn copied_to(&self, device: &Device) -> Result<Self> {
        let tensors = self.to_tensors()?.into_iter().map(|(name, tensor)| Ok((name, tensor.to_device(device)?)));
        Self::from_tensors(self.method.clone(), self.head_bias.elem_count(), &tensors.collect::<Result<_>>()?)
    }

    /// The method and its dimensions.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Every learning parameter by its name, for the optimiser.
    pub fn vars(&self) -> BTreeMap<String, Var> {
        let mut out = self.learner.vars();
        out.insert("head.weight".to_owned(), self.head_weight.clone());
        out.insert("head.bias".to_owned(), self.head_bias.clone());
        out
    }

    /// The parameters under their names and in their shapes in the artifact: those of the method,
    /// `head.weight` `[classes, d]` and `head.bias` `[classes]`.
    ///
    /// # Errors
    /// The copies cannot be made.
    pub fn to_tensors(&self) -> Result<Tensors> {
        let mut out = self.learner.tensors()?;
        out.insert("head.weight".to_owned(), self.head_weight.as_tensor().copy()?);
        out.insert("head.bias".to_owned(), self.head_bias.as_tensor().copy()?);
        Ok(out)
    }

    /// What each sample gets in a layer, see [`Learner::additions`].
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn additions(&self, layer: usize, input: LayerInput<'_>) -> Result<Additions> {
        self.learner.additions(layer, input)
    }

    /// The keys that the samples choose prompts by, see [`Learner::chosen_keys`].
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn chosen_keys(&self, frozen_cls: &Tensor) -> Result<Option<ChosenKeys>> {
        self.learner.chosen_keys(frozen_cls)
    }

    /// The logits `[samples, classes]` of the pooled output `[samples, d]`.
    ///
    /// # Errors
    /// The pooled output has another width.
    pub fn head(&self, pooled: &Tensor) -> Result<Tensor> {
        pooled.matmul(&self.head_weight.as_tensor().t()?)?.broadcast_add(self.head_bias.as_tensor())
    }

    /// The number of learning parameters without the head.
    pub fn adapter_parameters(&self) -> usize {
        self.learner.parameters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{LinearSpec, LoraSpec, flat};

    #[test]
    fn the_head_begins_uniform_within_its_bound_and_differs_by_seed() {
        let head = |seed| {
            let model = TaskModel::init(Method::Linear { linear: LinearSpec { layers: 6, hidden: 16 } }, 50, seed).unwrap();
            (flat(&model.head_weight).unwrap(), flat(&model.head_bias).unwrap())
        };
        let (weight, bias) = head(7);
        assert_eq!((weight.len(), bias.len()), (800, 50));
        let bound = 0.25;
        assert!(weight.iter().chain(&bias).all(|x| x.abs() <= bound));
        let share = |part: fn(f32) -> bool| weight.iter().filter(|&&x| part(x)).count() as f32 / 800.0;
        let quarters =
            [share(|x| x < -0.125), share(|x| (-0.125..0.0).contains(&x)), share(|x| (0.0..0.125).contains(&x)), share(|x| x >= 0.125)];
        assert!(quarters.iter().all(|&quarter| (quarter - 0.25f32).abs() < 0.06), "{quarters:?}");
        assert_eq!(head(7), (weight.clone(), bias));
        assert_ne!(head(8).0, weight);
    }

    #[test]
    fn the_parameters_of_the_adapter_are_counted_without_the_head() {
        let lora = LoraSpec { rank: 2, alpha: 1.0, first_adapted_layer: 1, layers: 3, hidden: 8 };
        let model = TaskModel::init(Method::Lora { lora }, 4, 0).unwrap();
        assert_eq!(model.adapter_parameters(), 2 * 2 * 3 * 2 * 8, "A and B of three targets in two layers");
        let linear = TaskModel::init(Method::Linear { linear: LinearSpec { layers: 3, hidden: 8 } }, 4, 0).unwrap();
        assert_eq!((linear.adapter_parameters(), linear.vars().len(), linear.to_tensors().unwrap().len()), (0, 2, 2));
    }

    #[test]
    fn a_copy_on_a_device_has_the_same_parameters_in_variables_of_its_own() {
        let lora = LoraSpec { rank: 2, alpha: 1.0, first_adapted_layer: 1, layers: 3, hidden: 8 };
        let model = TaskModel::init(Method::Lora { lora }, 4, 0).unwrap();
        let copy = model.copied_to(&Device::Cpu).unwrap();
        let numbers = |model: &TaskModel| -> Vec<(String, Vec<f32>)> {
            model.to_tensors().unwrap().into_iter().map(|(name, tensor)| (name, flat(&tensor).unwrap())).collect()
        };
        assert_eq!(numbers(&model), numbers(&copy));
        assert_eq!(model.vars().keys().collect::<Vec<_>>(), copy.vars().keys().collect::<Vec<_>>());
        copy.head_bias.set(&Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap();
        assert_ne!(numbers(&model), numbers(&copy));
    }

    #[test]
    fn the_logits_are_the_head_s_product_and_bias() {
        let model = TaskModel::init(Method::Linear { linear: LinearSpec { layers: 3, hidden: 2 } }, 2, 0).unwrap();
        model.head_weight.set(&Tensor::new(&[[1f32, 2.0], [3.0, -1.0]], &Device::Cpu).unwrap()).unwrap();
        model.head_bias.set(&Tensor::new(&[0.5f32, -8.0], &Device::Cpu).unwrap()).unwrap();
        let pooled = Tensor::new(&[[2f32, 4.0], [0.0, 1.0]], &Device::Cpu).unwrap();
        assert_eq!(model.head(&pooled).unwrap().to_vec2::<f32>().unwrap(), [[10.5, -6.0], [2.5, -9.0]]);
    }
}
