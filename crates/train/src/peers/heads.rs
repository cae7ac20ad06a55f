//! The linear head over all classes seen so far: each session adds rows for its own classes.
use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::data::Label;
use crate::training::objective::{classification, targets};

/// Which classes compete in the loss of a session with one class a sample. With any number of classes a
/// sample, the loss is the binary cross-entropy over the session's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Competing {
    /// The session's own. Rows of earlier sessions get no gradient and do not change.
    Session,
    /// All classes seen so far. Rows of earlier sessions learn too.
    Seen,
}

/// The rows of one session.
#[derive(Debug)]
struct Head {
    /// `[classes, d]`
    weight: Var,
    /// `[classes]`
    bias: Var,
}

/// The rows of all sessions, in their order.
#[derive(Debug, Default)]
pub(super) struct Heads(Vec<Head>);

impl Heads {
    /// Adds rows for a session's classes, uniform in ±1/√d as DeLo's.
    ///
    /// # Errors
    /// The tensors cannot be made.
    pub fn grow(&mut self, classes: usize, d: usize, rng: &mut ChaCha8Rng) -> Result<()> {
        let bound = 1.0 / (d as f32).sqrt();
        let mut uniform = |n: usize| (0..n).map(|_| bound * (2.0 * rng.random::<f32>() - 1.0)).collect::<Vec<_>>();
        let weight = Tensor::from_vec(uniform(classes * d), (classes, d), &Device::Cpu)?;
        let bias = Tensor::from_vec(uniform(classes), classes, &Device::Cpu)?;
        self.0.push(Head { weight: Var::from_tensor(&weight)?, bias: Var::from_tensor(&bias)? });
        Ok(())
    }

    /// The rows that a session's loss changes, by name.
    pub fn vars(&self, competing: Competing) -> BTreeMap<String, Var> {
        let first = self.first(competing);
        let named = |(session, head): (usize, &Head)| {
            [(format!("head.{session}.weight"), head.weight.clone()), (format!("head.{session}.bias"), head.bias.clone())]
        };
        self.0.iter().enumerate().skip(first).flat_map(named).collect()
    }

    /// Numbers of all rows.
    pub fn elements(&self) -> usize {
        self.0.iter().map(|head| head.weight.elem_count() + head.bias.elem_count()).sum()
    }

    /// The first session whose classes compete.
    fn first(&self, competing: Competing) -> usize {
        match competing {
            Competing::Session => self.0.len().saturating_sub(1),
            Competing::Seen => 0,
        }
    }

    /// The classification loss of the newest session's samples, from their pooled outputs `[samples, d]`.
    ///
    /// # Errors
    /// Shapes that do not fit together; no session.
    pub fn loss(&self, pooled: &Tensor, labels: &[&Label], competing: Competing) -> Result<Tensor> {
        let multi_label = labels.iter().any(|label| matches!(label, Label::Classes(_)));
        let first = self.first(if multi_label { Competing::Session } else { competing });
        let logits: Vec<Tensor> = self.0[first..]
            .iter()
            .map(|head| pooled.matmul(&head.weight.as_tensor().t()?)?.broadcast_add(head.bias.as_tensor()))
            .collect::<Result<_>>()?;
        let before: usize = logits.iter().rev().skip(1).map(|logits| logits.dims()[1]).sum();
        let mut targets = targets(labels, pooled.device())?;
        if !multi_label {
            targets = (targets.to_dtype(DType::I64)? + before as f64)?.to_dtype(DType::U32)?;
        }
        classification(&Tensor::cat(&logits, 1)?, &targets, multi_label)
    }

    /// The logits over all classes seen so far, for each row of the pooled outputs `[samples, d]`. A sample's
    /// logits are the same bits in any batch.
    ///
    /// # Errors
    /// Pooled outputs of another rank.
    pub fn logits(&self, pooled: &Tensor) -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::new();
        for head in &self.0 {
            rows.extend(head.weight.to_vec2::<f32>()?.into_iter().zip(head.bias.to_vec1::<f32>()?));
        }
        let of_sample = |x: &Vec<f32>| rows.iter().map(|(weight, bias)| dot(weight, x) + bias).collect();
        Ok(pooled.to_vec2::<f32>()?.iter().map(of_sample).collect())
    }
}

/// The scalar product, summed in one order.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The cosine of two vectors; 0 where one is zero.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}
