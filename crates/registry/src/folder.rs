//! The folder in a state directory that one server owns. It has a name that no user gives to a folder, a file
//! that marks it as a server's, and a lock. All other files in the state directory are not the server's and
//! stay as they are. All functions here block.
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use delo_process::durable::{Directory, replace_in};

use crate::state::{Files, PARTITIONS, named_digest, revision};

/// The folder's name in the state directory.
const NAME: &str = "delo-state";
/// Marks the folder as a server's own.
const MARK: &str = "README.txt";
/// The first line of that file, by which it is recognised.
const MARK_LINE: &str = "This folder belongs to a delo server (its setting catalogue.state_dir).";
const LOCK: &str = "lock";

/// A directory, locked for as long as this lives.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// The lock ends when the file is closed, also where the process is killed. `None`: a directory that is
    /// only read and holds no lock file.
    _lock: Option<File>,
}

/// Why a state directory can't be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what it is and names its fields")]
pub enum FolderError {
    #[error("another server uses the state directory {0}: give each server its own (catalogue.state_dir)")]
    InUse(PathBuf),
    #[error("can't use the state directory {path} (catalogue.state_dir): {source}")]
    Unusable { path: PathBuf, source: io::Error },
    #[error("{path} holds {name:?}, which no delo server wrote: move it elsewhere, or name another directory in catalogue.state_dir")]
    Foreign { path: PathBuf, name: String },
    #[error("{path} lies inside {state}, which belongs to a server: name another directory in catalogue.state_dir, or {} to go on with what that server kept", .state.parent().unwrap_or(.state).display())]
    Inside { path: PathBuf, state: PathBuf },
    #[error(
        "the partitions directory {partitions} lies inside {state}, where the server keeps what is live: put your partitions in a directory of their own and name it in model.partitions"
    )]
    Overlap { partitions: PathBuf, state: PathBuf },
}

impl Folder {
    /// Makes the server's own folder in a state directory where it is missing, readable by this user alone,
    /// marks it and locks it.
    ///
    /// # Errors
    /// [`FolderError`]
    pub fn open(state_dir: &Path) -> Result<Self, FolderError> {
        let unusable = |source| FolderError::Unusable { path: state_dir.to_owned(), source };
        if let Some(state) = state_around(state_dir) {
            return Err(FolderError::Inside { path: state_dir.to_owned(), state });
        }
        let path = state_dir.join(NAME);
        let marked = is_marked(&path);
        if !marked && let Some(name) = foreign_name(&path).map_err(unusable)? {
            return Err(FolderError::Foreign { path, name });
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path.join(PARTITIONS)).map_err(unusable)?;
        let lock = OpenOptions::new().create(true).write(true).truncate(false).open(path.join(LOCK)).map_err(unusable)?;
        let folder = Self { _lock: Some(locked(lock, state_dir)?), path };
        if !marked {
            replace_in(&folder, MARK, format!("{MARK}.new"), mark().as_bytes(), |_| ()).map_err(unusable)?;
        }
        folder.sync_dir("").map_err(unusable)?;
        // The folder's own name is durable too.
        state_dir.sync_dir("").map_err(unusable)?;
        Ok(folder)
    }

    /// Opens a state in the former layout: the same files in the state directory itself. `None` where there
    /// is none. It is only read; it is locked so that no server of that layout changes it meanwhile.
    ///
    /// # Errors
    /// [`FolderError::InUse`]; a directory that can't be read.
    pub fn former(state_dir: &Path) -> Result<Option<Self>, FolderError> {
        let unusable = |source| FolderError::Unusable { path: state_dir.to_owned(), source };
        let mut folder = Self { path: state_dir.to_owned(), _lock: None };
        if !folder.list("").map_err(unusable)?.iter().any(|name| revision(name).is_some()) {
            return Ok(None);
        }
        let lock = state_dir.join(LOCK);
        if lock.is_file() {
            let file = OpenOptions::new().write(true).open(lock).map_err(unusable)?;
            folder._lock = Some(locked(file, state_dir)?);
        }
        Ok(Some(folder))
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a partitions directory that lies inside this folder: the server's own files would be read as a
    /// user's.
    ///
    /// # Errors
    /// [`FolderError::Overlap`]
    pub fn check_apart(&self, partitions: &Path) -> Result<(), FolderError> {
        let inside = match (partitions.canonicalize(), self.path.canonicalize()) {
            (Ok(partitions), Ok(state)) => partitions.starts_with(state),
            _ => false,
        };
        if inside { Err(FolderError::Overlap { partitions: partitions.to_owned(), state: self.path.clone() }) } else { Ok(()) }
    }
}

/// The folder of a server that a path is or lies in, if any. The path need not exist.
pub fn state_around(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    let there = absolute.ancestors().find_map(|ancestor| ancestor.canonicalize().ok())?;
    there.ancestors().find(|ancestor| is_marked(ancestor)).map(Path::to_owned)
}

fn is_marked(dir: &Path) -> bool {
    let mut line = vec![0; MARK_LINE.len()];
    let mark = dir.join(MARK);
    // Checked before it is opened: opening a pipe would wait for its writer.
    mark.is_file() && File::open(mark).is_ok_and(|mut file| file.read_exact(&mut line).is_ok()) && line == MARK_LINE.as_bytes()
}

/// A name in a folder without a mark that no server writes; `None` where all are a server's, or the folder
/// isn't there.
fn foreign_name(dir: &Path) -> io::Result<Option<String>> {
    let names = |dir: &Path| match std::fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<Vec<_>>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let own = |name: &String| {
        let whole = name.strip_suffix(".new").unwrap_or(name);
        [LOCK, MARK, PARTITIONS].contains(&whole) || revision(whole).is_some()
    };
    let foreign = names(dir)?.into_iter().find(|name| !own(name));
    if foreign.is_some() {
        return Ok(foreign);
    }
    let partition = names(&dir.join(PARTITIONS))?.into_iter().find(|name| named_digest(name).is_none());
    Ok(partition.map(|name| format!("{PARTITIONS}/{name}")))
}

fn mark() -> String {
    format!(
        "{MARK_LINE}\n\
         It holds which partitions are live, and their files. The server writes and removes files here by itself:\n\
         put nothing here and change nothing. Partitions of your own go to the directory that --partitions names.\n\
         To move or copy it, stop the server and take the whole folder.\n"
    )
}

fn locked(file: File, state_dir: &Path) -> Result<File, FolderError> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(FolderError::InUse(state_dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(FolderError::Unusable { path: state_dir.to_owned(), source }),
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
}

impl Directory for Folder {
    fn write_synced(&self, name: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        self.path.write_synced(name, bytes)
    }

    fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        self.path.rename(from, to)
    }

    fn sync_dir(&self, dir: impl AsRef<Path>) -> io::Result<()> {
        self.path.sync_dir(dir)
    }

    fn remove(&self, name: impl AsRef<Path>) -> io::Result<()> {
        self.path.remove(name)
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
        let folder = Folder::open(&path).unwrap();
        for made in [&path, folder.path()] {
            assert_eq!(std::fs::metadata(made).unwrap().permissions().mode() & 0o077, 0);
        }
    }

    #[test]
    fn a_folder_with_files_of_others_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["delo-state/notes.txt", "delo-state/partitions/food.safetensors", "delo-state/README.txt/x"] {
            let file = dir.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, "somebody's").unwrap();
            let refusal = Folder::open(dir.path());
            if name.contains("README") {
                assert!(matches!(refusal, Err(FolderError::Unusable { .. })), "{refusal:?}");
            } else {
                let refused = refusal.unwrap_err().to_string();
                assert!(refused.contains("catalogue.state_dir") && refused.contains(name.rsplit('/').next().unwrap()), "{refused}");
            }
            assert_eq!(std::fs::read(&file).unwrap(), b"somebody's");
            std::fs::remove_dir_all(dir.path().join("delo-state")).unwrap();
        }
        // What a crash left between the folder and its mark is the server's own.
        std::fs::create_dir_all(dir.path().join("delo-state/partitions")).unwrap();
        std::fs::write(dir.path().join("delo-state/README.txt.new"), "This").unwrap();
        assert!(Folder::open(dir.path()).is_ok());
        // Once it is marked, files of others in it are left alone.
        std::fs::write(dir.path().join("delo-state/notes.txt"), "somebody's").unwrap();
        assert!(Folder::open(dir.path()).is_ok());
    }

    #[test]
    fn a_state_directory_inside_the_folder_of_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for inside in [folder.path().to_owned(), folder.path().join("partitions"), folder.path().join("new/deep")] {
            let refused = Folder::open(&inside).unwrap_err();
            assert!(matches!(refused, FolderError::Inside { .. }) && refused.to_string().contains("catalogue.state_dir"), "{refused}");
        }
        assert!(!folder.path().join("new").exists());
        assert!(state_around(dir.path()).is_none() && state_around(&dir.path().join("partitions/x")).is_none());
    }

    #[cfg(unix)]
    #[test]
    fn partitions_lie_beside_the_folder_and_not_inside_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(&dir.path().join("state")).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("partitions"), &link).unwrap();
        for inside in [folder.path(), &folder.path().join("partitions"), &link] {
            let refused = folder.check_apart(inside).unwrap_err().to_string();
            assert!(refused.contains("model.partitions"), "{refused}");
        }
        std::fs::create_dir(dir.path().join("state/partitions")).unwrap();
        for beside in ["", "state", "state/partitions"] {
            folder.check_apart(&dir.path().join(beside)).unwrap();
        }
    }
}
