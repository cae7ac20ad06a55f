//! Settings from a file and the environment.
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use delo::config::{Config, ConfigError};

/// What stands between the file's text and the lines `NAME=VALUE` of the environment.
const ENVIRONMENT: &str = "\n--- environment ---\n";

/// A file to be overwritten by each input; one a process.
fn file() -> &'static PathBuf {
    static FILE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    &FILE
        .get_or_init(|| {
            let dir = tempfile::tempdir().expect("a temporary directory can be made");
            let file = dir.path().join("delo.toml");
            (dir, file)
        })
        .1
}

/// Any text as settings: sound ones, or an error that names the file or the setting.
pub fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (toml, lines) = text.split_once(ENVIRONMENT).unwrap_or((&text, ""));
    let environment: HashMap<String, String> =
        lines.lines().filter_map(|line| line.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    std::fs::write(file(), toml).expect("a temporary file can be written");
    match Config::layered(Some(file()), environment, vec![]) {
        Ok(config) => {
            assert!(config.deadline.default <= config.deadline.max && !config.deadline.max.is_zero());
            assert!(config.batching.max_tokens != Some(0) && config.batching.max_samples > 0 && config.server.max_message_bytes > 0);
        }
        Err(ConfigError::Setting { path, message, .. }) => assert!(!path.is_empty() && !message.is_empty(), "{path:?}: {message:?}"),
        Err(error) => assert!(error.to_string().contains("delo.toml"), "{error}"),
    }
}
