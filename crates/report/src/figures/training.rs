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

/// The terms of the loss by session; `None` without a curve. A term that no session computed has no panel. A
/// curve has the colour of its task in the other pictures, by its place in `tasks`; curves of no task come
/// after them.
pub fn losses(data: &str, tasks: &[&str], curves: &[LossCurve]) -> Option<Figure> {
    let curves = ordered(tasks, curves);
    let panel = |(name, value): &Term| {
        let points = |curve: &LossCurve| curve.points.iter().filter_map(|p| Some([p.step, value(p)?])).collect::<Vec<_>>();
        let lines: Vec<(usize, Vec<[f64; 2]>)> = curves.iter().map(|(index, curve)| (*index, points(curve))).collect();
        let [_, most] = extent(lines.iter().flat_map(|(_, points)| points).map(|point| point[1]))?;
        let steps = curves.iter().map(|(_, curve)| curve.steps).max().unwrap_or(1);
        let lines = lines.into_iter().filter(|(_, points)| !points.is_empty());
        Some(Panel {
            title: format!("{name} loss"),
            x: Axis::new("training step", 0.0, steps.max(1) as f64),
            y: Axis::new("", 0.0, if most > 0.0 { 1.05 * most } else { 1.0 }),
            marks: lines.map(|(index, points)| Mark::Line { points, colour: series(index), dashed: false, width: 1.5 }).collect(),
        })
    };
    let panels: Vec<Panel> = TERMS.iter().filter_map(panel).collect();
    if panels.is_empty() {
        return None;
    }
    let head = Head {
        title: "Loss of each session while it is trained".to_owned(),
        subtitle: format!("{data}, train split. Each point is the mean over some steps in a row; the terms are not weighted."),
        key: curves.iter().map(|(index, curve)| KeyEntry::line(curve.task.clone(), series(*index))).collect(),
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

/// The curves by the place of their task, each with that place; those of no task after them.
fn ordered<'a>(tasks: &[&str], curves: &'a [LossCurve]) -> Vec<(usize, &'a LossCurve)> {
    // A file's name has a dash for each sign of the task's name that is no letter or digit.
    let letters = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    let place = |curve: &LossCurve| tasks.iter().position(|task| letters(task) == letters(&curve.task));
    let mut others = tasks.len()..;
    let mut placed: Vec<(usize, &LossCurve)> =
        curves.iter().filter_map(|curve| Some((place(curve).or_else(|| others.next())?, curve))).collect();
    placed.sort_by_key(|(index, _)| *index);
    placed
}
