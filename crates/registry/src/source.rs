//! Where a partition is read from, and which files may be read for it.
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::artifact::ReadArtifact;
use crate::file_address::{self, Named};
use crate::signature::{self, SignatureError, Trust};

/// Where a partition to load is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionSource {
    /// A path, relative ones from the root on, or a `file:` URI.
    Uri(String),
    /// A path of a file in the root directory ([`Root::dir`]).
    File(PathBuf),
    /// An artifact that was uploaded or fetched. Its signature was checked where one is required.
    Artifact(ReadArtifact),
    /// An artifact in the binary.
    Embedded(&'static [u8]),
}

impl PartitionSource {
    /// What people are told of where the partition is from.
    pub fn origin(&self) -> String {
        match self {
            Self::Uri(uri) => uri.clone(),
            Self::File(path) => path.display().to_string(),
            Self::Artifact(_) => "upload".to_owned(),
            Self::Embedded(_) => "embedded".to_owned(),
        }
    }

    /// What makes two sources the same for a request that is sent again: the path or URI, or the SHA-256 of
    /// an artifact.
    pub fn identity(&self) -> String {
        match self {
            Self::Artifact(artifact) => artifact.digest(),
            Self::Uri(_) | Self::File(_) | Self::Embedded(_) => self.origin(),
        }
    }
}

/// Why a partition can't be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant says what it is and names its fields")]
pub enum SourceError {
    #[error(
        "{uri:?} is no path and no file:// address: give a path inside {root}, an address that registry.allowed_urls allows, or upload the file"
    )]
    Scheme { uri: String, root: PathBuf },
    #[error("{uri:?} {reason}")]
    Address { uri: String, reason: String },
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
    /// Absolute, and as it was given: a symbolic link in it is followed at each read, to what it names then.
    dir: Option<PathBuf>,
    max_bytes: usize,
    /// Whose signature a file needs.
    trust: Arc<Trust>,
}

impl Root {
    /// The root directory `dir`; without one, nothing is read by path. Blocks.
    ///
    /// # Errors
    /// A directory that isn't there.
    pub fn new(dir: Option<&Path>, max_bytes: usize, trust: Arc<Trust>) -> std::io::Result<Self> {
        let absolute = |dir: &Path| dir.canonicalize().and_then(|_| std::path::absolute(dir));
        Ok(Self { dir: dir.map(absolute).transpose()?, max_bytes, trust })
    }

    /// The directory as an absolute path.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The artifact at a source. Blocks: it reads and hashes what is not read yet.
    ///
    /// # Errors
    /// A path that leaves the root, by `..` or by a symbolic link; a file that can't be read, is too large,
    /// or lacks a signature.
    pub fn read(&self, source: PartitionSource) -> Result<ReadArtifact, SourceError> {
        match source {
            PartitionSource::Artifact(artifact) => {
                self.check_size(artifact.bytes().len() as u64)?;
                Ok(artifact)
            }
            PartitionSource::Embedded(bytes) => {
                self.check_size(bytes.len() as u64)?;
                Ok(ReadArtifact::hash(Bytes::from_static(bytes)))
            }
            PartitionSource::Uri(uri) => self.read_signed(&self.locate(&uri)?),
            PartitionSource::File(path) => self.read_signed(&self.inside(&path)?),
        }
    }

    fn read_signed(&self, path: &Path) -> Result<ReadArtifact, SourceError> {
        let artifact = ReadArtifact::hash(self.read_file(path)?);
        let signature = if self.trust.wants_signatures() { signature::beside(path)? } else { None };
        self.trust.check(&artifact, signature.as_deref())?;
        Ok(artifact)
    }

    fn locate(&self, uri: &str) -> Result<PathBuf, SourceError> {
        match file_address::parse(uri).map_err(|reason| SourceError::Address { uri: uri.to_owned(), reason })? {
            Named::Path(path) => self.inside(path),
            Named::File(path) => self.inside(&path),
            Named::Address => Err(SourceError::Scheme { uri: uri.to_owned(), root: self.dir.clone().ok_or(SourceError::NoRoot)? }),
        }
    }

    /// The file that a path names, without symbolic links.
    fn inside(&self, path: &Path) -> Result<PathBuf, SourceError> {
        let dir = self.dir.as_ref().ok_or(SourceError::NoRoot)?;
        let outside = || SourceError::Outside { uri: path.display().to_string(), root: dir.clone() };
        // Below the directory's own name, the path goes on from what that name means at this moment, even if
        // a link in it is switched meanwhile.
        let below = path.strip_prefix(dir).unwrap_or(path);
        if below.components().any(|part| part == Component::ParentDir) {
            return Err(outside());
        }
        let root = resolve(dir)?;
        let file = resolve(&root.join(below))?;
        if file.starts_with(&root) { Ok(file) } else { Err(outside()) }
    }

    fn read_file(&self, path: &Path) -> Result<Bytes, SourceError> {
        let failed = |source| SourceError::Read { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(failed)?;
        // Checked before the file is opened: opening a pipe would wait for its writer.
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
        root.read(PartitionSource::Uri(uri.into())).map(|artifact| artifact.bytes().clone())
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
        assert!(matches!(read(&root, "file://nas/a"), Err(SourceError::Address { .. })));
        assert!(matches!(read(&Root::new(None, 10, Arc::default()).unwrap(), "a"), Err(SourceError::NoRoot)));
    }

    #[test]
    fn reads_file_addresses_decoded_and_checks_them_after_that() {
        let (dir, root) = folder();
        let base = dir.path().canonicalize().unwrap().display().to_string();
        std::fs::create_dir(dir.path().join("root/sub dir é")).unwrap();
        std::fs::write(dir.path().join("root/sub dir é/o b"), "decoded").unwrap();
        std::fs::write(dir.path().join("root/o%20b"), "raw").unwrap();
        for uri in ["file://", "file:", "FILE://", "file://localhost"].map(|head| format!("{head}{base}/root/sub%20dir%20%C3%A9/o%20b")) {
            assert_eq!(read(&root, &uri).unwrap(), "decoded", "{uri}");
        }
        assert_eq!(read(&root, "o%20b").unwrap(), "raw");
        assert_eq!(read(&root, format!("{base}/root/o%20b")).unwrap(), "raw");
        for path in ["%2e%2e/secret", "%2E%2e%2Fsecret", "inner/%2e./%2e%2e/secret", "../secret"] {
            let read = read(&root, format!("file://{base}/root/{path}"));
            assert!(matches!(read, Err(SourceError::Outside { .. })), "{path}: {read:?}");
        }
        assert!(matches!(read(&root, format!("file://{base}/root/a%00")), Err(SourceError::Address { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn reads_what_a_link_to_the_root_names_at_that_moment() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        for version in ["v1", "v2"] {
            std::fs::create_dir_all(dir.path().join(version).join("parts")).unwrap();
            std::fs::write(dir.path().join(version).join("parts/a"), version).unwrap();
        }
        let switch = |version: &str| {
            symlink(version, dir.path().join("next")).unwrap();
            std::fs::rename(dir.path().join("next"), dir.path().join("cur")).unwrap();
        };
        switch("v1");
        // The link is the last part of the root's path, or one before it.
        symlink("cur/parts", dir.path().join("link")).unwrap();
        let roots = ["link", "cur/parts"].map(|name| dir.path().join(name));
        let opened = roots.clone().map(|path| Root::new(Some(&path), 10, Arc::default()).unwrap());
        let check = |expected: &str| {
            for (path, root) in roots.iter().zip(&opened) {
                for uri in ["a".to_owned(), path.join("a").display().to_string(), format!("file://{}", path.join("a").display())] {
                    assert_eq!(read(root, &uri).unwrap(), expected, "{uri}");
                }
                assert_eq!(root.read(PartitionSource::File(path.join("a"))).unwrap().bytes(), expected);
            }
        };
        check("v1");
        switch("v2");
        check("v2");
        let left = dir.path().canonicalize().unwrap().join("v1/parts/a").display().to_string();
        assert!(matches!(read(&opened[0], left), Err(SourceError::Outside { .. })));
        std::fs::remove_dir_all(dir.path().join("v1")).unwrap();
        check("v2");
        // Removed and made again, as a deployment does.
        std::fs::remove_dir_all(dir.path().join("v2")).unwrap();
        assert!(matches!(read(&opened[0], "a"), Err(SourceError::Missing { .. })));
        std::fs::create_dir_all(dir.path().join("v2/parts")).unwrap();
        std::fs::write(dir.path().join("v2/parts/a"), "again").unwrap();
        check("again");
    }

    #[cfg(unix)]
    #[test]
    fn reads_a_folder_that_kubernetes_switches() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(Some(dir.path()), 10, Arc::default()).unwrap();
        symlink("..data/a", dir.path().join("a")).unwrap();
        for version in ["..2026_01_01", "..2026_01_02"] {
            std::fs::create_dir(dir.path().join(version)).unwrap();
            std::fs::write(dir.path().join(version).join("a"), &version[10..]).unwrap();
            symlink(version, dir.path().join("..data_tmp")).unwrap();
            std::fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
            assert_eq!(read(&root, "a").unwrap(), &version[10..]);
        }
    }

    #[test]
    fn refuses_artifacts_over_the_limit() {
        let (_dir, root) = folder();
        std::fs::write(root.dir().unwrap().join("large"), "12345678901").unwrap();
        assert!(matches!(read(&root, "large"), Err(SourceError::TooLarge { .. })));
        let artifact = |bytes: &'static [u8]| PartitionSource::Artifact(ReadArtifact::hash(Bytes::from_static(bytes)));
        for source in [artifact, PartitionSource::Embedded] {
            assert!(matches!(root.read(source(&[0; 11])), Err(SourceError::TooLarge { .. })));
            assert!(root.read(source(&[0; 10])).is_ok());
        }
    }
}
