//! How often each factor is selected (figure 5 of the paper).
use super::{Drawing, Figure};
use crate::diagnostics::TaskSelection;
use crate::diagnostics::selection::PoolSelection;
use crate::picture::{Head, HeatMap, HeatPanel};

/// Tasks that are drawn, at most; the numbers of the others stand in the JSON.
const MOST: usize = 10;
/// Experts up to which each has its number written below it.
const NUMBERED: usize = 16;
/// The modalities, as the pools are named.
const MODALITIES: [&str; 2] = ["visual", "textual"];

/// A picture of the A factors, and one of the B factors; none where no task has routers.
pub fn selections(data: &str, split: &str, tasks: &[TaskSelection]) -> Vec<Figure> {
    if tasks.is_empty() {
        return Vec::new();
    }
    vec![
        selection("selection-a", "A", data, split, tasks, |pool| &pool.a),
        selection("selection-b", "B", data, split, tasks, |pool| &pool.b),
    ]
}

fn selection(
    name: &'static str,
    side: &str,
    data: &str,
    split: &str,
    tasks: &[TaskSelection],
    shares: fn(&PoolSelection) -> &Vec<f64>,
) -> Figure {
    let drawn = &tasks[..tasks.len().min(MOST)];
    let panels: Vec<HeatPanel> = drawn.iter().flat_map(|task| MODALITIES.map(|modality| panel(task, modality, shares))).collect();
    let rows = panels.iter().map(|panel| panel.rows.len()).max().unwrap_or(0);
    let left_out = if drawn.len() < tasks.len() { format!(" The first {MOST} of {} tasks.", tasks.len()) } else { String::new() };
    let rank = tasks.iter().map(|task| task.rank).max().unwrap_or(0);
    let head = Head {
        title: format!("How often each {side} factor is selected"),
        subtitle: format!(
            "{data}, {split} split, task given. Each layer has a row for query, key and value; each sample selects {rank} experts of a \
             row.{left_out}"
        ),
        key: Vec::new(),
    };
    Figure {
        name,
        caption: format!(
            "Each cell is the share of a task's samples that select the {side} factor of an expert. Even rows mean that samples choose \
             different experts; a few dark cells and many white ones, that all samples of the task use the same ones and the others are idle."
        ),
        drawing: Drawing::HeatMap(HeatMap {
            head,
            panels,
            columns: MODALITIES.len(),
            panel_height: 64.0 + (4.2 * rows as f64).max(60.0),
            range: [0.0, 1.0],
            unit: "share of samples".to_owned(),
            written: None,
        }),
    }
}

fn panel(task: &TaskSelection, modality: &str, shares: fn(&PoolSelection) -> &Vec<f64>) -> HeatPanel {
    let pools: Vec<&PoolSelection> = task.pools.iter().filter(|pool| pool.modality == modality).collect();
    let experts = pools.iter().map(|pool| shares(pool).len()).max().unwrap_or(0);
    let every = experts.div_ceil(NUMBERED).max(1);
    let last_layer = pools.last().map_or(0, |pool| pool.layer);
    // Many layers leave no room for the number of each.
    let layers_apart = (last_layer + 1).div_ceil(8).max(1);
    let row = |pool: &&PoolSelection| {
        // The middle one of a layer's three rows has its name.
        if pool.target == "key" && pool.layer.is_multiple_of(layers_apart) { pool.layer.to_string() } else { String::new() }
    };
    HeatPanel {
        title: format!("{}, {modality} ({} samples)", task.task, task.samples),
        rows_title: "layer".to_owned(),
        columns_title: "expert".to_owned(),
        rows: pools.iter().map(row).collect(),
        columns: (0..experts).map(|e| if e.is_multiple_of(every) { e.to_string() } else { String::new() }).collect(),
        values: pools.iter().map(|pool| shares(pool).iter().copied().map(Some).collect()).collect(),
    }
}
