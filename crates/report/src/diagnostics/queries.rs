//! The frozen signals by which tasks are decided, and the task keys, in two dimensions (figure 4a of the
//! paper).
//!
//! What a sample lacks shows far more in its signal than its task does. Therefore the mean of the samples
//! with the same modalities is taken from each sample, and the mean of all samples from each key: a sample
//! lies where its task moves it.
use serde::{Deserialize, Serialize};

use super::projection::{principal_components, t_sne};
use delo_model::input::Presence;

/// Samples that are projected, at most: every k-th of them where there are more. The cost of t-SNE grows with
/// their square.
pub const MOST: usize = 1000;
/// Principal components that are computed.
const COMPONENTS: usize = 50;
/// The patterns whose means are taken away; `None`, that of a key: all samples.
const PATTERNS: [Option<Presence>; 4] = [Some(Presence::Complete), Some(Presence::ImageOnly), Some(Presence::TextOnly), None];

/// Signals of samples and keys of tasks, without the mean of their modality pattern, projected together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueryMap {
    /// The signal that decides the task.
    pub signal: String,
    /// The shares of the variance that the two principal components explain; 0 for a component that does not
    /// exist.
    pub explained: [f64; 2],
    /// The samples.
    pub samples: Vec<QueryPoint>,
    /// The key of each task, in the data set's order; its pattern is null.
    pub keys: Vec<QueryPoint>,
}

/// One vector in two dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueryPoint {
    /// Name of the task.
    pub task: String,
    /// The modalities that the sample has.
    pub pattern: Option<Presence>,
    /// The first two principal components.
    pub pca: [f64; 2],
    /// t-SNE's coordinates; null where there are too few points.
    pub tsne: Option<[f64; 2]>,
}

/// A vector before projection.
#[derive(Clone, Debug)]
pub(super) struct Signal {
    pub(super) task: String,
    /// `None` for a key.
    pub(super) pattern: Option<Presence>,
    /// `[width]`
    pub(super) values: Vec<f32>,
}

impl QueryMap {
    /// `None` with fewer than three samples, or where all vectors are equal.
    pub(super) fn of(signal: String, samples: Vec<Signal>, keys: Vec<Signal>) -> Option<Self> {
        if samples.len() < 3 {
            return None;
        }
        let means = PATTERNS.map(|pattern| (pattern, mean(samples.iter().filter(|s| pattern.is_none() || s.pattern == pattern))));
        let step = samples.len().div_ceil(MOST);
        let samples: Vec<Signal> = samples.into_iter().step_by(step).collect();
        let count = samples.len();
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for Signal { task, pattern, values: mut vector } in samples.into_iter().chain(keys) {
            let mean = means.iter().filter(|(of, _)| *of == pattern).flat_map(|(_, mean)| mean);
            vector.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
            names.push((task, pattern));
            values.push(vector);
        }
        let components = principal_components(&values, COMPONENTS)?;
        let tsne = t_sne(&components);
        let second = |values: &[f64]| values.get(1).copied().unwrap_or(0.0);
        let point = |(i, (task, pattern)): (usize, (String, Option<Presence>))| QueryPoint {
            task,
            pattern,
            pca: [components.scores[i][0], second(&components.scores[i])],
            tsne: tsne.as_ref().map(|points| points[i]),
        };
        let mut samples: Vec<QueryPoint> = names.into_iter().enumerate().map(point).collect();
        let keys = samples.split_off(count);
        Some(Self { signal, explained: [components.explained[0], second(&components.explained)], samples, keys })
    }
}

/// The mean of some signals, `[width]`; empty without any.
fn mean<'a>(signals: impl Iterator<Item = &'a Signal>) -> Vec<f32> {
    let (mut sum, mut count) = (Vec::<f64>::new(), 0usize);
    for signal in signals {
        sum.resize(signal.values.len(), 0.0);
        sum.iter_mut().zip(&signal.values).for_each(|(sum, x)| *sum += f64::from(*x));
        count += 1;
    }
    sum.into_iter().map(|sum| (sum / count as f64) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(task: &str, pattern: Option<Presence>, x: f32) -> Signal {
        Signal { task: task.to_owned(), pattern, values: vec![x, 1.0, -x] }
    }

    #[test]
    fn samples_are_thinned_evenly_and_keys_are_kept() {
        let samples: Vec<Signal> = (0..2 * MOST + 5).map(|i| signal("a", Some(Presence::TextOnly), i as f32)).collect();
        // On a line there is one component, and t-SNE needs two.
        let map = QueryMap::of("pooled".to_owned(), samples, vec![signal("a", None, 5.0), signal("b", None, 7.0)]).unwrap();
        assert!(map.samples.len() <= MOST && map.samples.len() > MOST / 2, "{}", map.samples.len());
        assert_eq!(map.keys.iter().map(|key| key.task.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!((map.explained[0] - 1.0).abs() < 1e-9 && map.explained[1] == 0.0, "{:?}", map.explained);
        assert!(map.samples.iter().all(|point| point.tsne.is_none() && point.pattern.is_some()));
        assert!(QueryMap::of("pooled".to_owned(), vec![signal("a", None, 1.0); 2], Vec::new()).is_none());
    }

    #[test]
    fn a_missing_modality_moves_no_sample() {
        let of = |pattern, x: f32, shift: f32| Signal { task: "a".to_owned(), pattern: Some(pattern), values: vec![x, shift] };
        let samples = vec![
            of(Presence::Complete, 1.0, 0.0),
            of(Presence::Complete, -1.0, 0.0),
            of(Presence::TextOnly, 1.0, 90.0),
            of(Presence::TextOnly, -1.0, 90.0),
        ];
        let key = Signal { task: "a".to_owned(), pattern: None, values: vec![0.5, 45.0] };
        let map = QueryMap::of("pooled".to_owned(), samples, vec![key]).unwrap();
        let places: Vec<f64> = map.samples.iter().chain(&map.keys).map(|point| point.pca[0]).collect();
        assert!((places[0] - places[2]).abs() < 1e-6 && (places[1] - places[3]).abs() < 1e-6, "{places:?}");
        // The sign of an axis is arbitrary.
        let (apart, of_key) = (places[0] - places[1], places[0] - places[4]);
        assert!((apart.abs() - 2.0).abs() < 1e-6 && (of_key - apart / 4.0).abs() < 1e-6, "{places:?}");
    }
}
