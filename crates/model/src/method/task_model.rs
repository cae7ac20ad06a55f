//! The parameters of one task: those of its method, and a linear head.
use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{FactorPairs, Learner, Method, Tensors, tensor_of};
use crate::modality::PerModality;

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

    /// The low-rank update of each sample in an adapted layer, see [`Learner::pairs`].
    ///
    /// # Errors
    /// A tensor operation fails.
    pub fn pairs(&self, layer: usize, queries: PerModality<&Tensor>) -> Result<FactorPairs> {
        self.learner.pairs(layer, queries)
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
