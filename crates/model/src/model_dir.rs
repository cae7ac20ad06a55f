//! A Hugging Face checkpoint directory: on disk, or the default model embedded in the binary.
use std::borrow::Cow;
use std::path::{Path, PathBuf};

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Where the files of a model come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelDir {
    /// The small ViLT in the binary (`models/emoji-mini`).
    Embedded,
    /// A directory that holds `config.json`, `model.safetensors` (or shards and their index), a tokenizer and
    /// `preprocessor_config.json`.
    Path(PathBuf),
}

impl ModelDir {
    /// The bytes of one file of the directory; `None` where it has no such file.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn read(&self, name: &str) -> std::io::Result<Option<Cow<'static, [u8]>>> {
        match self {
            Self::Embedded => Ok(EMBEDDED_MODEL.iter().find(|(n, _)| *n == name).map(|(_, bytes)| Cow::Borrowed(*bytes))),
            Self::Path(dir) => match std::fs::read(dir.join(name)) {
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(e),
            },
        }
    }

    /// The name for messages: the directory's path, or `emoji-mini (embedded)`.
    pub fn display(&self) -> String {
        match self {
            Self::Embedded => "emoji-mini (embedded)".to_owned(),
            Self::Path(dir) => dir.display().to_string(),
        }
    }
}

impl From<Option<&Path>> for ModelDir {
    fn from(dir: Option<&Path>) -> Self {
        dir.map_or(Self::Embedded, |d| Self::Path(d.to_owned()))
    }
}

/// The partitions embedded in the binary, `(file name, bytes)`, by name.
pub fn embedded_partitions() -> &'static [(&'static str, &'static [u8])] {
    EMBEDDED_PARTITIONS
}

/// The paths of a folder's partitions, in the order of names: its files `*.safetensors`. Ignored are dot
/// files (macOS and editors leave them), directories, pipes and sockets, and other names
/// (`x.safetensors.tmp`, `x.safetensors~`).
///
/// # Errors
/// The folder cannot be listed, or a symbolic link leads to no file; the message names the link.
pub fn partition_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|e| e == "safetensors") && is_file(&path)? {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a path is a file or a symbolic link to a file. The path is not opened: to open a pipe would wait
/// for a writer.
fn is_file(path: &Path) -> std::io::Result<bool> {
    std::fs::metadata(path).map(|metadata| metadata.is_file()).map_err(|error| {
        let problem = match std::fs::read_link(path) {
            Ok(target) => format!(
                "{} is a symbolic link to {}, which leads to no file ({error}): repair or remove it",
                path.display(),
                target.display()
            ),
            Err(_) => format!("{}: {error}", path.display()),
        };
        std::io::Error::new(error.kind(), problem)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn the_partitions_of_a_folder_are_its_safetensors_files() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let ignored = ["._food.safetensors", ".hidden.safetensors", ".DS_Store", ".food.safetensors.swp", ".#food.safetensors"];
        let ignored =
            ignored.into_iter().chain(["food.safetensors.tmp", "food.safetensors~", "#food.safetensors#", "food.safetensors.sig"]);
        for name in ignored.chain(["food.safetensors", "..data_of_no_one", "notes.txt"]) {
            std::fs::write(at(name), "x").unwrap();
        }
        std::fs::create_dir_all(at("dir.safetensors/inner.safetensors")).unwrap();
        std::fs::create_dir_all(at("..2026_01_01")).unwrap();
        std::fs::write(at("..2026_01_01/linked.safetensors"), "x").unwrap();
        symlink("..2026_01_01", at("..data")).unwrap();
        symlink("..data/linked.safetensors", at("linked.safetensors")).unwrap();
        symlink("dir.safetensors", at("linked-dir.safetensors")).unwrap();
        symlink("nowhere", at(".dangling.safetensors")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(at("pipe.safetensors")).status().unwrap().success());
        let _socket = std::os::unix::net::UnixListener::bind(at("socket.safetensors")).unwrap();
        assert_eq!(partition_files(dir.path()).unwrap(), ["food.safetensors", "linked.safetensors"].map(at));

        symlink("gone/nowhere.safetensors", at("dangling.safetensors")).unwrap();
        let error = partition_files(dir.path()).unwrap_err().to_string();
        assert!(error.contains("dangling.safetensors") && error.contains("gone/nowhere.safetensors"), "{error}");
    }
}
