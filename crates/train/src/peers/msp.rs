//! MSP, modality-specific prompts (Jang et al., ICASSP 2024; METHOD.md 8): one prompt of the image and one of
//! the text in each of the first layers, at the input. A complete sample has both, one behind the other; a
//! sample that lost a modality has that of the other. The loss keeps the two orthogonal.
//!
//! Otherwise as MAP (`map.rs`): the sequence grows, and there is no continual mechanism. Ours: the
//! orthogonality loss is |cos| of the two prompts, each flattened to one vector, the mean over the layers,
//! with the weight 0.15; prompts begin Gaussian (σ = 0.02); the frozen pooler stands before a linear head; a
//! backbone with fewer layers has prompts in all of them.
use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::ContinualLearner;
use super::fit::{Step, count, fit, in_chunks, layers_of, pick, start_stream};
use super::heads::{Competing, Heads};
use crate::training::objective::alignment;
use crate::training::{Session, TrainError};
use delo_engine::{Additions, Packed, Prompts, SampleRows};
use delo_model::input::{Presence, Sample};
use delo_model::method::normal::gaussian;

/// The hyper-parameters of MSP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MspSettings {
    /// Tokens of one modality's prompt.
    pub length: usize,
    /// Layers with prompts.
    pub layers: Vec<usize>,
    /// Weight of |cos(image prompt, text prompt)| in the loss.
    pub orthogonality: f64,
}

impl Default for MspSettings {
    /// The values of METHOD.md 8.
    fn default() -> Self {
        Self { length: 16, layers: (0..6).collect(), orthogonality: 0.15 }
    }
}

/// MSP after some sessions.
#[derive(Debug, Default)]
pub struct Msp {
    settings: MspSettings,
    /// The prompts of each layer, `[2 · length, d]`: the image's tokens, then the text's. Made at the first
    /// session.
    prompts: BTreeMap<usize, Var>,
    heads: Heads,
    steps: usize,
}

impl Msp {
    /// Before the first session.
    pub fn new(settings: MspSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    fn vars(&self) -> BTreeMap<String, Var> {
        let mut vars = self.heads.vars(Competing::Seen);
        vars.extend(self.prompts.iter().map(|(layer, prompts)| (format!("prompts.{layer:02}"), prompts.clone())));
        vars
    }

    /// The prompts at the first session, and rows of the head at each.
    fn grow(&mut self, session: &Session<'_>) -> Result<()> {
        let (mut rng, d) = (start_stream(session), session.engine.backbone().config.hidden_size);
        if self.prompts.is_empty() {
            for layer in layers_of(session, &self.settings.layers) {
                self.prompts.insert(layer, Var::from_tensor(&gaussian(&mut rng, (2 * self.settings.length, d))?)?);
            }
        }
        self.heads.grow(session.data.tasks[session.task].labels.len(), d, &mut rng)
    }

    /// The tokens of a pattern's prompt.
    fn tokens(&self, pattern: Presence) -> Range<usize> {
        let length = self.settings.length;
        match pattern {
            Presence::Complete => 0..2 * length,
            Presence::ImageOnly => 0..length,
            Presence::TextOnly => length..2 * length,
        }
    }

    /// The prompts that a layer adds to each sample.
    fn additions(&self, layer: usize, state: &Packed) -> Result<Additions> {
        let Some(prompts) = self.prompts.get(&layer) else { return Ok(Additions::default()) };
        let tokens = || state.spans.iter().map(|span| self.tokens(span.presence));
        let rows = SampleRows { rows: pick(prompts, tokens().flatten())?, lengths: tokens().map(|of| of.len()).collect() };
        Ok(Additions { prompts: Some(Prompts::Append(rows)), ..Additions::default() })
    }

    /// The mean over the layers of |cos| of the two prompts.
    fn overlap(&self) -> Result<Tensor> {
        let length = self.settings.length;
        let side = |prompts: &Var, first: usize| prompts.narrow(0, first, length)?.reshape((1, ()));
        let of_layer = |prompts: &Var| (1.0 - alignment(&side(prompts, 0)?, &side(prompts, length)?)?)?.abs();
        Tensor::stack(&self.prompts.values().map(of_layer).collect::<Result<Vec<_>>>()?, 0)?.mean_all()
    }

    fn loss(&self, session: &Session<'_>, step: &Step<'_>) -> Result<Tensor> {
        let pooled = session.engine.run_adapted_to_pooled(&step.state, 0, |layer, state| self.additions(layer, state))?;
        let classification = self.heads.loss(&pooled, &step.labels, Competing::Seen)?;
        if self.prompts.is_empty() || self.settings.orthogonality == 0.0 {
            return Ok(classification);
        }
        classification + (self.overlap()? * self.settings.orthogonality)?
    }
}

impl ContinualLearner for Msp {
    fn learn(&mut self, session: &Session<'_>) -> std::result::Result<(), TrainError> {
        self.grow(session)?;
        self.steps += fit(session, self.vars(), |step| self.loss(session, step))?;
        Ok(())
    }

    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> std::result::Result<Vec<Vec<f32>>, TrainError> {
        in_chunks(session, samples, |state| {
            let adapt = |layer: usize, state: &Packed| Ok(self.additions(layer, state)?.detach());
            self.heads.logits(&session.engine.run_adapted_to_pooled(&state, 0, adapt)?)
        })
    }

    fn parameters(&self) -> usize {
        count(&self.prompts)
    }

    fn head_parameters(&self) -> usize {
        self.heads.elements()
    }

    fn steps(&self) -> usize {
        self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::testing::{Toy, keeps_its_promises, learns_several_labels};

    #[test]
    fn msp_learns_without_a_task_id_and_gives_the_same_bits_in_any_batch() {
        keeps_its_promises(|| Msp::new(MspSettings::default()));
    }

    #[test]
    fn msp_learns_several_labels() {
        learns_several_labels(Msp::new(MspSettings::default()));
    }

    #[test]
    fn prompts_are_joined_by_what_is_present_and_become_orthogonal() {
        let toy = Toy::new(false);
        let mut peer = Msp::new(MspSettings { orthogonality: 5.0, ..MspSettings::default() });
        assert_eq!([Presence::Complete, Presence::ImageOnly, Presence::TextOnly].map(|of| peer.tokens(of)), [0..32, 0..16, 16..32]);
        peer.grow(&toy.session(0)).unwrap();
        for prompts in peer.prompts.values() {
            let half = prompts.narrow(0, 0, 16).unwrap();
            prompts.set(&Tensor::cat(&[&half, &half], 0).unwrap()).unwrap();
        }
        let overlap = |peer: &Msp| peer.overlap().unwrap().to_scalar::<f32>().unwrap();
        assert!(overlap(&peer) > 0.999, "equal prompts");
        let session = toy.session(0);
        fit(&session, peer.vars(), |step| peer.loss(&session, step)).unwrap();
        assert!(overlap(&peer) < 0.5, "{}", overlap(&peer));
    }
}
