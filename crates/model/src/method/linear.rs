//! A linear head on the frozen pooled output; this method adds nothing to the backbone.
use std::collections::BTreeMap;

use candle_core::{Result, Var};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Adapter, Additions, BackboneShape, LayerInput, Learner, LossTerm, MethodKind, MethodSpec, Target, Tensors};

/// The backbone that the head is made for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearSpec {
    /// The number of the backbone's layers.
    pub layers: usize,
    /// d: the backbone's width.
    pub hidden: usize,
}

impl MethodSpec for LinearSpec {
    fn kind(&self) -> MethodKind {
        MethodKind::Linear
    }

    fn field(&self) -> &'static str {
        "linear"
    }

    fn backbone(&self) -> BackboneShape {
        BackboneShape { layers: self.layers, hidden: self.hidden }
    }

    fn first_adapted_layer(&self) -> usize {
        self.layers
    }

    fn targets(&self) -> &'static [Target] {
        &[]
    }

    fn validate(&self) -> std::result::Result<(), String> {
        Ok(())
    }

    fn terms(&self) -> &'static [LossTerm] {
        &[]
    }

    fn summary(&self) -> String {
        "a linear head alone".to_owned()
    }

    fn start(&self, _: &mut ChaCha8Rng) -> Result<Box<dyn Learner>> {
        Ok(Box::new(Nothing))
    }

    fn learner(&self, _: &Tensors) -> Result<Box<dyn Learner>> {
        Ok(Box::new(Nothing))
    }

    fn adapter(&self, _: &Tensors) -> Result<Adapter> {
        Ok(Adapter::default())
    }
}

/// No parameters; [`super::TaskModel`] holds those of the head.
#[derive(Debug)]
struct Nothing;

impl Learner for Nothing {
    fn vars(&self) -> BTreeMap<String, Var> {
        BTreeMap::new()
    }

    fn tensors(&self) -> Result<Tensors> {
        Ok(Tensors::new())
    }

    fn additions(&self, _: usize, _: LayerInput<'_>) -> Result<Additions> {
        Ok(Additions::default())
    }
}
