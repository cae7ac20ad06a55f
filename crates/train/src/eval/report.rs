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
    /// a_{i,i}, …, a_{i,T} in percent: after its own session, after each later one. Empty without samples.
    pub scores: Vec<f64>,
    /// Share of its samples that go to it once every task is learnt, in percent.
    pub routing: Option<f64>,
}

/// All figures under one way to decide the task, in percent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// `task-oracle`, or `task-agnostic` with the metric and signal that decide.
    pub name: String,
    /// AP: the mean score over tasks once every task is learnt. A task without samples is left out.
    pub ap: Option<f64>,
    /// A 95 % interval of AP: percentiles of 2,000 bootstrap draws of groups of samples (`group` of the list),
    /// the same groups in every column.
    #[serde(default)]
    pub ap_interval: Option<[f64; 2]>,
    /// FG: the mean fall of a task's score from its best to the last; `None` with one task.
    pub fg: Option<f64>,
    /// FG as the RebQ code computes it: the mean fall of a task's score from that after its own session to the
    /// last; `None` with one task.
    #[serde(default)]
    pub fg_since_learnt: Option<f64>,
    /// F1-macro over a task's own classes on its own samples, the mean over tasks: AP. `None` for accuracy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f1_macro_own: Option<f64>,
    /// F1-macro over the classes of all tasks on all samples, once every task is learnt: labels that another
    /// task's partition gives a sample are false positives. `None` for accuracy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f1_macro_all_seen: Option<f64>,
    /// The same after each session, over the tasks learnt until then; null while these have no samples. Empty
    /// for accuracy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub f1_macro_all_seen_by_session: Vec<Option<f64>>,
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
    /// The family of samples that it is drawn with in a bootstrap; null: it is independent of all others.
    #[serde(default)]
    pub group: Option<String>,
    /// The true task.
    pub task: String,
    /// The modalities that the sample kept.
    pub pattern: Presence,
    /// True labels.
    pub truth: Vec<String>,
    /// Labels that are predicted among those of the true task: by its partition, or by a learner of all
    /// tasks.
    pub prediction: Vec<String>,
    /// The task that each routing rule chooses, in the order of the report's task-agnostic columns.
    pub routed: Vec<Option<String>>,
    /// The prediction counts whichever task is chosen: that of a multi-label learner of all tasks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unrouted: bool,
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
    /// What limits the figures: tasks without a partition or without samples, partitions of no task or of
    /// another missing table, a metric that could not be used.
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
        let multi_label = self.oracle.f1_macro_all_seen.is_some();
        let mut head = vec!["", "AP [95 %]", "FG", "FG since learnt"];
        if multi_label {
            head.extend(["F1 own", "F1 all seen"]);
        }
        let figures = head.len();
        head.extend(["all", "complete", "image only", "text only"]);
        let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        for column in self.columns() {
            let mut row = vec![column.name.clone(), with_interval(column), shown(column.fg), shown(column.fg_since_learnt)];
            if multi_label {
                row.extend([column.f1_macro_own, column.f1_macro_all_seen].map(shown));
            }
            row.extend(cells(&column.score));
            rows.push(row);
        }
        for column in &self.agnostic {
            if let Some(routing) = &column.routing {
                let mut row = vec![column.name.replace("task-agnostic", "routing")];
                row.resize(figures, String::new());
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

/// AP with its interval.
fn with_interval(column: &Column) -> String {
    match column.ap_interval {
        Some([low, high]) => format!("{} [{low:.1}, {high:.1}]", shown(column.ap)),
        None => shown(column.ap),
    }
}

fn cells(figures: &ByPattern) -> [String; 4] {
    [figures.all, figures.complete, figures.image_only, figures.text_only].map(shown)
}

/// Appends a table: columns two spaces apart, the first aligned to the left, the others to the right.
pub(super) fn align(out: &mut String, rows: &[Vec<String>]) {
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
        Column {
            name: name.into(),
            ap: Some(50.04),
            ap_interval: Some([41.26, 58.0]),
            fg: None,
            fg_since_learnt: Some(3.0),
            f1_macro_own: None,
            f1_macro_all_seen: None,
            f1_macro_all_seen_by_session: Vec::new(),
            score,
            routing,
            tasks: vec![task],
        }
    }

    fn report(routing: ByPattern) -> Report {
        Report {
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
        }
    }

    #[test]
    fn the_table_shows_the_oracle_beside_the_task_agnostic_column_and_routing_by_pattern() {
        let routing = ByPattern { all: Some(75.0), complete: Some(100.0), image_only: Some(50.0), text_only: None };
        let report = report(routing);
        let expected = "\
TINY, test split: 4 samples of 1 tasks, missing both 0.7 (seed 0); accuracy in %

                                     AP [95 %]  FG  FG since learnt   all  complete  image only  text only
task-oracle                  50.0 [41.3, 58.0]   –              3.0  50.0      75.0        25.0          –
task-agnostic, plain pooled  50.0 [41.3, 58.0]   –              3.0  50.0      75.0        25.0          –
routing, plain pooled                                                75.0     100.0        50.0          –

task   samples  oracle  plain pooled  routing, plain pooled
soups        4    50.0          50.0                   75.0

note: no partition for pies: left out of every figure";
        assert_eq!(report.table(), expected);
        assert_eq!(serde_json::from_str::<Report>(&serde_json::to_string(&report).unwrap()).unwrap(), report);
    }

    #[test]
    fn both_readings_of_f1_macro_are_in_the_table_and_named_in_json() {
        let mut report = report(ByPattern { all: None, complete: None, image_only: None, text_only: None });
        for column in [&mut report.oracle, &mut report.agnostic[0]] {
            column.f1_macro_own = Some(50.04);
            column.f1_macro_all_seen = Some(27.4);
            column.f1_macro_all_seen_by_session = vec![Some(60.0), Some(27.4)];
        }
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[2].contains("FG since learnt  F1 own  F1 all seen   all"), "{table}");
        assert_eq!(
            lines[3],
            "task-oracle                  50.0 [41.3, 58.0]   –              3.0    50.0         27.4  50.0      75.0        25.0          –"
        );
        assert!(lines[5].ends_with("  –         –           –          –"), "{table}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["oracle"]["f1_macro_own"], &json["oracle"]["f1_macro_all_seen"]), (&50.04.into(), &27.4.into()));
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    }
}
