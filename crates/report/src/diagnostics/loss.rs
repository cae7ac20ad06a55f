//! Curves of the losses, from the logs that `delo train` writes.
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use delo_train::training::StepRecord;

/// Points of the longest curve, at most: each is the mean over as many steps as are needed for that, the same
/// number in all curves.
const POINTS: usize = 40;

/// The losses of one session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossCurve {
    /// The log's file name without `.jsonl`: with `delo train --all`, the task.
    pub task: String,
    /// All steps of the session.
    pub steps: usize,
    /// By rising step.
    pub points: Vec<LossPoint>,
}

/// Means over some steps in a row. A term that no step computed is null.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// The middle of the steps.
    pub step: f64,
    /// L = L_c + λ1 L_align + λ2 L_con.
    pub loss: f64,
    /// L_c.
    pub classification: f64,
    /// L_align, before weighting.
    pub alignment: Option<f64>,
    /// L_con, before weighting.
    pub consistency: Option<f64>,
}

/// Why logs give no curves.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    /// A file or folder that cannot be read.
    #[error("cannot read {}: {source}; --logs names a folder of *.jsonl, as `delo train` writes them", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

/// The curves of all logs in a folder (`*.jsonl`), by name. A file without a step is left out: JSON lines of
/// another kind may stand beside the logs.
///
/// # Errors
/// [`LossError`] names the file that cannot be read.
pub fn read_logs(dir: &Path) -> Result<Vec<LossCurve>, LossError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| LossError::Unreadable { path, source }
    };
    let entries = dir.read_dir().and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>());
    let mut paths = entries.map_err(unreadable(dir))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    let mut logs = Vec::new();
    for path in paths {
        let task = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        logs.push((task, read(&path).map_err(unreadable(&path))?));
    }
    logs.retain(|(_, records)| !records.is_empty());
    let longest = logs.iter().map(|(_, records)| records.len()).max().unwrap_or(0);
    let window = longest.div_ceil(POINTS).max(1);
    Ok(logs.into_iter().map(|(task, records)| LossCurve::of(task, &records, window)).collect())
}

/// The steps of a log. A line that is none is left out: an interrupted run may have cut the last one.
fn read(path: &Path) -> std::io::Result<Vec<StepRecord>> {
    let mut records = Vec::new();
    for line in BufReader::new(File::open(path)?).lines() {
        records.extend(serde_json::from_str(&line?).ok());
    }
    Ok(records)
}

impl LossCurve {
    /// The curve of some steps, by rising step. Each point is the mean over `window` of them, at least one.
    pub fn of(task: String, records: &[StepRecord], window: usize) -> Self {
        Self { task, steps: records.len(), points: records.chunks(window.max(1)).map(LossPoint::of).collect() }
    }
}

impl LossPoint {
    fn of(records: &[StepRecord]) -> Self {
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
            (count > 0).then(|| sum / count as f64)
        };
        let all = |value: fn(&StepRecord) -> f64| mean(&mut records.iter().map(value)).unwrap_or(f64::NAN);
        Self {
            step: all(|record| record.step as f64),
            loss: all(|record| record.loss),
            classification: all(|record| record.classification),
            alignment: mean(&mut records.iter().filter_map(|record| record.alignment)),
            consistency: mean(&mut records.iter().filter_map(|record| record.consistency)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: usize) -> StepRecord {
        let alignment = (step.is_multiple_of(2)).then_some(0.5);
        StepRecord {
            step,
            epoch: 0,
            lr: 1e-3,
            loss: step as f64,
            classification: 1.0,
            alignment,
            consistency: None,
            key_pull: None,
            seconds: 0.1,
        }
    }

    #[test]
    fn a_point_is_the_mean_over_steps_in_a_row_and_of_the_terms_that_were_computed() {
        let curve = LossCurve::of("soups".to_owned(), &(0..119).map(record).collect::<Vec<_>>(), 2);
        assert_eq!((curve.steps, curve.points.len()), (119, 60));
        let expected = LossPoint { step: 2.5, loss: 2.5, classification: 1.0, alignment: Some(0.5), consistency: None };
        assert_eq!(curve.points[1], expected);
    }

    #[test]
    fn a_folder_gives_a_curve_for_each_log_and_none_for_other_lines() {
        let dir = tempfile::tempdir().unwrap();
        let lines: Vec<String> = (0..3).map(|step| serde_json::to_string(&record(step)).unwrap()).collect();
        std::fs::write(dir.path().join("b.jsonl"), format!("{}\n{{\"step\": 3, \"ep", lines.join("\n"))).unwrap();
        std::fs::write(dir.path().join("a.jsonl"), &lines[0]).unwrap();
        std::fs::write(dir.path().join("samples.jsonl"), "{\"item\": 3}\n").unwrap();
        std::fs::write(dir.path().join("a.txt"), &lines[0]).unwrap();
        let found: Vec<(String, usize)> = read_logs(dir.path()).unwrap().into_iter().map(|curve| (curve.task, curve.steps)).collect();
        assert_eq!(found, [("a".to_owned(), 1), ("b".to_owned(), 3)]);
        let error = read_logs(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("--logs names a folder"), "{error}");
    }
}
