//! The reliability of the task's probability, and accuracy where unsure samples are rejected.
use super::{Drawing, Figure, extent};
use crate::diagnostics::calibration::BINS;
use crate::diagnostics::{Calibration, Coverage, Reliability};
use crate::picture::style::{BARS, GREY, SERIES};
use crate::picture::{Axis, Chart, Head, KeyEntry, Mark, Panel, Shape};

/// Reliability diagrams before and after the temperature, with how many samples are in each bin below them.
pub fn reliability(data: &str, split: &str, calibration: &Calibration) -> Figure {
    let both = [("temperature 1", &calibration.before), ("temperature of the partitions", &calibration.after)];
    let diagrams = both.map(|(name, reliability)| diagram(name, reliability));
    let histograms = both.map(|(_, reliability)| histogram(reliability));
    let head = Head {
        title: "Is a task's probability as high as it is right?".to_owned(),
        subtitle: format!("{data}, {split} split: the probability of the likeliest task of each sample, in {BINS} bins."),
        key: vec![
            KeyEntry::points("right task", BARS, Shape::Square),
            KeyEntry::points("mean probability", SERIES[1], Shape::Circle),
            KeyEntry { dashed: true, ..KeyEntry::line("as high as right", GREY) },
        ],
    };
    Figure {
        name: "reliability",
        caption: "Above: of the samples whose likeliest task has a probability in a bin, the share whose task is right (bars). A bar that ends \
                  below the dashed line says that the probability is too high, above it too low. The expected calibration error is the mean \
                  distance, weighted by the samples of each bin. Below: the samples of each bin."
            .to_owned(),
        drawing: Drawing::Chart(Chart { head, panels: diagrams.into_iter().chain(histograms).collect(), columns: 2, panel_height: 260.0 }),
    }
}

fn diagram(name: &str, reliability: &Reliability) -> Panel {
    let filled = || reliability.bins.iter().enumerate().filter(|(_, bin)| bin.samples > 0);
    let bar = |(i, height): (usize, f64)| Mark::Block {
        corners: [(i as f64 + 0.06) / BINS as f64, 0.0, (i as f64 + 0.94) / BINS as f64, height],
        colour: BARS,
        opacity: 1.0,
    };
    let mut marks: Vec<Mark> = filled().map(|(i, bin)| bar((i, bin.accuracy))).collect();
    marks.push(Mark::dashes(vec![[0.0, 0.0], [1.0, 1.0]], GREY));
    let points = filled().map(|(_, bin)| [bin.confidence, bin.confidence]).collect();
    marks.push(Mark::Points { points, colour: SERIES[1], shape: Shape::Circle, radius: 3.5 });
    Panel {
        title: format!("{name}: calibration error {:.1} %", 100.0 * reliability.error),
        x: Axis::new("probability of the likeliest task", 0.0, 1.0),
        y: Axis::new("share whose task is right", 0.0, 1.0),
        marks,
    }
}

fn histogram(reliability: &Reliability) -> Panel {
    let samples = |bin: &crate::diagnostics::calibration::Bin| bin.samples as f64;
    let [_, most] = extent(reliability.bins.iter().map(samples)).unwrap_or([0.0, 1.0]);
    let bar =
        |(i, height): (usize, f64)| Mark::block([(i as f64 + 0.06) / BINS as f64, 0.0, (i as f64 + 0.94) / BINS as f64, height], GREY);
    Panel {
        title: String::new(),
        x: Axis::new("probability of the likeliest task", 0.0, 1.0),
        y: Axis::new("samples", 0.0, (1.05 * most).max(1.0)),
        marks: reliability.bins.iter().map(samples).enumerate().filter(|(_, n)| *n > 0.0).map(bar).collect(),
    }
}

/// Accuracy against the share of the samples that are answered.
pub fn coverage(data: &str, split: &str, coverage: &Coverage) -> Figure {
    let percent = |value: f64| 100.0 * value;
    let line = |value: &dyn Fn(&crate::diagnostics::coverage::CoveragePoint) -> Option<f64>| -> Vec<[f64; 2]> {
        coverage.points.iter().filter_map(|point| Some([percent(point.coverage), percent(value(point)?)])).collect()
    };
    let (routing, accuracy) = (line(&|point| Some(point.routing)), line(&|point| point.accuracy));
    let mut key = vec![KeyEntry::line("right task", SERIES[0])];
    let mut marks = vec![Mark::line(routing, SERIES[0])];
    if !accuracy.is_empty() {
        key.push(KeyEntry::line("right task and class", SERIES[1]));
        marks.push(Mark::line(accuracy, SERIES[1]));
    }
    let values = coverage.points.iter().flat_map(|point| [Some(point.routing), point.accuracy]).flatten().map(percent);
    let [low, _] = extent(values).unwrap_or([0.0, 0.0]);
    let head = Head {
        title: "Accuracy where samples of an unsure task are rejected".to_owned(),
        subtitle: format!(
            "{data}, {split} split; samples are rejected by the {} of their best task, the lowest first.",
            coverage.confidence
        ),
        key,
    };
    Figure {
        name: "coverage",
        caption:
            "From right to left, more and more samples are rejected. The steeper a line rises to the left, the better the confidence tells \
                  wrong answers from right ones; at the right end, every sample is answered."
                .to_owned(),
        drawing: Drawing::Chart(Chart {
            head,
            panels: vec![Panel {
                title: String::new(),
                x: Axis::new("samples that are answered, %", 0.0, 100.0),
                y: Axis::new("right among them, %", (low / 10.0).floor() * 10.0, 100.0),
                marks,
            }],
            columns: 1,
            panel_height: 330.0,
        }),
    }
}
