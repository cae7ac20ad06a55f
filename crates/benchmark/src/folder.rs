//! What a cell keeps on disk: `OUT/cells/NAME/`.
//!
//! | file | holds |
//! | --- | --- |
//! | `cell.json` | the whole configuration, with the fingerprints of data and backbone |
//! | `log.txt` | what its process said |
//! | `missing.json` | which items lose a modality |
//! | `partitions/` | the artifacts and the log of every step, for a method that makes partitions |
//! | `SPLIT.samples.jsonl` | every evaluated sample |
//! | `SPLIT.draws.json` | AP under the draws of the bootstrap |
//! | `result.json` | the figures; it is written last |
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cell::Cell;
use super::result::{CellResult, SplitDraws};
use delo_process::durable::replace;
use delo_train::Split;

/// Why the folder of a cell cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file or folder that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file that the benchmark did not write so.
    #[error("{}: {problem}; remove the folder to run the cell again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The folder is of a cell of the same name with another configuration.
    #[error(
        "{} was made with {setting} {before}, the plan has {after}: give the cell another name, or choose another --out",
        path.display()
    )]
    OtherCell {
        /// The folder.
        path: PathBuf,
        /// The first setting that differs.
        setting: String,
        /// Its value in the folder.
        before: Value,
        /// Its value in the plan.
        after: Value,
    },
    /// Another process runs the cell.
    #[error("{}: another process runs this cell", .0.display())]
    Locked(PathBuf),
}

/// `cell.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellRecord {
    /// All that the plan says.
    pub cell: Cell,
    /// [`delo_train::Dataset::fingerprint`].
    pub data_fingerprint: String,
    /// The hash over the backbone's tensors.
    pub backbone_fingerprint: String,
    /// Version of the program that began the cell.
    pub version: String,
}

/// How far a cell is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has no folder.
    NotRun,
    /// It was begun, and goes on from where it was.
    Begun,
    /// It has a result.
    Finished,
}

/// The folder of one cell.
#[derive(Clone, Debug)]
pub struct CellFolder(PathBuf);

impl CellRecord {
    /// What decides the result, by name: the paths of data and backbone do not, their fingerprints do.
    fn identity(&self) -> Value {
        let mut identity = serde_json::to_value(&self.cell).unwrap_or_default();
        if let Value::Object(identity) = &mut identity {
            for path in ["data", "backbone"] {
                identity.remove(path);
            }
            identity.insert("data (fingerprint)".to_owned(), self.data_fingerprint.clone().into());
            identity.insert("backbone (fingerprint)".to_owned(), self.backbone_fingerprint.clone().into());
        }
        identity
    }
}

/// The first setting in which two configurations differ, with its values: `settings.lr`.
fn difference(path: &str, before: &Value, after: &Value) -> Option<(String, Value, Value)> {
    if let (Value::Object(a), Value::Object(b)) = (before, after) {
        let inner = |key: &String| {
            let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            difference(&at, a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null))
        };
        return a.keys().chain(b.keys()).find_map(inner);
    }
    (before != after).then(|| (path.to_owned(), before.clone(), after.clone()))
}

impl CellFolder {
    /// The folder of the cell of this name.
    pub fn of(out: &Path, cell: &str) -> Self {
        Self(out.join("cells").join(cell))
    }

    /// The folder at this path.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The folder of another cell of the same benchmark.
    pub fn of_other(&self, cell: &str) -> Self {
        Self(self.0.with_file_name(cell))
    }

    /// The folder of the artifacts.
    pub fn partitions(&self) -> PathBuf {
        self.0.join("partitions")
    }

    /// The log of its processes.
    pub fn log(&self) -> PathBuf {
        self.0.join("log.txt")
    }

    /// The missing table.
    pub fn missing(&self) -> PathBuf {
        self.0.join("missing.json")
    }

    /// The evaluated samples of a split.
    pub fn samples(&self, split: Split) -> PathBuf {
        self.0.join(format!("{split}.samples.jsonl"))
    }

    fn draws_path(&self, split: Split) -> PathBuf {
        self.0.join(format!("{split}.draws.json"))
    }

    fn record_path(&self) -> PathBuf {
        self.0.join("cell.json")
    }

    fn result_path(&self) -> PathBuf {
        self.0.join("result.json")
    }

    /// How far the cell is.
    pub fn state(&self) -> State {
        if self.result_path().exists() {
            State::Finished
        } else if self.record_path().exists() {
            State::Begun
        } else {
            State::NotRun
        }
    }

    /// Makes the folder, or finds in it the cell of this record.
    ///
    /// # Errors
    /// [`FolderError::OtherCell`]; those of the file system.
    pub fn prepare(&self, record: &CellRecord) -> Result<State, FolderError> {
        let state = self.state();
        if !self.record_path().exists() {
            std::fs::create_dir_all(&self.0).map_err(io(&self.0))?;
            write_json(&self.record_path(), record)?;
            return Ok(state);
        }
        let before = self.record()?;
        match difference("", &before.identity(), &record.identity()) {
            Some((setting, before, after)) => Err(FolderError::OtherCell { path: self.0.clone(), setting, before, after }),
            None => {
                // The same data and backbone, in another place or seen from another folder.
                if before.cell != record.cell && state != State::Finished {
                    write_json(&self.record_path(), record)?;
                }
                Ok(state)
            }
        }
    }

    /// `cell.json`.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn record(&self) -> Result<CellRecord, FolderError> {
        read_json(&self.record_path())
    }

    /// Keeps other processes from running the cell while the file is open.
    ///
    /// # Errors
    /// [`FolderError::Locked`].
    pub fn lock(&self) -> Result<File, FolderError> {
        let path = self.0.join("lock");
        let file = File::create(&path).map_err(io(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(FolderError::Locked(self.0.clone())),
            Err(TryLockError::Error(source)) => Err(FolderError::Io { path, source }),
        }
    }

    /// The result; `None` where the cell is not finished.
    ///
    /// # Errors
    /// A damaged file.
    pub fn result(&self) -> Result<Option<CellResult>, FolderError> {
        if self.state() == State::Finished { read_json(&self.result_path()).map(Some) } else { Ok(None) }
    }

    /// Writes the result, after all else: the cell is then finished.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn finish(&self, result: &CellResult) -> Result<(), FolderError> {
        write_json(&self.result_path(), result)
    }

    /// AP of a split under the draws.
    ///
    /// # Errors
    /// There is no such file, or it is damaged.
    pub fn draws(&self, split: Split) -> Result<SplitDraws, FolderError> {
        read_json(&self.draws_path(split))
    }

    /// Writes AP of a split under the draws.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_draws(&self, split: Split, draws: &SplitDraws) -> Result<(), FolderError> {
        write_json(&self.draws_path(split), draws)
    }
}

pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { path, source }
}

/// Replaces a file by a value as indented JSON.
///
/// # Errors
/// Those of the file system.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FolderError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| io(path)(e.into()))?;
    bytes.push(b'\n');
    replace(path, &bytes).map_err(io(path))
}

/// Reads a value from JSON.
///
/// # Errors
/// The file cannot be read, or is another value.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, FolderError> {
    let bytes = std::fs::read(path).map_err(io(path))?;
    serde_json::from_slice(&bytes).map_err(|e| FolderError::Damaged { path: path.to_owned(), problem: e.to_string() })
}
