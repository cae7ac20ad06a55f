//! A registry in a directory of this machine, or of a file system that several share.
//! Functions that do not return a future block.
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use delo_process::durable::replace_by;
use futures::stream::{self, StreamExt};
use tokio::time::{Instant, sleep};

use super::object::{ObjectTag, OpenedObject};
use crate::blocking::blocking;
use crate::folder::state_around;
use crate::remote::RemoteError;
use crate::remote::manifest::MAX_BYTES;

/// The pause between two attempts to take a lock.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// As [`Storage::open`](super::Storage::open). Without a range the object is a manifest, and is read up to
/// the longest manifest.
pub async fn open(path: PathBuf, range: Option<Range<u64>>) -> Result<OpenedObject, RemoteError> {
    blocking(move || {
        let failed = |e| from_io(&path, &e);
        let metadata = std::fs::metadata(&path).map_err(failed)?;
        // Checked before the file is opened: opening a pipe would wait for its writer.
        if !metadata.is_file() {
            return Err(RemoteError::Failed { object: path.display().to_string(), reason: "it is not a file".to_owned() });
        }
        let range = range.unwrap_or(0..MAX_BYTES as u64 + 1);
        let mut file = File::open(&path).map_err(failed)?;
        file.seek(SeekFrom::Start(range.start)).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(range.end.saturating_sub(range.start)).read_to_end(&mut bytes).map_err(failed)?;
        let body = stream::iter([Ok(Bytes::from(bytes))]).boxed();
        Ok(OpenedObject { total: Some(metadata.len()), start: range.start, tag: ObjectTag::default(), body })
    })
    .await
}

/// Whether the directory is there.
pub async fn exists(dir: &Path) -> bool {
    tokio::fs::metadata(dir).await.is_ok_and(|metadata| metadata.is_dir())
}

/// As [`Storage::size`](super::Storage::size).
pub async fn size(path: &Path) -> Result<Option<u64>, RemoteError> {
    match tokio::fs::metadata(path).await {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(from_io(path, &error)),
    }
}

/// As [`Storage::put`](super::Storage::put).
pub async fn put(path: PathBuf, bytes: Bytes) -> Result<(), RemoteError> {
    blocking(move || replace(&path, &bytes)).await
}

/// Creates the directory of a registry where it is missing; its parent must exist. Returns whether it was
/// missing.
///
/// # Errors
/// A path that is a file, lies in a server's state, or has no parent: then it is more likely a misspelt path.
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
                // Another push created it meanwhile.
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

/// The right to change a manifest: a lock file beside it, which one process at a time can create. Dropping
/// this removes the file.
#[derive(Debug)]
pub struct ManifestLock(PathBuf);

impl ManifestLock {
    /// Waits until the lock is free, up to `wait`, and takes it.
    ///
    /// # Errors
    /// [`RemoteError::Locked`] after `wait`; a directory that can't be written.
    pub async fn take(manifest: &Path, wait: Duration) -> Result<Self, RemoteError> {
        let mut path = manifest.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let began = Instant::now();
        loop {
            let attempt = path.clone();
            if let Some(lock) = blocking(move || Self::try_take(attempt)).await? {
                return Ok(lock);
            }
            if began.elapsed() >= wait {
                return Err(RemoteError::Locked { path, waited: wait });
            }
            sleep(LOCK_POLL).await;
        }
    }

    /// `None` where another process holds the lock.
    fn try_take(path: PathBuf) -> Result<Option<Self>, RemoteError> {
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                let lock = Self(path);
                // Tells a person who finds the file which process made it; nothing depends on it.
                let _ = writeln!(file, "process {}", std::process::id());
                Ok(Some(lock))
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(from_io(&path, &error)),
        }
    }
}

impl Drop for ManifestLock {
    fn drop(&mut self) {
        // Where it can't be removed, the next change fails and names it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Replaces a file as a whole, in a folder that is created where it is missing. The temporary name is a
/// random one: several processes may replace the same file.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), RemoteError> {
    let failed = |e| from_io(path, &e);
    if let Some(dir) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    replace_by(path, format!(".{}.tmp", uuid::Uuid::new_v4()), bytes).map_err(failed)
}

fn from_io(path: &Path, error: &std::io::Error) -> RemoteError {
    let object = path.display().to_string();
    match error.kind() {
        ErrorKind::NotFound => RemoteError::NotThere { object },
        _ => RemoteError::Failed { object, reason: error.to_string() },
    }
}
