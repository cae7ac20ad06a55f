//! What one task learns: a method's parameters and a head.
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
    /// `[classes, d]`
    pub head_weight: Var,
    /// `[classes]`
    pub head_bias: Var,
}

impl TaskModel {
    /// Parameters before the first step: the method's own, then the head uniform in ±1/√d; the same for the same seed
    /// on any machine.
    ///
    /// # Errors
    /// No memory for them.
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

    /// The parameters that an artifact's tensors hold.
    ///
    /// # Errors
    /// A tensor that is absent or has another shape.
    pub fn from_tensors(method: Method, classes: usize, tensors: &Tensors) -> Result<Self> {
        let hidden = method.backbone().hidden;
        Ok(Self {
            head_weight: Var::from_tensor(tensor_of(tensors, "head.weight", &[classes, hidden])?)?,
            head_bias: Var::from_tensor(tensor_of(tensors, "head.bias", &[classes])?)?,
            learner: method.learner(tensors)?,
            method,
        })
    }

    /// Its method and the numbers that shape it.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Every learning parameter by a name of its own: what an optimiser walks over.
    pub fn vars(&self) -> BTreeMap<String, Var> {
        let mut out = self.learner.vars();
        out.insert("head.weight".to_owned(), self.head_weight.clone());
        out.insert("head.bias".to_owned(), self.head_bias.clone());
        out
    }

    /// The parameters by their names and in their shapes in the artifact: the method's own, `head.weight`
    /// `[classes, d]` and `head.bias` `[classes]`.
    ///
    /// # Errors
    /// No memory for the copies.
    pub fn to_tensors(&self) -> Result<Tensors> {
        let mut out = self.learner.tensors()?;
        out.insert("head.weight".to_owned(), self.head_weight.as_tensor().copy()?);
        out.insert("head.bias".to_owned(), self.head_bias.as_tensor().copy()?);
        Ok(out)
    }

    /// See [`Learner::pairs`].
    ///
    /// # Errors
    /// A failed operation.
    pub fn pairs(&self, layer: usize, queries: PerModality<&Tensor>) -> Result<FactorPairs> {
        self.learner.pairs(layer, queries)
    }

    /// Logits `[samples, classes]` from the pooled output `[samples, d]`.
    ///
    /// # Errors
    /// A pooled output of another width.
    pub fn head(&self, pooled: &Tensor) -> Result<Tensor> {
        pooled.matmul(&self.head_weight.as_tensor().t()?)?.broadcast_add(self.head_bias.as_tensor())
    }

    /// Learning parameters, without the head.
    pub fn adapter_parameters(&self) -> usize {
        self.learner.parameters()
    }
}
