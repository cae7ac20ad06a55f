//! The checkpoint of an interrupted session: variables, moments and the step, in a file beside the artifact.
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use delo_process::durable::replace;

/// Why a checkpoint cannot be written or continued.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file that is damaged or no checkpoint.
    #[error("checkpoint {}: {problem}; remove it, or start over with --force", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The checkpoint of a session with another identity.
    #[error(
        "checkpoint {} was made with {name} {before}, this run has {after}: repeat the first command, or start over with --force",
        path.display()
    )]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// The first entry of the identities that differs.
        name: String,
        /// Its value in the checkpoint.
        before: Value,
        /// Its value in this session.
        after: Value,
    },
    /// The file system refuses the checkpoint.
    #[error("cannot write {}: {problem}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// The state of a session after some steps.
#[derive(Debug)]
pub struct Checkpoint {
    /// Steps taken.
    pub step: usize,
    /// All that decides the session's result, by name; a session with another identity may not go on from
    /// here.
    pub identity: Map<String, Value>,
    /// [`super::optimiser::AdamW::state`].
    pub tensors: BTreeMap<String, Tensor>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    step: usize,
    identity: Map<String, Value>,
}

const HEADER: &str = "delo_checkpoint";

impl Checkpoint {
    /// The checkpoint's file of an artifact: beside it, with `.checkpoint` after its name.
    pub fn path(artifact: &Path) -> PathBuf {
        let mut name = artifact.as_os_str().to_owned();
        name.push(".checkpoint");
        name.into()
    }

    /// Replaces the file at `path`: a crash leaves the old checkpoint or this one.
    ///
    /// # Errors
    /// [`CheckpointError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), CheckpointError> {
        let fail = |problem: &dyn std::fmt::Display| CheckpointError::Write { path: path.to_owned(), problem: problem.to_string() };
        let header = Header { step: self.step, identity: self.identity.clone() };
        let header = serde_json::to_string(&header).map_err(|e| fail(&e))?;
        let bytes = safetensors::serialize(&self.tensors, Some(HashMap::from([(HEADER.to_owned(), header)]))).map_err(|e| fail(&e))?;
        replace(path, &bytes).map_err(|e| fail(&e))
    }

    /// The checkpoint at `path`; `None` where there is none.
    ///
    /// # Errors
    /// [`CheckpointError::Unusable`] for a damaged file, [`CheckpointError::OtherRun`] for the checkpoint of
    /// a session with another `identity`.
    pub fn read(path: &Path, identity: &Map<String, Value>) -> Result<Option<Self>, CheckpointError> {
        let fail = |problem: &dyn std::fmt::Display| CheckpointError::Unusable { path: path.to_owned(), problem: problem.to_string() };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(fail(&e)),
        };
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| fail(&e))?;
        let header = metadata.metadata().as_ref().and_then(|m| m.get(HEADER)).ok_or_else(|| fail(&"not a checkpoint of delo train"))?;
        let header: Header = serde_json::from_str(header).map_err(|e| fail(&e))?;
        let names = header.identity.keys().chain(identity.keys());
        for name in names {
            let (before, after) = (header.identity.get(name), identity.get(name));
            if before != after {
                let shown = |v: Option<&Value>| v.cloned().unwrap_or(Value::Null);
                let (name, path) = (name.clone(), path.to_owned());
                return Err(CheckpointError::OtherRun { path, name, before: shown(before), after: shown(after) });
            }
        }
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|e| fail(&e))?;
        Ok(Some(Self { step: header.step, identity: header.identity, tensors: tensors.into_iter().collect() }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn identity(lr: f64) -> Map<String, Value> {
        Map::from_iter([("lr".to_owned(), json!(lr)), ("task".to_owned(), json!("soups"))])
    }

    #[test]
    fn reads_back_what_it_wrote_for_the_same_session_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = Checkpoint::path(&dir.path().join("soups.safetensors"));
        assert!(Checkpoint::read(&path, &identity(0.1)).unwrap().is_none());
        let tensors = BTreeMap::from([("first.w".to_owned(), Tensor::new(&[[1.5_f32, -2.0]], &Device::Cpu).unwrap())]);
        Checkpoint { step: 7, identity: identity(0.1), tensors }.write(&path).unwrap();
        let read = Checkpoint::read(&path, &identity(0.1)).unwrap().unwrap();
        assert_eq!(read.step, 7);
        assert_eq!(read.tensors["first.w"].to_vec2::<f32>().unwrap(), [[1.5, -2.0]]);
        let error = Checkpoint::read(&path, &identity(0.2)).unwrap_err().to_string();
        assert!(error.contains("was made with lr 0.1, this run has 0.2"), "{error}");
    }

    #[test]
    fn refuses_a_damaged_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.checkpoint");
        std::fs::write(&path, [255; 40]).unwrap();
        assert!(matches!(Checkpoint::read(&path, &identity(0.1)), Err(CheckpointError::Unusable { .. })));
    }
}
