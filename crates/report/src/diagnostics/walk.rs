//! The walk over the samples of a split, each once routed and once with its task given.
use std::sync::Arc;

use super::calibration::{Calibration, Reliability};
use super::coverage::{Coverage, Decided};
use super::queries::{QueryMap, Signal};
use super::selection::SelectionCounts;
use super::similarity::Similarity;
use super::{Diagnostics, TaskSelection};
use delo_catalogue::{Catalogue, CatalogueError, Resident, RoutingRule};
use delo_engine::{Answer, Query};
use delo_model::input::{Presence, Sample};
use delo_model::routing::{KeyAverage, KeyChoice, KeySignal, Metric, SessionKeys, TaskRule};
use delo_train::data::{Label, Samples, predict};
use delo_train::eval::{EvalError, Evaluation};

/// Samples that go through the backbone together.
const BATCH: usize = 32;

/// What is collected on the way.
struct Collected {
    similarity: Similarity,
    selection: Vec<TaskSelection>,
    signals: Vec<Signal>,
    decided: Vec<Decided>,
    /// The likeliest task's probability and whether that task is right: before any temperature, and after.
    before: Vec<(f64, bool)>,
    after: Vec<(f64, bool)>,
}

/// The diagnostics of partitions, all of them resident. The first of the evaluation's rules decides tasks;
/// without one, what the partitions propose. `progress` is called with the number of samples that are done,
/// and the number of all.
///
/// # Errors
/// [`EvalError`].
pub fn diagnose(evaluation: &Evaluation<'_>, progress: &mut dyn FnMut(usize, usize)) -> Result<Diagnostics, EvalError> {
    let (engine, data, split) = (evaluation.engine, evaluation.data, evaluation.split);
    let tasks = evaluation.tasks()?;
    let rule = evaluation.rules.first().copied().unwrap_or_default();
    let catalogue = Catalogue::empty(engine.backbone(), rule)
        .with_special_tokens(evaluation.processor.special_tokens())
        .with_all(tasks.iter().map(|(_, resident)| resident.clone()))?;
    let walk = Walk { evaluation, uncalibrated: uncalibrated(&catalogue)?, catalogue };

    let total = tasks.iter().map(|(task, _)| data.rows(*task, split).len()).sum();
    let mut collected = Collected {
        similarity: Similarity::new(),
        selection: Vec::new(),
        signals: Vec::new(),
        decided: Vec::new(),
        before: Vec::new(),
        after: Vec::new(),
    };
    for (task, resident) in &tasks {
        let rows = data.rows(*task, split);
        let mut counts = SelectionCounts::default();
        let samples = Samples::new(data, rows, evaluation.missing, evaluation.processor);
        samples.for_each_chunk(BATCH, |chunk, samples| {
            walk.chunk(samples, &rows[chunk], resident, &mut collected, &mut counts)?;
            progress(collected.decided.len(), total);
            Ok::<_, EvalError>(())
        })?;
        collected.selection.extend(counts.shares(resident.task().to_owned()));
    }

    let signal = walk.catalogue.signal();
    let keys = tasks.iter().filter_map(|(_, resident)| {
        let values = key(resident, &walk.catalogue, rule)?.to_vec();
        Some(Signal { task: resident.task().to_owned(), pattern: None, values })
    });
    let metric = walk.catalogue.metric();
    let confidence = if metric == Metric::Lda { "probability" } else { "cosine" };
    let calibration = (metric == Metric::Lda && !collected.after.is_empty())
        .then(|| Calibration { before: Reliability::of(&collected.before), after: Reliability::of(&collected.after) });
    Ok(Diagnostics {
        data: data.name.clone(),
        split: split.to_string(),
        samples: total,
        rule: format!("{metric} {signal}"),
        selection: collected.selection,
        similarity: (collected.similarity.samples > 0).then_some(collected.similarity),
        calibration,
        coverage: Coverage::of(confidence, &collected.decided),
        queries: QueryMap::of(signal.to_string(), collected.signals, keys.collect()),
    })
}

/// What does not change on the way.
struct Walk<'a> {
    evaluation: &'a Evaluation<'a>,
    catalogue: Catalogue,
    /// The rule of the catalogue with temperature 1; `None` where its metric has no temperature.
    uncalibrated: Option<Arc<dyn TaskRule>>,
}

impl Walk<'_> {
    /// Some samples of one task, at `rows` of the data set.
    fn chunk(
        &self,
        samples: &[Sample],
        rows: &[usize],
        resident: &Arc<Resident>,
        collected: &mut Collected,
        counts: &mut SelectionCounts,
    ) -> Result<(), EvalError> {
        let (engine, data) = (self.evaluation.engine, self.evaluation.data);
        let dummy = self.catalogue.dummy_image();
        let samples: Vec<Arc<Sample>> = samples.iter().cloned().map(Arc::new).collect();
        let patterns: Vec<Presence> = samples.iter().map(|sample| sample.presence()).collect();

        let signal = self.catalogue.signal();
        let signals = engine.signals(&engine.embed(&samples, dummy)?, &[signal])?;
        let values = signals.get(&signal).map(|values| values.to_vec2::<f32>()).transpose()?.unwrap_or_default();

        let open: Vec<Query> = samples.iter().map(|sample| Query::open(sample.clone())).collect();
        for (answer, (row, values)) in engine.classify(&self.catalogue, &open).into_iter().zip(rows.iter().zip(&values)) {
            self.decision(&answer?, &data.items[*row].label, resident, values, collected);
        }

        let given = |sample: &Arc<Sample>| Query::given(sample.clone(), resident.clone());
        for answer in engine.classify(&self.catalogue, &samples.iter().map(given).collect::<Vec<_>>()) {
            counts.add(answer?.selected());
        }

        let own = vec![resident.clone(); samples.len()];
        let (frozen, adapted) = (engine.layer_queries(&samples, dummy, None)?, engine.layer_queries(&samples, dummy, Some(&own))?);
        collected.similarity.add(&patterns, &frozen, &adapted);

        let of_sample = |(pattern, values)| Signal { task: resident.task().to_owned(), pattern: Some(pattern), values };
        collected.signals.extend(patterns.into_iter().zip(values).map(of_sample));
        Ok(())
    }

    /// The decision of one sample, whose true task is that of `resident`.
    fn decision(&self, answer: &Answer, label: &Label, resident: &Resident, signal: &[f32], collected: &mut Collected) {
        let Some(best) = answer.candidates.first() else { return };
        let task_right = &*best.task == resident.task();
        let class_right = || predict(&answer.scores, None) == *label;
        collected.decided.push(Decided {
            confidence: best.score.score.into(),
            task_right,
            right: (!self.evaluation.data.multi_label).then(|| task_right && class_right()),
        });
        if let Some(probability) = best.score.probability {
            collected.after.push((probability.into(), task_right));
        }
        if let Some(rule) = &self.uncalibrated {
            let scores = rule.scores(signal);
            let tasks = self.catalogue.residents().map(|resident| resident.task());
            let best = scores.iter().zip(tasks).max_by(|(a, _), (b, _)| a.score.total_cmp(&b.score));
            if let Some((score, task)) = best {
                collected.before.push((score.score.into(), task == resident.task()));
            }
        }
    }
}

/// The key that a catalogue's metric compares, of one partition.
fn key<'a>(resident: &'a Resident, catalogue: &Catalogue, rule: RoutingRule) -> Option<&'a [f32]> {
    let average = match catalogue.metric() {
        Metric::Plain => rule.average.unwrap_or(resident.partition.meta.key.plain_average),
        Metric::Whitened | Metric::Lda => KeyAverage::Mean,
    };
    resident.partition.keys.key(catalogue.signal(), average)
}

/// The rule of a catalogue with temperature 1; `None` where its metric has no temperature.
fn uncalibrated(catalogue: &Catalogue) -> Result<Option<Arc<dyn TaskRule>>, CatalogueError> {
    if catalogue.metric() != Metric::Lda {
        return Ok(None);
    }
    let signal: KeySignal = catalogue.signal();
    let sessions: Vec<SessionKeys> = catalogue.residents().map(|resident| without_temperature(&resident.partition.keys)).collect();
    let choice = KeyChoice { signal, average: KeyAverage::Mean };
    let rule = Metric::Lda.definition().rule(&sessions.iter().collect::<Vec<_>>(), choice);
    // The catalogue made the same rule, with other temperatures.
    let unusable = |e: delo_model::routing::NotPositiveDefinite| CatalogueError::Incompatible {
        task: catalogue.residents().next().map_or(String::new(), |resident| resident.task().to_owned()),
        reason: e.to_string(),
    };
    rule.map(Some).map_err(unusable)
}

fn without_temperature(keys: &SessionKeys) -> SessionKeys {
    let mut keys = keys.clone();
    keys.classes.temperature = None;
    keys
}
