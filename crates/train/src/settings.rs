//! The hyper-parameters of a session, with the defaults of METHOD.md 2 and 5.
use serde::{Deserialize, Serialize};

use super::objective::{AlignedLayers, Objective};
use super::optimiser::AdamWConfig;
use delo_model::method::{Layout, LossTerm, Method, PoolSpec};

/// All that decides what a session learns, its data and backbone apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[command(next_help_heading = "Method")]
pub struct Settings {
    /// Layout of the factor pools
    #[arg(long, default_value_t = Layout::RankOne)]
    pub layout: Layout,
    /// E: factors in a pool
    #[arg(long, value_name = "E", default_value_t = 16)]
    pub experts: usize,
    /// r: factors selected of a pool
    #[arg(long, value_name = "R", default_value_t = 4)]
    pub rank: usize,
    /// α: scale of the low-rank update
    #[arg(long, default_value_t = 2.0)]
    pub alpha: f64,
    /// Adapters from this layer on; the backbone's number of layers means none: a linear head on the frozen pooled output
    #[arg(long, value_name = "LAYER", default_value_t = 0)]
    pub first_adapted_layer: usize,
    /// λ1: weight of the alignment loss; 0 switches it off
    #[arg(long, value_name = "λ1", default_value_t = 0.1)]
    pub lambda_align: f64,
    /// λ2: weight of the consistency loss; 0 switches it off and saves its pass
    #[arg(long, value_name = "λ2", default_value_t = 0.1)]
    pub lambda_con: f64,
    /// Whose query signals the alignment loss draws together
    #[arg(long, value_enum, default_value_t = AlignedLayers::Last)]
    pub aligned_layers: AlignedLayers,
    /// β of the exponential moving average of the task key
    #[arg(long, value_name = "β", default_value_t = 0.99)]
    pub key_beta: f64,
    /// Height and width in pixels of the white image that stands in for a missing one [default: one patch; the paper's is the backbone's own image size]
    #[arg(long, num_args = 2, value_names = ["HEIGHT", "WIDTH"])]
    pub dummy_image: Option<Vec<usize>>,
    /// Passes over the session's samples
    #[arg(long, default_value_t = 10, help_heading = "Optimisation")]
    pub epochs: usize,
    /// Samples of a step
    #[arg(long, default_value_t = 4, help_heading = "Optimisation")]
    pub batch: usize,
    /// Peak learning rate
    #[arg(long, value_name = "RATE", default_value_t = 1e-4, help_heading = "Optimisation")]
    pub lr: f64,
    /// Share of the steps over which the learning rate rises
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, help_heading = "Optimisation")]
    pub warmup: f64,
    /// AdamW's decoupled weight decay
    #[arg(long, default_value_t = 0.01, help_heading = "Optimisation")]
    pub weight_decay: f64,
    /// AdamW's β1
    #[arg(long, default_value_t = 0.9, help_heading = "Optimisation")]
    pub beta1: f64,
    /// AdamW's β2
    #[arg(long, default_value_t = 0.98, help_heading = "Optimisation")]
    pub beta2: f64,
    /// AdamW's ε
    #[arg(long, default_value_t = 1e-8, help_heading = "Optimisation")]
    pub epsilon: f64,
    /// Decides the parameters at the start, the order of the samples and the modality hidden in each step
    #[arg(skip)]
    pub seed: u64,
}

/// A setting that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag} {found}: {expected}")]
pub struct SettingsError {
    pub flag: &'static str,
    pub found: String,
    pub expected: String,
}

impl Settings {
    /// Refuses what cannot be meant on a backbone of `layers` layers and patches of `patch` pixels.
    ///
    /// # Errors
    /// [`SettingsError`] names the flag and what it takes.
    pub fn check(&self, layers: usize, patch: usize) -> Result<(), SettingsError> {
        let demand = |holds: bool, flag: &'static str, found: &dyn std::fmt::Display, expected: &str| {
            if holds { Ok(()) } else { Err(SettingsError { flag, found: found.to_string(), expected: expected.to_owned() }) }
        };
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let decay = |x: f64| (0.0..1.0).contains(&x);
        let weight = |x: f64| x.is_finite() && x >= 0.0;
        let positive = |x: f64| x.is_finite() && x > 0.0;
        demand(self.experts > 0, "--experts", &self.experts, "a pool has at least one factor")?;
        demand((1..=self.experts).contains(&self.rank), "--rank", &self.rank, &format!("give 1 to {} (--experts)", self.experts))?;
        demand(self.alpha.is_finite(), "--alpha", &self.alpha, "give a finite number")?;
        let expected = format!("the backbone has layers 0 to {}; {layers} means no adapter", layers.saturating_sub(1));
        demand(self.first_adapted_layer <= layers, "--first-adapted-layer", &self.first_adapted_layer, &expected)?;
        demand(weight(self.lambda_align), "--lambda-align", &self.lambda_align, "give a weight, 0 or more")?;
        demand(weight(self.lambda_con), "--lambda-con", &self.lambda_con, "give a weight, 0 or more")?;
        demand(share(self.key_beta), "--key-beta", &self.key_beta, "give a share from 0 to 1")?;
        let dummy = self.dummy_image.as_deref().unwrap_or_default();
        let expected = format!("give multiples of the patch size, {patch}");
        demand(dummy.iter().all(|x| *x > 0 && x % patch == 0), "--dummy-image", &format!("{dummy:?}"), &expected)?;
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
        let Self { layout, experts, rank, alpha, first_adapted_layer, .. } = *self;
        Method::Delo { pools: PoolSpec { layout, experts, rank, alpha, first_adapted_layer, layers, hidden } }
    }

    /// The optimiser's constants.
    pub fn adamw(&self) -> AdamWConfig {
        AdamWConfig { beta1: self.beta1, beta2: self.beta2, epsilon: self.epsilon, weight_decay: self.weight_decay }
    }

    /// The loss. Without adapters a proxied copy predicts what its original does and no query learns: both extra terms are off.
    pub fn objective(&self, multi_label: bool, method: &Method) -> Objective {
        let adapts = method.first_adapted_layer() < method.backbone().layers;
        let weight = |term: LossTerm, weight: f64| if adapts && method.terms().contains(&term) { weight } else { 0.0 };
        Objective {
            multi_label,
            alignment: weight(LossTerm::Alignment, self.lambda_align),
            consistency: weight(LossTerm::Consistency, self.lambda_con),
            aligned_layers: self.aligned_layers,
        }
    }
}

impl Default for Settings {
    /// The command line's defaults, seed 0.
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            settings: Settings,
        }
        <Line as clap::Parser>::parse_from(["settings"]).settings
    }
}

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
        let s = Settings { dummy_image: Some(vec![8, 12]), ..Settings::default() };
        assert_eq!(s.check(6, 8).unwrap_err().to_string(), "--dummy-image [8, 12]: give multiples of the patch size, 8");
        let s = Settings { lr: f64::NAN, ..Settings::default() };
        assert!(s.check(6, 8).is_err());
    }

    #[test]
    fn a_linear_head_alone_has_one_loss() {
        let settings = Settings { first_adapted_layer: 6, ..Settings::default() };
        let objective = settings.objective(false, &settings.method(6, 8));
        assert_eq!((objective.alignment, objective.consistency), (0.0, 0.0));
    }
}
