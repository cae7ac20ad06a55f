//! DualPrompt (Wang et al., ECCV 2022; METHOD.md 8): prefixes of keys and values. General ones (G-prompts)
//! stand in the first layers and go on learning in every session. Expert ones (E-prompts) stand in the next
//! layers; each session learns its own, beside a key that is drawn to the session's frozen [CLS]. A sample
//! without a task takes the expert whose key has the largest cosine with its own frozen [CLS].
//!
//! As in the public code: a prefix has as many keys as values; a session trains with its own expert; logits
//! of earlier sessions are left out of the loss. Ours: a sample chooses its expert by itself (the code lets a
//! batch vote); prompts begin Gaussian (σ = 0.02) and keys too; the frozen pooler stands before the head; a
//! new expert does not begin as a copy of the one before; a backbone with fewer layers keeps the prompts of
//! the layers that it has.
use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::ContinualLearner;
use super::fit::{Step, count, fit, for_each_sample, frozen_cls, in_chunks, layers_of, pick, pull, start_stream, training_queries};
use super::heads::{Competing, Heads, cosine};
use crate::training::{Session, TrainError};
use delo_engine::{Additions, SampleRows};
use delo_model::input::Sample;
use delo_model::method::normal::gaussian;

/// The hyper-parameters of DualPrompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DualPromptSettings {
    /// Layers with a general prompt.
    pub general_layers: Vec<usize>,
    /// Keys, and as many values, of a general prompt.
    pub general_length: usize,
    /// Layers with an expert prompt.
    pub expert_layers: Vec<usize>,
    /// Keys, and as many values, of an expert prompt.
    pub expert_length: usize,
    /// Weight of 1 − cos(frozen [CLS], key) in the loss.
    pub key_pull: f64,
}

impl Default for DualPromptSettings {
    /// The values of METHOD.md 8; the weight of the keys' loss is that of the public code.
    fn default() -> Self {
        Self { general_layers: vec![0, 1], general_length: 5, expert_layers: vec![2, 3, 4], expert_length: 20, key_pull: 1.0 }
    }
}

/// Prefixes of some layers, `[length, 2 d]` each.
type Prefixes = BTreeMap<usize, Var>;

/// What one session learns for itself.
#[derive(Debug)]
struct Expert {
    /// `[d]`
    key: Var,
    prefixes: Prefixes,
}

/// DualPrompt after some sessions.
#[derive(Debug, Default)]
pub struct DualPrompt {
    settings: DualPromptSettings,
    general: Prefixes,
    /// One for each session.
    experts: Vec<Expert>,
    heads: Heads,
    steps: usize,
}

impl DualPrompt {
    /// Before the first session.
    pub fn new(settings: DualPromptSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// The variables that the newest session changes.
    fn vars(&self) -> BTreeMap<String, Var> {
        let mut vars = self.heads.vars(Competing::Session);
        vars.extend(self.general.iter().map(|(layer, prefix)| (format!("general.{layer}"), prefix.clone())));
        if let Some(Expert { key, prefixes }) = self.experts.last() {
            vars.insert("key".to_owned(), key.clone());
            vars.extend(prefixes.iter().map(|(layer, prefix)| (format!("expert.{layer}"), prefix.clone())));
        }
        vars
    }

    /// Adds the expert and the head of a session; before the first, the general prompts.
    fn grow(&mut self, session: &Session<'_>) -> Result<()> {
        let (mut rng, d) = (start_stream(session), session.engine.backbone().config.hidden_size);
        let mut prefixes = |layers: &[usize], length: usize| -> Result<Prefixes> {
            let of_layer = |layer: usize| Ok((layer, Var::from_tensor(&gaussian(&mut rng, (length, 2 * d))?)?));
            layers_of(session, layers).into_iter().map(of_layer).collect()
        };
        if self.experts.is_empty() {
            self.general = prefixes(&self.settings.general_layers, self.settings.general_length)?;
        }
        let prefixes = prefixes(&self.settings.expert_layers, self.settings.expert_length)?;
        self.experts.push(Expert { key: Var::from_tensor(&gaussian(&mut rng, d)?)?, prefixes });
        self.heads.grow(session.data.tasks[session.task].labels.len(), d, &mut rng)
    }

    /// What a layer gets, where each sample has the expert of this number.
    fn additions(&self, layer: usize, experts: &[usize]) -> Result<Additions> {
        let mut prefixes = Vec::new();
        if let Some(prefix) = self.general.get(&layer) {
            prefixes.push(for_each_sample(prefix, experts.len())?);
        }
        let of_experts: Vec<&Tensor> = self.experts.iter().filter_map(|expert| Some(expert.prefixes.get(&layer)?.as_tensor())).collect();
        if !of_experts.is_empty() {
            prefixes.push(pick(&Tensor::stack(&of_experts, 0)?, experts.iter().copied())?);
        }
        let prefix = match prefixes[..] {
            [] => None,
            _ => Some(SampleRows::equal(&Tensor::cat(&prefixes, 1)?)?),
        };
        Ok(Additions { prefix, ..Additions::default() })
    }

    /// The session whose key has the largest cosine with a sample's frozen [CLS]; the earliest of equal ones.
    fn nearest(&self, query: &[f32]) -> Result<usize> {
        let mut best = (0, f32::NEG_INFINITY);
        for (session, expert) in self.experts.iter().enumerate() {
            let cosine = cosine(query, &expert.key.to_vec1::<f32>()?);
            if cosine > best.1 {
                best = (session, cosine);
            }
        }
        Ok(best.0)
    }

    fn loss(&self, session: &Session<'_>, step: &Step<'_>, queries: &Tensor) -> Result<Tensor> {
        let newest = vec![self.experts.len() - 1; step.positions.len()];
        let pooled = session.engine.run_adapted_to_pooled(&step.state, 0, |layer, _| self.additions(layer, &newest))?;
        let classification = self.heads.loss(&pooled, &step.labels, Competing::Session)?;
        let queries = pick(queries, step.positions.iter().copied())?;
        let key = for_each_sample(&self.experts[newest[0]].key.reshape((1, ()))?, newest.len())?.squeeze(1)?;
        classification + (pull(&queries, &key)? * self.settings.key_pull)?
    }
}

impl ContinualLearner for DualPrompt {
    fn learn(&mut self, session: &Session<'_>) -> std::result::Result<(), TrainError> {
        let queries = training_queries(session)?;
        self.grow(session)?;
        self.steps += fit(session, self.vars(), |step| self.loss(session, step, &queries))?;
        Ok(())
    }

    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> std::result::Result<Vec<Vec<f32>>, TrainError> {
        in_chunks(session, samples, |state| {
            let queries = frozen_cls(session, &state)?.text.to_vec2::<f32>()?;
            let experts = queries.iter().map(|query| self.nearest(query)).collect::<Result<Vec<_>>>()?;
            let pooled = session.engine.run_adapted_to_pooled(&state, 0, |layer, _| Ok(self.additions(layer, &experts)?.detach()))?;
            self.heads.logits(&pooled)
        })
    }

    fn parameters(&self) -> usize {
        let of_expert = |Expert { key, prefixes }: &Expert| key.elem_count() + count(prefixes);
        count(&self.general) + self.experts.iter().map(of_expert).sum::<usize>()
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
    fn dualprompt_learns_without_a_task_id_and_gives_the_same_bits_in_any_batch() {
        keeps_its_promises(|| DualPrompt::new(DualPromptSettings::default()));
    }

    #[test]
    fn dualprompt_learns_several_labels() {
        learns_several_labels(DualPrompt::new(DualPromptSettings::default()));
    }

    #[test]
    fn the_expert_key_and_head_of_an_earlier_session_stay_and_general_prompts_go_on_learning() {
        let toy = Toy::new(false);
        let mut peer = DualPrompt::new(DualPromptSettings::default());
        peer.learn(&toy.session(0)).unwrap();
        let kept = |peer: &DualPrompt| {
            let Expert { key, prefixes } = &peer.experts[0];
            let prefixes: Vec<Vec<f32>> = prefixes.values().map(|prefix| numbers(prefix)).collect();
            (numbers(key), prefixes, peer.general.values().map(|prefix| numbers(prefix)).collect::<Vec<_>>())
        };
        let logits = |peer: &DualPrompt| {
            peer.heads.logits(&Tensor::ones((1, 256), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap()).unwrap()
        };
        let (before, head) = (kept(&peer), logits(&peer)[0].clone());
        peer.learn(&toy.session(1)).unwrap();
        let after = kept(&peer);
        assert_eq!((before.1.len(), before.2.len()), (3, 2));
        assert!(before.0 == after.0 && before.1 == after.1, "the expert of the first session has changed");
        assert!(before.2.iter().zip(&after.2).all(|(before, after)| before != after), "general prompts learn in every session");
        assert_eq!(head, logits(&peer)[0][..2]);
    }
}
