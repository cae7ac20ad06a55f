//! A Hugging Face checkpoint directory: on disk, or the default model embedded in the binary.
use std::borrow::Cow;
use std::path::{Path, PathBuf};

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Where the files of a model come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelDir {
    /// The small ViLT in the binary (`models/emoji-mini`).
    Embedded,
    /// A directory holding `config.json`, `model.safetensors` (or a sharded index), a tokenizer and `preprocessor_config.json`.
    Path(PathBuf),
}

impl ModelDir {
    /// The bytes of one file of the directory; `None` where it has no such file.
    ///
    /// # Errors
    /// Any other failure to read an existing file.
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

    /// The name to show to people: the directory's path, or `emoji-mini (embedded)`.
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

/// The `*.safetensors` of a folder, in order of name.
///
/// # Errors
/// The folder can't be listed.
pub fn safetensors_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
