//! The layers of settings, merged: defaults < file < environment < flags.
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::origin::Origins;
use super::{Config, ConfigError, DEFAULTS, environment};

/// The paths of all values in a document of settings, and of its sections where `sections` is true.
fn paths_in(document: &serde_json::Value, sections: bool) -> Vec<String> {
    fn walk(value: &serde_json::Value, path: &str, sections: bool, out: &mut Vec<String>) {
        let Some(table) = value.as_object() else { return out.push(path.to_owned()) };
        if sections && !path.is_empty() {
            out.push(path.to_owned());
        }
        for (key, value) in table {
            let dot = if path.is_empty() { "" } else { "." };
            walk(value, &format!("{path}{dot}{key}"), sections, out);
        }
    }
    let mut out = Vec::new();
    walk(document, "", sections, &mut out);
    out
}

pub fn toml(text: &str) -> config::File<config::FileSourceString, config::FileFormat> {
    config::File::from_str(text, config::FileFormat::Toml)
}

/// The paths of all settings: all of them have a default.
pub fn known_settings() -> Vec<String> {
    let defaults = config::Config::builder().add_source(toml(DEFAULTS)).build().and_then(config::Config::try_deserialize);
    paths_in(&defaults.expect("the defaults are sound TOML: every start reads them"), false)
}

/// Values that win over every other layer, by path: `[("server.listen", "0.0.0.0:50051")]`.
pub type Overrides = Vec<(&'static str, String)>;

impl Config {
    /// The settings from every layer, `file` and the process's environment included.
    ///
    /// # Errors
    /// A file that can't be read; a key that is unknown, missing its type, or out of range, with its path.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        Self::of_layers(file, std::env::vars_os(), overrides)
    }

    /// As [`Config::load`], with the environment given.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn layered(file: Option<&Path>, environment: HashMap<String, String>, overrides: Overrides) -> Result<Self, ConfigError> {
        Self::of_layers(file, environment.into_iter().map(|(name, value)| (name.into(), value.into())), overrides)
    }

    fn of_layers(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        overrides: Overrides,
    ) -> Result<Self, ConfigError> {
        let mut layers = config::Config::builder().add_source(toml(DEFAULTS));
        let flags = overrides.iter().map(|(path, _)| *path).collect();
        let mut origins = Origins { flags, variables: HashMap::new(), file: file.map(Path::to_owned), in_file: BTreeSet::new() };
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
            let document = config::Config::builder().add_source(toml(&text)).build().and_then(config::Config::try_deserialize);
            let document = document.map_err(|e| ConfigError::Syntax { path: path.to_owned(), message: e.to_string() })?;
            origins.in_file = paths_in(&document, true).into_iter().collect();
            layers = layers.add_source(toml(&text));
        }
        let environment = environment::Environment::read(environment, &known_settings())?;
        origins.variables = environment.settings.iter().map(|(path, variable)| (path.clone(), variable.name.clone())).collect();
        let of_environment = environment.settings.into_iter().map(|(path, variable)| (path, variable.value));
        // What is set later wins.
        for (path, value) in of_environment.chain(overrides.into_iter().map(|(path, value)| (path.to_owned(), value))) {
            layers = layers.set_override(path.as_str(), value).map_err(|e| origins.refuse(&path, e.to_string()))?;
        }
        let merged = layers.build().map_err(|e| origins.refuse("the settings together", e.to_string()))?;
        let mut config: Self = typed(merged, &origins)?;
        config.check(&origins)?;
        config.ignored_variables = environment.unknown;
        Ok(config)
    }
}

fn typed<T: DeserializeOwned>(merged: config::Config, origins: &Origins) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(merged).map_err(|e| {
        let (path, message) = (e.path().to_string(), e.inner().to_string());
        // The error names the path once.
        let message = message.strip_suffix(&format!(" for key `{path}`")).unwrap_or(&message);
        origins.refuse(&path, message)
    })
}
