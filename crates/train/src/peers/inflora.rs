//! InfLoRA, interference-free low-rank adaptation (Liang and Li, CVPR 2024; METHOD.md 8): each session adds a
//! low-rank branch to the maps of keys and values in every layer, and all branches are summed. The
//! down-projection of a branch is fixed before it learns: the leading directions of the session's layer
//! inputs in the subspace that earlier sessions left free (`subspace.rs`). Only the up-projection learns.
//!
//! As in the public code: keys and values share a down-projection, whose rows have the length 1/√3; inputs
//! are those of the layers with all earlier branches; after a session they are read again, with its branch,
//! and remembered; logits of earlier sessions are left out of the loss. The share of the energy that a
//! session remembers is ε = 0.95 + (1 − 0.95) t / T, session t of T counted from 0. Ours: energy is the sum
//! of squared singular values of the inputs, as in the paper (the code squares those of their second moment);
//! at least one direction stays free; one head for each session behind the frozen pooler.
use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use faer::Mat;
use serde::{Deserialize, Serialize};

use super::ContinualLearner;
use super::fit::{Step, fit, for_each_sample, in_chunks, start_stream, walk_training_samples};
use super::heads::{Competing, Heads};
use super::subspace::Subspace;
use crate::training::{Session, TrainError};
use delo_engine::{Additions, Packed};
use delo_model::input::Sample;
use delo_model::method::{FactorPairs, Target};

/// The hyper-parameters of InfLoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InfLoraSettings {
    /// Rank of a branch.
    pub branch_rank: usize,
    /// ε of the first session: the share of the energy of its inputs that the memory holds.
    pub first_energy: f64,
    /// ε towards which it rises over the sessions.
    pub last_energy: f64,
}

impl Default for InfLoraSettings {
    /// The values of METHOD.md 8.
    fn default() -> Self {
        Self { branch_rank: 10, first_energy: 0.95, last_energy: 1.0 }
    }
}

/// One session's branch in one layer.
#[derive(Debug)]
struct Branch {
    /// The fixed down-projection, `[rank, d]`.
    down: Tensor,
    /// The up-projections of keys and of values, `[rank, d]` each.
    up: [Var; 2],
}

/// InfLoRA after some sessions.
#[derive(Debug, Default)]
pub struct InfLora {
    settings: InfLoraSettings,
    /// For each session, the branch of each layer.
    branches: Vec<Vec<Branch>>,
    /// The memory of each layer.
    memory: Vec<Subspace>,
    heads: Heads,
    steps: usize,
}

/// Length of the rows of a down-projection.
const DOWN_LENGTH: f64 = 0.577_350_269_189_625_8;

impl InfLora {
    /// Before the first session.
    pub fn new(settings: InfLoraSettings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// The variables that the newest session changes.
    fn vars(&self) -> BTreeMap<String, Var> {
        let mut vars = self.heads.vars(Competing::Session);
        for (layer, Branch { up: [key, value], .. }) in self.branches.iter().rev().take(1).flatten().enumerate() {
            vars.extend([(format!("key.{layer:02}"), key.clone()), (format!("value.{layer:02}"), value.clone())]);
        }
        vars
    }

    /// The sum of all branches of a layer, as low-rank updates in which the query has no part.
    fn additions(&self, layer: usize, samples: usize) -> Result<Additions> {
        if self.branches.is_empty() {
            return Ok(Additions::default());
        }
        let branches = || self.branches.iter().map(|branches| &branches[layer]);
        let joined = |part: &dyn Fn(&Branch) -> Tensor| Tensor::cat(&branches().map(part).collect::<Vec<_>>(), 0);
        let down = joined(&|branch| branch.down.clone())?;
        let [key, value] = [0, 1].map(|side| joined(&|branch| branch.up[side].as_tensor().clone()));
        let (key, value) = (key?, value?);
        let pairs = down.dim(0)?;
        let a = Tensor::cat(&[&down; Target::COUNT], 0)?;
        let b = Tensor::cat(&[key.zeros_like()?, key, value], 0)?;
        let pairs = FactorPairs { a: for_each_sample(&a, samples)?, b: for_each_sample(&b, samples)?, pairs };
        Ok(Additions { pairs: Some(pairs), ..Additions::default() })
    }

    fn loss(&self, session: &Session<'_>, step: &Step<'_>) -> Result<Tensor> {
        let pooled = session.engine.run_adapted_to_pooled(&step.state, 0, |layer, state| self.additions(layer, state.spans.len()))?;
        self.heads.loss(&pooled, &step.labels, Competing::Session)
    }

    /// The second moment of each layer's inputs over the session's training samples, with all branches.
    fn moments(&self, session: &Session<'_>) -> std::result::Result<Vec<Mat<f64>>, TrainError> {
        let config = &session.engine.backbone().config;
        let (layers, d) = (config.num_hidden_layers, config.hidden_size);
        let mut moments = vec![Mat::<f64>::zeros(d, d); layers];
        walk_training_samples(session, |state| {
            session.engine.run_adapted(&state, 0..layers, |layer, state| {
                let x = session.engine.attention_input(layer, state)?;
                let moment = x.t()?.contiguous()?.matmul(&x)?.to_vec2::<f32>()?;
                moments[layer] += Mat::from_fn(d, d, |i, j| f64::from(moment[i][j]));
                Ok(self.additions(layer, state.spans.len())?.detach())
            })?;
            Ok(())
        })?;
        Ok(moments)
    }

    /// Adds a session's branches, whose up-projections are zero, and its head.
    fn grow(&mut self, session: &Session<'_>) -> std::result::Result<(), TrainError> {
        let d = session.engine.backbone().config.hidden_size;
        let moments = self.moments(session)?;
        if self.memory.is_empty() {
            self.memory = vec![Subspace::empty(d); moments.len()];
        }
        let branch = |(memory, moment): (&Subspace, &Mat<f64>)| {
            let rows = memory.leading(moment, self.settings.branch_rank).map_err(candle_core::Error::wrap)?;
            let down: Vec<f32> = rows.iter().flatten().map(|x| (x * DOWN_LENGTH) as f32).collect();
            let up = || Var::zeros((rows.len(), d), DType::F32, &Device::Cpu);
            Ok(Branch { down: Tensor::from_vec(down, (rows.len(), d), &Device::Cpu)?, up: [up()?, up()?] })
        };
        let branches = self.memory.iter().zip(&moments).map(branch).collect::<Result<_>>()?;
        self.branches.push(branches);
        Ok(self.heads.grow(session.data.tasks[session.task].labels.len(), d, &mut start_stream(session))?)
    }

    /// Remembers the session's inputs.
    fn remember(&mut self, session: &Session<'_>) -> std::result::Result<(), TrainError> {
        let InfLoraSettings { first_energy, last_energy, .. } = self.settings;
        let share = (self.branches.len() - 1) as f64 / session.data.tasks.len() as f64;
        let energy = first_energy + (last_energy - first_energy) * share;
        let moments = self.moments(session)?;
        for (memory, moment) in self.memory.iter_mut().zip(moments) {
            memory.remember(&moment, energy).map_err(candle_core::Error::wrap)?;
        }
        Ok(())
    }
}

impl ContinualLearner for InfLora {
    fn learn(&mut self, session: &Session<'_>) -> std::result::Result<(), TrainError> {
        self.grow(session)?;
        self.steps += fit(session, self.vars(), |step| self.loss(session, step))?;
        self.remember(session)
    }

    fn logits(&self, session: &Session<'_>, samples: &[Sample]) -> std::result::Result<Vec<Vec<f32>>, TrainError> {
        in_chunks(session, samples, |state| {
            let adapt = |layer: usize, state: &Packed| Ok(self.additions(layer, state.spans.len())?.detach());
            self.heads.logits(&session.engine.run_adapted_to_pooled(&state, 0, adapt)?)
        })
    }

    /// The up-projections; down-projections and memory are not learnt by gradient.
    fn parameters(&self) -> usize {
        self.branches.iter().flatten().flat_map(|branch| &branch.up).map(|up| up.elem_count()).sum()
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
    fn inflora_learns_without_a_task_id_and_gives_the_same_bits_in_any_batch() {
        keeps_its_promises(|| InfLora::new(InfLoraSettings::default()));
    }

    #[test]
    fn inflora_learns_several_labels() {
        learns_several_labels(InfLora::new(InfLoraSettings::default()));
    }

    #[test]
    fn a_branch_stays_and_the_next_one_begins_in_the_directions_left_free() {
        let toy = Toy::new(false);
        let mut peer = InfLora::new(InfLoraSettings::default());
        peer.learn(&toy.session(0)).unwrap();
        let branch = |branch: &Branch| [numbers(&branch.down), numbers(&branch.up[0]), numbers(&branch.up[1])];
        let before: Vec<_> = peer.branches[0].iter().map(branch).collect();
        assert!(before.iter().all(|[down, key, value]| [down, key, value].iter().all(|part| part.iter().any(|&x| x != 0.0))));
        let memory = peer.memory.clone();
        peer.learn(&toy.session(1)).unwrap();
        assert_eq!(before, peer.branches[0].iter().map(branch).collect::<Vec<_>>());
        for (memory, branch) in memory.iter().zip(&peer.branches[1]) {
            let down = branch.down.to_vec2::<f32>().unwrap();
            assert_eq!(down.len(), 10);
            for row in &down {
                let moment = Mat::from_fn(row.len(), row.len(), |i, j| f64::from(row[i]) * f64::from(row[j]));
                let free: f64 = {
                    let part = memory.free_part(&moment);
                    (0..row.len()).map(|i| part[(i, i)]).sum()
                };
                assert!((free - 1.0 / 3.0).abs() < 1e-4, "{free}: all of the row lies in the free subspace");
            }
        }
    }

    #[test]
    fn a_session_begins_with_what_earlier_ones_give() {
        let toy = Toy::new(false);
        let mut peer = InfLora::new(InfLoraSettings::default());
        peer.learn(&toy.session(0)).unwrap();
        let before = peer.logits(&toy.session(0), &toy.samples(0)).unwrap();
        peer.grow(&toy.session(1)).unwrap();
        let after = peer.logits(&toy.session(0), &toy.samples(0)).unwrap();
        for (before, after) in before.iter().zip(&after) {
            assert!(before.iter().zip(after).all(|(before, after)| (before - after).abs() < 1e-4));
        }
    }
}
