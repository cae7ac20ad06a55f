//! Vectors in two dimensions: principal components, and t-SNE.
use bhtsne::tSNE;
use faer::{Mat, Side};
use rayon::ThreadPoolBuilder;

/// The perplexity of t-SNE, where there are enough points.
const PERPLEXITY: f32 = 30.0;
/// Principal components from which t-SNE computes distances.
const COMPONENTS: usize = 50;
/// The standard deviation of the first coordinates of t-SNE.
const START: f32 = 1e-4;

/// The principal components of some vectors, by falling variance.
#[derive(Clone, Debug, PartialEq)]
pub struct Components {
    /// The coordinates of each vector, `[vectors][components]`.
    pub scores: Vec<Vec<f64>>,
    /// The share of the variance that each component explains, `[components]`.
    pub explained: Vec<f64>,
}

/// At most `most` principal components of `vectors`. They are found by the eigenvectors of the matrix of dot
/// products of the centred vectors, `[n, n]`, so that the cost does not depend on their width beyond one
/// product. The sign of a component is such that its largest coordinate is positive. `None` where the vectors
/// are all equal, or fewer than two.
pub fn principal_components(vectors: &[Vec<f32>], most: usize) -> Option<Components> {
    let (n, width) = (vectors.len(), vectors.first().map_or(0, Vec::len));
    if n < 2 {
        return None;
    }
    let mean: Vec<f64> = (0..width).map(|j| vectors.iter().map(|v| f64::from(v[j])).sum::<f64>() / n as f64).collect();
    let centred = Mat::from_fn(n, width, |i, j| f64::from(vectors[i][j]) - mean[j]);
    let eigen = (&centred * centred.transpose()).self_adjoint_eigen(Side::Lower).ok()?;
    // By rising eigenvalue.
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    let total: f64 = (0..n).map(|k| values[k].max(0.0)).sum();
    let kept: Vec<usize> = (0..n).rev().take(most).filter(|&k| values[k] > 1e-9 * total).collect();
    if kept.is_empty() || total.is_nan() {
        return None;
    }
    let mut scores = vec![Vec::with_capacity(kept.len()); n];
    for &k in &kept {
        let largest = (0..n).map(|i| vectors[(i, k)]).fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a });
        let scale = values[k].sqrt() * largest.signum();
        scores.iter_mut().enumerate().for_each(|(i, scores)| scores.push(vectors[(i, k)] * scale));
    }
    Some(Components { scores, explained: kept.iter().map(|&k| values[k] / total).collect() })
}

/// t-SNE of the points of `components` in two dimensions (van der Maaten and Hinton, 2008), from their first
/// two principal components on: nothing is random, and the same points give the same coordinates. `None` with
/// fewer than ten points, or fewer than two components.
pub fn t_sne(components: &Components) -> Option<Vec<[f64; 2]>> {
    let n = components.scores.len();
    if n < 10 || components.explained.len() < 2 {
        return None;
    }
    let points: Vec<Vec<f32>> = components.scores.iter().map(|s| s.iter().take(COMPONENTS).map(|x| *x as f32).collect()).collect();
    let deviation = (points.iter().map(|p| p[0] * p[0]).sum::<f32>() / n as f32).sqrt();
    let start: Vec<f32> = points.iter().flat_map(|p| [p[0], p[1]]).map(|x| x / deviation * START).collect();
    let fit = || {
        let mut tsne: tSNE<'_, f32, Vec<f32>> = tSNE::new(&points);
        tsne.perplexity(PERPLEXITY.min((n - 1) as f32 / 3.0)).initial_embedding(start);
        tsne.exact(|a, b| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum());
        tsne.embedding()
    };
    // With several threads, the crate's sums depend on which of them is faster.
    let found = ThreadPoolBuilder::new().num_threads(1).build().ok()?.install(fit);
    Some(found.chunks_exact(2).map(|point| [f64::from(point[0]), f64::from(point[1])]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_those_of_a_closed_form() {
        // Variances 9 : 1 along (3, 4)/5 and (−4, 3)/5, around (1, 1).
        let along = [[1.8f32, 2.4], [-1.8, -2.4], [-0.8, 0.6], [0.8, -0.6]];
        let vectors: Vec<Vec<f32>> = along.iter().map(|[x, y]| vec![x + 1.0, y + 1.0]).collect();
        let found = principal_components(&vectors, 5).unwrap();
        assert_eq!(found.explained.len(), 2);
        assert!((found.explained[0] - 0.9).abs() < 1e-6 && (found.explained[1] - 0.1).abs() < 1e-6, "{:?}", found.explained);
        let lengths: Vec<f64> = found.scores.iter().map(|s| s[0].abs()).collect();
        for (length, expected) in lengths.iter().zip([3.0, 3.0, 0.0, 0.0]) {
            assert!((length - expected).abs() < 1e-5, "{lengths:?}");
        }
        assert_eq!(principal_components(&[vec![1.0, 2.0], vec![1.0, 2.0]], 2), None, "equal vectors have no component");
        assert_eq!(principal_components(&vectors[..1], 2), None);
    }

    /// Two groups of 15 points each in five dimensions.
    fn groups() -> Vec<Vec<f32>> {
        let point = |i: u32| (0..5u32).map(|j| (((i * 7 + j * 3) % 11) as f32) / 11.0 + if i < 15 { 0.0 } else { 6.0 }).collect();
        (0..30).map(point).collect()
    }

    #[test]
    fn t_sne_keeps_groups_apart_and_gives_the_same_bits_again() {
        let components = principal_components(&groups(), COMPONENTS).unwrap();
        let found = t_sne(&components).unwrap();
        assert_eq!(found, t_sne(&components).unwrap());
        let centre = |points: &[[f64; 2]]| [0, 1].map(|k| points.iter().map(|p| p[k]).sum::<f64>() / points.len() as f64);
        let distance = |a: [f64; 2], b: [f64; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
        let (one, two) = (centre(&found[..15]), centre(&found[15..]));
        for (i, point) in found.iter().enumerate() {
            let (own, other) = if i < 15 { (one, two) } else { (two, one) };
            assert!(distance(*point, own) < distance(*point, other), "point {i}");
        }
    }

    #[test]
    fn few_points_have_no_t_sne() {
        assert_eq!(t_sne(&principal_components(&groups()[..9], COMPONENTS).unwrap()), None);
    }
}
