//! A directory of the file system that one server owns.
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::state::Files;

/// A directory, locked for as long as this lives.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// The lock goes with the file handle, also when the process is killed.
    _lock: File,
}

/// Why a directory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("another server uses the state directory {0}: give each server its own (catalogue.state_dir)")]
    InUse(PathBuf),
    #[error("can't use the state directory {path} (catalogue.state_dir): {source}")]
    Unusable { path: PathBuf, source: io::Error },
}

impl Folder {
    /// Makes the directory and its `partitions` where they are missing, readable by this user alone, and locks it.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let unusable = |source| FolderError::Unusable { path: path.to_owned(), source };
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path.join("partitions")).map_err(unusable)?;
        let lock = OpenOptions::new().create(true).write(true).truncate(false).open(path.join("lock")).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(FolderError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        let folder = Self { path: path.to_owned(), _lock: lock };
        folder.sync_dir("").map_err(unusable)?;
        Ok(folder)
    }
}

impl Files for Folder {
    fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path.join(name))?.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")));
        }
        Ok(bytes)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(self.path.join(dir))?;
        let files = entries.filter(|entry| entry.as_ref().is_ok_and(|e| e.file_type().is_ok_and(|t| t.is_file())));
        files.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn write_synced(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create(self.path.join(name))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        // Directories can be opened and synced on Unix; elsewhere a rename is as durable as the system makes it.
        if cfg!(unix) { File::open(self.path.join(dir))?.sync_all() } else { Ok(()) }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_server_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::open(dir.path()).unwrap();
        assert!(matches!(Folder::open(dir.path()), Err(FolderError::InUse(_))));
        drop(first);
        assert!(Folder::open(dir.path()).is_ok());
    }

    #[test]
    fn reads_no_more_than_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        folder.write_synced("a", &[1; 10]).unwrap();
        assert_eq!(folder.read("a", 10).unwrap(), [1; 10]);
        assert!(folder.read("a", 9).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn only_its_own_user_can_look_into_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let _folder = Folder::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
    }
}
