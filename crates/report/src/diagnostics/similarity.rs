//! How similar a sample's two queries are, layer by layer (figure 4b of the paper).
use serde::{Deserialize, Serialize};

use delo_engine::Queries;
use delo_model::PerModality;
use delo_model::input::Presence;

/// Bins of a histogram, over −1 to 1.
pub const BINS: usize = 100;

/// cos(q^v, q^t) of the complete samples, by layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Similarity {
    /// The complete samples.
    pub samples: usize,
    /// By layer: of the queries of the state that enters it.
    pub layers: Vec<LayerSimilarity>,
}

/// The distributions of one layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerSimilarity {
    /// In the frozen backbone.
    pub frozen: Distribution,
    /// With the adapters of the sample's own task in the layers before.
    pub adapted: Distribution,
}

/// A distribution of cosines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Their mean.
    pub mean: f64,
    /// `[BINS]`: how many are in each bin; the i-th bin begins at −1 + 2 i / [`BINS`].
    pub counts: Vec<u64>,
}

impl Default for Distribution {
    fn default() -> Self {
        Self { mean: 0.0, counts: vec![0; BINS] }
    }
}

impl Distribution {
    fn add(&mut self, cosine: f64) {
        let count = self.counts.iter().sum::<u64>() as f64;
        self.mean += (cosine - self.mean) / (count + 1.0);
        let bin = ((cosine + 1.0) / 2.0 * BINS as f64).max(0.0) as usize;
        self.counts[bin.min(BINS - 1)] += 1;
    }
}

impl Similarity {
    pub(super) fn new() -> Self {
        Self { samples: 0, layers: Vec::new() }
    }

    /// Counts some samples. `frozen` and `adapted` are their queries, `[layers][samples]`.
    pub(super) fn add(&mut self, patterns: &[Presence], frozen: &[Queries], adapted: &[Queries]) {
        self.layers.resize_with(frozen.len(), LayerSimilarity::default);
        let complete: Vec<usize> = (0..patterns.len()).filter(|&i| patterns[i] == Presence::Complete).collect();
        self.samples += complete.len();
        for (layer, (frozen, adapted)) in self.layers.iter_mut().zip(frozen.iter().zip(adapted)) {
            for &sample in &complete {
                layer.frozen.add(cosine(&frozen[sample]));
                layer.adapted.add(cosine(&adapted[sample]));
            }
        }
    }
}

/// cos(q^v, q^t); 0 where one of the two is zero.
fn cosine(PerModality { image, text }: &PerModality<Vec<f32>>) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(image, image) * dot(text, text)).sqrt();
    if lengths > 0.0 { dot(image, text) / lengths } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queries(pairs: &[[[f32; 2]; 2]]) -> Queries {
        pairs.iter().map(|[image, text]| PerModality { image: image.to_vec(), text: text.to_vec() }).collect()
    }

    #[test]
    fn cosines_of_complete_samples_are_counted_in_their_bins() {
        let frozen = queries(&[[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [1.0, 0.0]], [[3.0, 4.0], [-3.0, -4.0]]]);
        let adapted = queries(&[[[1.0, 0.0], [5.0, 0.0]]; 3]);
        let mut similarity = Similarity::new();
        similarity.add(&[Presence::Complete, Presence::ImageOnly, Presence::Complete], &[frozen], &[adapted]);
        let layer = &similarity.layers[0];
        assert_eq!((similarity.samples, layer.frozen.mean, layer.adapted.mean), (2, -0.5, 1.0));
        assert_eq!((layer.frozen.counts[BINS / 2], layer.frozen.counts[0], layer.adapted.counts[BINS - 1]), (1, 1, 2));
        assert_eq!(cosine(&queries(&[[[0.0, 0.0], [1.0, 0.0]]])[0]), 0.0);
    }
}
