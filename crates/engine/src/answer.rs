//! The query of one sample, and the engine's answer to it.
use std::sync::Arc;

use crate::policy::{Policy, Scored};
use delo_catalogue::{Candidate, Resident};
use delo_model::PerModality;
use delo_model::input::Sample;
use delo_model::method::PoolId;
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
    /// Whether the answer lists the factors that were chosen in each layer.
    pub explain: bool,
    /// When the sample is answered otherwise than by one adapted pass.
    pub policy: Policy,
}

impl Query {
    /// A sample whose task the engine decides.
    pub fn open(sample: impl Into<Arc<Sample>>) -> Self {
        Self { sample: sample.into(), given: None, ticket: 0, explain: false, policy: Policy::default() }
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
    /// Number of factors that routers chose by each modality's query, over all adapted layers and targets.
    pub factors_selected: PerModality<u64>,
    /// The chosen factors; `None` unless [`Query::explain`] is set.
    pub factors: Option<Vec<SelectedFactors>>,
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

    /// The label of the highest score; `None` where the partition has no label.
    pub fn best_label(&self) -> Option<&str> {
        self.ranked(1).next().map(|(label, _)| label)
    }
}

/// The factors that one sample used in one adapted map (METHOD.md 2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedFactors {
    /// The encoder layer, from 0.
    pub layer: usize,
    /// The adapted map, and the modality by whose query the factors were chosen.
    pub pool: PoolId,
    /// `[r]`: indices of the selected A factors (experts), highest score first. The i-th is paired with the
    /// i-th of `b`.
    pub a: Vec<u32>,
    /// `[r]`: indices of the selected B factors, highest score first.
    pub b: Vec<u32>,
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
