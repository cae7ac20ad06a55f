//! The rows of a table: the finished cells of each row over their seeds, with mean, spread, interval and the
//! difference to the reference.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::cell::Cell;
use super::folder::{CellFolder, FolderError};
use super::plan::Plan;
use super::result::{CellResult, Cost, SplitDraws};
use delo_train::eval::paired::DrawnAp;
use delo_train::eval::{Column, Report};
use delo_train::{MissingKind, Split};

/// A figure over the seeds of a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The mean over the seeds.
    pub mean: f64,
    /// The standard deviation over the seeds (n − 1); `None` with one seed.
    pub spread: Option<f64>,
}

/// AP over the seeds of a row, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ap {
    /// Mean and spread.
    #[serde(flatten)]
    pub figure: Figure,
    /// A 95 % interval of the mean: percentiles over bootstrap draws of groups of items, the same in all
    /// seeds.
    pub interval: Option<[f64; 2]>,
}

/// A row's AP minus that of the reference, paired by seed and item.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Task-agnostic AP minus the reference's: mean over the seeds that both have.
    pub agnostic: f64,
    /// Its 95 % interval, under the same draws of both.
    pub agnostic_interval: Option<[f64; 2]>,
    /// The same of task-oracle AP.
    pub oracle: f64,
    /// Its 95 % interval.
    pub oracle_interval: Option<[f64; 2]>,
    /// The seeds that both have.
    pub seeds: usize,
}

/// What rows must share to be compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Conditions {
    /// The data set's folder.
    pub data: PathBuf,
    /// The checkpoint; null: the one in the program.
    pub backbone: Option<PathBuf>,
    /// Share of items that lose a modality.
    pub eta: f64,
    /// The modality that they lose.
    pub missing: MissingKind,
    /// The share of the training items that methods learn from; null: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_share: Option<f64>,
}

/// One row on one split; figures are `None` where no cell of the row is finished.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub row: String,
    /// The method.
    pub method: String,
    /// Data, checkpoint and missing modalities.
    pub conditions: Conditions,
    /// The number of its cells in the plan.
    pub cells: usize,
    /// The seeds of its finished cells.
    pub seeds: Vec<u64>,
    /// Task-agnostic AP.
    pub agnostic: Option<Ap>,
    /// Task-oracle AP.
    pub oracle: Option<Ap>,
    /// All other figures, task-agnostic unless the name says otherwise, by name.
    pub figures: BTreeMap<&'static str, Figure>,
    /// To the reference under the same conditions; `None` for the reference itself.
    pub difference: Option<Difference>,
    /// What limits the figures.
    pub notes: Vec<String>,
}

/// What the cells of a row took and learnt: means over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowCost {
    /// Name of the row.
    pub row: String,
    /// In seconds.
    pub training_seconds: Figure,
    /// In seconds, of all splits.
    pub evaluation_seconds: Figure,
    /// Learnt numbers without the heads.
    pub parameters: f64,
    /// Learnt numbers of the heads.
    pub head_parameters: f64,
    /// Gradient steps.
    pub steps: f64,
    /// The processors and threads that computed.
    pub processors: Vec<String>,
    /// By seed: what was chosen on val items.
    pub choices: BTreeMap<u64, Value>,
}

/// Everything that a benchmark found.
#[derive(Clone, Debug, Serialize)]
pub struct Rows {
    /// Heading.
    pub title: String,
    /// The row, or table of the plan, that differences are to.
    pub reference: Option<String>,
    /// By split, the rows in the order of the plan.
    pub splits: BTreeMap<Split, Vec<Row>>,
    /// The cost of the rows that have a finished cell.
    pub cost: Vec<RowCost>,
}

/// A finished cell.
struct Finished<'a> {
    cell: &'a Cell,
    folder: CellFolder,
    result: CellResult,
}

impl Figure {
    /// Mean and spread of some values; `None` without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let spread = (values.len() > 1).then(|| (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt());
        (!values.is_empty()).then_some(Self { mean, spread })
    }
}

impl Rows {
    /// The rows of a plan from the folder of its benchmark.
    ///
    /// # Errors
    /// A damaged file of a finished cell.
    pub fn read(plan: &Plan, out: &Path) -> Result<Self, FolderError> {
        let mut finished: BTreeMap<&str, Vec<Finished<'_>>> = BTreeMap::new();
        let mut order: Vec<&Cell> = Vec::new();
        for cell in &plan.cells {
            if order.iter().all(|first| first.row != cell.row) {
                order.push(cell);
            }
            let folder = CellFolder::of(out, &cell.name);
            if let Some(result) = folder.result()? {
                finished.entry(&cell.row).or_default().push(Finished { cell, folder, result });
            }
        }
        let of_row = |row: &str| finished.get(row).map_or(&[][..], Vec::as_slice);
        let mut splits: BTreeMap<Split, Vec<Row>> = BTreeMap::new();
        for first in &order {
            for &split in &first.splits {
                let cells = plan.cells.iter().filter(|cell| cell.row == first.row).count();
                let reference = plan.reference_of(first, &order).map(|row| of_row(&row.row));
                splits.entry(split).or_default().push(Row::of(first, cells, split, of_row(&first.row), reference)?);
            }
        }
        let cost = order.iter().filter_map(|first| RowCost::of(&first.row, of_row(&first.row))).collect();
        Ok(Self { title: plan.title.clone(), reference: plan.reference.clone(), splits, cost })
    }
}

impl Plan {
    /// The row that `row` is compared with: the reference, or the one of its table, under the same
    /// conditions. `None` for the reference itself, and where there are several such rows or none.
    fn reference_of<'a>(&self, row: &Cell, rows: &[&'a Cell]) -> Option<&'a Cell> {
        let reference = self.reference.as_ref()?;
        let same = |cell: &&&Cell| Conditions::of(cell) == Conditions::of(row);
        let named = rows.iter().find(|cell| cell.row == *reference).filter(same);
        let mut of_table = rows.iter().filter(|cell| cell.base == *reference).filter(same);
        let only = of_table.next().filter(|_| of_table.next().is_none());
        named.or(only).copied().filter(|found| found.row != row.row)
    }
}

impl Conditions {
    pub(crate) fn of(cell: &Cell) -> Self {
        let Cell { data, backbone, eta, missing, train_share, .. } = cell;
        Self { data: data.clone(), backbone: backbone.clone(), eta: *eta, missing: *missing, train_share: *train_share }
    }
}

impl Row {
    fn of(
        first: &Cell,
        cells: usize,
        split: Split,
        finished: &[Finished<'_>],
        reference: Option<&[Finished<'_>]>,
    ) -> Result<Self, FolderError> {
        let mut reports = Vec::new();
        let mut draws = Vec::new();
        for cell in finished {
            if let Some(report) = cell.result.reports.get(&split) {
                reports.push(report);
                draws.push((cell.cell.seed, cell.folder.draws(split)?));
            }
        }
        let mut of_reference = Vec::new();
        for cell in reference.unwrap_or_default() {
            if cell.result.reports.contains_key(&split) {
                of_reference.push((cell.cell.seed, cell.folder.draws(split)?));
            }
        }
        let mut notes: Vec<String> = reports.iter().flat_map(|report| report.notes.iter().cloned()).collect();
        notes.sort();
        notes.dedup();
        Ok(Self {
            row: first.row.clone(),
            method: first.method.clone(),
            conditions: Conditions::of(first),
            cells,
            seeds: draws.iter().map(|(seed, _)| *seed).collect(),
            agnostic: ap(&draws, |drawn| &drawn.agnostic),
            oracle: ap(&draws, |drawn| &drawn.oracle),
            figures: figures(&reports),
            difference: difference(&draws, &of_reference),
            notes,
        })
    }
}

/// The draws of a row's finished cells, each with its seed.
type Draws = [(u64, SplitDraws)];

fn ap(draws: &Draws, of: impl Fn(&SplitDraws) -> &DrawnAp) -> Option<Ap> {
    let drawn: Vec<DrawnAp> = draws.iter().map(|(_, drawn)| of(drawn).clone()).collect();
    let figure = Figure::of(&drawn.iter().map(|drawn| drawn.ap).collect::<Vec<_>>())?;
    let pairs =
        draws.iter().map(|(_, drawn)| drawn.agnostic.draws.len()).min() == draws.iter().map(|(_, drawn)| drawn.agnostic.draws.len()).max();
    Some(Ap { figure, interval: DrawnAp::mean(&drawn).filter(|_| pairs)?.interval() })
}

/// Over the seeds that both have, where both are of the same items.
fn difference(row: &Draws, reference: &Draws) -> Option<Difference> {
    let mut pairs = Vec::new();
    for (seed, drawn) in row {
        let same = |(other, of): &&(u64, SplitDraws)| other == seed && of.items == drawn.items;
        if let Some((_, other)) = reference.iter().find(same) {
            pairs.push((drawn.agnostic.minus(&other.agnostic), drawn.oracle.minus(&other.oracle)));
        }
    }
    let seeds = pairs.len();
    let (agnostic, oracle): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let (agnostic, oracle) = (DrawnAp::mean(&agnostic)?, DrawnAp::mean(&oracle)?);
    Some(Difference {
        agnostic: agnostic.ap,
        agnostic_interval: agnostic.interval(),
        oracle: oracle.ap,
        oracle_interval: oracle.interval(),
        seeds,
    })
}

/// The figures beside AP, by name: each of the first task-agnostic column, over the seeds that have it.
fn figures(reports: &[&Report]) -> BTreeMap<&'static str, Figure> {
    let of = |figure: &dyn Fn(&Report, &Column) -> Option<f64>| {
        let values: Vec<f64> = reports.iter().filter_map(|report| figure(report, report.agnostic.first()?)).collect();
        Figure::of(&values)
    };
    let named = [
        ("fg", of(&|_, column| column.fg)),
        ("fg_since_learnt", of(&|_, column| column.fg_since_learnt)),
        ("f1_macro_all_seen", of(&|_, column| column.f1_macro_all_seen)),
        ("oracle_f1_macro_all_seen", of(&|report, _| report.oracle.f1_macro_all_seen)),
        ("oracle_fg", of(&|report, _| report.oracle.fg)),
        ("oracle_fg_since_learnt", of(&|report, _| report.oracle.fg_since_learnt)),
        ("routing", of(&|_, column| column.routing?.all)),
        ("complete", of(&|_, column| column.score.complete)),
        ("image_only", of(&|_, column| column.score.image_only)),
        ("text_only", of(&|_, column| column.score.text_only)),
        ("oracle_complete", of(&|report, _| report.oracle.score.complete)),
        ("oracle_image_only", of(&|report, _| report.oracle.score.image_only)),
        ("oracle_text_only", of(&|report, _| report.oracle.score.text_only)),
    ];
    named.into_iter().filter_map(|(name, figure)| Some((name, figure?))).collect()
}

impl RowCost {
    /// `None` where no cell is finished.
    fn of(row: &str, finished: &[Finished<'_>]) -> Option<Self> {
        let values = |of: &dyn Fn(&Cost) -> f64| finished.iter().map(|cell| of(&cell.result.cost)).collect::<Vec<f64>>();
        let mean = |of: &dyn Fn(&Cost) -> f64| Figure::of(&values(of)).map(|figure| figure.mean);
        let mut processors: Vec<String> =
            finished.iter().map(|cell| format!("{}, {} threads", cell.result.cost.processor, cell.result.cost.threads)).collect();
        processors.sort();
        processors.dedup();
        let chosen = finished.iter().filter(|cell| !cell.result.choices.is_null());
        Some(Self {
            row: row.to_owned(),
            training_seconds: Figure::of(&values(&|cost| cost.training_seconds))?,
            evaluation_seconds: Figure::of(&values(&|cost| cost.evaluation_seconds))?,
            parameters: mean(&|cost| cost.parameters as f64)?,
            head_parameters: mean(&|cost| cost.head_parameters as f64)?,
            steps: mean(&|cost| cost.steps as f64)?,
            processors,
            choices: chosen.map(|cell| (cell.cell.seed, cell.result.choices.clone())).collect(),
        })
    }
}
