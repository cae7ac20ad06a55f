//! How evenly a partition's routers use their experts.
use std::collections::BTreeMap;

use delo_engine::Answer;
use delo_model::PerModality;
use delo_model::method::PoolId;

/// How often each expert of a version was chosen to give A factors.
#[derive(Clone, Debug, Default)]
pub struct FactorUsage {
    version: u64,
    /// By layer and pool: a count for each expert.
    pools: BTreeMap<(usize, PoolId), Vec<u64>>,
}

impl FactorUsage {
    /// Counts the choices of one answer. Those of an earlier version are dropped with the first of a later one.
    pub fn count(&mut self, answer: &Answer) {
        let resident = &answer.resident;
        if resident.version < self.version {
            return;
        }
        if resident.version > self.version {
            *self = Self { version: resident.version, pools: BTreeMap::new() };
        }
        for selected in answer.selected() {
            let counts = self.pools.entry((selected.layer, selected.pool)).or_insert_with(|| vec![0; selected.experts]);
            for &expert in &selected.choice.a {
                if let Some(count) = counts.get_mut(expert as usize) {
                    *count += 1;
                }
            }
        }
    }

    /// Of each modality's pools in the mean: entropy of the experts' shares, as a part of the largest that there
    /// can be; 1 where all are used alike, 0 where one is used alone. `None` where no router has chosen.
    pub fn entropy(&self) -> PerModality<Option<f64>> {
        let mut sums: PerModality<(f64, usize)> = PerModality::default();
        for ((_, pool), counts) in &self.pools {
            if let Some(entropy) = normalised_entropy(counts) {
                let (sum, pools) = &mut sums[pool.modality];
                *sum += entropy;
                *pools += 1;
            }
        }
        let mean = |(sum, pools): (f64, usize)| (pools > 0).then(|| sum / pools as f64);
        PerModality { image: mean(sums.image), text: mean(sums.text) }
    }
}

/// −Σ p ln p / ln n. `None` where nothing was counted, or there is only one expert.
fn normalised_entropy(counts: &[u64]) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 || counts.len() < 2 {
        return None;
    }
    let share = |&count: &u64| count as f64 / total as f64;
    let entropy: f64 = counts.iter().filter(|count| **count > 0).map(share).map(|p| -p * p.ln()).sum();
    Some(entropy / (counts.len() as f64).ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_1_of_even_use_and_0_of_one_expert_alone() {
        assert_eq!(normalised_entropy(&[0, 9, 0, 0]), Some(0.0));
        assert!((normalised_entropy(&[5, 5, 5, 5]).unwrap() - 1.0).abs() < 1e-12);
        assert!((normalised_entropy(&[5, 5, 0, 0]).unwrap() - 0.5).abs() < 1e-12);
        assert_eq!((normalised_entropy(&[0, 0]), normalised_entropy(&[3])), (None, None));
    }
}
