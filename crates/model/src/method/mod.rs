//! What a partition adds to the frozen backbone: the interface between the methods and the code that trains,
//! stores and serves them (METHOD.md 2, 3, 8).
//!
//! A method is one file: its specification ([`MethodSpec`]), its parameters while they learn ([`Learner`]),
//! and the same ready to serve ([`Adapter`]). Outside this module, only the command line knows which methods
//! there are: a user chooses one there.
//!
//! - [`delo`]: low-rank experts, chosen for each sample by routers.
//! - [`lora`]: one static low-rank update for all samples of a task.
//! - [`linear`]: a head on the frozen pooled output, nothing else.
//! - [`dualprompt`]: prefixes of keys and values in the first layers, the same for all samples of a task.
//! - [`l2p`]: prompts at the input, chosen for each sample from the task's pool.
pub mod adapter;
pub mod additions;
pub mod backend_copies;
pub mod delo;
pub mod dualprompt;
pub mod factors;
pub mod l2p;
pub mod linear;
pub mod lora;
pub mod normal;
pub mod numbers;
pub mod pool;
pub mod prefix;
pub mod prompts;
pub mod selection;
mod task_model;

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::ops::Deref;
use std::str::FromStr;

use candle_core::{Result, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub use adapter::Adapter;
pub use additions::{Additions, ChosenKeys, FactorPairs, LayerInput, Prompts, SampleRows};
pub use delo::{Layout, PoolSpec};
pub use dualprompt::DualPromptSpec;
pub use l2p::L2pSpec;
pub use linear::LinearSpec;
pub use lora::LoraSpec;
pub use normal::normals;
pub use pool::{PoolId, Target};
pub use task_model::TaskModel;

/// Tensors by name, f32 on the CPU.
pub type Tensors = BTreeMap<String, Tensor>;

/// The name of a method.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodKind {
    /// Dual decomposed low-rank experts.
    #[default]
    Delo,
    /// One static low-rank update for each task.
    Lora,
    /// A linear head alone.
    Linear,
    /// Prefixes of keys and values in the first layers.
    #[serde(rename = "dualprompt")]
    DualPrompt,
    /// Prompts at the input, chosen for each sample from the task's pool.
    L2p,
}

impl MethodKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Delo, Self::Lora, Self::Linear, Self::DualPrompt, Self::L2p];
}

impl fmt::Display for MethodKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delo => "delo",
            Self::Lora => "lora",
            Self::Linear => "linear",
            Self::DualPrompt => "dualprompt",
            Self::L2p => "l2p",
        })
    }
}

impl FromStr for MethodKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(|kind| kind.to_string());
            format!("{text:?} is no method: give one of {}", names.join(", "))
        })
    }
}

/// The method of a partition and its dimensions. In an artifact's header: `"method": "delo"` and a field with
/// the dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Method {
    /// Dual decomposed low-rank experts.
    Delo {
        /// The shape of the pools.
        pools: PoolSpec,
    },
    /// One static low-rank update for each task.
    Lora {
        /// The shape of the update.
        lora: LoraSpec,
    },
    /// A linear head alone.
    Linear {
        /// The backbone that the head is made for.
        linear: LinearSpec,
    },
    /// Prefixes of keys and values in the first layers.
    #[serde(rename = "dualprompt")]
    DualPrompt {
        /// The lengths of the prefixes.
        dualprompt: DualPromptSpec,
    },
    /// Prompts at the input, chosen for each sample from the task's pool.
    L2p {
        /// The shape of the pool.
        l2p: L2pSpec,
    },
}

impl Deref for Method {
    type Target = dyn MethodSpec;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Delo { pools } => pools,
            Self::Lora { lora } => lora,
            Self::Linear { linear } => linear,
            Self::DualPrompt { dualprompt } => dualprompt,
            Self::L2p { l2p } => l2p,
        }
    }
}

/// The layers and the width of a backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackboneShape {
    /// The number of encoder layers.
    pub layers: usize,
    /// d: the width of the hidden states.
    pub hidden: usize,
}

/// The specification of a method: what is known before anything is learnt. All tensors are f32; `head.weight`
/// and `head.bias` belong to [`TaskModel`], not to the method.
pub trait MethodSpec: Debug {
    /// The method's name.
    fn kind(&self) -> MethodKind;

    /// The field of an artifact's header that holds the method's dimensions.
    fn field(&self) -> &'static str;

    /// The backbone that it is made for.
    fn backbone(&self) -> BackboneShape;

    /// The first layer that the method adapts: where it adds low-rank updates, prefixes or prompts. All
    /// layers before it are frozen and shared by all tasks. The number of layers where the method adapts
    /// none.
    fn first_adapted_layer(&self) -> usize;

    /// The linear maps that it adapts.
    fn targets(&self) -> &'static [Target];

    /// The names of [`Self::targets`], as an artifact's header lists them.
    fn target_names(&self) -> Vec<String> {
        self.targets().iter().map(|target| target.name().to_owned()).collect()
    }

    /// Checks its dimensions.
    ///
    /// # Errors
    /// A sentence that names the wrong number and what it must be.
    fn validate(&self) -> std::result::Result<(), String>;

    /// Whether a missing modality's query is its proxy's (METHOD.md 3).
    fn cross_modal_guide(&self) -> bool {
        true
    }

    /// The part that was left out to measure what it is worth; `None` for a method that is whole. What lacks
    /// a part is evaluated on CPUs, and refused by servers.
    fn ablation(&self) -> Option<&'static str> {
        None
    }

    /// Whether it chooses what a sample gets by the text CLS of the frozen backbone after its final norm.
    /// Such a sample takes a frozen pass of its own, also where its task is given.
    fn reads_frozen_cls(&self) -> bool {
        false
    }

    /// The terms of the loss in addition to the classification loss (METHOD.md 5).
    fn terms(&self) -> &'static [LossTerm];

    /// A summary in one line, for logs and reports.
    fn summary(&self) -> String;

    /// The parameters before the first step. They are the same on every machine for the same state of `rng`.
    ///
    /// # Errors
    /// The tensors cannot be made.
    fn start(&self, rng: &mut ChaCha8Rng) -> Result<Box<dyn Learner>>;

    /// The parameters from an artifact's tensors, to be trained further.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    fn learner(&self, tensors: &Tensors) -> Result<Box<dyn Learner>>;

    /// The adapter that the engine serves, from an artifact's tensors.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    fn adapter(&self, tensors: &Tensors) -> Result<Adapter>;
}

/// A term of the loss in addition to the classification loss. The first two are of complete samples, which
/// have a query of each modality (METHOD.md 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossTerm {
    /// L_align = 1 − cos(q^v, q^t).
    Alignment,
    /// L_con = KL(p_true ‖ p_proxy): the divergence between the predictions from the true query and from its
    /// proxy.
    Consistency,
    /// Σ (1 − cos(frozen text CLS, key)) over the keys that a sample chose (METHOD.md 8).
    KeyPull,
}

/// A method's parameters while they learn.
pub trait Learner: Debug + Send + Sync {
    /// Every parameter by its name, for the optimiser.
    fn vars(&self) -> BTreeMap<String, Var>;

    /// The parameters under their names and in their shapes in the artifact.
    ///
    /// # Errors
    /// The copies cannot be made.
    fn tensors(&self) -> Result<Tensors>;

    /// What each sample gets in a layer, differentiable; nothing in a layer that the method leaves as it is.
    ///
    /// # Errors
    /// A tensor operation fails.
    fn additions(&self, layer: usize, input: LayerInput<'_>) -> Result<Additions>;

    /// The keys that the samples choose prompts by, given their frozen text CLS `[samples, d]`; `None` where
    /// the method has no keys.
    ///
    /// # Errors
    /// A tensor operation fails.
    fn chosen_keys(&self, _frozen_cls: &Tensor) -> Result<Option<ChosenKeys>> {
        Ok(None)
    }

    /// The number of learning parameters.
    fn parameters(&self) -> usize {
        self.vars().values().map(|var| var.elem_count()).sum()
    }
}

/// Whether the numbers of a low-rank update, which every method with one has, make sense together.
///
/// # Errors
/// A sentence that names the number that does not.
pub(crate) fn check_update(alpha: f64, first_adapted_layer: usize, layers: usize) -> std::result::Result<(), String> {
    if first_adapted_layer > layers {
        return Err(format!("first adapted layer {first_adapted_layer} must be at most {layers}, the backbone's layers"));
    }
    if !alpha.is_finite() {
        return Err(format!("alpha {alpha} must be a finite number"));
    }
    Ok(())
}

/// A tensor of an artifact by its name.
///
/// # Errors
/// The tensor is missing or has another shape.
pub(crate) fn tensor_of<'a>(tensors: &'a Tensors, name: &str, shape: &[usize]) -> Result<&'a Tensor> {
    let tensor = tensors.get(name).ok_or_else(|| candle_core::Error::Msg(format!("tensor {name} is missing")))?;
    if tensor.dims() != shape {
        candle_core::bail!("tensor {name} has shape {:?}, not {shape:?}", tensor.dims());
    }
    Ok(tensor)
}

/// All numbers of a tensor, in row-major order.
pub(crate) fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delo(experts: usize, rank: usize, first_adapted_layer: usize) -> PoolSpec {
        PoolSpec {
            layout: Layout::RankOne,
            experts,
            rank,
            alpha: 2.0,
            first_adapted_layer,
            layers: 6,
            hidden: 8,
            cross_modal_guide: true,
            modality_pools: true,
        }
    }

    fn lora(rank: usize, alpha: f64, first_adapted_layer: usize) -> LoraSpec {
        LoraSpec { rank, alpha, first_adapted_layer, layers: 6, hidden: 8 }
    }

    #[test]
    fn every_method_and_layout_is_read_by_the_name_that_it_is_written_by() {
        for (kind, name) in MethodKind::ALL.into_iter().zip(["delo", "lora", "linear", "dualprompt", "l2p"]) {
            assert_eq!((kind.to_string().as_str(), name.parse()), (name, Ok(kind)));
            assert_eq!(serde_json::to_value(kind).unwrap(), name);
        }
        for (layout, name) in [(Layout::RankOne, "rank_one"), (Layout::Slotted, "slotted")] {
            assert_eq!((layout.to_string().as_str(), name.parse()), (name, Ok(layout)));
        }
        assert_eq!("full".parse::<MethodKind>().unwrap_err(), "\"full\" is no method: give one of delo, lora, linear, dualprompt, l2p");
        assert_eq!("dense".parse::<Layout>().unwrap_err(), "\"dense\" is no layout: give rank_one or slotted");
    }

    #[test]
    fn a_header_names_the_method_and_has_its_dimensions_in_the_method_s_field() {
        let methods = [
            (Method::Delo { pools: delo(4, 2, 3) }, MethodKind::Delo, 3, 3, 2),
            (Method::Lora { lora: lora(4, 1.0, 2) }, MethodKind::Lora, 2, 3, 0),
            (Method::Linear { linear: LinearSpec { layers: 6, hidden: 8 } }, MethodKind::Linear, 6, 0, 0),
            (Method::DualPrompt { dualprompt: DualPromptSpec::of(6, 8) }, MethodKind::DualPrompt, 0, 0, 0),
            (Method::L2p { l2p: L2pSpec::of(6, 8) }, MethodKind::L2p, 0, 0, 1),
        ];
        for (method, kind, first, targets, terms) in methods {
            let header = serde_json::to_value(&method).unwrap();
            assert_eq!((method.kind(), &header["method"]), (kind, &kind.to_string().into()));
            assert_eq!(header[method.field()]["hidden"], 8);
            assert_eq!(serde_json::from_value::<Method>(header).unwrap(), method);
            assert_eq!(method.backbone(), BackboneShape { layers: 6, hidden: 8 });
            assert_eq!((method.first_adapted_layer(), method.terms().len()), (first, terms));
            assert_eq!(method.target_names(), ["query", "key", "value"][..targets]);
            assert_eq!(method.validate(), Ok(()));
        }
        assert_eq!(delo(4, 2, 3).summary(), "4 experts, rank 2, alpha 2, from layer 3 of 6");
        assert_eq!(lora(4, 1.5, 2).summary(), "rank 4, alpha 1.5, from layer 2 of 6");
        let prefixes = DualPromptSpec::of(6, 8).summary();
        assert_eq!(L2pSpec::of(6, 8).summary(), "5 of 10 prompts of 5 tokens at the input");
        assert_eq!(prefixes, "prefixes of 5, 5, 20, 20, 20 keys and values in the first 5 of 6 layers");
    }

    #[test]
    fn dimensions_at_their_bounds_are_valid_and_those_beyond_are_refused_by_name() {
        for valid in [delo(1, 1, 0), delo(4, 4, 6), delo(4096, 1, 0)] {
            assert_eq!(valid.validate(), Ok(()), "{valid:?}");
        }
        for valid in [lora(1, 0.0, 0), lora(4096, -1.0, 6)] {
            assert_eq!(valid.validate(), Ok(()), "{valid:?}");
        }
        let refused = |spec: &dyn MethodSpec, word: &str| {
            let refusal = spec.validate().unwrap_err();
            assert!(refusal.contains(word), "{spec:?}: {refusal}");
        };
        refused(&delo(4, 0, 0), "rank 0");
        refused(&delo(4, 5, 0), "rank 5");
        refused(&delo(4097, 1, 0), "4097 experts");
        refused(&delo(4, 2, 7), "first adapted layer 7");
        refused(&lora(0, 1.0, 0), "rank 0");
        refused(&lora(4097, 1.0, 0), "rank 4097");
        refused(&lora(1, f64::NAN, 0), "alpha NaN");
        refused(&lora(1, f64::INFINITY, 0), "alpha inf");
        refused(&lora(1, 1.0, 7), "first adapted layer 7");
    }

    #[test]
    fn an_adapter_has_a_bank_for_each_adapted_layer_and_none_for_the_others() {
        let method = Method::Lora { lora: lora(2, 1.0, 4) };
        let tensors = TaskModel::init(method.clone(), 3, 0).unwrap().to_tensors().unwrap();
        let adapter = method.adapter(&tensors).unwrap();
        assert_eq!(adapter.layers(), 4..6);
        let adapted: Vec<usize> = (0..8).filter(|&layer| adapter.bank(layer).is_some()).collect();
        assert_eq!(adapted, [4, 5]);
    }

    #[test]
    fn a_missing_tensor_and_one_of_another_shape_are_named() {
        let tensors = Tensors::from([("x".to_owned(), Tensor::zeros((2, 3), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap())]);
        assert_eq!(tensor_of(&tensors, "x", &[2, 3]).unwrap().dims(), [2, 3]);
        let refusal = |name, shape: &[usize]| tensor_of(&tensors, name, shape).unwrap_err().to_string();
        assert!(refusal("y", &[2, 3]).contains("tensor y is missing"));
        assert!(refusal("x", &[3, 2]).contains("tensor x has shape [2, 3], not [3, 2]"));
    }
}
