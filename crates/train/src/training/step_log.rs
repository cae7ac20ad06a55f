//! The log of a session: one JSON object a line, one line a step.
use std::fs::File;
use std::io::{BufRead, BufReader, LineWriter, Result, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// One step. A term of the loss that was not computed is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Counted from 0, over all epochs.
    pub step: usize,
    /// Counted from 0.
    pub epoch: usize,
    /// The step's learning rate.
    pub lr: f64,
    /// L = classification + λ1 alignment + λ2 consistency, or classification + 0.5 key_pull.
    pub loss: f64,
    /// L_c.
    pub classification: f64,
    /// L_align, before weighting.
    pub alignment: Option<f64>,
    /// L_con, before weighting.
    pub consistency: Option<f64>,
    /// The pull of the chosen keys, before weighting; left out where the method has no keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_pull: Option<f64>,
    /// Wall time of the step, in seconds.
    pub seconds: f64,
}

/// Writes each record at once: a run that is killed loses at most the last one.
#[derive(Debug)]
pub struct StepLog {
    file: LineWriter<File>,
}

impl StepLog {
    /// A log that goes on at `step`. Lines of earlier steps stay; later ones, which an interrupted run wrote
    /// after its last checkpoint, are removed.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path, step: usize) -> Result<Self> {
        let mut kept = Vec::new();
        if step > 0 && path.exists() {
            for line in BufReader::new(File::open(path)?).lines() {
                let line = line?;
                if serde_json::from_str::<StepRecord>(&line).is_ok_and(|r| r.step < step) {
                    kept.push(line);
                }
            }
        }
        let mut file = LineWriter::new(File::create(path)?);
        for line in kept {
            writeln!(file, "{line}")?;
        }
        Ok(Self { file })
    }

    /// Appends one step.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&mut self, record: &StepRecord) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_where_the_checkpoint_was_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let record = |step| StepRecord {
            step,
            epoch: 0,
            lr: 1e-4,
            loss: 1.0,
            classification: 1.0,
            alignment: None,
            consistency: Some(0.5),
            key_pull: None,
            seconds: 0.1,
        };
        let mut log = StepLog::open(&path, 0).unwrap();
        (0..5).for_each(|step| log.write(&record(step)).unwrap());
        drop(log);
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "{\"step\": 5, \"epo").unwrap();
        StepLog::open(&path, 3).unwrap().write(&record(3)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let steps: Vec<_> = text.lines().map(|l| serde_json::from_str::<StepRecord>(l).unwrap().step).collect();
        assert_eq!(steps, [0, 1, 2, 3]);
        assert!(text.contains("\"alignment\":null"));
    }
}
