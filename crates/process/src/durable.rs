//! Files that are whole or absent: a crash or a power loss while one is replaced leaves the old file or the
//! new one.
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// The operations on a directory that replacing a file takes. Names are paths relative to the directory.
///
/// [`Path`] is the real one; a test can pass one that loses what was not synced. All of them block.
pub trait Directory {
    /// Creates a file or overwrites it; its content has reached the disk on return.
    ///
    /// # Errors
    /// Those of the file system.
    fn write_synced(&self, name: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()>;
    /// Renames a file; one of the name `to` is replaced.
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()>;
    /// The names that were created, changed and removed in the folder `dir` (`""`: the directory itself) have
    /// reached the disk on return.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync_dir(&self, dir: impl AsRef<Path>) -> io::Result<()>;
    /// Removes a file.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, name: impl AsRef<Path>) -> io::Result<()>;
}

/// How far a replacement has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The new content is on the disk, under the temporary name.
    Written,
    /// The file has its name; the name is not yet on the disk for certain.
    Renamed,
}

/// Replaces the file `name` of `directory`: writes `temporary`, a name in the same folder, syncs it, renames
/// it and syncs the folder. Calls `after` when a step is done. Blocks.
///
/// # Errors
/// Those of the file system. The old file stays, except where only the last sync failed: then it is the old
/// one or the new one. The temporary file is removed if that is possible.
pub fn replace_in<D: Directory + ?Sized>(
    directory: &D,
    name: impl AsRef<Path>,
    temporary: impl AsRef<Path>,
    bytes: &[u8],
    after: impl Fn(Step),
) -> io::Result<()> {
    let (name, temporary) = (name.as_ref(), temporary.as_ref());
    let replaced = directory.write_synced(temporary, bytes).and_then(|()| {
        after(Step::Written);
        directory.rename(temporary, name)?;
        after(Step::Renamed);
        // The new name is durable once its folder is.
        directory.sync_dir(name.parent().unwrap_or(Path::new("")))
    });
    replaced.inspect_err(|_| {
        // A temporary file that stays takes room and nothing else.
        let _ = directory.remove(temporary);
    })
}

/// Replaces the file at `path` as [`replace_in`] does, by way of `PATH.tmp`; for a file that one writer
/// replaces at a time. Blocks.
///
/// # Errors
/// See [`replace_in`]; a path without a file name.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.file_name().unwrap_or_default().to_owned();
    temporary.push(".tmp");
    replace_by(path, temporary, bytes)
}

/// As [`replace`], with a file name of the caller's for the temporary file: writers that replace one file at
/// the same time need one each. Blocks.
///
/// # Errors
/// See [`replace`].
pub fn replace_by(path: &Path, temporary: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    replace_in(folder, name, temporary, bytes, |_| ())
}

impl Directory for Path {
    fn write_synced(&self, name: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create(self.join(name))?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        std::fs::rename(self.join(from), self.join(to))
    }

    fn sync_dir(&self, dir: impl AsRef<Path>) -> io::Result<()> {
        // A directory can be opened and synced on Unix; elsewhere a rename is as durable as the system makes
        // it.
        if cfg!(unix) { File::open(self.join(dir))?.sync_all() } else { Ok(()) }
    }

    fn remove(&self, name: impl AsRef<Path>) -> io::Result<()> {
        std::fs::remove_file(self.join(name))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Notes what is called, and fails at one of the calls.
    struct Recorder {
        calls: Mutex<Vec<String>>,
        fails_at: Option<usize>,
    }

    impl Recorder {
        fn call(&self, call: String) -> io::Result<()> {
            let mut calls = self.calls.lock().unwrap();
            calls.push(call);
            if Some(calls.len() - 1) == self.fails_at { Err(io::Error::other("full")) } else { Ok(()) }
        }
    }

    impl Directory for Recorder {
        fn write_synced(&self, name: impl AsRef<Path>, _: &[u8]) -> io::Result<()> {
            self.call(format!("write {}", name.as_ref().display()))
        }

        fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
            self.call(format!("rename {} {}", from.as_ref().display(), to.as_ref().display()))
        }

        fn sync_dir(&self, dir: impl AsRef<Path>) -> io::Result<()> {
            self.call(format!("sync {:?}", dir.as_ref()))
        }

        fn remove(&self, name: impl AsRef<Path>) -> io::Result<()> {
            self.call(format!("remove {}", name.as_ref().display()))
        }
    }

    fn calls(name: &str, fails_at: Option<usize>) -> Vec<String> {
        let directory = Recorder { calls: Mutex::default(), fails_at };
        let replaced = replace_in(&directory, name, "new", b"content", |_| ());
        assert_eq!(replaced.is_err(), fails_at.is_some());
        directory.calls.into_inner().unwrap()
    }

    #[test]
    fn a_file_is_written_renamed_and_its_folder_synced_in_this_order() {
        assert_eq!(calls("name", None), ["write new", "rename new name", "sync \"\""]);
        assert_eq!(calls("a/b/name", None)[2], "sync \"a/b\"");
    }

    #[test]
    fn a_failure_ends_it_and_removes_the_temporary_file() {
        assert_eq!(calls("name", Some(0)), ["write new", "remove new"]);
        assert_eq!(calls("name", Some(1)), ["write new", "rename new name", "remove new"]);
    }

    #[test]
    fn the_new_content_has_the_place_of_the_old_and_nothing_lies_beside_it() {
        let dir = std::env::temp_dir().join(format!("delo-durable-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for content in ["old", "new and longer"] {
            replace(&dir.join("file"), content.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(dir.join("file")).unwrap(), content);
        }
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        assert!(replace(&dir.join("missing/file"), b"").is_err() && replace(Path::new("/"), b"").is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
