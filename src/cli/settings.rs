//! The flags of a session's hyper-parameters.

use super::choice::choice;
use delo_kernels::Precision;
use delo_model::{Layout, MethodKind};
use delo_train::Settings;
use delo_train::training::{AlignedLayers, MIXED_HEAD};

/// Flags of [`Settings`], with its defaults.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Method")]
pub struct SettingsArgs {
    /// What a task adds to the backbone
    #[arg(long, default_value_t = defaults().method, value_parser = choice::<MethodKind>(&[
        ("delo", "Low-rank experts, chosen for each sample by routers"),
        ("lora", "One static low-rank update of --rank for all samples of the task"),
        ("linear", "A linear head on the frozen pooled output, nothing else"),
        ("dualprompt", "Prefixes of keys and values in the first five layers, the same for all samples of the task"),
        ("l2p", "Prompts at the input, for each sample five of the task's pool of ten"),
    ]))]
    method: MethodKind,
    /// Layout of the factor pools
    #[arg(long, default_value_t = defaults().layout, value_parser = choice::<Layout>(&[
        ("rank_one", "The paper's equations: A is `[E, d_in]`, B is `[E, d_out]`"),
        ("slotted", "The paper's parameter counts: A is `[E, r, d_in]`, B is `[E, d_out, r]`"),
    ]))]
    layout: Layout,
    /// E: factors in a pool
    #[arg(long, value_name = "E", default_value_t = defaults().experts)]
    experts: usize,
    /// r: factors selected of a pool
    #[arg(long, value_name = "R", default_value_t = defaults().rank)]
    rank: usize,
    /// α: scale of the low-rank update
    #[arg(long, default_value_t = defaults().alpha)]
    alpha: f64,
    /// Adapters from this layer on; the backbone's number of layers means none: a linear head on the frozen
    /// pooled output
    #[arg(long, value_name = "LAYER", default_value_t = defaults().first_adapted_layer)]
    first_adapted_layer: usize,
    /// An ablation: a missing modality's query is that of its own dummy, not its proxy's. Servers refuse the
    /// partition
    #[arg(long)]
    without_cross_modal_guide: bool,
    /// An ablation: a target has one pool, whose query is the mean of both modalities'. Servers refuse the
    /// partition
    #[arg(long)]
    without_modality_pools: bool,
    /// λ1: weight of the alignment loss; 0 switches it off
    #[arg(long, value_name = "λ1", default_value_t = defaults().lambda_align)]
    lambda_align: f64,
    /// λ2: weight of the consistency loss; 0 switches it off and saves its pass
    #[arg(long, value_name = "λ2", default_value_t = defaults().lambda_con)]
    lambda_con: f64,
    /// Whose query signals the alignment loss draws together
    #[arg(long, default_value_t = defaults().aligned_layers, value_parser = choice::<AlignedLayers>(&[
        ("last", "Those entering the last layer"),
        ("all", "The mean over all adapted layers"),
    ]))]
    aligned_layers: AlignedLayers,
    /// β of the exponential moving average of the task key
    #[arg(long, value_name = "β", default_value_t = defaults().key_beta)]
    key_beta: f64,
    /// w: the share of the head in the scores; the rest is that of an analytic classifier (LDA) on the key signal,
    /// which takes a frozen pass also where the task is given. 1: the head alone, as the paper has it
    #[arg(long, value_name = "w", default_value_t = MIXED_HEAD)]
    head_weight: f64,
    /// Head and adapters learn what the analytic classifier lacks: its logits, scaled, are added to the head's in
    /// training and serving
    #[arg(long, conflicts_with = "head_weight")]
    residual: bool,
    /// Height and width in pixels of the white image that stands in for a missing one [default: one patch;
    /// the paper's is the backbone's own image size]
    #[arg(long, num_args = 2, value_names = ["HEIGHT", "WIDTH"])]
    dummy_image: Option<Vec<usize>>,
    /// Passes over the session's samples
    #[arg(long, default_value_t = defaults().epochs, help_heading = "Optimisation")]
    epochs: usize,
    /// Samples of a step
    #[arg(long, default_value_t = defaults().batch, help_heading = "Optimisation")]
    batch: usize,
    /// Peak learning rate
    #[arg(long, value_name = "RATE", default_value_t = defaults().lr, help_heading = "Optimisation")]
    lr: f64,
    /// Share of the steps over which the learning rate rises
    #[arg(long, value_name = "SHARE", default_value_t = defaults().warmup, help_heading = "Optimisation")]
    warmup: f64,
    /// AdamW's decoupled weight decay
    #[arg(long, default_value_t = defaults().weight_decay, help_heading = "Optimisation")]
    weight_decay: f64,
    /// AdamW's β1
    #[arg(long, default_value_t = defaults().beta1, help_heading = "Optimisation")]
    beta1: f64,
    /// AdamW's β2
    #[arg(long, default_value_t = defaults().beta2, help_heading = "Optimisation")]
    beta2: f64,
    /// Compute the products by frozen weights of each step in bf16, everything else in f32: faster where the
    /// processor multiplies bf16 (AVX-512 BF16, AMX)
    #[arg(long, help_heading = "Optimisation")]
    bf16: bool,
    /// AdamW's ε
    #[arg(long, default_value_t = defaults().epsilon, help_heading = "Optimisation")]
    epsilon: f64,
}

fn defaults() -> Settings {
    Settings::default()
}

impl SettingsArgs {
    /// The number format of the products by frozen weights in the steps.
    pub fn precision(&self) -> Precision {
        self.settings(0).precision()
    }

    /// The hyper-parameters of a session with this seed.
    pub fn settings(&self, seed: u64) -> Settings {
        Settings {
            method: self.method,
            layout: self.layout,
            experts: self.experts,
            rank: self.rank,
            alpha: self.alpha,
            first_adapted_layer: self.first_adapted_layer,
            cross_modal_guide: !self.without_cross_modal_guide,
            modality_pools: !self.without_modality_pools,
            lambda_align: self.lambda_align,
            lambda_con: self.lambda_con,
            aligned_layers: self.aligned_layers,
            key_beta: self.key_beta,
            head_weight: self.head_weight,
            bf16: self.bf16,
            residual: self.residual,
            // The flag takes two values.
            dummy_image: self.dummy_image.as_deref().and_then(|size| size.try_into().ok()),
            epochs: self.epochs,
            batch: self.batch,
            lr: self.lr,
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        settings: SettingsArgs,
    }

    fn settings(flags: &[&str]) -> Settings {
        let line = <Line as clap::Parser>::try_parse_from([&["train"][..], flags].concat()).unwrap();
        line.settings.settings(0)
    }

    #[test]
    fn no_flag_means_the_defaults_of_the_method_with_a_mixed_head() {
        assert_eq!(settings(&[]), Settings { head_weight: MIXED_HEAD, ..Settings::default() });
    }

    #[test]
    fn every_flag_sets_its_own_value() {
        let flags = [
            ("--method", "lora"),
            ("--layout", "slotted"),
            ("--experts", "17"),
            ("--rank", "5"),
            ("--alpha", "3.5"),
            ("--first-adapted-layer", "2"),
            ("--lambda-align", "0.25"),
            ("--lambda-con", "0.75"),
            ("--aligned-layers", "all"),
            ("--key-beta", "0.625"),
            ("--head-weight", "0.375"),
            ("--epochs", "11"),
            ("--batch", "6"),
            ("--lr", "0.125"),
            ("--warmup", "0.0625"),
            ("--weight-decay", "0.375"),
            ("--beta1", "0.875"),
            ("--beta2", "0.9375"),
            ("--epsilon", "0.5"),
        ];
        let mut line: Vec<&str> = flags.iter().flat_map(|&(flag, value)| [flag, value]).collect();
        line.extend(["--dummy-image", "16", "24", "--without-cross-modal-guide", "--without-modality-pools", "--bf16"]);
        let expected = Settings {
            method: MethodKind::Lora,
            layout: Layout::Slotted,
            experts: 17,
            rank: 5,
            alpha: 3.5,
            first_adapted_layer: 2,
            cross_modal_guide: false,
            modality_pools: false,
            lambda_align: 0.25,
            lambda_con: 0.75,
            aligned_layers: AlignedLayers::All,
            key_beta: 0.625,
            head_weight: 0.375,
            residual: false,
            dummy_image: Some([16, 24]),
            epochs: 11,
            batch: 6,
            lr: 0.125,
            warmup: 0.0625,
            weight_decay: 0.375,
            beta1: 0.875,
            beta2: 0.9375,
            epsilon: 0.5,
            bf16: true,
            seed: 0,
        };
        assert_eq!(settings(&line), expected);
    }
}
