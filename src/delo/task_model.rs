//! What one task learns: factor pools and routers of every adapted layer, and a head.
use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

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

/// The parameters of one task, as variables that can learn.
#[derive(Debug)]
pub struct TaskModel {
    pub spec: PoolSpec,
}

impl TaskModel {
    /// Parameters at the start: A and routers Gaussian (σ = 0.02), B zero, head uniform in ±1/√d; the same for the same seed on any machine.
    pub fn init(_spec: PoolSpec, _classes: usize, _seed: u64) -> candle_core::Result<Self> {
        todo!()
    }

    /// Every learning parameter by its name in the artifact (`layers.0.query.visual.a`, `head.weight`, …).
    pub fn vars(&self) -> BTreeMap<String, Var> {
        todo!()
    }

    /// The parameters from tensors of those names.
    pub fn from_tensors(_spec: PoolSpec, _classes: usize, _tensors: &BTreeMap<String, Tensor>) -> candle_core::Result<Self> {
        todo!()
    }

    /// Learning parameters, without the head.
    pub fn pool_parameters(&self) -> usize {
        todo!()
    }
}
