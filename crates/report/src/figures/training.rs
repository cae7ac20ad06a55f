//! The losses of the training, step by step.
use super::{Drawing, Figure, extent};
use crate::diagnostics::LossCurve;
use crate::diagnostics::loss::LossPoint;
use crate::picture::style::series;
use crate::picture::{Axis, Chart, Head, KeyEntry, Mark, Panel};

/// A term of the loss: its name, and its value at a point of a curve.
type Term = (&'static str, fn(&LossPoint) -> Option<f64>);

const TERMS: [Term; 3] = [
    ("classification", |point| Some(point.classification)),
    ("alignment", |point| point.alignment),
    ("consistency", |point| point.consistency),
];

/// The terms of the loss by task; `None` without a curve. A term that no session computed has no panel.
pub fn losses(data: &str, curves: &[LossCurve]) -> Option<Figure> {
    let panel = |(name, value): &Term| {
        let lines: Vec<Vec<[f64; 2]>> =
            curves.iter().map(|curve| curve.points.iter().filter_map(|p| Some([p.step, value(p)?])).collect()).collect();
        let [_, most] = extent(lines.iter().flatten().map(|point| point[1]))?;
        let steps = curves.iter().map(|curve| curve.steps).max().unwrap_or(1);
        let lines = lines.into_iter().enumerate().filter(|(_, points)| !points.is_empty());
        Some(Panel {
            title: format!("{name} loss"),
            x: Axis::new("training step", 0.0, steps.max(1) as f64),
            y: Axis::new("", 0.0, if most > 0.0 { 1.05 * most } else { 1.0 }),
            marks: lines.map(|(task, points)| Mark::line(points, series(task))).collect(),
        })
    };
    let panels: Vec<Panel> = TERMS.iter().filter_map(panel).collect();
    if panels.is_empty() {
        return None;
    }
    let head = Head {
        title: "Loss of each session while it is trained".to_owned(),
        subtitle: format!("{data}, train split. Each point is the mean over some steps in a row; the terms are not weighted."),
        key: curves.iter().enumerate().map(|(task, curve)| KeyEntry::line(curve.task.clone(), series(task))).collect(),
    };
    Some(Figure {
        name: "loss",
        caption:
            "The terms of the loss, L = classification + λ1 alignment + λ2 consistency, before weighting. A curve that still falls at \
                  its end would gain from more steps; one that rises again, from fewer or a lower rate."
                .to_owned(),
        drawing: Drawing::Chart(Chart { head, columns: panels.len(), panels, panel_height: 250.0 }),
    })
}
