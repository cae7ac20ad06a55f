//! The ledger and the artifacts it names, on the disk. After a crash or a power loss at any moment, the old
//! state or the new one is found.
//!
//! ```text
//! STATE_DIR/delo-state/README.txt        marks the folder as a server's own (`folder.rs`)
//!                      lock              held by the server that uses the folder
//!                      catalogue-00000000000000000012.json    the latest generations of the ledger:
//!                                        a line with the SHA-256 of what follows, then JSON
//!                      partitions/<SHA-256>.safetensors       the artifacts that these generations name
//! ```
//! An artifact is written under another name, synced, renamed, and its folder synced, before a generation
//! that names it is written in the same way. A generation is never changed; it is removed when three later
//! ones are there. No other file is ever removed but those in `partitions/` that are named by a SHA-256.
//!
//! All functions here block.
use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use delo_model::partition::digest;
use delo_process::durable::{Directory, Step, replace_in};

use crate::artifact::ReadArtifact;
use crate::crash;
use crate::ledger::Ledger;

/// How many generations are kept.
const GENERATIONS: usize = 3;
/// The longest generation that is read, in bytes.
const MAX_LEDGER_BYTES: u64 = 256 << 20;
/// The longest artifact that is taken over from another directory, in bytes: more than any setting allows.
const MAX_ADOPTED_BYTES: u64 = 1 << 40;
/// The folder of the artifacts.
pub const PARTITIONS: &str = "partitions";

/// The directory of a state. Names are relative to it.
pub trait Files: Directory + Debug + Send + Sync {
    /// The content of a file.
    ///
    /// # Errors
    /// It isn't there, is longer than `limit` bytes, or can't be read.
    fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>>;
    /// The names of the files in a folder (`""`: the directory itself).
    ///
    /// # Errors
    /// The folder can't be read.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
}

/// Why the state can't be kept or read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what it is and names its fields")]
pub enum StateError {
    #[error("the catalogue can't be written to the state directory, nothing was changed: {0}; make room or mend it, then try again")]
    Write(io::Error),
    #[error("the state directory can't be read: {0}")]
    Read(io::Error),
    #[error("the artifact {digest} is missing from the state directory or damaged ({reason})")]
    Artifact { digest: String, reason: String },
}

/// What was found at start.
#[derive(Debug)]
pub struct Found {
    /// The newest sound generation; `None` in a directory without any.
    pub ledger: Option<Ledger>,
    /// The damaged generations that were passed over, for the operator.
    pub notices: Vec<String>,
}

impl Found {
    /// Whether there was no generation at all, not even a damaged one.
    pub fn is_empty(&self) -> bool {
        self.ledger.is_none() && self.notices.is_empty()
    }
}

/// The state in a directory. A change takes it by `&mut`, so that there is one at a time.
#[derive(Debug)]
pub struct StateDir<F> {
    files: Arc<F>,
    /// Revision and artifacts of the generations that are kept, oldest first.
    generations: VecDeque<(u64, BTreeSet<String>)>,
}

/// The artifacts in a state directory. Cheap to clone, so that they can be read on the blocking pool.
#[derive(Debug)]
pub struct Artifacts<F>(Arc<F>);

/// The file name of a generation.
fn generation(revision: u64) -> String {
    format!("catalogue-{revision:020}.json")
}

/// The revision in the name of a generation; `None` for every other name.
pub fn revision(name: &str) -> Option<u64> {
    let revision = name.strip_prefix("catalogue-")?.strip_suffix(".json")?.parse().ok()?;
    (generation(revision) == name).then_some(revision)
}

/// The digest in the name of an artifact, or of one that is half written; `None` for every other name.
pub fn named_digest(name: &str) -> Option<&str> {
    let digest = name.strip_suffix(".new").unwrap_or(name).strip_suffix(".safetensors")?;
    let hexadecimal = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    (digest.len() == 64 && digest.bytes().all(hexadecimal)).then_some(digest)
}

/// The path of an artifact in the state directory.
fn artifact_path(digest: &str) -> String {
    format!("{PARTITIONS}/{digest}.safetensors")
}

fn encode(ledger: &Ledger) -> Vec<u8> {
    // A ledger is maps with text keys, numbers and strings, which JSON can always hold.
    let json = serde_json::to_vec(ledger).unwrap_or_default();
    [format!("{}\n", digest(&json)).as_bytes(), &json].concat()
}

fn decode(bytes: &[u8]) -> Result<Ledger, String> {
    let (sum, json) = bytes.split_at_checked(64).ok_or("it is cut short")?;
    let json = json.strip_prefix(b"\n").ok_or("its first line is no checksum")?;
    if digest(json).as_bytes() != sum {
        return Err("its checksum is not that of its content".to_owned());
    }
    let ledger: Ledger = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    ledger.check()?;
    Ok(ledger)
}

impl<F: Files> StateDir<F> {
    /// Reads the newest sound generation.
    ///
    /// # Errors
    /// The directory can't be listed.
    pub fn open(files: F) -> Result<(Self, Found), StateError> {
        let mut revisions: Vec<u64> = files.list("").map_err(StateError::Read)?.iter().filter_map(|name| revision(name)).collect();
        revisions.sort_unstable();
        let mut state = Self { files: Arc::new(files), generations: VecDeque::new() };
        let mut found = Found { ledger: None, notices: Vec::new() };
        for &revision in revisions.iter().rev() {
            let name = generation(revision);
            let read = state.files.read(&name, MAX_LEDGER_BYTES).map_err(|e| e.to_string()).and_then(|bytes| decode(&bytes));
            match read {
                Ok(ledger) => {
                    let needed = ledger.digests().into_iter().map(str::to_owned).collect();
                    state.generations.push_front((revision, needed));
                    found.ledger.get_or_insert(ledger);
                }
                Err(reason) if found.ledger.is_none() => {
                    found.notices.push(format!("{name} is damaged ({reason}): fell back to the last good catalogue before it"));
                }
                Err(_) => {}
            }
        }
        Ok((state, found))
    }

    /// Makes a ledger durable, with the artifacts that it names for the first time. On return all of it has
    /// reached the disk.
    ///
    /// # Errors
    /// [`StateError::Write`]: the state found at the next start is the one before, or (where only the last
    /// sync failed) the new one.
    pub fn commit(&mut self, ledger: &Ledger, new: &[ReadArtifact]) -> Result<(), StateError> {
        for artifact in new {
            let path = artifact_path(&artifact.digest());
            self.write(&path, artifact.bytes(), ["state.artifact.written", "state.artifact.renamed"])?;
        }
        let name = generation(ledger.revision);
        self.write(&name, &encode(ledger), ["state.catalogue.written", "state.catalogue.renamed"])?;
        let needed = ledger.digests().into_iter().map(str::to_owned).collect();
        self.generations.retain(|(revision, _)| *revision != ledger.revision);
        self.generations.push_back((ledger.revision, needed));
        crash::point("state.committed");
        self.remove_unneeded();
        Ok(())
    }

    /// Copies the ledger that was found in another directory here, with its artifacts. The other directory
    /// stays as it is. The ledger is written last: until then this directory holds none.
    ///
    /// # Errors
    /// [`StateError::Write`]
    pub fn adopt(&mut self, other: &Self, ledger: &Ledger) -> Result<(), StateError> {
        for digest in ledger.digests() {
            // What is missing or damaged there is missing here: a notice names the version that needs it when
            // that is restored.
            if let Ok(artifact) = other.artifacts().read(digest, MAX_ADOPTED_BYTES) {
                self.write(&artifact_path(digest), artifact.bytes(), ["state.adopted.written", "state.adopted.renamed"])?;
            }
        }
        self.commit(ledger, &[])
    }

    /// The digests of all artifacts that the generations in this directory name.
    pub fn digests(&self) -> BTreeSet<String> {
        self.generations.iter().flat_map(|(_, digests)| digests).cloned().collect()
    }

    /// The artifacts in this directory.
    pub fn artifacts(&self) -> Artifacts<F> {
        Artifacts(self.files.clone())
    }

    /// Replaces a file. `points` are the failpoints after it was written and after it was renamed.
    fn write(&self, name: &str, bytes: &[u8], points: [&str; 2]) -> Result<(), StateError> {
        fail::fail_point!("state.write", |_| Err(StateError::Write(io::Error::from_raw_os_error(libc::ENOSPC))));
        let [written, renamed] = points;
        let after = |step| match step {
            Step::Written => crash::point(written),
            Step::Renamed => crash::point(renamed),
        };
        replace_in(&*self.files, name, format!("{name}.new"), bytes, after).map_err(StateError::Write)
    }

    /// Removes the files written here that no kept generation needs; a file of another name stays. A file
    /// that can't be removed stays too, and takes room only.
    fn remove_unneeded(&mut self) {
        while self.generations.len() > GENERATIONS {
            if let Some((revision, _)) = self.generations.pop_front() {
                let _ = self.files.remove(generation(revision));
            }
        }
        let needed: BTreeSet<&String> = self.generations.iter().flat_map(|(_, digests)| digests).collect();
        for name in self.files.list(PARTITIONS).unwrap_or_default() {
            let Some(digest) = named_digest(&name) else { continue };
            let half_written = name.ends_with(".new");
            if half_written || !needed.contains(&digest.to_owned()) {
                let _ = self.files.remove(format!("{PARTITIONS}/{name}"));
            }
        }
    }
}

impl<F> Clone for Artifacts<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F: Files> Artifacts<F> {
    /// Reads an artifact by its SHA-256 and checks that it still is what was committed.
    ///
    /// # Errors
    /// [`StateError::Artifact`]: it is missing, longer than `limit` bytes, or damaged.
    pub fn read(&self, digest: &str, limit: u64) -> Result<ReadArtifact, StateError> {
        let refused = |reason: String| StateError::Artifact { digest: digest.to_owned(), reason };
        let bytes = self.0.read(&artifact_path(digest), limit).map_err(|e| refused(e.to_string()))?;
        let artifact = ReadArtifact::hash(bytes.into());
        if artifact.digest() != digest {
            return Err(refused("its content is another".to_owned()));
        }
        Ok(artifact)
    }
}

#[cfg(test)]
mod tests;
