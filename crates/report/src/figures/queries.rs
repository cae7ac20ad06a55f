//! Samples and task keys in two dimensions (figure 4a of the paper), and how similar the two queries of a
//! sample are (figure 4b).
use super::{Drawing, Figure, extent};
use crate::diagnostics::queries::QueryPoint;
use crate::diagnostics::similarity::{BINS, Distribution, LayerSimilarity};
use crate::diagnostics::{QueryMap, Similarity};
use crate::picture::style::{Colour, GREY, SERIES, series};
use crate::picture::{Axis, Chart, Head, KeyEntry, Mark, Panel, Shape};
use delo_model::input::Presence;

/// Bins of the similarity that are drawn as one.
const JOINED: usize = 2;
/// The colours of the frozen backbone and of the adapted one.
const FROZEN: Colour = GREY;
const ADAPTED: Colour = SERIES[1];

const PATTERNS: [(Presence, Shape, &str); 3] = [
    (Presence::Complete, Shape::Circle, "complete"),
    (Presence::ImageOnly, Shape::Square, "image only"),
    (Presence::TextOnly, Shape::Cross, "text only"),
];

/// The samples' signals and the task keys.
pub fn query_map(data: &str, split: &str, map: &QueryMap) -> Figure {
    let share = |k: usize| 100.0 * map.explained[k];
    let pca =
        panel(map, "principal components", |point| Some(point.pca), |k| format!("component {} ({:.0} % of the variance)", k + 1, share(k)));
    let mut panels = vec![pca];
    if map.samples.iter().any(|point| point.tsne.is_some()) {
        panels.push(panel(map, "t-SNE", |point| point.tsne, |k| ["first coordinate", "second coordinate"][k].to_owned()));
    }
    let tasks = map.keys.iter().enumerate().map(|(task, key)| KeyEntry::points(key.task.clone(), series(task), Shape::Circle));
    let shapes = PATTERNS.map(|(_, shape, name)| KeyEntry::points(name, GREY, shape));
    let head = Head {
        title: "Samples and task keys, as the frozen backbone sees them".to_owned(),
        subtitle: format!(
            "{data}, {split} split: the signal {} of {} samples, less the mean of the samples with the same modalities.",
            map.signal,
            map.samples.len()
        ),
        key: tasks.chain(shapes).chain([KeyEntry::points("task key", GREY, Shape::Diamond)]).collect(),
    };
    Figure {
        name: "queries",
        caption: "Each point is the signal by which a sample's task is decided; a diamond is the key of a task, the mean of its session. \
                  The mean of the samples with the same modalities is taken away, for what is missing would otherwise hide the task. Where \
                  colours mix, the task is hard to decide from the key alone. Left: a linear projection; right: t-SNE, which keeps neighbours \
                  together and whose distances between groups mean nothing."
            .to_owned(),
        drawing: Drawing::Chart(Chart { head, columns: panels.len(), panels, panel_height: 380.0 }),
    }
}

fn panel(map: &QueryMap, title: &str, place: impl Fn(&QueryPoint) -> Option<[f64; 2]>, axis: impl Fn(usize) -> String) -> Panel {
    let mut marks = Vec::new();
    // Sample by sample in the order of the data, so that no task covers another wholly.
    let mut points: Vec<(usize, &QueryPoint)> = map.samples.iter().filter_map(|p| Some((task_index(map, p)?, p))).collect();
    let stride = golden_stride(points.len());
    points = (0..points.len()).map(|i| points[i * stride % points.len()]).collect();
    for (task, point) in points {
        let shape = PATTERNS.iter().find(|(pattern, ..)| point.pattern == Some(*pattern)).map_or(Shape::Circle, |(_, shape, _)| *shape);
        if let Some(place) = place(point) {
            marks.push(Mark::Points { points: vec![place], colour: series(task), shape, radius: 2.4 });
        }
    }
    for (task, key) in map.keys.iter().enumerate() {
        if let Some(place) = place(key) {
            marks.push(Mark::Points { points: vec![place], colour: series(task), shape: Shape::Diamond, radius: 7.0 });
        }
    }
    let values = |k: usize| map.samples.iter().chain(&map.keys).filter_map(&place).map(move |place| place[k]);
    let [x, y] = [0, 1].map(|k| Axis::spanning(axis(k), values(k)).bare());
    Panel { title: title.to_owned(), x, y, marks }
}

fn task_index(map: &QueryMap, point: &QueryPoint) -> Option<usize> {
    map.keys.iter().position(|key| key.task == point.task)
}

/// A stride near the golden section of `n` that shares no divisor with it: steps of it visit all of 0 to n −
/// 1 in an order without runs.
fn golden_stride(n: usize) -> usize {
    fn divisor(a: usize, b: usize) -> usize {
        if b == 0 { a } else { divisor(b, a % b) }
    }
    let start = (0.618 * n as f64) as usize;
    (start.max(1)..=n.max(1)).find(|&stride| divisor(stride, n.max(1)) == 1).unwrap_or(1)
}

/// cos(q^v, q^t) of the complete samples, layer by layer.
pub fn similarities(data: &str, split: &str, similarity: &Similarity) -> Figure {
    let all = || similarity.layers.iter().flat_map(|layer| [&layer.frozen, &layer.adapted]);
    let used = |counts: &[u64]| {
        let bins = counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(bin, _)| bin as f64);
        extent(bins)
    };
    let [low, high] = extent(all().filter_map(|d| used(&d.counts)).flatten()).unwrap_or([0.0, BINS as f64 - 1.0]);
    let (low, high) = (edge(low as usize / JOINED * JOINED), edge((high as usize / JOINED + 1) * JOINED));
    let most = extent(all().flat_map(|d| heights(d, similarity.samples))).map_or(1.0, |[_, most]| most);
    let panel = |(index, layer): (usize, &LayerSimilarity)| Panel {
        title: format!("layer {index}: mean {} frozen, {} adapted", number(layer.frozen.mean), number(layer.adapted.mean)),
        x: Axis::new("cos(q_v, q_t)", low, high),
        y: Axis::new("% of samples", 0.0, 1.05 * most),
        marks: [steps(&layer.frozen, similarity.samples, FROZEN, 0.35), outline(&layer.adapted, similarity.samples, ADAPTED)].concat(),
    };
    let head = Head {
        title: "Similarity of a sample's image query and text query, by layer".to_owned(),
        subtitle: format!("{data}, {split} split: {} complete samples, the query of the state that enters each layer.", similarity.samples),
        key: vec![
            KeyEntry::points("frozen backbone", FROZEN, Shape::Square),
            KeyEntry::line("with the adapters of the sample's task", ADAPTED),
        ],
    };
    Figure {
        name: "similarity",
        caption: "The cosine between the two queries of a complete sample. Where it is high, one query can stand in for the other when a \
                  modality is missing; the alignment loss raises it."
            .to_owned(),
        drawing: Drawing::Chart(Chart {
            head,
            panels: similarity.layers.iter().enumerate().map(panel).collect(),
            columns: 3,
            panel_height: 190.0,
        }),
    }
}

/// The cosine at which a bin begins.
fn edge(bin: usize) -> f64 {
    -1.0 + 2.0 * bin as f64 / BINS as f64
}

/// The share of the samples in each drawn bin, in percent.
fn heights(distribution: &Distribution, samples: usize) -> Vec<f64> {
    distribution.counts.chunks(JOINED).map(|bins| 100.0 * bins.iter().sum::<u64>() as f64 / samples.max(1) as f64).collect()
}

fn steps(distribution: &Distribution, samples: usize, colour: Colour, opacity: f64) -> Vec<Mark> {
    let block = |(bin, height): (usize, f64)| {
        (height > 0.0).then(|| Mark::Block { corners: [edge(bin * JOINED), 0.0, edge((bin + 1) * JOINED), height], colour, opacity })
    };
    heights(distribution, samples).into_iter().enumerate().filter_map(block).collect()
}

/// The outline of a histogram, where it is not zero.
fn outline(distribution: &Distribution, samples: usize, colour: Colour) -> Vec<Mark> {
    let heights = heights(distribution, samples);
    let Some([first, last]) = extent(heights.iter().enumerate().filter(|(_, h)| **h > 0.0).map(|(bin, _)| bin as f64)) else {
        return Vec::new();
    };
    let (first, last) = (first as usize, last as usize);
    let mut points = vec![[edge(first * JOINED), 0.0]];
    for (bin, height) in heights.iter().enumerate().take(last + 1).skip(first) {
        points.extend([[edge(bin * JOINED), *height], [edge((bin + 1) * JOINED), *height]]);
    }
    points.push([edge((last + 1) * JOINED), 0.0]);
    vec![Mark::line(points, colour)]
}

fn number(value: f64) -> String {
    format!("{value:.2}").replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_golden_stride_visits_every_point_once() {
        for n in 1..60 {
            let stride = golden_stride(n);
            let mut seen: Vec<usize> = (0..n).map(|i| i * stride % n).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>(), "{n}");
        }
    }
}
