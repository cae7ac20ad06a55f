//! A folder that tells of partitions: numbers as JSON, pictures as SVG and PNG, and a page in Markdown.
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::diagnostics::coverage::CoveragePoint;
use crate::diagnostics::{Diagnostics, LossCurve};
use crate::figures::{Figure, confidence, queries, scores, selection, training};
use crate::picture::PictureError;
use delo_train::eval::Report;

/// The file of the numbers; a folder that has one holds a report.
pub const NUMBERS: &str = "report.json";
/// The page.
pub const PAGE: &str = "report.md";

/// Shares of the samples for which the page gives the accuracy, in percent.
const COVERAGES: [f64; 4] = [100.0, 90.0, 75.0, 50.0];

/// All numbers of a report: what [`NUMBERS`] holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// The backbone, to show to people.
    pub backbone: String,
    /// AP, FG and routing.
    pub evaluation: Report,
    /// How the partitions work.
    pub diagnostics: Diagnostics,
    /// The losses of the training; empty without logs.
    pub losses: Vec<LossCurve>,
}

/// Why a report cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The folder holds a report.
    #[error("{} holds a report: name another folder with --out, or replace it with --force", .0.display())]
    Exists(PathBuf),
    /// A file or folder that cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Unwritable {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A picture cannot be drawn.
    #[error(transparent)]
    Picture(#[from] PictureError),
}

impl Page {
    /// The pictures, in the order of the page. One whose numbers do not exist is left out.
    pub fn figures(&self) -> Vec<Figure> {
        let Diagnostics { data, split, selection, similarity, calibration, coverage, queries, .. } = &self.diagnostics;
        let mut figures: Vec<Figure> = scores::score_matrix(&self.evaluation).into_iter().collect();
        figures.extend(queries.as_ref().map(|map| queries::query_map(data, split, map)));
        figures.extend(calibration.as_ref().map(|calibration| confidence::reliability(data, split, calibration)));
        figures.extend(coverage.as_ref().map(|coverage| confidence::coverage(data, split, coverage)));
        figures.extend(similarity.as_ref().map(|similarity| queries::similarities(data, split, similarity)));
        figures.extend(selection::selections(data, split, selection));
        let tasks: Vec<&str> = self.evaluation.oracle.tasks.iter().map(|row| row.task.as_str()).collect();
        figures.extend(training::losses(data, &tasks, &self.losses));
        figures
    }

    /// The page; `figures` are the pictures beside it, by the names of their files.
    pub fn markdown(&self, figures: &[Figure]) -> String {
        let Self { backbone, evaluation, diagnostics, .. } = self;
        let mut page = format!(
            "# Partitions on {}, {} split\n\nBackbone: {backbone}. Samples: {}. Tasks are decided by {}.\n\n\
             ## Scores\n\n```\n{}\n```\n",
            diagnostics.data,
            diagnostics.split,
            diagnostics.samples,
            diagnostics.rule,
            evaluation.table()
        );
        // Writing to a string cannot fail.
        if let Some(calibration) = &diagnostics.calibration {
            let percent = |error: f64| format!("{:.1} %", 100.0 * error);
            let (before, after) = (percent(calibration.before.error), percent(calibration.after.error));
            let _ = write!(
                page,
                "\nExpected calibration error of the task's probability: {after}; {before} with temperature 1 in place of the partitions'.\n"
            );
        }
        page.push_str(&self.coverage_table());
        for figure in figures {
            let (name, title) = (figure.name, figure.title());
            let _ = write!(page, "\n## {title}\n\n![{title}]({name}.png)\n\n{} ([SVG]({name}.svg))\n", figure.caption);
        }
        page
    }

    /// Accuracy at some coverages.
    fn coverage_table(&self) -> String {
        let Some(coverage) = &self.diagnostics.coverage else { return String::new() };
        let percent = |share: Option<f64>| share.map_or("–".to_owned(), |share| format!("{:.1}", 100.0 * share));
        let mut table = format!(
            "\n| samples answered, % | least {} of the task | right task, % | right task and class, % |\n| --- | --- | --- | --- |\n",
            coverage.confidence
        );
        for wanted in COVERAGES {
            let reached = |point: &&CoveragePoint| 100.0 * point.coverage >= wanted - 1e-9;
            if let Some(point) = coverage.points.iter().find(reached) {
                let (routing, accuracy) = (percent(Some(point.routing)), percent(point.accuracy));
                let _ = writeln!(table, "| {:.0} | {:.3} | {routing} | {accuracy} |", 100.0 * point.coverage, point.threshold);
            }
        }
        table
    }
}

/// Refuses a folder that holds a report, unless `force` says that it may be replaced: to be called before the
/// numbers are computed.
///
/// # Errors
/// [`PageError::Exists`].
pub fn check_folder(out: &Path, force: bool) -> Result<(), PageError> {
    if out.join(NUMBERS).exists() && !force { Err(PageError::Exists(out.to_owned())) } else { Ok(()) }
}

/// Writes a report to the folder `out`, which is made where it does not exist, and gives the path of the
/// page. Files of other names stay as they are. With `force`, a report that the folder holds is replaced.
///
/// # Errors
/// [`PageError`].
pub fn write(page: &Page, out: &Path, force: bool) -> Result<PathBuf, PageError> {
    check_folder(out, force)?;
    let unwritable = |path: &Path| {
        let path = path.to_owned();
        move |source| PageError::Unwritable { path, source }
    };
    fs::create_dir_all(out).map_err(unwritable(out))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        fs::write(&path, bytes).map_err(unwritable(&path))?;
        Ok::<_, PageError>(path)
    };
    let figures = page.figures();
    for figure in &figures {
        write(&format!("{}.svg", figure.name), figure.svg()?.as_bytes())?;
        write(&format!("{}.png", figure.name), &figure.png()?)?;
    }
    let numbers = serde_json::to_vec_pretty(page).map_err(|e| unwritable(&out.join(NUMBERS))(e.into()))?;
    write(NUMBERS, &numbers)?;
    write(PAGE, page.markdown(&figures).as_bytes())
}
