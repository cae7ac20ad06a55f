//! Confidence intervals of AP: a bootstrap that draws groups of items, because the items of one group are not
//! independent (METHOD.md 6).
use std::collections::BTreeMap;

use rayon::prelude::*;

use super::metrics::mean;
use crate::data::Tally;
use crate::random::{Purpose, below, stream};

/// Number of bootstrap draws.
const DRAWS: usize = 2000;
/// The seed of the draws: two evaluations of the same samples draw the same groups.
const SEED: u64 = 0;

/// One sample of a bootstrap.
pub(super) struct Member<'a> {
    /// The family of samples that are drawn together; `None`: it is drawn alone.
    pub(super) group: Option<&'a str>,
    /// Position among the evaluated tasks.
    pub(super) task: usize,
}

/// The groups of some samples. Each draw takes as many groups as there are, with replacement, within each
/// stratum. A stratum holds the groups whose first sample is of one task, so that every task keeps its weight.
pub(super) struct Groups {
    /// For each sample: the index of its group.
    of_sample: Vec<usize>,
    /// For each sample: its task.
    tasks: Vec<usize>,
    /// Indices of groups.
    strata: Vec<Vec<usize>>,
    /// Number of groups.
    count: usize,
}

impl Groups {
    pub(super) fn of<'a>(members: impl Iterator<Item = Member<'a>>) -> Self {
        let mut named: BTreeMap<&str, usize> = BTreeMap::new();
        let mut strata: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let (mut of_sample, mut tasks, mut count) = (Vec::new(), Vec::new(), 0);
        for Member { group, task } in members {
            let index = group.map_or(count, |name| *named.entry(name).or_insert(count));
            if index == count {
                strata.entry(task).or_default().push(index);
                count += 1;
            }
            of_sample.push(index);
            tasks.push(task);
        }
        Self { of_sample, tasks, strata: strata.into_values().collect(), count }
    }

    /// The 2.5th and the 97.5th percentile of AP over the draws, in percent. `count` adds the sample of an
    /// index to a tally; AP is the mean over the tasks' scores. `None` without samples.
    pub(super) fn interval(&self, count: impl Fn(&mut Tally, usize)) -> Option<[f64; 2]> {
        percentiles(self.draws(count))
    }

    /// AP over all samples, in percent; `None` without samples.
    pub(super) fn ap(&self, count: impl Fn(&mut Tally, usize)) -> Option<f64> {
        let mut tasks: BTreeMap<usize, Tally> = BTreeMap::new();
        self.tasks.iter().enumerate().for_each(|(sample, &task)| count(tasks.entry(task).or_default(), sample));
        mean(tasks.values().filter_map(Tally::score))
    }

    /// AP under each draw, in percent; empty without samples.
    pub(super) fn draws(&self, count: impl Fn(&mut Tally, usize)) -> Vec<f64> {
        // By group: the tally of its samples of each task.
        let mut tallies: Vec<BTreeMap<usize, Tally>> = vec![BTreeMap::new(); self.count];
        for (sample, (&group, &task)) in self.of_sample.iter().zip(&self.tasks).enumerate() {
            count(tallies[group].entry(task).or_default(), sample);
        }
        (0..DRAWS).into_par_iter().filter_map(|draw| self.draw(draw as u64, &tallies)).collect()
    }

    /// AP of one draw. A task of which no sample is drawn is left out.
    fn draw(&self, draw: u64, tallies: &[BTreeMap<usize, Tally>]) -> Option<f64> {
        let mut tasks: BTreeMap<usize, Tally> = BTreeMap::new();
        for (stratum, groups) in self.strata.iter().enumerate() {
            let mut rng = stream(Purpose::Bootstrap, SEED, (draw, stratum as u64));
            for _ in 0..groups.len() {
                for (task, tally) in &tallies[groups[below(&mut rng, groups.len())]] {
                    tasks.entry(*task).or_default().add(tally, 1);
                }
            }
        }
        mean(tasks.values().filter_map(Tally::score))
    }
}

/// The 2.5th and the 97.5th percentile of some draws; `None` without any.
pub(super) fn percentiles(mut drawn: Vec<f64>) -> Option<[f64; 2]> {
    drawn.sort_unstable_by(f64::total_cmp);
    let cut = drawn.len() / 40;
    Some([*drawn.get(cut)?, *drawn.get(drawn.len() - 1 - cut)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Label;

    /// The interval of samples with these groups, tasks and outcomes.
    fn interval(samples: &[(Option<&str>, usize, bool)]) -> Option<[f64; 2]> {
        let groups = Groups::of(samples.iter().map(|&(group, task, _)| Member { group, task }));
        groups.interval(|tally, i| tally.count(Some(&Label::Class(0)), &Label::Class(usize::from(!samples[i].2))))
    }

    #[test]
    fn the_interval_of_independent_samples_is_the_binomials() {
        let samples: Vec<_> = (0..400).map(|i| (None, 0, i % 2 == 0)).collect();
        let [low, high] = interval(&samples).unwrap();
        // 50 ± 1.96 · 100 · √(0.25 / 400)
        assert!((low - 45.1).abs() < 0.8 && (high - 54.9).abs() < 0.8, "[{low}, {high}]");
    }

    #[test]
    fn samples_of_one_group_count_as_one() {
        let names: Vec<String> = (0..100).map(|i| i.to_string()).collect();
        let samples: Vec<_> = (0..400).map(|i| (Some(names[i / 4].as_str()), 0, i / 4 % 2 == 0)).collect();
        let [low, high] = interval(&samples).unwrap();
        // 50 ± 1.96 · 100 · √(0.25 / 100)
        assert!((low - 40.2).abs() < 1.5 && (high - 59.8).abs() < 1.5, "[{low}, {high}]");
    }

    #[test]
    fn tasks_keep_their_weight_and_what_never_varies_has_no_width() {
        // A task that is always right and one that is always wrong: AP is 50 in every draw.
        let samples: Vec<_> = (0..12).map(|i| (None, usize::from(i < 2), i < 2)).collect();
        assert_eq!(interval(&samples), Some([50.0, 50.0]));
        assert_eq!(interval(&[]), None);
    }

    #[test]
    fn a_group_may_have_samples_of_several_tasks() {
        // Six groups, three of them right, each with a sample of two tasks. No right one is drawn in 1 of 64
        // draws, one at most in 7 of 64. Were the tasks drawn apart, the interval would be [25, 75].
        let names = ["a", "b", "c", "d", "e", "f"];
        let samples: Vec<_> = (0..12).map(|i| (Some(names[i % 6]), i / 6, i % 2 == 0)).collect();
        let [low, high] = interval(&samples).unwrap();
        assert!((low - 100.0 / 6.0).abs() < 1e-9 && (high - 500.0 / 6.0).abs() < 1e-9, "[{low}, {high}]");
    }
}
