//! MAP, missing-aware prompts (Lee et al., CVPR 2023; METHOD.md 8): for each modality pattern (complete,
//! image only, text only) prompts of its own at the input of the first layers. Each layer adds its prompts to
//! those of the layers before, so that the sequence grows.
//!
//! There is no continual mechanism: prompts go on learning in every session, and the head over all classes
//! seen so far learns with all its rows, against classes of which no data is left. Ours: prompts begin
//! Gaussian (σ = 0.02; the public code begins with a row of ones in each); the frozen pooler stands before a
//! linear head (the code trains a pooler and a head of two layers); a backbone with fewer layers has prompts
//! in all of them.
use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::ContinualLearner;
use super::fit::{Step, count, fit, in_chunks, layers_of, pick, start_stream};
use super::heads::{Competing, Heads};
use crate::training::{Session, TrainError};
use delo_engine::{Additions, Packed, Prompts, SampleRows};
use delo_model::input::{Presence, Sample};
use delo_model::method::normal::gaussian;

/// The hyper-parameters of MAP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MapSettings {
    /// Tokens of a prompt.
    pub length: usize,
    /// Layers with prompts.
    pub layers: Vec<usize>,
}

impl Default for MapSettings {
    /// The values of METHOD.md 8.
    fn default() -> Self {
        Self { length: 16, layers: (0..6).collect() }
    }
}

/// MAP after some sessions.
#[derive(Debug, Default)]
pub struct Map {
    settings: MapSettings,
    /// The prompts of each layer, `[patterns, length, d]`; made at the first session.
    prompts: BTreeMap<usize, Var>,
    heads: Heads,
    steps: usize,
}

/// The place of a pattern's prompts.
fn place(pattern: Presence) -> usize {
    match pattern {
        Presence::Complete => 0,
        Presence::ImageOnly => 1,
        Presence::TextOnly => 2,
    }
}

const PATTERNS: usize = 3;

impl Map {
    /// Before the first session.
    pub fn new(settings: MapSettings) -> Self {
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
                self.prompts.insert(layer, Var::from_tensor(&gaussian(&mut rng, (PATTERNS, self.settings.length, d))?)?);
            }
        }
        self.heads.grow(session.data.tasks[session.task].labels.len(), d, &mut rng)
    }

    /// The prompts that a layer adds to each sample.
    fn additions(&self, layer: usize, state: &Packed) -> Result<Additions> {
        let Some(prompts) = self.prompts.get(&layer) else { return Ok(Additions::default()) };
        let rows = SampleRows::equal(&pick(prompts, state.spans.iter().map(|span| place(span.presence)))?)?;
        Ok(Additions { prompts: Some(Prompts::Append(rows)), ..Additions::default() })
    }

    fn loss(&self, session: &Session<'_>, step: &Step<'_>) -> Result<Tensor> {
        let pooled = session.engine.run_adapted_to_pooled(&step.state, 0, |layer, state| self.additions(layer, state))?;
        self.heads.loss(&pooled, &step.labels, Competing::Seen)
    }
}

impl ContinualLearner for Map {
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
    use crate::peers::testing::{Toy, keeps_its_promises, learns_several_labels, numbers};

    #[test]
    fn map_learns_without_a_task_id_and_gives_the_same_bits_in_any_batch() {
        keeps_its_promises(|| Map::new(MapSettings::default()));
    }

    #[test]
    fn map_learns_several_labels() {
        learns_several_labels(Map::new(MapSettings::default()));
    }

    #[test]
    fn each_pattern_has_prompts_of_its_own_and_old_rows_of_the_head_go_on_learning() {
        let toy = Toy::new(false);
        let mut peer = Map::new(MapSettings::default());
        peer.learn(&toy.session(0)).unwrap();
        let session = toy.session(0);
        let samples = toy.samples(0);
        let text_only = |sample: &Sample| sample.presence() == Presence::TextOnly;
        let before = peer.logits(&session, &samples).unwrap();
        let prompts = &peer.prompts[&0];
        let mut values = prompts.to_vec3::<f32>().unwrap();
        values[place(Presence::TextOnly)].iter_mut().flatten().for_each(|x| *x += 1.0);
        prompts.set(&Tensor::new(values, prompts.device()).unwrap()).unwrap();
        let after = peer.logits(&session, &samples).unwrap();
        for (sample, (before, after)) in samples.iter().zip(before.iter().zip(&after)) {
            assert_eq!(before != after, text_only(sample));
        }
        let head = |peer: &Map| numbers(&peer.vars()["head.0.weight"]);
        let before = head(&peer);
        peer.learn(&toy.session(1)).unwrap();
        assert_ne!(before, head(&peer));
    }
}
