//! Samples of any tasks through one forward: decide the task, apply each sample's own factors, score.
use std::sync::Arc;

use candle_core::Result;
use rayon::prelude::*;

use super::backbone::{Adapters, Backbone};
use super::forward::in_pool;
use super::packed::Span;
use super::signals::{self, signal_at};
use super::{Answer, Candidate, Catalogue, Compute, Engine, EngineError, Query, Resident, SelectedFactors, with_backbone};
use crate::delo::keys::KeySignal;
use crate::delo::selection::softmax;
use crate::delo::serving_pools::{Choice, ServingPools};
use crate::delo::task_model::{MODALITIES, TARGETS};
use crate::input::Sample;

/// A sample whose task is decided.
#[derive(Clone)]
struct Routed {
    resident: Arc<Resident>,
    candidates: Vec<Candidate>,
}

impl Engine {
    /// Classifies samples of any tasks and modalities in one batch, in order. One refused sample does not fail its neighbours.
    pub fn classify(&self, catalogue: &Catalogue, queries: &[Query]) -> Vec<std::result::Result<Answer, EngineError>> {
        let refusals: Vec<Option<EngineError>> = queries.iter().map(|q| refusal(catalogue, q)).collect();
        let accepted: Vec<&Query> = queries.iter().zip(&refusals).filter(|(_, refusal)| refusal.is_none()).map(|(q, _)| q).collect();
        let mut answers = match self.forward(catalogue, &accepted) {
            Ok(answers) => answers.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(e) => vec![Err(EngineError::Compute(e.to_string())); accepted.len()],
        }
        .into_iter();
        let lost = || Err(EngineError::Compute("no answer was computed".to_owned()));
        refusals.into_iter().map(|refusal| refusal.map_or_else(|| answers.next().unwrap_or_else(lost), Err)).collect()
    }

    /// Every resident task with its cosine, falling, for each sample: the task decision alone.
    ///
    /// # Errors
    /// A failed forward pass.
    pub fn route(&self, catalogue: &Catalogue, samples: &[Sample]) -> Result<Vec<Vec<Candidate>>> {
        let samples: Vec<&Sample> = samples.iter().collect();
        let layers = self.backbone.config.num_hidden_layers;
        with_backbone!(&self.compute, backbone => in_pool(|| {
            let (hidden, spans) = backbone.embed(&samples, self.dummy(catalogue.dummy_image()))?;
            let signal = catalogue.signal();
            let rows = signals::signals(backbone, hidden, &spans, layers, &[signal])?;
            Ok(rows[&signal].iter().map(|row| catalogue.candidates(row)).collect())
        }))
    }

    /// The pooled output of the frozen backbone, `[samples, d]`: what a pass without any adapter costs.
    ///
    /// # Errors
    /// A failed forward pass.
    pub fn pooled(&self, samples: &[Sample], dummy_image: [usize; 2]) -> Result<Vec<Vec<f32>>> {
        let samples: Vec<&Sample> = samples.iter().collect();
        with_backbone!(&self.compute, backbone => in_pool(|| {
            let (hidden, spans) = backbone.embed(&samples, self.dummy(dummy_image))?;
            backbone.run_to_pooled(hidden, &spans, 0, None)
        }))
    }

    fn forward(&self, catalogue: &Catalogue, accepted: &[&Query]) -> Result<Vec<Answer>> {
        if accepted.is_empty() {
            return Ok(Vec::new());
        }
        with_backbone!(&self.compute, backbone => in_pool(|| self.forward_on(backbone, catalogue, accepted)))
    }

    fn forward_on<B: Backbone>(&self, backbone: &B, catalogue: &Catalogue, accepted: &[&Query]) -> Result<Vec<Answer>> {
        let samples: Vec<&Sample> = accepted.iter().map(|q| &q.sample).collect();
        let (mut hidden, spans) = backbone.embed(&samples, self.dummy(catalogue.dummy_image()))?;
        let routed = self.decide(backbone, catalogue, accepted, &mut hidden, &spans)?;
        let layers = self.backbone.config.num_hidden_layers;
        let pools = routed.iter().map(|routed| (0..layers).map(|layer| pools_of(&routed.resident, layer)).collect()).collect();
        let mut adapters = Adapters::new(pools);
        let pooled = backbone.run_to_pooled(hidden, &spans, catalogue.first_adapted_layer(layers), Some(&mut adapters))?;
        let chosen = std::mem::take(&mut adapters.chosen);
        let answers = routed.iter().zip(pooled).zip(chosen).zip(accepted);
        Ok(answers.map(|(((routed, pooled), choices), query)| answer(routed.clone(), &pooled, &choices, query.explain)).collect())
    }

    /// Each sample's task. The state goes on to the first layer that any resident task adapts; a signal at or before that layer is read on the
    /// way, a later one costs the samples whose task is not given a frozen pass of their own.
    fn decide<B: Backbone>(
        &self,
        backbone: &B,
        catalogue: &Catalogue,
        accepted: &[&Query],
        hidden: &mut B::Hidden,
        spans: &[Span],
    ) -> Result<Vec<Routed>> {
        let layers = self.backbone.config.num_hidden_layers;
        let (start, signal) = (catalogue.first_adapted_layer(layers), catalogue.signal());
        let told_at = signal.layer().unwrap_or(layers);
        let open: Vec<usize> = (0..accepted.len()).filter(|&i| accepted[i].task.is_none()).collect();
        let told: Vec<Vec<f32>> = if open.is_empty() {
            backbone.run(hidden, spans, 0..start, None)?;
            Vec::new()
        } else if told_at <= start {
            backbone.run(hidden, spans, 0..told_at, None)?;
            let told = signal_at(backbone, hidden, spans, signal)?;
            backbone.run(hidden, spans, told_at..start, None)?;
            open.iter().map(|&i| told[i].clone()).collect()
        } else {
            backbone.run(hidden, spans, 0..start, None)?;
            let chosen: Vec<Span> = open.iter().map(|&i| spans[i]).collect();
            let mut undecided = backbone.select(hidden, &chosen)?;
            let spans = in_a_row(&chosen);
            if signal == KeySignal::Pooled {
                backbone.run_to_pooled(undecided, &spans, start, None)?
            } else {
                backbone.run(&mut undecided, &spans, start..told_at, None)?;
                signal_at(backbone, &undecided, &spans, signal)?
            }
        };
        let mut ranked: Vec<Option<Vec<Candidate>>> = vec![None; accepted.len()];
        let cosines: Vec<Vec<Candidate>> = told.par_iter().map(|signal| catalogue.candidates(signal)).collect();
        open.iter().zip(cosines).for_each(|(&i, candidates)| ranked[i] = Some(candidates));
        let routed = accepted.iter().zip(ranked).map(|(query, ranked)| {
            let candidates = ranked.unwrap_or_default();
            let task = query.task.as_deref().or(candidates.first().map(|best| &*best.task));
            let resident = task.and_then(|task| catalogue.get(task)).cloned();
            let resident = resident.ok_or_else(|| candle_core::Error::Msg("a sample has no task".to_owned()))?;
            Ok(Routed { resident, candidates })
        });
        routed.collect()
    }
}

/// The same samples, one after another from row 0.
fn in_a_row(spans: &[Span]) -> Vec<Span> {
    let mut start = 0;
    let placed = spans.iter().map(|span| {
        let placed = Span { start, ..*span };
        start = placed.end();
        placed
    });
    placed.collect()
}

fn refusal(catalogue: &Catalogue, query: &Query) -> Option<EngineError> {
    if catalogue.is_empty() {
        return Some(EngineError::NothingLoaded);
    }
    query.task.as_ref().filter(|task| catalogue.get(task).is_none()).map(|task| EngineError::UnknownTask(task.clone()))
}

/// The pools that a partition has in a layer.
fn pools_of(resident: &Resident, layer: usize) -> Option<&ServingPools> {
    let partition = &resident.partition;
    partition.pools.get(layer.checked_sub(partition.meta.pools.first_adapted_layer)?)
}

fn answer(routed: Routed, pooled: &[f32], choices: &[(usize, Vec<Choice>)], explain: bool) -> Answer {
    let partition = &routed.resident.partition;
    let logit = |(row, bias): (&[f32], &f32)| bias + row.iter().zip(pooled).map(|(w, x)| w * x).sum::<f32>();
    let mut scores: Vec<f32> = partition.head_weight.chunks_exact(pooled.len()).zip(&partition.head_bias).map(logit).collect();
    if partition.meta.multi_label {
        scores.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
    } else {
        softmax(&mut scores);
    }
    let mut factors_selected = [0; 2];
    for (_, pools) in choices {
        for (pool, choice) in pools.iter().enumerate() {
            factors_selected[pool % MODALITIES.len()] += choice.a.len() as u64;
        }
    }
    let factors = explain.then(|| choices.iter().flat_map(|(layer, pools)| explained(*layer, pools)).collect());
    Answer { scores, candidates: routed.candidates, factors_selected, factors, resident: routed.resident }
}

fn explained(layer: usize, pools: &[Choice]) -> impl Iterator<Item = SelectedFactors> + '_ {
    pools.iter().enumerate().map(move |(pool, Choice { a, b })| SelectedFactors {
        layer,
        target: TARGETS[pool / MODALITIES.len()],
        modality: MODALITIES[pool % MODALITIES.len()],
        a: a.clone(),
        b: b.clone(),
    })
}
