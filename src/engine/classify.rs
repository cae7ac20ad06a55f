//! Samples of any tasks through one forward: decide the task, apply each sample's own factors, score.
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::forward::queries;
use super::ops::LowRank;
use super::packed::Packed;
use super::{Answer, Candidate, Catalogue, Engine, EngineError, Query, Resident, SelectedFactors};
use crate::delo::selection::softmax;
use crate::delo::serving_pools::{Choice, ServingPools};
use crate::delo::task_model::{MODALITIES, TARGETS};
use crate::input::Sample;

/// A sample whose task is decided.
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
        let signals = self.signals(&self.embed(samples, catalogue.dummy_image())?, &[catalogue.signal()])?;
        let rows = signals[&catalogue.signal().to_string()].to_vec2::<f32>()?;
        Ok(rows.iter().map(|row| named(&catalogue.candidates(row))).collect())
    }

    fn forward(&self, catalogue: &Catalogue, accepted: &[&Query]) -> Result<Vec<Answer>> {
        if accepted.is_empty() {
            return Ok(Vec::new());
        }
        let samples: Vec<&Sample> = accepted.iter().map(|q| &q.sample).collect();
        let embedded = self.embed(&samples, catalogue.dummy_image())?;
        let (base, routed) = self.decide(catalogue, accepted, embedded)?;
        let layers = self.vilt.layers.len();
        let start = catalogue.first_adapted_layer(layers);
        let mut hidden = base.hidden.clone();
        let mut choices: Vec<Vec<(usize, Vec<Choice>)>> = vec![Vec::new(); accepted.len()];
        for layer in start..layers {
            hidden = self.mixed_layer(layer, &base.with_hidden(hidden), &routed, &mut choices)?;
        }
        let pooled = self.pooled(&hidden, &base.spans)?.to_vec2::<f32>()?;
        let answers = routed.into_iter().zip(pooled).zip(choices).zip(accepted);
        Ok(answers.map(|(((routed, pooled), choices), query)| answer(routed, &pooled, &choices, query.explain)).collect())
    }

    /// The state entering the first layer that any resident task adapts, and each sample's task. A signal at or before that layer is read on the
    /// way; a later one costs the samples whose task is not given a frozen pass of their own.
    fn decide(&self, catalogue: &Catalogue, accepted: &[&Query], embedded: Packed) -> Result<(Packed, Vec<Routed>)> {
        let layers = self.vilt.layers.len();
        let start = catalogue.first_adapted_layer(layers);
        let told_at = catalogue.signal().layer().unwrap_or(layers);
        let open: Vec<usize> = (0..accepted.len()).filter(|&i| accepted[i].task.is_none()).collect();
        let (base, signal) = if open.is_empty() {
            (self.run_frozen(&embedded, 0..start)?, None)
        } else if told_at <= start {
            let state = self.run_frozen(&embedded, 0..told_at)?;
            let signal = self.signal_at(&state, catalogue.signal())?;
            let signal = signal.index_select(&Tensor::new(open.iter().map(|&i| i as u32).collect::<Vec<_>>(), &Device::Cpu)?, 0)?;
            (self.run_frozen(&state, told_at..start)?, Some(signal))
        } else {
            let base = self.run_frozen(&embedded, 0..start)?;
            let undecided = if open.len() == accepted.len() { base.clone() } else { base.select(&open)? };
            let state = self.run_frozen(&undecided, start..told_at)?;
            let signal = self.signal_at(&state, catalogue.signal())?;
            (base, Some(signal))
        };
        let mut signals = signal.map(|s| s.to_vec2::<f32>()).transpose()?.unwrap_or_default().into_iter();
        let mut routed = Vec::with_capacity(accepted.len());
        for query in accepted {
            let (resident, candidates) = match &query.task {
                Some(task) => (catalogue.get(task).cloned(), Vec::new()),
                None => {
                    let ranked = signals.next().map(|signal| catalogue.candidates(&signal)).unwrap_or_default();
                    (ranked.first().map(|(resident, _)| resident.clone()), named(&ranked))
                }
            };
            let Some(resident) = resident else { candle_core::bail!("a sample has no task") };
            routed.push(Routed { resident, candidates });
        }
        Ok((base, routed))
    }

    /// One layer in which each sample has its own task's factors, or none before its task's first adapted layer.
    fn mixed_layer(&self, layer: usize, state: &Packed, routed: &[Routed], choices: &mut [Vec<(usize, Vec<Choice>)>]) -> Result<Tensor> {
        let (hidden, spans) = (&state.hidden, &state.spans);
        let pools: Vec<Option<&ServingPools>> = routed.iter().map(|r| pools_of(&r.resident, layer)).collect();
        if pools.iter().all(Option::is_none) {
            return self.layer(layer, hidden, spans, None);
        }
        let (visual, textual) = queries(hidden, spans)?;
        let (visual, textual) = (visual.to_vec2::<f32>()?, textual.to_vec2::<f32>()?);
        let (mut a, mut b, mut pairs) = (Vec::new(), Vec::new(), Vec::with_capacity(pools.len()));
        for (i, pools) in pools.iter().enumerate() {
            if let Some(pools) = pools {
                choices[i].push((layer, pools.select(&visual[i], &textual[i], &mut a, &mut b)));
            }
            pairs.push(pools.map_or(0, ServingPools::pairs));
        }
        let d = self.vilt.config.hidden_size;
        let rows = a.len() / d;
        let (a, b) = (Tensor::from_vec(a, (rows, d), &Device::Cpu)?, Tensor::from_vec(b, (rows, d), &Device::Cpu)?);
        let pairs: Arc<[usize]> = pairs.into();
        let update = |x: &Tensor| x.apply_op3(&a, &b, LowRank { spans: spans.clone(), pairs: pairs.clone() });
        self.layer(layer, hidden, spans, Some(&update))
    }
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

fn named(candidates: &[(Arc<Resident>, f32)]) -> Vec<Candidate> {
    candidates.iter().map(|(resident, cosine)| Candidate { task: resident.task().into(), cosine: *cosine }).collect()
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
