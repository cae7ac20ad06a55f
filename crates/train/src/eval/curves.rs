//! What a server's policies cost and bring ([`Policy`]): accuracy against coverage where samples are rejected,
//! against the share of early answers, and against the share of samples with two adapted passes; and how well
//! samples of a session that is not resident are told from the others.
use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::metrics::mean;
use super::protocol::{EvalError, Evaluation};
use super::report::align;
use crate::data::{Label, Samples};
use crate::signals::signals as signals_of;
use delo_catalogue::{Catalogue, Resident};
use delo_engine::{Answer, Policy, Query, Scored};
use delo_model::input::Sample;
use delo_model::routing::keys::KeySignal;

/// Samples that go through the backbone together.
const BATCH: usize = 32;
/// The points of the curves over probabilities.
const PROBABILITIES: [f32; 10] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99];
/// The points of the curve over typicalities.
const TYPICALITIES: [f32; 8] = [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7];

/// One point of a curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The value of the setting.
    pub threshold: f32,
    /// The share of the samples that it concerns, in percent: those that are answered, those that are answered
    /// early, those with two passes.
    pub share: f64,
    /// The mean over the tasks of the accuracy of the samples that are answered, task-agnostic, in percent.
    pub ap: Option<f64>,
}

/// How well the samples of one session are told from the others while the session's partition is not resident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldBack {
    /// The task that is not resident.
    pub task: String,
    /// Area under the receiver operating characteristic of the typicality: the share of pairs of a foreign sample
    /// and another one in which the foreign one is less typical; 0.5 is chance.
    pub auroc_typicality: Option<f64>,
    /// The same of the probability of the likeliest task.
    pub auroc_probability: Option<f64>,
    /// The share of the foreign samples that each value of `reject` refuses, in percent, and that of the others.
    pub rejected: Vec<Rejected>,
}

/// What one value of `reject` refuses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rejected {
    /// The value.
    pub threshold: f32,
    /// Of the samples of the task that is not resident, in percent.
    pub foreign: f64,
    /// Of the samples of resident tasks, in percent.
    pub own: f64,
}

/// The curves of [`curves`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curves {
    /// Over [`Policy::reject`].
    pub coverage: Vec<Point>,
    /// Over [`Policy::early_answer`].
    pub early_answer: Vec<Point>,
    /// Over [`Policy::second_task`].
    pub second_task: Vec<Point>,
    /// One for each task.
    pub held_back: Vec<HeldBack>,
}

/// What is known of one sample, once every task is resident.
struct Judged {
    task: usize,
    probability: f32,
    typicality: f32,
    /// Whether the answer of one adapted pass is right.
    adapted: bool,
    /// Whether the early answer is right, and the probability of its class.
    early: (bool, f32),
    /// Whether the answer of two adapted passes is right.
    two: bool,
}

/// Answers every sample of the split under each policy, by the rule that the partitions ask for or the first one of
/// [`Evaluation::rules`].
///
/// # Errors
/// [`EvalError`]; [`EvalError::NoProbabilities`] where the rule gives no probabilities or the tasks are
/// multi-label.
pub fn curves(evaluation: &Evaluation<'_>) -> Result<Curves, EvalError> {
    let (engine, data) = (evaluation.engine, evaluation.data);
    let tasks = evaluation.tasks()?;
    if data.multi_label {
        return Err(EvalError::NoProbabilities);
    }
    let rule = evaluation.rules.first().copied().unwrap_or_default();
    let empty = Catalogue::empty(engine.backbone(), rule).with_special_tokens(evaluation.processor.special_tokens());
    let everything = empty.with_all(tasks.iter().map(|(_, resident)| resident.clone()))?;
    let without = (0..tasks.len()).map(|out| {
        let kept = tasks.iter().enumerate().filter(|(position, _)| *position != out).map(|(_, (_, resident))| resident.clone());
        empty.with_all(kept)
    });
    let without = without.collect::<Result<Vec<_>, _>>()?;
    let signals: BTreeSet<KeySignal> = without.iter().filter(|catalogue| !catalogue.is_empty()).map(Catalogue::signal).collect();
    let signals: Vec<KeySignal> = signals.into_iter().collect();
    let mut judged: Vec<Judged> = Vec::new();
    // For each task that is not resident, each sample's task, typicality and probability.
    let mut foreign: Vec<Vec<(usize, f32, f32)>> = vec![Vec::new(); tasks.len()];
    for (position, (task, _)) in tasks.iter().enumerate() {
        let rows = data.rows(*task, evaluation.split);
        let samples = Samples::new(data, rows, evaluation.missing, evaluation.processor);
        samples.for_each_chunk(BATCH, |chunk, samples| {
            let truth: Vec<&Label> = rows[chunk].iter().map(|&row| &data.items[row].label).collect();
            let right = |answer: &Answer, truth: &Label| right(answer, &tasks[position].1, truth);
            let plain = answers(evaluation, &everything, samples, Policy::default())?;
            // Thresholds below and above every probability: every sample is answered early, or under two tasks.
            let early = answers(evaluation, &everything, samples, Policy { early_answer: Some(f32::MIN), ..Policy::default() })?;
            let two = answers(evaluation, &everything, samples, Policy { second_task: Some(f32::MAX), ..Policy::default() })?;
            for (i, truth) in truth.iter().enumerate() {
                let score = plain[i].candidates.first().map(|best| best.score).ok_or(EvalError::NoProbabilities)?;
                let probability = score.probability.ok_or(EvalError::NoProbabilities)?;
                judged.push(Judged {
                    task: position,
                    probability,
                    typicality: score.typicality.unwrap_or(1.0),
                    adapted: right(&plain[i], truth),
                    early: (right(&early[i], truth), surety(&early[i], probability)),
                    two: right(&two[i], truth),
                });
            }
            let frozen = signals_of(engine, evaluation.store, samples, everything.dummy_image(), &signals)?;
            for (catalogue, foreign) in without.iter().zip(&mut foreign).filter(|(catalogue, _)| !catalogue.is_empty()) {
                for signal in frozen[&catalogue.signal()].to_vec2::<f32>()? {
                    let best = catalogue.candidates(&signal).into_iter().next().map(|best| best.score);
                    let best = best.ok_or(EvalError::NoProbabilities)?;
                    foreign.push((position, best.typicality.unwrap_or(1.0), best.probability.unwrap_or(1.0)));
                }
            }
            Ok::<_, EvalError>(())
        })?;
    }
    let curve = |thresholds: &[f32], concerns: &dyn Fn(&Judged, f32) -> bool, outcome: &dyn Fn(&Judged, f32) -> Option<bool>| {
        thresholds.iter().map(|&threshold| point(&judged, tasks.len(), threshold, concerns, outcome)).collect::<Vec<_>>()
    };
    Ok(Curves {
        coverage: curve(&TYPICALITIES, &|s, t| s.typicality >= t, &|s, t| (s.typicality >= t).then_some(s.adapted)),
        early_answer: curve(&PROBABILITIES, &|s, t| s.early.1 >= t, &|s, t| Some(if s.early.1 >= t { s.early.0 } else { s.adapted })),
        second_task: curve(&PROBABILITIES, &|s, t| s.probability < t, &|s, t| Some(if s.probability < t { s.two } else { s.adapted })),
        held_back: tasks.iter().zip(&foreign).enumerate().map(|(out, ((_, r), samples))| held_back(r.task(), out, samples)).collect(),
    })
}

fn answers(evaluation: &Evaluation<'_>, catalogue: &Catalogue, samples: &[Sample], policy: Policy) -> Result<Vec<Answer>, EvalError> {
    let queries: Vec<Query> = samples.iter().map(|sample| Query { policy, ..Query::open(sample.clone()) }).collect();
    Ok(evaluation.engine.classify(catalogue, &queries).into_iter().collect::<Result<_, _>>()?)
}

/// The probability of the best class of an early answer; 0 where the partition gives none, so that no threshold takes it.
fn surety(answer: &Answer, probability: f32) -> f32 {
    if answer.scored == Scored::Early { probability * answer.scores.iter().copied().fold(0.0, f32::max) } else { 0.0 }
}

/// Whether the answer is of the true task and its best label is the true one.
fn right(answer: &Answer, truth: &Resident, label: &Label) -> bool {
    let Label::Class(class) = label else { return false };
    answer.resident.task() == truth.task() && answer.best_label() == Some(truth.partition.meta.labels[*class].as_str())
}

fn point(
    judged: &[Judged],
    tasks: usize,
    threshold: f32,
    concerns: &dyn Fn(&Judged, f32) -> bool,
    outcome: &dyn Fn(&Judged, f32) -> Option<bool>,
) -> Point {
    let accuracy = |task: usize| {
        let outcomes = judged.iter().filter(|sample| sample.task == task).filter_map(|sample| outcome(sample, threshold));
        mean(outcomes.map(|right| if right { 100.0 } else { 0.0 }))
    };
    let share = percent(judged.iter().filter(|sample| concerns(sample, threshold)).count(), judged.len());
    Point { threshold, share, ap: mean((0..tasks).filter_map(accuracy)) }
}

fn percent(part: usize, of: usize) -> f64 {
    100.0 * part as f64 / of.max(1) as f64
}

fn held_back(task: &str, out: usize, samples: &[(usize, f32, f32)]) -> HeldBack {
    let split = |value: &dyn Fn(&(usize, f32, f32)) -> f32| -> (Vec<f32>, Vec<f32>) {
        let (foreign, own): (Vec<_>, Vec<_>) = samples.iter().partition(|(position, ..)| *position == out);
        (foreign.into_iter().map(value).collect(), own.into_iter().map(value).collect())
    };
    let (foreign, own) = split(&|sample| sample.1);
    let below = |values: &[f32], threshold: f32| percent(values.iter().filter(|value| **value < threshold).count(), values.len());
    let (probable_foreign, probable_own) = split(&|sample| sample.2);
    HeldBack {
        task: task.to_owned(),
        auroc_typicality: auroc(&foreign, &own),
        auroc_probability: auroc(&probable_foreign, &probable_own),
        rejected: TYPICALITIES
            .into_iter()
            .filter(|threshold| *threshold > 0.0)
            .map(|threshold| Rejected { threshold, foreign: below(&foreign, threshold), own: below(&own, threshold) })
            .collect(),
    }
}

/// The share of pairs in which the value of `low` is below that of `high`; equal ones count half. `None` without
/// pairs.
fn auroc(low: &[f32], high: &[f32]) -> Option<f64> {
    let mut sorted = high.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let above = |value: &f32| {
        let below = sorted.partition_point(|other| other < value);
        let equal = sorted.partition_point(|other| other <= value) - below;
        (sorted.len() - below - equal) as f64 + equal as f64 / 2.0
    };
    let pairs = low.len() * high.len();
    (pairs > 0).then(|| low.iter().map(above).sum::<f64>() / pairs as f64)
}

impl Curves {
    /// The tables that a person reads.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let shown = |x: Option<f64>, digits: usize| x.map_or("–".to_owned(), |x| format!("{x:.digits$}"));
        for (name, share, points) in [
            ("reject", "answered %", &self.coverage),
            ("early_answer", "answered early %", &self.early_answer),
            ("second_task", "two passes %", &self.second_task),
        ] {
            let mut rows = vec![[name, share, "AP, task-agnostic"].map(str::to_owned).to_vec()];
            rows.extend(points.iter().map(|p| vec![p.threshold.to_string(), format!("{:.1}", p.share), shown(p.ap, 1)]));
            align(&mut out, &rows);
            out.push('\n');
        }
        let thresholds = self.held_back.first().map_or(&[][..], |first| &first.rejected);
        let mut head = ["not resident", "AUROC typicality", "AUROC probability"].map(str::to_owned).to_vec();
        head.extend(thresholds.iter().map(|r| format!("reject {}: foreign / own %", r.threshold)));
        let mut rows = vec![head];
        for row in &self.held_back {
            let mut cells = vec![row.task.clone(), shown(row.auroc_typicality, 3), shown(row.auroc_probability, 3)];
            cells.extend(row.rejected.iter().map(|r| format!("{:.0} / {:.0}", r.foreign, r.own)));
            rows.push(cells);
        }
        align(&mut out, &rows);
        let mean_of = |value: fn(&HeldBack) -> Option<f64>| shown(mean(self.held_back.iter().filter_map(value)), 3);
        // Writing to a string cannot fail.
        let _ = write!(out, "mean AUROC: typicality {}, probability {}", mean_of(|h| h.auroc_typicality), mean_of(|h| h.auroc_probability));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_the_share_of_ordered_pairs_and_ties_count_half() {
        assert_eq!(auroc(&[0.1, 0.2], &[0.3, 0.4]), Some(1.0));
        assert_eq!(auroc(&[0.3, 0.4], &[0.1, 0.2]), Some(0.0));
        assert_eq!(auroc(&[0.1, 0.3], &[0.2, 0.3]), Some((1.0 + 1.0 + 0.0 + 0.5) / 4.0));
        assert_eq!(auroc(&[], &[0.2]), None);
    }

    #[test]
    fn a_point_counts_the_tasks_alike_and_only_the_answered_samples() {
        let sample = |task, typicality, adapted| Judged { task, probability: 0.5, typicality, adapted, early: (false, 0.0), two: false };
        let judged = [sample(0, 0.9, true), sample(0, 0.01, false), sample(0, 0.8, false), sample(1, 0.7, true)];
        let found = point(&judged, 2, 0.05, &|s, t| s.typicality >= t, &|s, t| (s.typicality >= t).then_some(s.adapted));
        assert_eq!((found.share, found.ap), (75.0, Some((50.0 + 100.0) / 2.0)));
    }
}
