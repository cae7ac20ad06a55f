//! Several methods side by side, from the report of each run.
use std::collections::BTreeMap;

use super::{Drawing, Figure, extent};
use crate::picture::style::{BARS, GREY, INK, series};
use crate::picture::{Axis, Chart, Head, KeyEntry, Mark, Panel, Shape};
use delo_train::MissingKind;
use delo_train::eval::{Column, Report};

/// The report of one run of a method. Runs of a method that differ in nothing but the seed are drawn
/// together.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The method's name, as the picture shows it.
    pub method: &'a str,
    /// Its report. The first task-agnostic column counts; a report without one is left out.
    pub report: &'a Report,
}

impl Run<'_> {
    /// The first task-agnostic column with its AP.
    fn agnostic(&self) -> Option<(&Column, f64)> {
        let column = self.report.agnostic.first()?;
        Some((column, column.ap?))
    }
}

/// Mean, least and greatest of some values.
#[derive(Clone, Copy)]
struct Spread {
    mean: f64,
    low: f64,
    high: f64,
    count: usize,
}

impl Spread {
    /// `None` without values.
    fn of(values: &[f64]) -> Option<Self> {
        let [low, high] = extent(values.iter().copied())?;
        Some(Self { mean: values.iter().sum::<f64>() / values.len() as f64, low, high, count: values.len() })
    }
}

/// The methods in the order in which they first appear.
fn methods<'a>(runs: &[Run<'a>]) -> Vec<&'a str> {
    let mut methods = Vec::new();
    for run in runs {
        if !methods.contains(&run.method) {
            methods.push(run.method);
        }
    }
    methods
}

/// A run, with where it stands on the x axis.
type Placed<'a> = (f64, Run<'a>);

/// One line a method through its mean AP at each x, with a band from the lowest seed to the highest.
fn lines(methods: &[&str], runs: &[Placed<'_>]) -> Vec<Mark> {
    let mut marks = Vec::new();
    for (index, method) in methods.iter().enumerate() {
        let mut by_x: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        for (x, run) in runs.iter().filter(|(_, run)| run.method == *method) {
            // The bits of a number that is not negative grow as it does.
            by_x.entry(x.abs().to_bits()).or_default().extend(run.agnostic().map(|(_, ap)| ap));
        }
        let points: Vec<(f64, Spread)> = by_x.iter().filter_map(|(x, aps)| Some((f64::from_bits(*x), Spread::of(aps)?))).collect();
        if points.is_empty() {
            continue;
        }
        if points.iter().any(|(_, spread)| spread.count > 1) {
            marks.insert(0, Mark::Band { points: points.iter().map(|(x, s)| [*x, s.low, s.high]).collect(), colour: series(index) });
        }
        let line: Vec<[f64; 2]> = points.iter().map(|(x, spread)| [*x, spread.mean]).collect();
        marks.push(Mark::Points { points: line.clone(), colour: series(index), shape: Shape::Circle, radius: 3.0 });
        marks.push(Mark::line(line, series(index)));
    }
    marks
}

/// AP against x, a panel of [`lines`] for each title; `None` without a task-agnostic AP.
fn chart(title: &str, x_label: &str, panels: &[(String, Vec<Placed<'_>>)]) -> Option<Chart> {
    let all: Vec<Placed<'_>> = panels.iter().flat_map(|(_, runs)| runs).copied().collect();
    let methods = methods(&all.iter().map(|(_, run)| *run).collect::<Vec<_>>());
    let report = all.iter().find(|(_, run)| run.agnostic().is_some())?.1.report;
    let y = Axis::spanning(format!("AP ({}), %", report.measure), all.iter().filter_map(|(_, run)| run.agnostic().map(|(_, ap)| ap)));
    let x = Axis::spanning(x_label, all.iter().map(|(x, _)| *x));
    let panel = |(title, runs): &(String, Vec<Placed<'_>>)| {
        let marks = lines(&methods, runs);
        (!marks.is_empty()).then(|| Panel { title: title.clone(), x: x.clone(), y: y.clone(), marks })
    };
    let panels: Vec<Panel> = panels.iter().filter_map(panel).collect();
    let head = Head {
        title: title.to_owned(),
        subtitle: format!(
            "{}, {} split, task-agnostic: nobody says which task a sample is of. Lines: mean over seeds; bands: lowest to highest seed.",
            report.data, report.split
        ),
        key: methods.iter().enumerate().map(|(index, method)| KeyEntry::line(*method, series(index))).collect(),
    };
    Some(Chart { head, columns: panels.len().min(3), panels, panel_height: 300.0 })
}

/// AP against the missing ratio η by method, one panel for each kind of missing modality. A line is the mean
/// over seeds, its band goes from the lowest seed to the highest. `None` without a task-agnostic AP.
pub fn performance_by_missing_ratio(runs: &[Run<'_>]) -> Option<Figure> {
    let panels = MissingKind::ALL.map(|kind| {
        let lost = match kind {
            MissingKind::Text => "the text",
            MissingKind::Image => "the image",
            MissingKind::Both => "half the image, half the text",
        };
        let runs = runs.iter().filter(|run| run.report.missing == kind).map(|run| (100.0 * run.report.eta, *run));
        (format!("missing: {lost}"), runs.collect())
    });
    let title = "Average performance against the share of samples that miss a modality";
    Some(Figure {
        name: "missing-ratio",
        caption: "AP, the mean score over all tasks once every session is learnt, as more samples lose a modality in training and test."
            .to_owned(),
        drawing: Drawing::Chart(chart(title, "η: samples that miss a modality, %", &panels)?),
    })
}

/// AP against the share of the training items that a method learns from, given with each run: lines and bands as
/// in [`performance_by_missing_ratio`], in one panel.
pub fn performance_by_train_share(runs: &[(f64, Run<'_>)]) -> Option<Figure> {
    let runs = runs.iter().map(|(share, run)| (100.0 * share, *run)).collect();
    let title = "Average performance against the share of the training items";
    Some(Figure {
        name: "train-share",
        caption: "AP, the mean score over all tasks once every session is learnt, as methods learn from more of the training items."
            .to_owned(),
        drawing: Drawing::Chart(chart(title, "training items, %", &[(String::new(), runs)])?),
    })
}

/// AP by method: a bar for each, task-agnostic, with its interval, and a diamond for AP with the task given.
/// The interval of several seeds goes from the lowest to the highest; that of one is its 95 % bootstrap
/// interval. `None` without a task-agnostic AP. Runs of several data sets or missing tables should not be
/// mixed: they are drawn as if they were seeds.
pub fn performance_by_method(runs: &[Run<'_>]) -> Option<Figure> {
    let report = runs.iter().find(|run| run.agnostic().is_some())?.report;
    let (mut names, mut marks, mut lines, mut diamonds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut most = 0f64;
    // The first method stands above the others.
    for method in methods(runs).into_iter().rev() {
        let own: Vec<(&Run<'_>, &Column, f64)> =
            runs.iter().filter(|run| run.method == method).filter_map(|run| run.agnostic().map(|(column, ap)| (run, column, ap))).collect();
        let Some(spread) = Spread::of(&own.iter().map(|(_, _, ap)| *ap).collect::<Vec<_>>()) else { continue };
        let y = names.len() as f64;
        names.push(method.to_owned());
        marks.push(Mark::block([0.0, y - 0.34, spread.mean, y + 0.34], BARS));
        let interval = if spread.count > 1 { Some([spread.low, spread.high]) } else { own[0].1.ap_interval };
        if let Some([low, high]) = interval {
            lines.push(vec![[low, y], [high, y]]);
            lines.extend([low, high].map(|end| vec![[end, y - 0.14], [end, y + 0.14]]));
            most = most.max(high);
        }
        let given: Vec<f64> = own.iter().filter_map(|(run, ..)| run.report.oracle.ap).collect();
        let given = Spread::of(&given).map(|given| given.mean);
        diamonds.extend(given.map(|given| [given, y]));
        most = most.max(spread.mean).max(given.unwrap_or(0.0));
    }
    let intervals = !lines.is_empty();
    marks.extend(lines.into_iter().map(|points| Mark::Line { points, colour: INK, dashed: false, width: 1.5 }));
    if !diamonds.is_empty() {
        marks.push(Mark::Points { points: diamonds, colour: GREY, shape: Shape::Diamond, radius: 5.0 });
    }
    let rows = names.len();
    let seeds = if intervals { " Whiskers: lowest to highest seed, or the 95 % interval of a single one." } else { "" };
    let head = Head {
        title: "Average performance of each method".to_owned(),
        subtitle: format!(
            "{}, {} split, missing {} {}: AP ({}) once every session is learnt.{seeds}",
            report.data, report.split, report.missing, report.eta, report.measure
        ),
        key: vec![KeyEntry::points("task-agnostic", BARS, Shape::Square), KeyEntry::points("task given", GREY, Shape::Diamond)],
    };
    Some(Figure {
        name: "methods",
        caption: "AP of each method. Bars: nobody says which task a sample is of; a sample that goes to a wrong task counts as wrong. Diamonds: the \
                  true task is given."
            .to_owned(),
        drawing: Drawing::Chart(Chart {
            head,
            panels: vec![Panel {
                title: String::new(),
                x: Axis::new(format!("AP ({}), %", report.measure), 0.0, (1.04 * most).clamp(1.0, 104.0)),
                y: Axis::of_names("", names),
                marks,
            }],
            columns: 1,
            panel_height: 70.0 + 28.0 * rows as f64,
        }),
    })
}
