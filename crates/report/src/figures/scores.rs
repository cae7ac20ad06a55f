//! a_{i,j}: each task's score after each session.
use super::{Drawing, Figure};
use crate::picture::{Head, HeatMap, HeatPanel};
use delo_train::eval::Report;

/// Tasks up to which scores are written into the cells.
const WRITTEN: usize = 16;

/// The scores of the first task-agnostic column, and beside them those with the task given; `None` where no
/// rule decides tasks, or without a task.
pub fn score_matrix(report: &Report) -> Option<Figure> {
    let column = report.agnostic.first()?;
    let tasks = column.tasks.len();
    if tasks == 0 {
        return None;
    }
    let row = |i: usize| {
        let learnt = column.tasks[i].scores.iter().copied().map(Some);
        // A task without samples has no scores at all.
        let missing = tasks - column.tasks[i].scores.len();
        let given = report.oracle.tasks.get(i).and_then(|task| task.scores.last().copied());
        std::iter::repeat_n(None, missing).chain(learnt).chain([None, given]).collect::<Vec<Option<f64>>>()
    };
    let panel = HeatPanel {
        title: String::new(),
        rows_title: "task, in the order of learning".to_owned(),
        columns_title: "after session".to_owned(),
        rows: column.tasks.iter().map(|task| task.task.clone()).collect(),
        columns: (1..=tasks).map(|j| j.to_string()).chain([String::new(), "task given".to_owned()]).collect(),
        values: (0..tasks).map(row).collect(),
    };
    let shown = |figure: Option<f64>| figure.map_or("–".to_owned(), |x| format!("{x:.1}"));
    let head = Head {
        title: format!("{} of each task after each session, {}", capital(&report.measure), column.name),
        subtitle: format!(
            "{}, {} split, missing {} {}, {} samples. AP {} %, FG {} points; with the task given, AP {} %.",
            report.data,
            report.split,
            report.missing,
            report.eta,
            report.samples,
            shown(column.ap),
            shown(column.fg),
            shown(report.oracle.ap),
        ),
        key: Vec::new(),
    };
    Some(Figure {
        name: "scores",
        caption:
            "a_{i,j}: the score of task i (row) once sessions 1 to j (columns) are learnt. Partitions do not change once learnt, so that a \
             row changes only where the decision among more tasks does: it mostly falls, as later tasks attract its samples. The last \
             column gives the true task."
                .to_owned(),
        drawing: Drawing::HeatMap(HeatMap {
            head,
            panels: vec![panel],
            columns: 1,
            panel_height: 70.0 + 30.0 * tasks as f64,
            range: [0.0, 100.0],
            unit: format!("{}, %", report.measure),
            written: (tasks <= WRITTEN).then_some(0),
        }),
    })
}

/// The text with a capital first letter.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
