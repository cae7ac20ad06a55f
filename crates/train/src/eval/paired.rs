//! AP under the draws of a bootstrap that are the same for every evaluation of the same items, so that
//! evaluations can be compared sample by sample (METHOD.md 6).
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::interval::{Groups, Member, percentiles};
use super::report::SampleRecord;
use crate::data::{Label, Tally};

/// The labels of each task.
pub type TaskLabels = BTreeMap<String, Vec<String>>;

/// How the task of a sample is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The true task is given.
    Oracle,
    /// By the routing rule of this index in [`SampleRecord::routed`].
    Agnostic(usize),
}

/// AP of one evaluation, in percent, and AP under each draw of the bootstrap. The n-th draws of two
/// evaluations of the same items are of the same items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrawnAp {
    /// AP over all samples.
    pub ap: f64,
    /// AP under each draw.
    pub draws: Vec<f64>,
}

impl DrawnAp {
    /// AP of these samples; `None` without samples.
    pub fn of(samples: &[SampleRecord], labels: &TaskLabels, multi_label: bool, reading: Reading) -> Option<Self> {
        let mut positions: BTreeMap<&str, usize> = BTreeMap::new();
        for sample in samples {
            let next = positions.len();
            positions.entry(&sample.task).or_insert(next);
        }
        let groups = Groups::of(samples.iter().map(|s| Member { group: s.group.as_deref(), task: positions[s.task.as_str()] }));
        let count = |tally: &mut Tally, i: usize| {
            let sample = &samples[i];
            let of_task = labels.get(&sample.task).map_or(&[][..], Vec::as_slice);
            let label = |names: &[String]| {
                if multi_label {
                    return Label::Classes(of_task.iter().map(|label| names.contains(label)).collect());
                }
                // A class that the task does not have is the prediction of none.
                let class = names.first().and_then(|name| of_task.iter().position(|label| label == name));
                Label::Class(class.unwrap_or(of_task.len()))
            };
            let prediction = label(&sample.prediction);
            tally.count(Some(&prediction).filter(|_| reading.counts(sample)), &label(&sample.truth));
        };
        Some(Self { ap: groups.ap(count)?, draws: groups.draws(count) })
    }

    /// The mean of several evaluations, draw by draw; `None` without any.
    pub fn mean(of: &[Self]) -> Option<Self> {
        let n = of.len() as f64;
        let first = of.first()?;
        let draws = (0..first.draws.len()).map(|draw| of.iter().filter_map(|ap| ap.draws.get(draw)).sum::<f64>() / n);
        Some(Self { ap: of.iter().map(|ap| ap.ap).sum::<f64>() / n, draws: draws.collect() })
    }

    /// This AP minus another, draw by draw. Both are of the same items.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        Self { ap: self.ap - other.ap, draws: self.draws.iter().zip(&other.draws).map(|(a, b)| a - b).collect() }
    }

    /// The 2.5th and the 97.5th percentile of the draws.
    pub fn interval(&self) -> Option<[f64; 2]> {
        percentiles(self.draws.clone())
    }
}

impl Reading {
    /// Whether the sample's prediction counts: its own task is chosen.
    fn counts(self, sample: &SampleRecord) -> bool {
        match self {
            Self::Oracle => true,
            Self::Agnostic(rule) => sample.unrouted || sample.routed.get(rule).is_some_and(|task| task.as_ref() == Some(&sample.task)),
        }
    }
}

/// A hash of the items of an evaluation, with their groups, tasks and modalities, in hexadecimal: two
/// evaluations can be compared draw by draw where it is the same.
pub fn items_digest(samples: &[SampleRecord]) -> String {
    let mut hash = Sha256::new();
    for SampleRecord { item, image, group, task, pattern, .. } in samples {
        hash.update(format!("{item} {image:?} {group:?} {task:?} {pattern:?}\n"));
    }
    format!("{:x}", hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use delo_model::input::Presence;

    /// Samples of one task in groups of two, of which the first `right` are predicted right.
    fn samples(n: usize, right: usize) -> Vec<SampleRecord> {
        let sample = |i: usize| SampleRecord {
            item: i,
            image: format!("{i}.png"),
            group: Some((i / 2).to_string()),
            task: "soups".into(),
            pattern: Presence::Complete,
            truth: vec!["red".into()],
            prediction: vec![if i < right { "red" } else { "green" }.into()],
            routed: vec![Some(if i.is_multiple_of(2) { "soups" } else { "pies" }.into())],
            unrouted: false,
        };
        (0..n).map(sample).collect()
    }

    fn drawn(samples: &[SampleRecord], reading: Reading) -> DrawnAp {
        let labels = TaskLabels::from([("soups".to_owned(), vec!["red".to_owned(), "green".to_owned()])]);
        DrawnAp::of(samples, &labels, false, reading).unwrap()
    }

    #[test]
    fn what_two_evaluations_have_in_common_does_not_widen_their_difference() {
        let (a, b) = (samples(80, 60), samples(80, 40));
        assert_eq!(items_digest(&a), items_digest(&b));
        assert_ne!(items_digest(&a), items_digest(&a[1..]));
        let (a, b) = (drawn(&a, Reading::Oracle), drawn(&b, Reading::Oracle));
        assert_eq!((a.ap, b.ap), (75.0, 50.0));
        let difference = a.minus(&b);
        assert_eq!(difference.ap, 25.0);
        // 10 of 40 groups differ: 25 ± 1.96 · 100 · √(0.25 · 0.75 / 40).
        let [low, high] = difference.interval().unwrap();
        assert!((low - 11.6).abs() < 2.0 && (high - 38.4).abs() < 2.0, "[{low}, {high}]");
        assert_eq!(a.minus(&a).interval(), Some([0.0, 0.0]));
        assert_eq!(DrawnAp::mean(&[a.clone(), b.clone()]).unwrap().ap, 62.5);
    }

    #[test]
    fn a_sample_of_a_wrongly_chosen_task_counts_as_wrong() {
        let mut of = samples(80, 60);
        assert_eq!(drawn(&of, Reading::Agnostic(0)).ap, 37.5);
        of.iter_mut().for_each(|sample| sample.unrouted = true);
        assert_eq!(drawn(&of, Reading::Agnostic(0)).ap, 75.0);
    }

    #[test]
    fn a_class_that_never_occurs_counts_in_f1_macro() {
        let labels = TaskLabels::from([("soups".to_owned(), ["red", "green"].map(str::to_owned).to_vec())]);
        let found = DrawnAp::of(&samples(4, 4), &labels, true, Reading::Oracle).unwrap();
        assert_eq!(found.ap, 50.0);
    }
}
