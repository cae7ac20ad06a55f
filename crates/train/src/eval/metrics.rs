//! The figures of a continual learner: AP and FG over the scores a_{i,j} (METHOD.md 6).

/// a_{i,j}: score on task i once tasks 0..=j are learnt, in percent, for j ≥ i; row i starts at j = i.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreMatrix(Vec<Vec<f64>>);

impl ScoreMatrix {
    /// The scores of `tasks` tasks; `a(i, j)` is called for every j ≥ i.
    pub fn of(tasks: usize, a: impl Fn(usize, usize) -> f64) -> Self {
        Self((0..tasks).map(|i| (i..tasks).map(|j| a(i, j)).collect()).collect())
    }

    /// Row i: a_{i,i}, …, a_{i,T}.
    pub fn rows(&self) -> &[Vec<f64>] {
        &self.0
    }

    /// AP = mean_i a_{i,T}; `None` without tasks.
    pub fn average_performance(&self) -> Option<f64> {
        mean(self.0.iter().filter_map(|row| row.last().copied()))
    }

    /// FG = mean_{i<T} max_{z in i..T−1} (a_{i,z} − a_{i,T}); `None` with fewer than two tasks.
    pub fn forgetting(&self) -> Option<f64> {
        let lost = |row: &Vec<f64>| {
            let (last, earlier) = row.split_last()?;
            earlier.iter().map(|a| a - last).reduce(f64::max)
        };
        mean(self.0.iter().filter_map(lost))
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_performance_and_forgetting_as_computed_by_hand() {
        let a = [[80.0, 70.0, 75.0], [0.0, 60.0, 50.0], [0.0, 0.0, 90.0]];
        let matrix = ScoreMatrix::of(3, |i, j| a[i][j]);
        assert_eq!(matrix.rows(), [vec![80.0, 70.0, 75.0], vec![60.0, 50.0], vec![90.0]]);
        assert_eq!(matrix.average_performance(), Some((75.0 + 50.0 + 90.0) / 3.0));
        assert_eq!(matrix.forgetting(), Some((5.0 + 10.0) / 2.0));
    }

    #[test]
    fn a_task_that_improves_counts_against_forgetting() {
        let a = [[50.0, 60.0], [0.0, 70.0]];
        assert_eq!(ScoreMatrix::of(2, |i, j| a[i][j]).forgetting(), Some(-10.0));
    }

    #[test]
    fn one_task_cannot_be_forgotten() {
        assert_eq!(ScoreMatrix::of(1, |_, _| 40.0).forgetting(), None);
        assert_eq!(ScoreMatrix::of(0, |_, _| 40.0).average_performance(), None);
    }
}
