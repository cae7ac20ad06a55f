//! L2P, learning to prompt (Wang et al., CVPR 2022; METHOD.md 8): one pool of prompts with keys, which all
//! sessions share. A sample takes the prompts whose keys have the largest cosines with its frozen [CLS], as
//! tokens at the input; the loss draws those keys to the sample.
//!
//! As in the public code: the loss of the keys is the sum over the chosen ones, the mean over the samples;
//! logits of earlier sessions are left out of the loss. Ours: a sample chooses by itself (the code lets a
//! batch vote); prompts and keys begin Gaussian (σ = 0.02); the head reads the frozen pooler's output, as
//! that of every other row of the tables, in place of the mean over the prompts' outputs.
use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::ContinualLearner;
use super::fit::{Step, fit, frozen_cls, in_chunks, pick, pull, start_stream, training_queries};
use super::heads::{Competing, Heads, cosine};
use crate::training::{Session, TrainError};
use delo_engine::{Additions, Packed, Prompts, SampleRows};
use delo_model::input::Sample;
use delo_model::method::normal::gaussian;

/// The hyper-parameters of L2P.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct L2pSettings {
    /// Prompts of the pool.
    pub pool: usize,
    /// Tokens of a prompt.
    pub length: usize,
    /// Prompts that a sample takes, at most as many as the pool has.
    pub chosen: usize,
    /// Weight of Σ (1 − cos(frozen [CLS], key)) over the chosen keys in the loss.
    pub key_pull: f64,
}

impl Default for L2pSettings {
    /// The values of METHOD.md 8.
    fn default() -> Self {
        Self { pool: 10, length: 5, chosen: 5, key_pull: 0.5 }
    }
}

/// The pool.
#[derive(Debug)]
struct Pool {
    /// `[pool, length, d]`
    prompts: Var,
    /// `[pool, d]`
    keys: Var,
}

/// L2P after some sessions.
#[derive(Debug, Default)]
pub struct L2p {
    settings: L2pSettings,
    /// Made at the first session.
    pool: Option<Pool>,
    heads: Heads,
    steps: usize,
}

impl L2p {
    /// Before the first session.
    pub fn new(settings: L2pSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    fn pool(&self) -> Result<&Pool> {
        self.pool.as_ref().ok_or_else(|| candle_core::Error::Msg("L2P has learnt no session".to_owned()))
    }

    fn vars(&self) -> Result<BTreeMap<String, Var>> {
        let mut vars = self.heads.vars(Competing::Session);
        let Pool { prompts, keys } = self.pool()?;
        vars.extend([("prompts".to_owned(), prompts.clone()), ("keys".to_owned(), keys.clone())]);
        Ok(vars)
    }

    /// The pool at the first session, and the head of each.
    fn grow(&mut self, session: &Session<'_>) -> Result<()> {
        let (mut rng, d) = (start_stream(session), session.engine.backbone().config.hidden_size);
        let L2pSettings { pool, length, .. } = self.settings;
        if self.pool.is_none() {
            let prompts = Var::from_tensor(&gaussian(&mut rng, (pool, length, d))?)?;
            self.pool = Some(Pool { prompts, keys: Var::from_tensor(&gaussian(&mut rng, (pool, d))?)? });
        }
        self.heads.grow(session.data.tasks[session.task].labels.len(), d, &mut rng)
    }

    /// The numbers of the prompts that each sample takes, by falling cosine, ties to the lower number:
    /// `[samples · chosen]`.
    fn choose(&self, queries: &[Vec<f32>]) -> Result<Vec<usize>> {
        let keys = self.pool()?.keys.to_vec2::<f32>()?;
        let mut chosen = Vec::new();
        for query in queries {
            let cosines: Vec<f32> = keys.iter().map(|key| cosine(query, key)).collect();
            let mut order: Vec<usize> = (0..keys.len()).collect();
            order.sort_by(|&a, &b| cosines[b].total_cmp(&cosines[a]));
            order.truncate(self.settings.chosen);
            chosen.extend(order);
        }
        Ok(chosen)
    }

    /// What a layer gets, given the prompts that each sample takes.
    fn additions(&self, layer: usize, state: &Packed, chosen: &[usize]) -> Result<Additions> {
        if layer > 0 {
            return Ok(Additions::default());
        }
        let prompts = pick(&self.pool()?.prompts, chosen.iter().copied())?;
        let (_, length, d) = prompts.dims3()?;
        let samples = state.spans.len();
        let prompts = SampleRows::equal(&prompts.reshape((samples, chosen.len() / samples * length, d))?)?;
        Ok(Additions { prompts: Some(Prompts::Append(prompts)), ..Additions::default() })
    }

    fn loss(&self, session: &Session<'_>, step: &Step<'_>, queries: &Tensor) -> Result<Tensor> {
        let queries = pick(queries, step.positions.iter().copied())?;
        let chosen = self.choose(&queries.to_vec2::<f32>()?)?;
        let adapt = |layer: usize, state: &Packed| self.additions(layer, state, &chosen);
        let pooled = session.engine.run_adapted_to_pooled(&step.state, 0, adapt)?;
        let classification = self.heads.loss(&pooled, &step.labels, Competing::Session)?;
        let each = chosen.len() / step.positions.len();
        let queries = pick(&queries, (0..chosen.len()).map(|place| place / each))?;
        let pulled = (pull(&queries, &pick(&self.pool()?.keys, chosen)?)? * each as f64)?;
        classification + (pulled * self.settings.key_pull)?
    }
}

impl ContinualLearner for L2p {
    fn learn(&mut self, session: &Session<'_>) -> std::result::Result<(), TrainError> {
        let queries = training_queries(session)?;
        self.grow(session)?;
        self.steps += fit(session, self.vars()?, |step| self.loss(session, step, &queries))?;
        Ok(())
    }

    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> std::result::Result<Vec<Vec<f32>>, TrainError> {
        in_chunks(session, samples, |state| {
            let chosen = self.choose(&frozen_cls(session, &state)?.text.to_vec2::<f32>()?)?;
            let adapt = |layer: usize, state: &Packed| Ok(self.additions(layer, state, &chosen)?.detach());
            self.heads.logits(&session.engine.run_adapted_to_pooled(&state, 0, adapt)?)
        })
    }

    fn parameters(&self) -> usize {
        self.pool.as_ref().map_or(0, |Pool { prompts, keys }| prompts.elem_count() + keys.elem_count())
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
    fn l2p_learns_without_a_task_id_and_gives_the_same_bits_in_any_batch() {
        keeps_its_promises(|| L2p::new(L2pSettings::default()));
    }

    #[test]
    fn l2p_learns_several_labels() {
        learns_several_labels(L2p::new(L2pSettings::default()));
    }

    #[test]
    fn a_sample_takes_the_prompts_of_the_nearest_keys_and_they_are_drawn_to_it() {
        let toy = Toy::new(false);
        let session = toy.session(0);
        let mut peer = L2p::new(L2pSettings { key_pull: 5.0, ..L2pSettings::default() });
        peer.grow(&session).unwrap();
        let queries = training_queries(&session).unwrap().to_vec2::<f32>().unwrap();
        let chosen = peer.choose(&queries[..1]).unwrap();
        let cosines = |peer: &L2p| -> Vec<f32> {
            peer.pool().unwrap().keys.to_vec2::<f32>().unwrap().iter().map(|key| cosine(&queries[0], key)).collect()
        };
        let before = cosines(&peer);
        let least = chosen.iter().map(|&k| before[k]).fold(f32::INFINITY, f32::min);
        assert!((0..10).all(|k| chosen.contains(&k) || before[k] <= least), "{chosen:?} of {before:?}");
        let start = numbers(&peer.pool().unwrap().prompts);
        fit(&session, peer.vars().unwrap(), |step| peer.loss(&session, step, &training_queries(&session).unwrap())).unwrap();
        let after = cosines(&peer);
        assert!(chosen.iter().all(|&k| after[k] > before[k]), "{before:?}, {after:?}");
        assert_ne!(start, numbers(&peer.pool().unwrap().prompts));
    }
}
