//! The hyper-parameters of a session, with the defaults of METHOD.md 2 and 5.
use serde::{Deserialize, Serialize};

use super::objective::{AlignedLayers, Objective};
use super::optimiser::AdamWConfig;
use delo_kernels::Precision;
use delo_model::method::{DualPromptSpec, L2pSpec, Layout, LinearSpec, LoraSpec, LossTerm, Method, MethodKind, PoolSpec};
use delo_model::partition::MAX_DUMMY_PATCHES;

/// All that decides what a session learns, its data and backbone apart. Stored in the artifact under these
/// names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What a task adds to the backbone. Not stored where it is DeLo.
    #[serde(default, skip_serializing_if = "is_delo")]
    pub method: MethodKind,
    /// Layout of the factor pools.
    pub layout: Layout,
    /// E: factors in a pool.
    pub experts: usize,
    /// r: factors selected of a pool.
    pub rank: usize,
    /// α: scale of the low-rank update.
    pub alpha: f64,
    /// Adapters stand from this layer on; the backbone's number of layers means none: a linear head on the
    /// frozen pooled output.
    pub first_adapted_layer: usize,
    /// A missing modality's query is its proxy's (METHOD.md 3); without it, an ablation, that of its own
    /// dummy, and no consistency loss. Not stored where it is true.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub cross_modal_guide: bool,
    /// A target has a pool for each modality; without them, an ablation, one pool whose query is the mean of
    /// both. Not stored where it is true.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub modality_pools: bool,
    /// λ1: weight of the alignment loss; 0 switches it off.
    pub lambda_align: f64,
    /// λ2: weight of the consistency loss; 0 switches it off and saves its pass.
    pub lambda_con: f64,
    /// The layers whose query signals the alignment loss draws together.
    pub aligned_layers: AlignedLayers,
    /// β of the exponential moving average of the task key.
    pub key_beta: f64,
    /// w: the share of the head in the mixture of its logits with those of the analytic classifier; 1 means the
    /// head alone.
    /// Not stored where it is 1.
    #[serde(default = "head_alone", skip_serializing_if = "is_head_alone")]
    pub head_weight: f64,
    /// Head and adapters learn a residual: the logits of the analytic classifier are added to the head's, in
    /// training as in serving. Not stored where it is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub residual: bool,
    /// Height and width, in pixels, of the white image that stands in for a missing one; one patch if `None`.
    pub dummy_image: Option<[usize; 2]>,
    /// Passes over the session's samples.
    pub epochs: usize,
    /// Samples of a step.
    pub batch: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Share of the steps over which the learning rate rises, 0 to 1.
    pub warmup: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// AdamW's ε.
    pub epsilon: f64,
    /// In the steps, products by frozen weights are computed in bf16, everything else in f32. Not stored where
    /// it is false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bf16: bool,
    /// Decides the parameters at the start, the order of the samples and the modality hidden in each step.
    pub seed: u64,
}

/// w of a partition for production: chosen on the val splits of Emoji-CMML (`docs/ROUTING.md` 8). The paper has the head
/// alone, as [`Settings::default`].
pub const MIXED_HEAD: f64 = 0.65;

impl Default for Settings {
    /// The values of METHOD.md 2 and 5, seed 0.
    fn default() -> Self {
        Self {
            method: MethodKind::Delo,
            layout: Layout::RankOne,
            experts: 16,
            rank: 4,
            alpha: 2.0,
            first_adapted_layer: 0,
            cross_modal_guide: true,
            modality_pools: true,
            lambda_align: 0.1,
            lambda_con: 0.1,
            aligned_layers: AlignedLayers::Last,
            key_beta: 0.99,
            head_weight: 1.0,
            residual: false,
            dummy_image: None,
            epochs: 10,
            batch: 4,
            lr: 1e-4,
            warmup: 0.1,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.98,
            epsilon: 1e-8,
            bf16: false,
            seed: 0,
        }
    }
}

/// A setting outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {found}: {expected}")]
pub struct SettingsError {
    /// The command line's flag for it.
    pub flag: &'static str,
    /// Its value.
    pub found: String,
    /// The values that it takes.
    pub expected: String,
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

fn head_alone() -> f64 {
    1.0
}

fn is_head_alone(weight: &f64) -> bool {
    *weight == head_alone()
}

fn is_delo(method: &MethodKind) -> bool {
    *method == MethodKind::Delo
}

impl Settings {
    /// The number format of the products by frozen weights in the steps.
    pub fn precision(&self) -> Precision {
        if self.bf16 { Precision::Bf16 } else { Precision::F32 }
    }

    /// Refuses values outside their range, for a backbone of `layers` layers and patches of `patch` × `patch`
    /// pixels.
    ///
    /// # Errors
    /// [`SettingsError`] of the first such value.
    pub fn check(&self, layers: usize, patch: usize) -> Result<(), SettingsError> {
        let demand = |holds: bool, flag: &'static str, found: &dyn std::fmt::Display, expected: &str| {
            if holds { Ok(()) } else { Err(SettingsError { flag, found: found.to_string(), expected: expected.to_owned() }) }
        };
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let decay = |x: f64| (0.0..1.0).contains(&x);
        let weight = |x: f64| x.is_finite() && x >= 0.0;
        let positive = |x: f64| x.is_finite() && x > 0.0;
        demand(self.experts > 0, "--experts", &self.experts, "a pool has at least one factor")?;
        match self.method {
            MethodKind::Delo => {
                let expected = format!("give 1 to {} (--experts)", self.experts);
                demand((1..=self.experts).contains(&self.rank), "--rank", &self.rank, &expected)?;
            }
            MethodKind::Lora => demand(self.rank > 0, "--rank", &self.rank, "give 1 or more")?,
            MethodKind::Linear | MethodKind::DualPrompt | MethodKind::L2p => {}
        }
        demand(self.alpha.is_finite(), "--alpha", &self.alpha, "give a finite number")?;
        let expected = format!("the backbone has layers 0 to {}; {layers} means no adapter", layers.saturating_sub(1));
        demand(self.first_adapted_layer <= layers, "--first-adapted-layer", &self.first_adapted_layer, &expected)?;
        demand(weight(self.lambda_align), "--lambda-align", &self.lambda_align, "give a weight, 0 or more")?;
        demand(weight(self.lambda_con), "--lambda-con", &self.lambda_con, "give a weight, 0 or more")?;
        demand(share(self.key_beta), "--key-beta", &self.key_beta, "give a share from 0 to 1")?;
        demand(share(self.head_weight), "--head-weight", &self.head_weight, "give a share from 0 to 1")?;
        if let Some(size) = self.dummy_image {
            let expected = format!("give multiples of the patch size, {patch}, up to {MAX_DUMMY_PATCHES} patches a side");
            let sound = |x: usize| x > 0 && x.is_multiple_of(patch) && x <= MAX_DUMMY_PATCHES * patch;
            demand(size.iter().all(|&x| sound(x)), "--dummy-image", &format!("{size:?}"), &expected)?;
        }
        demand(self.epochs > 0, "--epochs", &self.epochs, "train for at least one")?;
        demand(self.batch > 0, "--batch", &self.batch, "a step takes at least one sample")?;
        demand(positive(self.lr), "--lr", &self.lr, "give a rate above 0")?;
        demand(share(self.warmup), "--warmup", &self.warmup, "give a share from 0 to 1")?;
        demand(weight(self.weight_decay), "--weight-decay", &self.weight_decay, "give a weight, 0 or more")?;
        demand(decay(self.beta1), "--beta1", &self.beta1, "give a number from 0 to below 1")?;
        demand(decay(self.beta2), "--beta2", &self.beta2, "give a number from 0 to below 1")?;
        demand(positive(self.epsilon), "--epsilon", &self.epsilon, "give a number above 0")
    }

    /// What learns on a backbone of `layers` layers, `hidden` wide.
    pub fn method(&self, layers: usize, hidden: usize) -> Method {
        let Self { layout, experts, rank, alpha, first_adapted_layer, cross_modal_guide, modality_pools, .. } = *self;
        match self.method {
            MethodKind::Delo => Method::Delo {
                pools: PoolSpec { layout, experts, rank, alpha, first_adapted_layer, layers, hidden, cross_modal_guide, modality_pools },
            },
            MethodKind::Lora => Method::Lora { lora: LoraSpec { rank, alpha, first_adapted_layer, layers, hidden } },
            MethodKind::Linear => Method::Linear { linear: LinearSpec { layers, hidden } },
            MethodKind::DualPrompt => Method::DualPrompt { dualprompt: DualPromptSpec::of(layers, hidden) },
            MethodKind::L2p => Method::L2p { l2p: L2pSpec::of(layers, hidden) },
        }
    }

    /// The optimiser's constants.
    pub fn adamw(&self) -> AdamWConfig {
        AdamWConfig { beta1: self.beta1, beta2: self.beta2, epsilon: self.epsilon, weight_decay: self.weight_decay }
    }

    /// The loss: the terms that the method has. Without adapters the alignment and the consistency loss are off: no
    /// query learns, and a proxied copy predicts what its original does.
    pub fn objective(&self, multi_label: bool, method: &Method) -> Objective {
        let adapts = method.first_adapted_layer() < method.backbone().layers;
        let weight = |term: LossTerm, weight: f64| if adapts && method.terms().contains(&term) { weight } else { 0.0 };
        Objective {
            multi_label,
            alignment: weight(LossTerm::Alignment, self.lambda_align),
            consistency: weight(LossTerm::Consistency, self.lambda_con),
            aligned_layers: self.aligned_layers,
            key_pull: weight(LossTerm::KeyPull, KEY_PULL),
        }
    }
}

/// The weight of the pull of keys to the samples that chose them (METHOD.md 8).
const KEY_PULL: f64 = 0.5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_the_papers() {
        let s = Settings::default();
        assert_eq!((s.experts, s.rank, s.alpha, s.first_adapted_layer, s.layout), (16, 4, 2.0, 0, Layout::RankOne));
        assert_eq!((s.lr, s.batch, s.epochs, s.warmup), (1e-4, 4, 10, 0.1));
        assert_eq!((s.lambda_align, s.lambda_con, s.key_beta, s.seed), (0.1, 0.1, 0.99, 0));
        assert_eq!(s.adamw(), AdamWConfig { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weight_decay: 0.01 });
        assert_eq!(s.check(6, 8), Ok(()));
    }

    #[test]
    fn a_refusal_names_the_flag() {
        let s = Settings { rank: 17, ..Settings::default() };
        assert_eq!(s.check(6, 8).unwrap_err().to_string(), "--rank 17: give 1 to 16 (--experts)");
        let s = Settings { first_adapted_layer: 7, ..Settings::default() };
        assert_eq!(s.check(6, 8).unwrap_err().to_string(), "--first-adapted-layer 7: the backbone has layers 0 to 5; 6 means no adapter");
        let mut s = Settings { dummy_image: Some([8, 12]), ..Settings::default() };
        assert_eq!(
            s.check(6, 8).unwrap_err().to_string(),
            "--dummy-image [8, 12]: give multiples of the patch size, 8, up to 64 patches a side"
        );
        s.dummy_image = Some([8, 65 * 8]);
        assert!(s.check(6, 8).unwrap_err().to_string().contains("[8, 520]"), "no server would load the partition");
        let s = Settings { lr: f64::NAN, ..Settings::default() };
        assert!(s.check(6, 8).is_err());
    }

    #[test]
    fn a_method_without_routers_has_one_loss_and_l2p_draws_its_keys() {
        for method in [MethodKind::Lora, MethodKind::Linear, MethodKind::DualPrompt, MethodKind::L2p] {
            let settings = Settings { method, ..Settings::default() };
            let objective = settings.objective(false, &settings.method(6, 8));
            assert_eq!((objective.alignment, objective.consistency), (0.0, 0.0), "{method}");
            assert_eq!(objective.key_pull, if method == MethodKind::L2p { 0.5 } else { 0.0 });
        }
    }

    #[test]
    fn a_linear_head_alone_has_one_loss() {
        let settings = Settings { first_adapted_layer: 6, ..Settings::default() };
        let objective = settings.objective(false, &settings.method(6, 8));
        assert_eq!((objective.alignment, objective.consistency), (0.0, 0.0));
    }
}
