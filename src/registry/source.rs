//! Where an artifact's bytes come from, and which files may be read for it.
use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::signature::{self, SignatureError, Trust};

/// An artifact to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A path, or `file://` and an absolute path; relative ones start at the root.
    Uri(String),
    /// The artifact itself, from someone who has checked its signature where one is required.
    Artifact(Bytes),
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(
        "{uri:?} is no path and no file:// address: give a path inside {root}, an address that registry.allowed_urls allows, or upload the file"
    )]
    Scheme { uri: String, root: PathBuf },
    #[error("this server reads no partition by path: start it with --partitions DIR, or upload the file")]
    NoRoot,
    #[error("{uri:?} is not inside {root}: copy the partition there, or upload it")]
    Outside { uri: String, root: PathBuf },
    #[error("{path} is not there: check the path, which is one on the server, or upload the file")]
    Missing { path: PathBuf },
    #[error("can't read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a file")]
    NotAFile { path: PathBuf },
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error("the partition has {found} bytes, more than the {limit} allowed (admin.max_artifact_bytes)")]
    TooLarge { found: u64, limit: usize },
}

/// The only directory that partitions are read from, and how large they may be.
#[derive(Clone, Debug)]
pub struct Root {
    /// Without symbolic links.
    dir: Option<PathBuf>,
    max_bytes: usize,
    /// Whose signature a file needs.
    trust: Arc<Trust>,
}

impl Root {
    /// # Errors
    /// A directory that isn't there.
    pub fn new(dir: Option<&Path>, max_bytes: usize, trust: Arc<Trust>) -> std::io::Result<Self> {
        Ok(Self { dir: dir.map(Path::canonicalize).transpose()?, max_bytes, trust })
    }

    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The bytes of an artifact. Blocking.
    ///
    /// # Errors
    /// A path that leaves the root, by `..` or by a symbolic link; a file that can't be read, is too large, or lacks a signature.
    pub fn read(&self, source: Source) -> Result<Bytes, SourceError> {
        match source {
            Source::Artifact(bytes) => {
                self.check_size(bytes.len() as u64)?;
                Ok(bytes)
            }
            Source::Uri(uri) => {
                let path = self.locate(&uri)?;
                let bytes = self.read_file(&path)?;
                let signature = if self.trust.wants_signatures() { signature::beside(&path)? } else { None };
                self.trust.check(&bytes, signature.as_deref())?;
                Ok(bytes)
            }
        }
    }

    fn locate(&self, uri: &str) -> Result<PathBuf, SourceError> {
        let root = self.dir.as_ref().ok_or(SourceError::NoRoot)?;
        let path = match uri.split_once("://") {
            None => Cow::Borrowed(Path::new(uri)),
            Some(("file", path)) if path.starts_with('/') => Cow::Borrowed(Path::new(path)),
            Some(_) => return Err(SourceError::Scheme { uri: uri.to_owned(), root: root.clone() }),
        };
        let outside = || SourceError::Outside { uri: uri.to_owned(), root: root.clone() };
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(outside());
        }
        let path = resolve(&root.join(&path))?;
        if path.starts_with(root) { Ok(path) } else { Err(outside()) }
    }

    fn read_file(&self, path: &Path) -> Result<Bytes, SourceError> {
        let failed = |source| SourceError::Read { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        // Asked before the file is opened: opening a pipe would wait for its writer.
        if !metadata.is_file() {
            return Err(SourceError::NotAFile { path: path.to_owned() });
        }
        self.check_size(metadata.len())?;
        let mut bytes = Vec::new();
        // The file may grow while it is read: one byte past the limit shows it.
        File::open(path).map_err(failed)?.take(self.max_bytes as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        self.check_size(bytes.len() as u64)?;
        Ok(bytes.into())
    }

    fn check_size(&self, found: u64) -> Result<(), SourceError> {
        if found > self.max_bytes as u64 {
            return Err(SourceError::TooLarge { found, limit: self.max_bytes });
        }
        Ok(())
    }
}

/// The path without symbolic links.
fn resolve(path: &Path) -> Result<PathBuf, SourceError> {
    path.canonicalize().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => SourceError::Missing { path: path.to_owned() },
        _ => SourceError::Read { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/inner")).unwrap();
        std::fs::write(dir.path().join("root/a"), "a").unwrap();
        std::fs::write(dir.path().join("root/inner/b"), "b").unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        let root = Root::new(Some(&dir.path().join("root")), 10, Arc::default()).unwrap();
        (dir, root)
    }

    fn read(root: &Root, uri: impl Into<String>) -> Result<Bytes, SourceError> {
        root.read(Source::Uri(uri.into()))
    }

    #[test]
    fn reads_files_inside_the_root() {
        let (_dir, root) = folder();
        let base = root.dir().unwrap().display().to_string();
        for uri in ["a".to_owned(), format!("{base}/a"), format!("file://{base}/a")] {
            assert_eq!(read(&root, uri).unwrap(), "a");
        }
        assert_eq!(read(&root, "inner/b").unwrap(), "b");
    }

    #[test]
    fn refuses_paths_that_leave_the_root() {
        let (dir, root) = folder();
        let secret = dir.path().join("secret").canonicalize().unwrap().display().to_string();
        for uri in
            ["../secret".to_owned(), "inner/../../secret".to_owned(), "inner/../a".to_owned(), secret.clone(), format!("file://{secret}")]
        {
            assert!(matches!(read(&root, &uri), Err(SourceError::Outside { .. })), "{uri}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn refuses_symbolic_links_out_of_the_root_and_follows_those_inside() {
        let (dir, root) = folder();
        std::os::unix::fs::symlink(dir.path().join("secret"), dir.path().join("root/out")).unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("root/up")).unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("root/in")).unwrap();
        assert!(matches!(read(&root, "out"), Err(SourceError::Outside { .. })));
        assert!(matches!(read(&root, "up/secret"), Err(SourceError::Outside { .. })));
        assert_eq!(read(&root, "in").unwrap(), "a");
    }

    #[test]
    fn refuses_what_is_no_readable_file() {
        let (_dir, root) = folder();
        assert!(matches!(read(&root, "nothing"), Err(SourceError::Missing { .. })));
        assert!(matches!(read(&root, "inner"), Err(SourceError::NotAFile { .. })));
        assert!(matches!(read(&root, "https://example.org/a"), Err(SourceError::Scheme { .. })));
        assert!(matches!(read(&Root::new(None, 10, Arc::default()).unwrap(), "a"), Err(SourceError::NoRoot)));
    }

    #[test]
    fn refuses_artifacts_over_the_limit() {
        let (_dir, root) = folder();
        std::fs::write(root.dir().unwrap().join("large"), "12345678901").unwrap();
        assert!(matches!(read(&root, "large"), Err(SourceError::TooLarge { .. })));
        assert!(matches!(root.read(Source::Artifact(Bytes::from_static(&[0; 11]))), Err(SourceError::TooLarge { .. })));
        assert!(root.read(Source::Artifact(Bytes::from_static(&[0; 10]))).is_ok());
    }
}
