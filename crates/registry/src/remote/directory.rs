//! A registry in a directory of this machine, or of a file system that several share.
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::time::Instant;

use super::RemoteError;
use super::manifest::MAX_BYTES;
use super::place::{Opened, Tag};
use crate::folder::state_around;

const LOCK_POLL: Duration = Duration::from_millis(20);

/// As [`super::Place::open`]. What is asked for without a range is a manifest, and no longer than one.
pub async fn open(path: PathBuf, range: Option<Range<u64>>) -> Result<Opened, RemoteError> {
    blocking(move || {
        let failed = |e| from_io(&path, &e);
        let metadata = std::fs::metadata(&path).map_err(failed)?;
        // Asked before the file is opened: opening a pipe would wait for its writer.
        if !metadata.is_file() {
            return Err(RemoteError::Failed { object: path.display().to_string(), reason: "it is not a file".to_owned() });
        }
        let range = range.unwrap_or(0..MAX_BYTES as u64 + 1);
        let mut file = File::open(&path).map_err(failed)?;
        file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(range.end.saturating_sub(range.start)).read_to_end(&mut bytes).map_err(failed)?;
        let body = stream::iter([Ok(Bytes::from(bytes))]).boxed();
        Ok(Opened { total: Some(metadata.len()), start: range.start, tag: Tag::default(), body })
    })
    .await
}

/// As [`super::Place::size`].
pub async fn size(path: &Path) -> Result<Option<u64>, RemoteError> {
    match tokio::fs::metadata(path).await {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(from_io(path, &error)),
    }
}

/// As [`super::Place::put`].
pub async fn put(path: PathBuf, bytes: Bytes) -> Result<(), RemoteError> {
    blocking(move || replace(&path, &bytes)).await
}

/// Makes the directory of a registry where it is missing, in one that is there; says whether it did.
///
/// # Errors
/// A path that is a file, lies in a server's state, or has no directory to lie in: then it is more likely
/// misspelt than meant.
pub async fn make(dir: &Path) -> Result<bool, RemoteError> {
    let dir = dir.to_owned();
    blocking(move || {
        let wrong = |reason: String| RemoteError::Location { given: dir.display().to_string(), reason };
        if let Some(state) = state_around(&dir) {
            return Err(wrong(format!("it lies in {}, where a server keeps what is live: name a directory of its own", state.display())));
        }
        let shown = std::path::absolute(&dir).unwrap_or_else(|_| dir.clone());
        match std::fs::metadata(&dir) {
            Ok(found) if found.is_dir() => Ok(false),
            Ok(_) => Err(wrong("it is no directory".to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => match std::fs::create_dir(&dir) {
                Ok(()) => Ok(true),
                // Another push was faster.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let parent = shown.parent().unwrap_or(&shown).display().to_string();
                    Err(wrong(format!("there is no directory {parent} to make it in: check the spelling, or make that one first")))
                }
                Err(error) => Err(from_io(&dir, &error)),
            },
            Err(error) => Err(from_io(&dir, &error)),
        }
    })
    .await
}

/// Holds the right to change a manifest: a file beside it that only one can make. Gone when this is.
#[derive(Debug)]
pub struct Lock(PathBuf);

impl Lock {
    /// # Errors
    /// [`RemoteError::Locked`] after `wait`; a directory that can't be written.
    pub async fn take(manifest: &Path, wait: Duration) -> Result<Self, RemoteError> {
        let mut path = manifest.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let began = Instant::now();
        loop {
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    let lock = Self(path);
                    // For who finds it; nothing depends on it.
                    let _ = writeln!(file, "process {}", std::process::id());
                    return Ok(lock);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists && began.elapsed() < wait => {
                    tokio::time::sleep(LOCK_POLL).await;
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(RemoteError::Locked { path, waited: wait }),
                Err(error) => return Err(from_io(&path, &error)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // What can't be removed is told of by the next change.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Written beside it, on the disk, then renamed: a reader sees the old file or the new one. Concurrent writers write files of their own.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), RemoteError> {
    let failed = |e| from_io(path, &e);
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(failed)?;
    let beside = dir.join(format!(".{}.tmp", uuid::Uuid::new_v4()));
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        // The rename itself is durable once the directory is.
        File::open(dir)?.sync_all()
    });
    written.map_err(|error| {
        let _ = std::fs::remove_file(&beside);
        failed(error)
    })
}

fn from_io(path: &Path, error: &std::io::Error) -> RemoteError {
    let object = path.display().to_string();
    match error.kind() {
        ErrorKind::NotFound => RemoteError::NotThere { object },
        _ => RemoteError::Failed { object, reason: error.to_string() },
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, RemoteError> + Send + 'static) -> Result<T, RemoteError> {
    let failed = |e: tokio::task::JoinError| RemoteError::Failed { object: "the registry".to_owned(), reason: e.to_string() };
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
