//! How often each factor is selected (figure 5 of the paper).
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use delo_engine::SelectedFactors;
use delo_model::method::PoolId;
use delo_model::method::factors::Choice;

/// The selections of one task, its partition given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSelection {
    /// Name of the task.
    pub task: String,
    /// Its samples.
    pub samples: usize,
    /// r: the factors of A, and of B, that a sample selects in each pool.
    pub rank: usize,
    /// By layer, then in the order of [`PoolId::all`].
    pub pools: Vec<PoolSelection>,
}

/// The selections in one pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolSelection {
    /// The encoder layer, from 0.
    pub layer: usize,
    /// The adapted map: `query`, `key` or `value`.
    pub target: String,
    /// The modality by whose query the factors are selected: `visual` or `textual`.
    pub modality: String,
    /// The share of the samples that select the A factor of each expert, `[experts]`; they sum to r.
    pub a: Vec<f64>,
    /// The same of the B factors.
    pub b: Vec<f64>,
}

/// Counts selections.
#[derive(Debug, Default)]
pub(super) struct SelectionCounts {
    samples: usize,
    rank: usize,
    /// By layer and index of the pool.
    pools: BTreeMap<(usize, usize), PoolCounts>,
}

/// Counts selections in one pool.
#[derive(Debug)]
struct PoolCounts {
    pool: PoolId,
    /// Of the A factor of each expert, `[experts]`.
    a: Vec<u64>,
    /// Of the B factor of each expert, `[experts]`.
    b: Vec<u64>,
}

impl SelectionCounts {
    /// Counts the selections of one sample.
    pub(super) fn add<'a>(&mut self, selected: impl Iterator<Item = SelectedFactors<'a>>) {
        self.samples += 1;
        for SelectedFactors { layer, pool, choice: Choice { a, b }, experts } in selected {
            self.rank = a.len();
            let entry = self.pools.entry((layer, pool.index()));
            let counts = entry.or_insert_with(|| PoolCounts { pool, a: vec![0; experts], b: vec![0; experts] });
            a.iter().for_each(|&expert| counts.a[expert as usize] += 1);
            b.iter().for_each(|&expert| counts.b[expert as usize] += 1);
        }
    }

    /// `None` where nothing was selected: the method has no routers, or there is no sample.
    pub(super) fn shares(self, task: String) -> Option<TaskSelection> {
        let share = |counts: Vec<u64>| counts.into_iter().map(|count| count as f64 / self.samples as f64).collect();
        let pool = |layer: usize, counts: PoolCounts| PoolSelection {
            layer,
            target: counts.pool.target.name().to_owned(),
            modality: counts.pool.modality.pool_name().to_owned(),
            a: share(counts.a),
            b: share(counts.b),
        };
        let pools: Vec<PoolSelection> = self.pools.into_iter().map(|((layer, _), counts)| pool(layer, counts)).collect();
        (!pools.is_empty()).then_some(TaskSelection { task, samples: self.samples, rank: self.rank, pools })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use delo_model::Modality;
    use delo_model::method::Target;

    #[test]
    fn shares_are_of_the_samples_and_pools_stand_in_order() {
        let pool = |target, modality| PoolId { target, modality };
        let (value, query) = (pool(Target::Value, Modality::Image), pool(Target::Query, Modality::Text));
        let choice = |a: [u32; 2], b: [u32; 2]| Choice { a: a.to_vec(), b: b.to_vec() };
        let choices = [choice([2, 0], [1, 2]), choice([0, 1], [0, 1]), choice([2, 1], [1, 0])];
        let selected = |of_value: usize| {
            [(value, of_value), (query, 1)]
                .map(|(pool, choice)| SelectedFactors { layer: 1, pool, choice: &choices[choice], experts: 3 })
                .into_iter()
        };
        let mut counts = SelectionCounts::default();
        counts.add(selected(0));
        counts.add(selected(2));
        let found = counts.shares("soups".to_owned()).unwrap();
        assert_eq!((found.samples, found.rank), (2, 2));
        let names: Vec<_> = found.pools.iter().map(|pool| (pool.layer, pool.target.as_str(), pool.modality.as_str())).collect();
        assert_eq!(names, [(1, "query", "textual"), (1, "value", "visual")]);
        assert_eq!((&found.pools[1].a, &found.pools[1].b), (&vec![0.5, 0.5, 1.0], &vec![0.5, 1.0, 0.5]));
        assert_eq!(SelectionCounts::default().shares("soups".to_owned()), None);
    }
}
