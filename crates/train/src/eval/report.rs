//! The figures of an evaluation, as tables for people and as JSON for programs.
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::data::{ByPattern, MissingKind, Split};
use delo_model::input::Presence;

/// One task in a column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRow {
    /// Name of the task.
    pub task: String,
    /// Number of its samples.
    pub samples: usize,
    /// a_{i,i}, …, a_{i,T} in percent: after its own session, after each later one.
    pub scores: Vec<f64>,
    /// Share of its samples that go to it once every task is learnt, in percent.
    pub routing: Option<f64>,
}

/// All figures under one way to decide the task, in percent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// `task-oracle`, or `task-agnostic` with the metric and signal that decide.
    pub name: String,
    /// AP: the mean score over tasks once every task is learnt.
    pub ap: Option<f64>,
    /// FG: the mean fall of a task's score from its best to the last; `None` with one task.
    pub fg: Option<f64>,
    /// Once every task is learnt. Accuracy is over samples, F1-macro the mean over tasks.
    pub score: ByPattern,
    /// Share of the samples that go to their true task once every task is learnt; null for the oracle.
    pub routing: Option<ByPattern>,
    /// In the data set's order.
    pub tasks: Vec<TaskRow>,
}

/// One evaluated sample, once every task is learnt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// Index in the data set's list.
    pub item: usize,
    /// The image's file, as the list names it.
    pub image: String,
    /// The true task.
    pub task: String,
    /// The modalities that the sample kept.
    pub pattern: Presence,
    /// True labels.
    pub truth: Vec<String>,
    /// Labels that the true task's partition predicts.
    pub prediction: Vec<String>,
    /// The task that each routing rule chooses, in the order of the report's task-agnostic columns.
    pub routed: Vec<Option<String>>,
}

/// The figures of METHOD.md 6: the task-oracle column never comes without its task-agnostic ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the data set.
    pub data: String,
    /// The part of it that was evaluated.
    pub split: Split,
    /// `accuracy` or `F1-macro`.
    pub measure: String,
    /// η of the missing table.
    pub eta: f64,
    /// The modality that items lose.
    pub missing: MissingKind,
    /// Of the missing table.
    pub seed: u64,
    /// Samples of all evaluated tasks.
    pub samples: usize,
    /// The true task is given.
    pub oracle: Column,
    /// The task key decides: a column for each routing rule.
    pub agnostic: Vec<Column>,
    /// What limits the figures: tasks without a partition, partitions of no task, a metric that could not be
    /// used.
    pub notes: Vec<String>,
}

impl Report {
    /// Every column, the oracle first.
    pub fn columns(&self) -> impl Iterator<Item = &Column> {
        std::iter::once(&self.oracle).chain(&self.agnostic)
    }

    /// The tables that a person reads.
    pub fn table(&self) -> String {
        let Self { data, measure, eta, seed, samples, .. } = self;
        let (split, missing) = (self.split, self.missing);
        let tasks = self.oracle.tasks.len();
        let mut out =
            format!("{data}, {split} split: {samples} samples of {tasks} tasks, missing {missing} {eta} (seed {seed}); {measure} in %\n\n");
        let mut rows = vec![["", "AP", "FG", "all", "complete", "image only", "text only"].map(str::to_owned).to_vec()];
        for column in self.columns() {
            let mut row = vec![column.name.clone(), shown(column.ap), shown(column.fg)];
            row.extend(cells(&column.score));
            rows.push(row);
        }
        for column in &self.agnostic {
            if let Some(routing) = &column.routing {
                let mut row = vec![column.name.replace("task-agnostic", "routing"), String::new(), String::new()];
                row.extend(cells(routing));
                rows.push(row);
            }
        }
        align(&mut out, &rows);
        out.push('\n');

        let mut rows = vec![vec!["task".to_owned(), "samples".to_owned(), "oracle".to_owned()]];
        for column in &self.agnostic {
            let name = column.name.replace("task-agnostic, ", "");
            rows[0].extend([name.clone(), format!("routing, {name}")]);
        }
        for (i, task) in self.oracle.tasks.iter().enumerate() {
            let mut row = vec![task.task.clone(), task.samples.to_string(), shown(task.scores.last().copied())];
            for column in &self.agnostic {
                row.extend([shown(column.tasks[i].scores.last().copied()), shown(column.tasks[i].routing)]);
            }
            rows.push(row);
        }
        align(&mut out, &rows);
        for note in &self.notes {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "\nnote: {note}");
        }
        out.trim_end().to_owned()
    }
}

fn shown(figure: Option<f64>) -> String {
    figure.map_or("–".to_owned(), |x| format!("{x:.1}"))
}

fn cells(figures: &ByPattern) -> [String; 4] {
    [figures.all, figures.complete, figures.image_only, figures.text_only].map(shown)
}

/// Appends a table: columns two spaces apart, the first aligned to the left, the others to the right.
fn align(out: &mut String, rows: &[Vec<String>]) {
    let widths: Vec<usize> =
        (0..rows[0].len()).map(|c| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let mut line = format!("{:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            let _ = write!(line, "  {cell:>width$}");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, routing: Option<ByPattern>) -> Column {
        let score = ByPattern { all: Some(50.0), complete: Some(75.0), image_only: Some(25.0), text_only: None };
        let task = TaskRow { task: "soups".into(), samples: 4, scores: vec![60.0, 50.0], routing: Some(75.0) };
        Column { name: name.into(), ap: Some(50.04), fg: None, score, routing, tasks: vec![task] }
    }

    #[test]
    fn the_table_shows_the_oracle_beside_the_task_agnostic_column_and_routing_by_pattern() {
        let routing = ByPattern { all: Some(75.0), complete: Some(100.0), image_only: Some(50.0), text_only: None };
        let report = Report {
            data: "TINY".into(),
            split: Split::Test,
            measure: "accuracy".into(),
            eta: 0.7,
            missing: MissingKind::Both,
            seed: 0,
            samples: 4,
            oracle: column("task-oracle", None),
            agnostic: vec![column("task-agnostic, plain pooled", Some(routing))],
            notes: vec!["no partition for pies: left out of every figure".into()],
        };
        let expected = "\
TINY, test split: 4 samples of 1 tasks, missing both 0.7 (seed 0); accuracy in %

                               AP  FG   all  complete  image only  text only
task-oracle                  50.0   –  50.0      75.0        25.0          –
task-agnostic, plain pooled  50.0   –  50.0      75.0        25.0          –
routing, plain pooled                  75.0     100.0        50.0          –

task   samples  oracle  plain pooled  routing, plain pooled
soups        4    50.0          50.0                   75.0

note: no partition for pies: left out of every figure";
        assert_eq!(report.table(), expected);
        assert_eq!(serde_json::from_str::<Report>(&serde_json::to_string(&report).unwrap()).unwrap(), report);
    }
}
