//! The query of one sample, and the engine's answer to it.
use std::sync::Arc;
use std::time::Instant;

use crate::policy::{Policy, Scored};
use delo_catalogue::{Candidate, Resident};
use delo_model::input::Sample;
use delo_model::method::PoolId;
use delo_model::method::factors::Choice;
use delo_model::method::selection::top;

/// One sample to classify.
#[derive(Clone, Debug)]
pub struct Query {
    /// The sample, decoded and tokenised.
    pub sample: Arc<Sample>,
    /// The partition that serves the sample, resident in the catalogue or not. `None`: the engine decides the
    /// task.
    pub given: Option<Arc<Resident>>,
    /// Where the task has a canary, this number decides between the two versions: the same ticket always
    /// meets the same version.
    pub ticket: u64,
    /// When the sample is answered otherwise than by one adapted pass.
    pub policy: Policy,
}

impl Query {
    /// A sample whose task the engine decides.
    pub fn open(sample: impl Into<Arc<Sample>>) -> Self {
        Self { sample: sample.into(), given: None, ticket: 0, policy: Policy::default() }
    }

    /// A sample that this partition serves.
    pub fn given(sample: impl Into<Arc<Sample>>, resident: Arc<Resident>) -> Self {
        Self { given: Some(resident), ..Self::open(sample) }
    }
}

/// The engine's answer for one sample.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The partition that served the sample; that of the likeliest task where it was rejected.
    pub resident: Arc<Resident>,
    /// `[labels]`: a score for each label of the partition, in the partition's order. Softmax probabilities,
    /// or one sigmoid for each label of a multi-label task. Empty where the sample was rejected.
    pub scores: Vec<f32>,
    /// What the scores come from.
    pub scored: Scored,
    /// Every resident task with its score, highest first; empty where [`Query::given`] names the partition.
    pub candidates: Vec<Candidate>,
    /// The choices of each adapted layer, group by group of its bank; empty without an adapted pass.
    pub(crate) choices: Vec<(usize, Vec<Choice>)>,
    /// When the parts of the forward pass ended.
    pub marks: Marks,
}

/// When the parts of a batch's forward pass ended. All samples of one forward have the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// The forward began: samples are embedded.
    pub began: Instant,
    /// The frozen layers were run, as far as the decision or the first adapted layer needs them.
    pub frozen: Instant,
    /// The tasks were decided.
    pub decided: Instant,
    /// The adapted layers and the heads were run.
    pub ended: Instant,
}

impl Answer {
    /// At most `most` labels with their scores, highest score first; labels of equal score in the partition's
    /// order.
    pub fn ranked(&self, most: usize) -> impl Iterator<Item = (&str, f32)> {
        let labels = &self.resident.partition.meta.labels;
        top(&self.scores, most).map(|i| (labels[i as usize].as_str(), self.scores[i as usize]))
    }

    /// The candidate whose task answers: the first one, or the second where it was the likelier of two
    /// ([`Policy::second_task`]). `None` where [`Query::given`] names the partition.
    pub fn chosen(&self) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| *candidate.task == *self.resident.task())
    }

    /// How far the score of the task that answers is ahead of the best one of the others: a probability or a
    /// cosine, whichever decides; below 0 where the second candidate answers. `None` where there is no other.
    pub fn margin(&self) -> Option<f32> {
        let chosen = self.chosen()?;
        let other = self.candidates.iter().find(|candidate| candidate.task != chosen.task)?;
        Some(chosen.score.score - other.score.score)
    }

    /// The factors that routers chose, pool by pool; none where the method has no routers.
    pub fn selected(&self) -> impl Iterator<Item = SelectedFactors<'_>> {
        self.choices.iter().flat_map(|(layer, choices)| {
            let bank = self.resident.partition.adapter.bank(*layer);
            let bank = bank.filter(|bank| bank.routers().is_some() && bank.shape().all_groups() == PoolId::COUNT);
            let (experts, choices) = bank.map_or((0, [].as_slice()), |bank| (bank.shape().experts, choices.as_slice()));
            PoolId::all().zip(choices).map(move |(pool, choice)| SelectedFactors { layer: *layer, pool, choice, experts })
        })
    }

    /// The label of the highest score; `None` where the partition has no label.
    pub fn best_label(&self) -> Option<&str> {
        self.best().map(|(_, label)| label)
    }

    /// The label of the highest score and its place among the partition's; `None` where the partition has no label, or
    /// the sample no scores.
    pub fn best(&self) -> Option<(u32, &str)> {
        top(&self.scores, 1).next().map(|place| (place, self.resident.partition.meta.labels[place as usize].as_str()))
    }
}

/// The factors that one sample used in one adapted map (METHOD.md 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectedFactors<'a> {
    /// The encoder layer, from 0.
    pub layer: usize,
    /// The adapted map, and the modality by whose query the factors were chosen.
    pub pool: PoolId,
    /// The experts that give A and B factors, `[r]` each.
    pub choice: &'a Choice,
    /// E: experts of the pool.
    pub experts: usize,
}

/// Why one sample could not be classified.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// The catalogue is empty, and the query names no partition.
    #[error("no partition is loaded: load one with `delo admin load`")]
    NothingLoaded,
    /// The forward of the batch failed; the text is the backend's.
    #[error("the forward pass failed: {0}")]
    Compute(String),
}
