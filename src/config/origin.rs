//! Where the value of a setting comes from, as errors name it.
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;

/// Why settings are not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("can't read the configuration file {path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path} is not valid TOML: {message}")]
    Syntax { path: PathBuf, message: String },
    /// `path` is the setting's, `batching.max_tokens`.
    #[error("configuration: {origin}{path}: {message}")]
    Setting { origin: Origin, path: String, message: String },
}

/// Where the value of a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// None of the others: the default, or several settings that do not go together.
    Default,
    File(PathBuf),
    /// The name of an environment variable.
    Variable(String),
    /// `--listen`.
    Flag(String),
}

impl fmt::Display for Origin {
    /// As messages begin: nothing, or the origin, a colon and a space.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => Ok(()),
            Self::File(path) => write!(f, "{}: ", path.display()),
            Self::Variable(name) => write!(f, "the environment variable {name}: "),
            Self::Flag(flag) => write!(f, "{flag}: "),
        }
    }
}

/// Where settings come from, to be named in errors.
pub struct Origins {
    pub flags: Vec<&'static str>,
    /// Setting and variable.
    pub variables: HashMap<String, String>,
    pub file: Option<PathBuf>,
    /// Paths that the file has, sections included.
    pub in_file: BTreeSet<String>,
}

impl Origins {
    /// The origin of the setting at `path`, or of the section that it is part of.
    pub fn of(&self, path: &str) -> Origin {
        let ends = path.char_indices().filter(|(_, c)| matches!(c, '.' | '[')).map(|(at, _)| at);
        let mut prefixes: Vec<&str> = ends.chain([path.len()]).map(|end| &path[..end]).collect();
        prefixes.reverse();
        for prefix in prefixes {
            if self.flags.contains(&prefix) {
                return Origin::Flag(flag(prefix));
            }
            if let Some(name) = self.variables.get(prefix) {
                return Origin::Variable(name.clone());
            }
            if let Some(file) = self.file.as_ref().filter(|_| self.in_file.contains(prefix)) {
                return Origin::File(file.clone());
            }
        }
        Origin::Default
    }

    /// The error of the setting at `path`.
    pub fn refuse(&self, path: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::Setting { origin: self.of(path), path: path.to_owned(), message: message.into() }
    }
}

/// The flag of `delo serve` for a setting that has one.
fn flag(path: &str) -> String {
    let flag = path.strip_prefix("server.").or_else(|| path.strip_prefix("model.")).unwrap_or(path);
    format!("--{}", flag.replace(['.', '_'], "-"))
}
