//! A batch of samples of any tasks through one forward: decide the tasks, apply each sample's own factors,
//! score.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use candle_core::Result;
use rayon::prelude::*;

use super::backend::{Adapters, Backend};
use super::forward::in_pool;
use super::packed::Span;
use super::policy::{Plan, Scored};
use super::prompted::{repacked, with_prompts};
use super::signals::{self, Reader};
use super::{Answer, Engine, EngineError, Marks, Query};
use crate::compute::with_backend;
use delo_catalogue::{Candidate, Catalogue, Resident};
use delo_model::input::Sample;
use delo_model::method::factors::Choice;
use delo_model::method::selection::softmax;
use delo_model::routing::keys::KeySignal;

/// A sample whose task is decided.
struct Routed {
    resident: Arc<Resident>,
    candidates: Vec<Candidate>,
    /// The signals that were read for it.
    signals: Signals,
    /// The text CLS of its frozen pass after the final norm, `[d]`; `None` where no partition that may serve
    /// it chooses prompts by it.
    frozen_cls: Option<Vec<f32>>,
}

/// The signals of one sample, `[width]` each.
type Signals = BTreeMap<KeySignal, Vec<f32>>;

impl Engine {
    /// Classifies samples of any tasks and modalities in one batch; the answers are in the order of the
    /// queries. Blocking.
    ///
    /// # Errors
    /// Of each sample by itself: [`EngineError::NothingLoaded`] where the catalogue is empty and the query
    /// names no partition. A failed forward pass fails all samples of its batch that use the same dummy
    /// image.
    pub fn classify(&self, catalogue: &Catalogue, queries: &[Query]) -> Vec<std::result::Result<Answer, EngineError>> {
        let mut answers: Vec<_> = queries.iter().map(|_| Err(EngineError::NothingLoaded)).collect();
        // All partitions of one catalogue use the same dummy image. A partition that a query names may have
        // left the catalogue meanwhile and use another one.
        let mut groups: Vec<([usize; 2], Vec<usize>)> = Vec::new();
        for (i, query) in queries.iter().enumerate().filter(|(_, q)| q.given.is_some() || !catalogue.is_empty()) {
            let dummy = query.given.as_ref().map_or(catalogue.dummy_image(), |resident| resident.dummy_image());
            match groups.iter_mut().find(|(of, _)| *of == dummy) {
                Some((_, members)) => members.push(i),
                None => groups.push((dummy, vec![i])),
            }
        }
        for (dummy, members) in groups {
            let accepted: Vec<&Query> = members.iter().map(|&i| &queries[i]).collect();
            match self.forward(catalogue, dummy, &accepted) {
                Ok(computed) => members.into_iter().zip(computed).for_each(|(i, answer)| answers[i] = Ok(answer)),
                Err(e) => members.into_iter().for_each(|i| answers[i] = Err(EngineError::Compute(e.to_string()))),
            }
        }
        answers
    }

    /// The task decision alone: for each sample, every resident task with its score, highest first. Blocking.
    ///
    /// # Errors
    /// A failed forward pass.
    pub fn route(&self, catalogue: &Catalogue, samples: &[Sample]) -> Result<Vec<Vec<Candidate>>> {
        let samples: Vec<&Sample> = samples.iter().collect();
        let layers = self.backbone.config.num_hidden_layers;
        with_backend!(&self.compute, backbone => in_pool(|| {
            let (hidden, spans) = backbone.embed(&samples, self.dummy(catalogue.dummy_image()))?;
            let signal = catalogue.signal();
            let rows = signals::signals(backbone, hidden, &spans, layers, &[signal])?;
            Ok(rows[&signal].iter().map(|row| catalogue.candidates(row)).collect())
        }))
    }

    /// The pooled output of the frozen backbone without any adapter, `[samples, d]`. Height and width of
    /// `dummy_image` are in pixels. Blocking.
    ///
    /// # Errors
    /// A failed forward pass.
    pub fn pooled(&self, samples: &[Sample], dummy_image: [usize; 2]) -> Result<Vec<Vec<f32>>> {
        let samples: Vec<&Sample> = samples.iter().collect();
        with_backend!(&self.compute, backbone => in_pool(|| {
            let (hidden, spans) = backbone.embed(&samples, self.dummy(dummy_image))?;
            backbone.run_to_pooled(hidden, &spans, 0, None)
        }))
    }

    fn forward(&self, catalogue: &Catalogue, dummy_image: [usize; 2], accepted: &[&Query]) -> Result<Vec<Answer>> {
        with_backend!(&self.compute, backbone => in_pool(|| self.forward_on(backbone, catalogue, dummy_image, accepted)))
    }

    fn forward_on<B: Backend>(
        &self,
        backbone: &B,
        catalogue: &Catalogue,
        dummy_image: [usize; 2],
        accepted: &[&Query],
    ) -> Result<Vec<Answer>> {
        let began = Instant::now();
        let samples: Vec<&Sample> = accepted.iter().map(|q| &*q.sample).collect();
        let (mut hidden, mut spans) = backbone.embed(&samples, self.dummy(dummy_image))?;
        let layers = self.backbone.config.num_hidden_layers;
        let given = accepted.iter().filter_map(|query| query.given.as_ref()).map(|resident| resident.first_adapted_layer());
        let start = given.fold(catalogue.first_adapted_layer(layers), usize::min);
        let read = self.read(backbone, catalogue, accepted, start, &mut hidden, &spans)?;
        let frozen = Instant::now();
        let routed = decide(catalogue, accepted, read)?;
        let plans: Vec<Plan> = routed.iter().zip(accepted).map(|(routed, query)| routed.plan(catalogue, query)).collect();
        let decided = Instant::now();
        let passes = passes(&routed, &plans);
        // Usually every sample has one adapted pass.
        if !passes.iter().map(|(i, _)| *i).eq(0..routed.len()) {
            let chosen: Vec<Span> = passes.iter().map(|&(i, _)| spans[i]).collect();
            hidden = backbone.select(&hidden, &chosen)?;
            spans = repacked(&chosen);
        }
        let prompted = passes.iter().map(|&(i, resident)| (&resident.partition.adapter, routed[i].frozen_cls.as_deref()));
        (hidden, spans) = with_prompts(backbone, hidden, spans, prompted)?;
        let mut adapters = Adapters::new(passes.iter().map(|(_, resident)| &resident.partition.adapter).collect());
        let pooled = if passes.is_empty() { Vec::new() } else { backbone.run_to_pooled(hidden, &spans, start, Some(&mut adapters))? };
        let chosen = std::mem::take(&mut adapters.chosen);
        let mut computed = pooled.iter().zip(chosen).map(|(pooled, choices)| Pass { pooled, choices });
        let mut scored = Vec::with_capacity(accepted.len());
        for (routed, plan) in routed.iter().zip(plans) {
            let mut pass = || computed.next().ok_or_else(|| candle_core::Error::Msg("a sample has no adapted pass".to_owned()));
            scored.push(match plan {
                Plan::Pass => routed.scored(&routed.resident, pass()?),
                Plan::Two(second) => {
                    let first = routed.scored(&routed.resident, pass()?);
                    likelier(&routed.candidates, first, routed.scored(&second, pass()?))
                }
                Plan::Early(scores) => routed.unadapted(scores, Scored::Early),
                Plan::Reject => routed.unadapted(Vec::new(), Scored::Rejected),
            });
        }
        let marks = Marks { began, frozen, decided, ended: Instant::now() };
        let answer = |(Scores { resident, scores, scored, choices }, routed): (Scores, Routed)| Answer {
            resident,
            scores,
            scored,
            candidates: routed.candidates,
            choices,
            marks,
        };
        Ok(scored.into_iter().zip(routed).map(answer).collect())
    }

    /// Reads the frozen backbone's signals that the samples need, and advances `hidden` from layer 0 to layer
    /// `start`, the first layer that any possible partition adapts. Signals at or before that layer are read on
    /// the way. For signals of later layers, the samples that need them get a frozen pass of their own: those
    /// whose partition is not given, and those whose partition has an analytic classifier or chooses prompts.
    fn read<B: Backend>(
        &self,
        backbone: &B,
        catalogue: &Catalogue,
        accepted: &[&Query],
        start: usize,
        hidden: &mut B::Hidden,
        spans: &[Span],
    ) -> Result<Vec<Read>> {
        let layers = self.backbone.config.num_hidden_layers;
        let wanted = wanted(catalogue, accepted);
        let mut reader = Reader::new(&wanted, layers);
        if wants_frozen_cls(catalogue, accepted) {
            reader = reader.with_frozen_cls();
        }
        let asks =
            |query: &&Query| query.given.as_ref().is_none_or(|resident| resident.partition.analytic.is_some() || chooses_prompts(resident));
        let asking: Vec<usize> = (0..accepted.len()).filter(|&i| asks(&accepted[i])).collect();
        let chosen: Vec<Span> = asking.iter().map(|&i| spans[i]).collect();
        reader.run(backbone, hidden, spans, 0..start)?;
        reader.keep(&asking);
        if !reader.is_done() {
            let asking = backbone.select(hidden, &chosen)?;
            reader.run_to_end(backbone, asking, &repacked(&chosen), start)?;
        }
        let mut read: Vec<Read> = accepted.iter().map(|_| Read::default()).collect();
        for signal in wanted {
            asking.iter().zip(reader.signal(signal, &chosen)).for_each(|(&i, row)| drop(read[i].signals.insert(signal, row)));
        }
        asking.iter().zip(reader.frozen_cls()).for_each(|(&i, cls)| read[i].frozen_cls = Some(cls));
        Ok(read)
    }
}

/// What was read of one sample's frozen pass.
#[derive(Default)]
struct Read {
    signals: Signals,
    frozen_cls: Option<Vec<f32>>,
}

/// Decides each sample's partition.
fn decide(catalogue: &Catalogue, accepted: &[&Query], read: Vec<Read>) -> Result<Vec<Routed>> {
    let route = |(query, Read { signals, frozen_cls }): (&&Query, Read)| {
        let undecided = signals.get(&catalogue.signal()).filter(|_| query.given.is_none());
        let candidates = undecided.map(|signal| catalogue.candidates(signal)).unwrap_or_default();
        let decided = || candidates.first().and_then(|best| catalogue.pick(&best.task, query.ticket)).cloned();
        let resident = query.given.clone().or_else(decided);
        let resident = resident.ok_or_else(|| candle_core::Error::Msg("a sample has no task".to_owned()))?;
        Ok(Routed { resident, candidates, signals, frozen_cls })
    };
    accepted.par_iter().zip(read).map(route).collect()
}

/// The signals that the samples of a batch may need: the one that decides tasks, where a sample's task is open,
/// and those of the analytic classifiers.
fn wanted(catalogue: &Catalogue, accepted: &[&Query]) -> Vec<KeySignal> {
    let of = |resident: &Resident| resident.partition.analytic.as_ref().map(|analytic| analytic.record.signal);
    let mut wanted: BTreeSet<KeySignal> = accepted.iter().filter_map(|query| query.given.as_deref().and_then(of)).collect();
    if accepted.iter().any(|query| query.given.is_none()) {
        wanted.insert(catalogue.signal());
        wanted.extend(catalogue.versions().filter_map(|resident| of(resident)));
    }
    wanted.into_iter().collect()
}

/// Whether some sample of a batch may be served by a partition that chooses prompts.
fn wants_frozen_cls(catalogue: &Catalogue, accepted: &[&Query]) -> bool {
    let given = || accepted.iter().filter_map(|query| query.given.as_deref());
    let open = || accepted.iter().any(|query| query.given.is_none());
    given().any(chooses_prompts) || (open() && catalogue.prompt_tokens() > 0)
}

fn chooses_prompts(resident: &Resident) -> bool {
    resident.partition.adapter.prompt_pool().is_some()
}

/// The adapted passes of a batch: the number of the sample, and the partition whose adapter the pass applies.
fn passes<'a>(routed: &'a [Routed], plans: &'a [Plan]) -> Vec<(usize, &'a Arc<Resident>)> {
    let of_sample = |(i, (routed, plan)): (usize, (&'a Routed, &'a Plan))| {
        let residents = match plan {
            Plan::Pass => vec![&routed.resident],
            Plan::Two(second) => vec![&routed.resident, second],
            Plan::Early(_) | Plan::Reject => Vec::new(),
        };
        residents.into_iter().map(move |resident| (i, resident))
    };
    routed.iter().zip(plans).enumerate().flat_map(of_sample).collect()
}

/// What is scored of one sample, under one task: the fields of [`Answer`].
struct Scores {
    resident: Arc<Resident>,
    scores: Vec<f32>,
    scored: Scored,
    choices: Vec<(usize, Vec<Choice>)>,
}

/// What an adapted pass computed of one sample.
struct Pass<'a> {
    /// The pooled output, `[d]`.
    pooled: &'a [f32],
    /// The chosen factors of each adapted layer.
    choices: Vec<(usize, Vec<Choice>)>,
}

impl Routed {
    /// What remains to be computed for the sample.
    fn plan(&self, catalogue: &Catalogue, query: &Query) -> Plan {
        query.policy.plan(catalogue, &self.resident, &self.candidates, self.analytic_signal(&self.resident), query.ticket)
    }

    /// The signal that the partition's analytic classifier reads, `[width]`; `None` where it has no such
    /// classifier.
    fn analytic_signal(&self, resident: &Resident) -> Option<&[f32]> {
        let analytic = resident.partition.analytic.as_ref()?;
        self.signals.get(&analytic.record.signal).map(Vec::as_slice)
    }

    /// The scores of a partition after its adapted pass.
    fn scored(&self, resident: &Arc<Resident>, Pass { pooled, choices }: Pass<'_>) -> Scores {
        let partition = &resident.partition;
        let logit = |(row, bias): (&[f32], &f32)| bias + row.iter().zip(pooled).map(|(w, x)| w * x).sum::<f32>();
        let mut scores: Vec<f32> = partition.head_weight.chunks_exact(pooled.len()).zip(&partition.head_bias).map(logit).collect();
        if let Some((analytic, signal)) = partition.analytic.as_ref().zip(self.analytic_signal(resident)) {
            analytic.mix(signal, &mut scores);
        }
        if partition.meta.multi_label {
            scores.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
        } else {
            softmax(&mut scores);
        }
        Scores { scores, scored: Scored::Adapted, choices, resident: resident.clone() }
    }

    /// The scores of a sample without an adapted pass.
    fn unadapted(&self, scores: Vec<f32>, scored: Scored) -> Scores {
        Scores { scores, scored, choices: Vec::new(), resident: self.resident.clone() }
    }
}

/// The scores whose best class is the likelier one: P(task) · P(class given the task). The first of two equal ones.
fn likelier(candidates: &[Candidate], first: Scores, second: Scores) -> Scores {
    let probability = |scored: &Scores| {
        let of_task = candidates.iter().find(|candidate| *candidate.task == *scored.resident.task());
        let task = of_task.and_then(|candidate| candidate.score.probability).unwrap_or_default();
        task * scored.scores.iter().copied().fold(0.0, f32::max)
    };
    if probability(&second) > probability(&first) { second } else { first }
}
