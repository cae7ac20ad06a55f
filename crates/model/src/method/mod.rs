//! What a partition adds to the frozen backbone: the interface between methods and everything that trains, stores and
//! serves them (METHOD.md 2, 3, 8).
//!
//! A method is one file: its specification ([`MethodSpec`]), what learns ([`Learner`]) and what serves ([`Adapter`]).
//! Nothing outside this module knows which methods there are, but for the command line that lets one choose.
//!
//! - [`delo`]: low-rank experts, chosen for each sample by routers.
//! - [`lora`]: one static low-rank update for all samples of a task.
//! - [`linear`]: a head on the frozen pooled output, nothing else.
pub mod backend_copies;
pub mod delo;
pub mod factors;
pub mod linear;
pub mod lora;
mod normal;
pub mod numbers;
pub mod pool;
pub mod selection;
mod task_model;

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::ops::{Deref, Range};
use std::str::FromStr;

use candle_core::{Result, Tensor, Var};
use delo_kernels::Precision;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::modality::PerModality;
pub use delo::{Layout, PoolSpec};
use factors::FactorBank;
pub use linear::LinearSpec;
pub use lora::LoraSpec;
pub use pool::{PoolId, Target};
pub use task_model::TaskModel;

/// Tensors by name, f32 on the CPU.
pub type Tensors = BTreeMap<String, Tensor>;

/// The methods by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodKind {
    /// Dual decomposed low-rank experts.
    #[default]
    Delo,
    /// One static low-rank update a task.
    Lora,
    /// A linear head alone.
    Linear,
}

impl MethodKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Delo, Self::Lora, Self::Linear];
}

impl fmt::Display for MethodKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delo => "delo",
            Self::Lora => "lora",
            Self::Linear => "linear",
        })
    }
}

impl FromStr for MethodKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is no method: give delo, lora or linear"))
    }
}

/// Which method a partition holds, and the numbers that shape it. In an artifact's header: `"method": "delo"` and a
/// field with the numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Method {
    /// Dual decomposed low-rank experts.
    Delo {
        /// The shape of its pools.
        pools: PoolSpec,
    },
    /// One static low-rank update a task.
    Lora {
        /// The shape of the update.
        lora: LoraSpec,
    },
    /// A linear head alone.
    Linear {
        /// The backbone under the head.
        linear: LinearSpec,
    },
}

impl Deref for Method {
    type Target = dyn MethodSpec;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Delo { pools } => pools,
            Self::Lora { lora } => lora,
            Self::Linear { linear } => linear,
        }
    }
}

/// The layers and the width of a backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackboneShape {
    /// Encoder layers.
    pub layers: usize,
    /// d
    pub hidden: usize,
}

/// What a method is before anything is learnt. All of its tensors are f32; `head.weight` and `head.bias` belong to
/// [`TaskModel`].
pub trait MethodSpec: Debug {
    /// Its name.
    fn kind(&self) -> MethodKind;

    /// The field of an artifact's header that holds its numbers.
    fn field(&self) -> &'static str;

    /// The backbone that it is made for.
    fn backbone(&self) -> BackboneShape;

    /// The first layer to which it adds something: all before it is frozen and shared by all tasks. The number of
    /// layers where it adds nothing to any.
    fn first_adapted_layer(&self) -> usize;

    /// The maps that it adapts.
    fn targets(&self) -> &'static [Target];

    /// Whether its numbers make sense together.
    ///
    /// # Errors
    /// A sentence that names the number that does not.
    fn validate(&self) -> std::result::Result<(), String>;

    /// Terms of the loss beside the classification (METHOD.md 5).
    fn terms(&self) -> &'static [LossTerm];

    /// One line for people.
    fn summary(&self) -> String;

    /// The parameters before the first step; the same for the same state of `rng` on any machine.
    ///
    /// # Errors
    /// No memory for them.
    fn start(&self, rng: &mut ChaCha8Rng) -> Result<Box<dyn Learner>>;

    /// The parameters that an artifact's tensors hold, to learn further.
    ///
    /// # Errors
    /// A tensor that is absent or has another shape.
    fn learner(&self, tensors: &Tensors) -> Result<Box<dyn Learner>>;

    /// What the engine serves, from an artifact's tensors.
    ///
    /// # Errors
    /// A tensor that is absent or has another shape.
    fn adapter(&self, tensors: &Tensors) -> Result<Adapter>;
}

/// A term of the loss that needs queries of both modalities, on complete samples (METHOD.md 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossTerm {
    /// L_align = 1 − cos(q^v, q^t).
    Alignment,
    /// L_con: the divergence between the predictions by the true query and by its proxy.
    Consistency,
}

/// A method's parameters while they learn.
pub trait Learner: Debug + Send + Sync {
    /// Every parameter by a name of its own: what an optimiser walks over.
    fn vars(&self) -> BTreeMap<String, Var>;

    /// The parameters by their names and in their shapes in the artifact.
    ///
    /// # Errors
    /// No memory for the copies.
    fn tensors(&self) -> Result<Tensors>;

    /// What it adds to an adapted layer for each sample, differentiably, given the samples' queries that enter the
    /// layer, `[samples, d]` of each modality.
    ///
    /// # Errors
    /// A failed operation.
    fn pairs(&self, layer: usize, queries: PerModality<&Tensor>) -> Result<FactorPairs>;

    /// Learning parameters.
    fn parameters(&self) -> usize {
        self.vars().values().map(|var| var.elem_count()).sum()
    }
}

/// The low-rank update of some samples in one layer: each target's is Σ b ⊗ a over its pairs.
#[derive(Debug)]
pub struct FactorPairs {
    /// `[samples, targets · pairs, d]`, target by target.
    pub a: Tensor,
    /// Likewise, scaled.
    pub b: Tensor,
    /// Pairs of one target.
    pub pairs: usize,
}

/// What a partition adds to the backbone's layers, ready to serve: all that the engine knows of a method.
///
/// Every method so far adds low-rank updates of query, key and value. A method that adds tokens at the input (L2P, MSP)
/// or prefixes of keys and values (DualPrompt, RebQ) becomes a second field beside `banks`, which the backends read
/// where they read `banks`; ARCHITECTURE.md says how.
#[derive(Clone, Debug)]
pub struct Adapter {
    first_layer: usize,
    banks: Vec<FactorBank>,
}

impl Adapter {
    /// The factors of the layers from `first_layer` on.
    pub fn new(first_layer: usize, banks: Vec<FactorBank>) -> Self {
        Self { first_layer, banks }
    }

    /// The layers that it adapts.
    pub fn layers(&self) -> Range<usize> {
        self.first_layer..self.first_layer + self.banks.len()
    }

    /// The factors of a layer; `None` where it adds nothing.
    pub fn bank(&self, layer: usize) -> Option<&FactorBank> {
        self.banks.get(layer.checked_sub(self.first_layer)?)
    }

    /// The same adapter with its numbers in another format.
    #[must_use]
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { banks: self.banks.into_iter().map(|bank| bank.in_precision(precision)).collect(), ..self }
    }
}

/// A tensor of an artifact.
///
/// # Errors
/// It is absent or has another shape.
pub(crate) fn tensor_of<'a>(tensors: &'a Tensors, name: &str, shape: &[usize]) -> Result<&'a Tensor> {
    let tensor = tensors.get(name).ok_or_else(|| candle_core::Error::Msg(format!("tensor {name} is missing")))?;
    if tensor.dims() != shape {
        candle_core::bail!("tensor {name} has shape {:?}, not {shape:?}", tensor.dims());
    }
    Ok(tensor)
}

/// All numbers of a tensor, row by row.
pub(crate) fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
