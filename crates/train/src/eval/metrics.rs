//! The figures of a continual learner: AP and FG over the scores a_{i,j} (METHOD.md 6).

/// a_{i,j}: score on task i once tasks 0..=j are learnt, in percent, for j ≥ i; row i starts at j = i. The row
/// of a task without scores is empty, and no figure counts it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreMatrix(Vec<Vec<f64>>);

impl ScoreMatrix {
    /// The scores of `tasks` tasks; `a(i, j)` is called for every j ≥ i. A task has all scores or none.
    pub fn of(tasks: usize, a: impl Fn(usize, usize) -> Option<f64>) -> Self {
        Self((0..tasks).map(|i| (i..tasks).map_while(|j| a(i, j)).collect()).collect())
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

    /// The other reading of FG, of the RebQ code release: mean_{i<T} (a_{i,i} − a_{i,T}); `None` with fewer
    /// than two tasks.
    pub fn forgetting_since_learnt(&self) -> Option<f64> {
        let lost = |row: &Vec<f64>| match row.as_slice() {
            [learnt, .., last] => Some(learnt - last),
            _ => None,
        };
        mean(self.0.iter().filter_map(lost))
    }
}

/// `None` without values.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn average_performance_and_forgetting_as_computed_by_hand() {
        let a = [[80.0, 70.0, 75.0, 65.0], [0.0, 60.0, 68.0, 50.0], [0.0, 0.0, 90.0, 85.0], [0.0, 0.0, 0.0, 40.0]];
        let matrix = ScoreMatrix::of(4, |i, j| Some(a[i][j]));
        assert_eq!(matrix.rows(), [vec![80.0, 70.0, 75.0, 65.0], vec![60.0, 68.0, 50.0], vec![90.0, 85.0], vec![40.0]]);
        assert_eq!(matrix.average_performance(), Some((65.0 + 50.0 + 85.0 + 40.0) / 4.0));
        // Task 1 is at its best after a later session: its fall from there, or from the score after its own.
        assert_eq!(matrix.forgetting(), Some((15.0 + 18.0 + 5.0) / 3.0));
        assert_eq!(matrix.forgetting_since_learnt(), Some((15.0 + 10.0 + 5.0) / 3.0));
    }

    #[test]
    fn a_task_that_improves_counts_against_forgetting() {
        let a = [[50.0, 60.0], [0.0, 70.0]];
        let matrix = ScoreMatrix::of(2, |i, j| Some(a[i][j]));
        assert_eq!((matrix.forgetting(), matrix.forgetting_since_learnt()), (Some(-10.0), Some(-10.0)));
    }

    #[test]
    fn a_task_without_scores_is_in_no_figure() {
        let a = [[80.0, 70.0, 60.0], [0.0; 3], [0.0, 0.0, 90.0]];
        let matrix = ScoreMatrix::of(3, |i, j| (i != 1).then_some(a[i][j]));
        assert_eq!(matrix.rows(), [vec![80.0, 70.0, 60.0], vec![], vec![90.0]]);
        assert_eq!(matrix.average_performance(), Some((60.0 + 90.0) / 2.0));
        assert_eq!((matrix.forgetting(), matrix.forgetting_since_learnt()), (Some(20.0), Some(20.0)));
    }

    #[test]
    fn one_task_cannot_be_forgotten() {
        let matrix = ScoreMatrix::of(1, |_, _| Some(40.0));
        assert_eq!((matrix.forgetting(), matrix.forgetting_since_learnt()), (None, None));
        assert_eq!(ScoreMatrix::of(0, |_, _| Some(40.0)).average_performance(), None);
    }
}
