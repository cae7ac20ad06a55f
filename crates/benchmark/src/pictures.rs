//! The pictures of a benchmark: AP of the rows under the same conditions, and AP against the share of samples that
//! miss a modality.
use std::path::Path;

use super::cell::Cell;
use super::folder::{CellFolder, FolderError};
use super::plan::Plan;
use super::rows::Conditions;
use delo_report::figures::Figure;
use delo_report::figures::comparison::{Run, performance_by_method, performance_by_missing_ratio, performance_by_train_share};
use delo_train::Split;
use delo_train::eval::Report;

/// A picture with the name of its files, without an extension.
#[derive(Debug)]
pub struct NamedFigure {
    /// For example `methods-both-0.7`.
    pub name: String,
    /// The picture.
    pub figure: Figure,
}

/// The pictures of the finished cells of a plan, on the test split where it was evaluated. Conditions under which
/// one row alone is finished have none.
///
/// # Errors
/// A damaged file of a finished cell.
pub fn pictures(plan: &Plan, out: &Path) -> Result<Vec<NamedFigure>, FolderError> {
    let mut finished: Vec<(&Cell, Report)> = Vec::new();
    for cell in &plan.cells {
        let Some(mut result) = CellFolder::of(out, &cell.name).result()? else { continue };
        let report = result.reports.remove(&Split::Test).or_else(|| result.reports.into_values().next_back());
        finished.extend(report.map(|report| (cell, report)));
    }
    let mut figures = Vec::new();
    let settings = distinct(finished.iter().map(|(cell, _)| (cell.data.clone(), cell.backbone.clone())));
    for (number, (data, backbone)) in settings.iter().enumerate() {
        // Several data sets or checkpoints are numbered in the order of the plan.
        let suffix = if settings.len() > 1 { format!("-{}", number + 1) } else { String::new() };
        let here: Vec<&(&Cell, Report)> = finished.iter().filter(|(cell, _)| cell.data == *data && cell.backbone == *backbone).collect();
        let conditions = distinct(here.iter().map(|(cell, _)| Conditions::of(cell)));
        for condition in &conditions {
            let same = here.iter().filter(|(cell, _)| Conditions::of(cell) == *condition);
            let runs: Vec<Run<'_>> = same.map(|(cell, report)| Run { method: &cell.row, report }).collect();
            if distinct(runs.iter().map(|run| run.method)).len() > 1 {
                let share = condition.train_share.map_or_else(String::new, |share| format!("-share-{share}"));
                let name = format!("methods-{}-{}{share}{suffix}", condition.missing, condition.eta);
                figures.extend(performance_by_method(&runs).map(|figure| NamedFigure { name, figure }));
            }
        }
        let varied = distinct(here.iter().filter(|(cell, _)| cell.row != cell.base).map(|(cell, _)| &cell.base));
        let of_varied = here.iter().filter(|(cell, _)| varied.contains(&&cell.base));
        let runs: Vec<(f64, Run<'_>)> =
            of_varied.map(|(cell, report)| (cell.train_share.unwrap_or(1.0), Run { method: &cell.base, report })).collect();
        if distinct(conditions.iter().map(|c| (c.eta, c.missing))).len() > 1 {
            let runs: Vec<Run<'_>> = runs.iter().map(|(_, run)| *run).collect();
            let name = format!("missing-ratio{suffix}");
            figures.extend(performance_by_missing_ratio(&runs).map(|figure| NamedFigure { name, figure }));
        }
        if distinct(conditions.iter().map(|c| c.train_share)).len() > 1 {
            let name = format!("train-share{suffix}");
            figures.extend(performance_by_train_share(&runs).map(|figure| NamedFigure { name, figure }));
        }
    }
    Ok(figures)
}

/// The values in the order in which they first appear, each once.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    values.for_each(|value| {
        if !seen.contains(&value) {
            seen.push(value);
        }
    });
    seen
}
