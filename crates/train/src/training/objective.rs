//! The loss of one task: L = L_c + λ1 L_align + λ2 L_con (METHOD.md 5).
use std::fmt;
use std::str::FromStr;

use candle_core::{D, Device, Result, Tensor};
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

use crate::data::Label;
use delo_engine::TaskOutput;
use delo_model::PerModality;
use delo_model::method::ChosenKeys;

/// Which layers' query signals L_align draws together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlignedLayers {
    /// Those entering the last layer.
    #[default]
    Last,
    /// The mean over all adapted layers.
    All,
}

impl AlignedLayers {
    /// Both choices.
    pub const ALL: [Self; 2] = [Self::Last, Self::All];
}

impl fmt::Display for AlignedLayers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Last => "last",
            Self::All => "all",
        })
    }
}

impl FromStr for AlignedLayers {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let named = Self::ALL.into_iter().find(|layers| layers.to_string() == text);
        named.ok_or_else(|| format!("{text:?} names no layers to align: write last or all"))
    }
}

/// Which terms count, and how much. A term whose weight is 0 is not computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// L_c is binary cross-entropy; otherwise cross-entropy.
    pub multi_label: bool,
    /// λ1: weight of L_align.
    pub alignment: f64,
    /// λ2: weight of L_con.
    pub consistency: f64,
    /// The layers of L_align.
    pub aligned_layers: AlignedLayers,
    /// Weight of the pull of keys to the samples that chose them.
    pub key_pull: f64,
}

/// The samples of one step. The task's output has a row for each of them, then a row for the proxied copy of
/// each complete sample, in which one modality's query is replaced by its proxy. Where λ2 = 0 there are no
/// copies.
#[derive(Debug)]
pub struct Batch {
    /// See [`targets`].
    pub targets: Tensor,
    /// Rows of the complete samples.
    pub complete: Vec<u32>,
}

/// The loss of one step and its terms before weighting; a term that was not computed is `None`.
#[derive(Debug)]
pub struct Losses {
    /// L, a scalar, differentiable.
    pub total: Tensor,
    /// L_c, a scalar.
    pub classification: Tensor,
    /// L_align, a scalar.
    pub alignment: Option<Tensor>,
    /// L_con, a scalar.
    pub consistency: Option<Tensor>,
    /// Σ (1 − cos(frozen text CLS, key)) over the keys that a sample chose, the mean over samples (METHOD.md
    /// 8); a scalar.
    pub key_pull: Option<Tensor>,
}

impl Objective {
    /// The loss of one step.
    ///
    /// # Errors
    /// Tensors whose shapes do not fit together.
    pub fn losses(&self, output: &TaskOutput, batch: &Batch) -> Result<Losses> {
        let samples = batch.targets.dim(0)?;
        let logits = output.logits.narrow(0, 0, samples)?;
        let classification = classification(&logits, &batch.targets, self.multi_label)?;
        let mut total = classification.clone();
        let (mut alignment, mut consistency) = (None, None);
        if !batch.complete.is_empty() {
            let rows = Tensor::from_slice(&batch.complete, batch.complete.len(), logits.device())?;
            if self.alignment > 0.0 && !output.queries.is_empty() {
                let layers = output.queries.len();
                let first = if self.aligned_layers == AlignedLayers::All { 0 } else { layers - 1 };
                let mut sum = Tensor::zeros((), logits.dtype(), logits.device())?;
                for PerModality { image, text } in output.queries.iter().skip(first) {
                    sum = (sum + self::alignment(&image.index_select(&rows, 0)?, &text.index_select(&rows, 0)?)?)?;
                }
                let term = (sum / (layers - first) as f64)?;
                total = (total + (&term * self.alignment)?)?;
                alignment = Some(term);
            }
            if self.consistency > 0.0 {
                let proxied = output.logits.narrow(0, samples, batch.complete.len())?;
                let term = self::consistency(&logits.index_select(&rows, 0)?, &proxied, self.multi_label)?;
                total = (total + (&term * self.consistency)?)?;
                consistency = Some(term);
            }
        }
        let mut key_pull = None;
        if let Some(ChosenKeys { keys, queries, chosen }) = output.chosen_keys.as_ref().filter(|_| self.key_pull > 0.0) {
            let term = (self::alignment(queries, keys)? * *chosen as f64)?;
            total = (total + (&term * self.key_pull)?)?;
            key_pull = Some(term);
        }
        Ok(Losses { total, classification, alignment, consistency, key_pull })
    }
}

/// The targets of some samples: classes `[samples]` in u32, or flags `[samples, classes]` in f32.
///
/// # Errors
/// Labels of different lengths.
pub fn targets(labels: &[&Label], device: &Device) -> Result<Tensor> {
    let classes: Option<Vec<u32>> = labels.iter().map(|l| if let Label::Class(c) = l { Some(*c as u32) } else { None }).collect();
    if let Some(classes) = classes {
        return Tensor::from_vec(classes, labels.len(), device);
    }
    let mut flags = Vec::new();
    for label in labels {
        if let Label::Classes(of) = label {
            flags.extend(of.iter().map(|f| f32::from(u8::from(*f))));
        }
    }
    let classes = flags.len() / labels.len();
    Tensor::from_vec(flags, (labels.len(), classes), device)
}

/// L_c: cross-entropy of `[samples, classes]` logits; for multi-label, binary cross-entropy, the mean over
/// samples and classes.
///
/// # Errors
/// Tensors whose shapes do not fit together.
pub fn classification(logits: &Tensor, targets: &Tensor, multi_label: bool) -> Result<Tensor> {
    if multi_label {
        // −y log σ(x) − (1 − y) log(1 − σ(x)) = softplus(x) − x y
        return (softplus(logits)? - (logits * targets)?)?.mean_all();
    }
    log_softmax(logits, D::Minus1)?.gather(&targets.unsqueeze(1)?, 1)?.mean_all()?.neg()
}

/// L_align: the mean of 1 − cos(q^v, q^t); both `[samples, d]`.
///
/// # Errors
/// Tensors whose shapes do not fit together.
pub fn alignment(visual: &Tensor, textual: &Tensor) -> Result<Tensor> {
    let dot = (visual * textual)?.sum(D::Minus1)?;
    // The constant keeps the gradient finite where a signal is zero.
    let lengths = ((visual.sqr()?.sum(D::Minus1)? * textual.sqr()?.sum(D::Minus1)?)? + 1e-16)?.sqrt()?;
    1.0 - (dot / lengths)?.mean_all()?
}

/// L_con: KL(p_true ‖ p_proxy) of two `[samples, classes]` logits, the first detached: the mean over samples;
/// for multi-label the mean Bernoulli divergence over samples and classes.
///
/// # Errors
/// Tensors whose shapes do not fit together.
pub fn consistency(truth: &Tensor, proxied: &Tensor, multi_label: bool) -> Result<Tensor> {
    let truth = truth.detach();
    if multi_label {
        // log σ(x) = −softplus(−x), log(1 − σ(x)) = −softplus(x)
        let (on, off) = (softplus(&truth.neg()?)?.neg()?, softplus(&truth)?.neg()?);
        let kl_on = (on.exp()? * (&on + softplus(&proxied.neg()?)?)?)?;
        let kl_off = (off.exp()? * (&off + softplus(proxied)?)?)?;
        return (kl_on + kl_off)?.mean_all();
    }
    let log_p = log_softmax(&truth, D::Minus1)?;
    let log_q = log_softmax(proxied, D::Minus1)?;
    (log_p.exp()? * (log_p - log_q)?)?.sum(D::Minus1)?.mean_all()
}

/// log(1 + eˣ), without overflow.
fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn tensor(rows: &[&[f32]]) -> Tensor {
        Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
    }

    fn value(t: &Tensor) -> f64 {
        f64::from(t.to_scalar::<f32>().unwrap())
    }

    fn softmax(x: &[f64]) -> Vec<f64> {
        let sum: f64 = x.iter().map(|x| x.exp()).sum();
        x.iter().map(|x| x.exp() / sum).collect()
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-6, "{got} instead of {expected}");
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    #[test]
    fn classification_is_cross_entropy() {
        let logits = tensor(&[&[1.0, 2.0, 0.5], &[0.0, -1.0, 3.0]]);
        let targets = targets(&[&Label::Class(1), &Label::Class(0)], &Device::Cpu).unwrap();
        let expected = -(softmax(&[1.0, 2.0, 0.5])[1].ln() + softmax(&[0.0, -1.0, 3.0])[0].ln()) / 2.0;
        close(value(&classification(&logits, &targets, false).unwrap()), expected);
    }

    #[test]
    fn multi_label_classification_is_binary_cross_entropy_and_does_not_overflow() {
        let logits = tensor(&[&[1.5, -0.5], &[90.0, -90.0]]);
        let labels = [Label::Classes(vec![true, true]), Label::Classes(vec![true, true])];
        let targets = targets(&[&labels[0], &labels[1]], &Device::Cpu).unwrap();
        let expected = (-sigmoid(1.5).ln() - sigmoid(-0.5).ln() + 0.0 + 90.0) / 4.0;
        close(value(&classification(&logits, &targets, true).unwrap()) / 23.0, expected / 23.0);
    }

    #[test]
    fn alignment_is_one_minus_the_cosine() {
        let (v, t) = (tensor(&[&[1.0, 0.0], &[3.0, 4.0]]), tensor(&[&[0.0, 2.0], &[4.0, 3.0]]));
        close(value(&alignment(&v, &t).unwrap()), 1.0 - (0.0 + 24.0 / 25.0) / 2.0);
    }

    #[test]
    fn consistency_is_the_divergence_from_the_true_prediction() {
        let (p, q) = (softmax(&[1.0, 2.0, 0.0]), softmax(&[0.0, 0.5, -1.0]));
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
        let (truth, proxied) = (tensor(&[&[1.0, 2.0, 0.0], &[3.0, 1.0, 1.0]]), tensor(&[&[0.0, 0.5, -1.0], &[3.0, 1.0, 1.0]]));
        close(value(&consistency(&truth, &proxied, false).unwrap()), kl / 2.0);
    }

    #[test]
    fn multi_label_consistency_is_the_mean_bernoulli_divergence() {
        let bernoulli = |x: f64, y: f64| {
            let (p, q) = (sigmoid(x), sigmoid(y));
            p * (p / q).ln() + (1.0 - p) * ((1.0 - p) / (1.0 - q)).ln()
        };
        let expected = (bernoulli(1.0, 0.0) + bernoulli(-2.0, 0.5)) / 2.0;
        close(value(&consistency(&tensor(&[&[1.0, -2.0]]), &tensor(&[&[0.0, 0.5]]), true).unwrap()), expected);
    }

    #[test]
    fn the_true_prediction_gets_no_gradient_from_consistency() {
        let truth = Var::from_tensor(&tensor(&[&[1.0, 2.0]])).unwrap();
        let proxied = Var::from_tensor(&tensor(&[&[0.0, 1.5]])).unwrap();
        for multi_label in [false, true] {
            let gradients = consistency(&truth, &proxied, multi_label).unwrap().backward().unwrap();
            assert!(gradients.get(&truth).is_none());
            assert!(gradients.get(&proxied).is_some());
        }
    }

    #[test]
    fn terms_are_weighted_and_a_zero_weight_switches_one_off() {
        // Two samples, the second complete; its proxied copy is the third row.
        let output = TaskOutput {
            logits: tensor(&[&[1.0, 0.0], &[0.5, 0.0], &[0.0, 0.5]]),
            queries: vec![
                PerModality { image: tensor(&[[1.0, 0.0].as_slice(); 3]), text: tensor(&[[0.0, 1.0].as_slice(); 3]) },
                PerModality { image: tensor(&[[1.0, 1.0].as_slice(); 3]), text: tensor(&[[1.0, 1.0].as_slice(); 3]) },
            ],
            chosen_keys: None,
        };
        let labels = [Label::Class(0), Label::Class(1)];
        let batch = Batch { targets: targets(&[&labels[0], &labels[1]], &Device::Cpu).unwrap(), complete: vec![1] };
        let objective =
            Objective { multi_label: false, alignment: 0.1, consistency: 0.2, aligned_layers: AlignedLayers::All, key_pull: 0.5 };
        let losses = objective.losses(&output, &batch).unwrap();
        let [c, a, k] = [Some(&losses.classification), losses.alignment.as_ref(), losses.consistency.as_ref()].map(|t| value(t.unwrap()));
        close(a, 0.5);
        assert!(k > 0.1, "the proxied copy predicts another class: {k}");
        close(value(&losses.total), c + 0.1 * a + 0.2 * k);
        let last = Objective { aligned_layers: AlignedLayers::Last, ..objective }.losses(&output, &batch).unwrap();
        close(value(last.alignment.as_ref().unwrap()), 0.0);

        // Two samples and two keys of each: cosines of 1 and 0, and of −1 and 0.
        let keys = tensor(&[&[2.0, 0.0], &[0.0, 3.0], &[-1.0, 0.0], &[0.0, 1.0]]);
        let pulled = TaskOutput {
            chosen_keys: Some(ChosenKeys { keys, queries: tensor(&[[1.0, 0.0].as_slice(); 4]), chosen: 2 }),
            logits: output.logits.clone(),
            queries: Vec::new(),
        };
        let with_pull = objective.losses(&pulled, &batch).unwrap();
        close(value(with_pull.key_pull.as_ref().unwrap()), ((0.0 + 1.0) + (2.0 + 1.0)) / 2.0);
        close(value(&with_pull.total), c + 0.2 * k + 0.5 * 2.0);

        let off = Objective { alignment: 0.0, consistency: 0.0, ..objective }.losses(&output, &batch).unwrap();
        assert!(off.alignment.is_none() && off.consistency.is_none());
        assert_eq!(value(&off.total), c);
        let none_complete = Batch { complete: vec![], ..batch };
        assert_eq!(value(&objective.losses(&output, &none_complete).unwrap().total), c);
    }
}
