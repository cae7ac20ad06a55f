//! Layered settings of the server: defaults < file < `DELO_` environment < flags. Unknown keys are refused with their path, and an error names the file,
//! the variable or the flag that the setting comes from.
mod environment;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _, IntoDeserializer};
use serde::{Deserialize, Deserializer};

use delo_engine::{DeviceChoice, Options, RoutingRule};
use delo_kernels::{Isa, Precision};
use delo_model::input::Limits;
use delo_model::routing::keys::{KeyAverage, KeySignal, Metric};
use delo_registry::remote::AllowedUrls;

/// Every setting and its default, with comments.
pub const DEFAULTS: &str = include_str!("../migrations-free-config/default.toml");

/// The settings of `delo serve`. Each field is explained in `migrations-free-config/default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub server: Server,
    pub admin: Admin,
    pub auth: Auth,
    pub tls: Tls,
    pub metrics: Metrics,
    pub model: Model,
    pub catalogue: Catalogue,
    pub registry: Registry,
    pub routing: Routing,
    pub batching: Batching,
    pub input: Input,
    pub deadline: Deadline,
    pub feedback: Feedback,
    pub shutdown: Shutdown,
    pub logging: Logging,
    /// Environment variables whose names begin with `DELO_` and that are no settings: ignored, and told in the log.
    #[serde(skip)]
    pub ignored_variables: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    #[serde(deserialize_with = "positive")]
    pub max_message_bytes: usize,
    #[serde(deserialize_with = "positive")]
    pub max_in_flight_requests: usize,
    #[serde(deserialize_with = "positive")]
    pub max_in_flight_per_client: usize,
    /// Bytes of request messages that are being received, over all calls.
    #[serde(deserialize_with = "positive")]
    pub max_receive_bytes: usize,
    #[serde(rename = "stream_idle_seconds", deserialize_with = "seconds")]
    pub stream_idle: Duration,
    #[serde(deserialize_with = "positive")]
    pub max_connections: usize,
    #[serde(deserialize_with = "streams")]
    pub max_streams_per_connection: u32,
    /// Until a connection must have begun to speak HTTP/2.
    #[serde(rename = "handshake_seconds", deserialize_with = "seconds")]
    pub handshake: Duration,
    #[serde(rename = "keepalive_seconds", deserialize_with = "seconds")]
    pub keepalive: Duration,
    #[serde(rename = "keepalive_timeout_seconds", deserialize_with = "seconds")]
    pub keepalive_timeout: Duration,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    pub listen: Listen,
    #[serde(deserialize_with = "positive")]
    pub max_artifact_bytes: usize,
    #[serde(deserialize_with = "positive")]
    pub max_in_flight_requests: usize,
    /// No call of the admin service may take longer.
    #[serde(rename = "max_call_seconds", deserialize_with = "seconds")]
    pub max_call: Duration,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// `None`: everybody may call everything.
    #[serde(deserialize_with = "optional_path")]
    pub clients_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// `None`, and no key either: plaintext.
    #[serde(deserialize_with = "optional_path")]
    pub certificate: Option<PathBuf>,
    #[serde(deserialize_with = "optional_path")]
    pub key: Option<PathBuf>,
    /// Who signs the certificates of clients.
    #[serde(deserialize_with = "optional_path")]
    pub client_ca: Option<PathBuf>,
    pub client_certificate: ClientCertificate,
    /// How often the files of `[tls]` and `[auth]` are looked at.
    #[serde(rename = "reload_seconds", deserialize_with = "seconds")]
    pub reload: Duration,
    #[serde(rename = "handshake_seconds", deserialize_with = "seconds")]
    pub handshake: Duration,
}

/// Whether clients are asked for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificate {
    Off,
    /// One that is shown must be good.
    Optional,
    Required,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    pub listen: Listen,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// `None`: the backbone in the binary.
    #[serde(deserialize_with = "optional_path")]
    pub backbone: Option<PathBuf>,
    #[serde(deserialize_with = "optional_path")]
    pub partitions: Option<PathBuf>,
    #[serde(deserialize_with = "from_str")]
    pub device: DeviceChoice,
    /// `None`, written `auto`: the fastest on this processor. Likewise the instructions.
    #[serde(deserialize_with = "auto_from_str")]
    pub precision: Option<Precision>,
    /// The best vector instructions that may be used.
    #[serde(deserialize_with = "auto_from_str")]
    pub isa: Option<Isa>,
    /// Threads of the compute pool; 0 for as many as there are cores.
    #[serde(deserialize_with = "threads")]
    pub threads: usize,
}

impl Model {
    /// What the engine computes with.
    pub fn options(&self) -> Options {
        Options { precision: self.precision, isa: self.isa, device: self.device }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    #[serde(deserialize_with = "optional_path")]
    pub state_dir: Option<PathBuf>,
    #[serde(deserialize_with = "any")]
    pub retained_versions: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// Empty: no manifest is followed.
    pub manifest: String,
    #[serde(rename = "poll_seconds", deserialize_with = "seconds")]
    pub poll: Duration,
    #[serde(rename = "fetch_timeout_seconds", deserialize_with = "seconds")]
    pub fetch_timeout: Duration,
    #[serde(deserialize_with = "at_once")]
    pub max_fetches: usize,
    #[serde(deserialize_with = "allowed_urls")]
    pub allowed_urls: AllowedUrls,
    #[serde(deserialize_with = "paths")]
    pub trusted_keys: Vec<PathBuf>,
    pub require_signature: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    /// `None`, written `auto`: what the partitions say. Likewise the others.
    #[serde(deserialize_with = "auto")]
    pub metric: Option<Metric>,
    #[serde(deserialize_with = "auto")]
    pub signal: Option<KeySignal>,
    #[serde(deserialize_with = "auto")]
    pub average: Option<KeyAverage>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// `None`: what the engine says.
    #[serde(deserialize_with = "positive_or_auto")]
    pub max_tokens: Option<usize>,
    #[serde(deserialize_with = "at_once")]
    pub max_samples: usize,
    #[serde(deserialize_with = "positive")]
    pub max_queue_samples: usize,
    #[serde(deserialize_with = "positive")]
    pub max_queue_bytes: usize,
    #[serde(rename = "max_queue_seconds", deserialize_with = "seconds")]
    pub max_queue_wait: Duration,
    #[serde(deserialize_with = "positive")]
    pub max_samples_per_call: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// 0: one per processor core.
    #[serde(deserialize_with = "at_once_or_zero")]
    pub concurrency: usize,
    /// Special tokens in a text are read as such, not as words.
    pub special_tokens: bool,
    pub limits: Limits,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deadline {
    #[serde(rename = "default_seconds", deserialize_with = "seconds")]
    pub default: Duration,
    #[serde(rename = "max_seconds", deserialize_with = "seconds")]
    pub max: Duration,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feedback {
    #[serde(deserialize_with = "any")]
    pub remembered_answers: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    #[serde(rename = "drain_seconds", deserialize_with = "seconds")]
    pub drain: Duration,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logging {
    pub format: LogFormat,
    pub filter: String,
}

/// An address to listen at: an IP address and a port. Names are not looked up, except `localhost`, which is 127.0.0.1.
///
/// # Errors
/// What to write instead.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let named = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let parsed = named.as_deref().unwrap_or(text).parse();
    parsed.map_err(|_| {
        let port = text.rsplit(':').next().filter(|port| port.parse::<u16>().is_ok());
        let port = port.unwrap_or("50051");
        let why = if text.starts_with("unix:") { ", and Unix sockets are not served" } else { "" };
        format!("{text:?} is no IP address with a port{why}: give 127.0.0.1:{port} for this machine alone, or 0.0.0.0:{port} (or [::]:{port}) for all")
    })
}

/// An address to listen at, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    Off,
    At(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => parse_address(text).map(Self::At).map_err(|message| format!("{message}; \"off\" switches the port off")),
        }
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        from_str(de)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

impl Routing {
    /// The rule for the catalogue.
    pub fn rule(&self) -> RoutingRule {
        RoutingRule { metric: self.metric, signal: self.signal, average: self.average }
    }
}

/// How logs are written to stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Human,
    Json,
}

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
struct Origins {
    flags: Vec<&'static str>,
    /// Setting and variable.
    variables: HashMap<String, String>,
    file: Option<PathBuf>,
    /// Paths that the file has, sections included.
    in_file: BTreeSet<String>,
}

impl Origins {
    /// Of the setting at `path`, or of what it is part of.
    fn of(&self, path: &str) -> Origin {
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

    fn refuse(&self, path: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::Setting { origin: self.of(path), path: path.to_owned(), message: message.into() }
    }
}

/// The flag of `delo serve` for a setting that has one.
fn flag(path: &str) -> String {
    let flag = path.strip_prefix("server.").or_else(|| path.strip_prefix("model.")).unwrap_or(path);
    format!("--{}", flag.replace(['.', '_'], "-"))
}

/// The paths of all values in a document of settings; with its sections, if asked for.
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

fn toml(text: &str) -> config::File<config::FileSourceString, config::FileFormat> {
    config::File::from_str(text, config::FileFormat::Toml)
}

/// The paths of all settings: all of them have a default.
fn known_settings() -> Vec<String> {
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

    fn check(&self, origins: &Origins) -> Result<(), ConfigError> {
        let wrong = |path: &str, message: &str| Err(origins.refuse(path, message));
        if self.deadline.default > self.deadline.max {
            return wrong("deadline.default_seconds", "longer than deadline.max_seconds, lower it or raise that");
        }
        if self.server.max_receive_bytes < self.server.max_message_bytes {
            return wrong("server.max_receive_bytes", "less than server.max_message_bytes, so that no such message could arrive: raise it");
        }
        if self.registry.require_signature && self.registry.trusted_keys.is_empty() {
            return wrong("registry.require_signature", "no signature can be right without a key in registry.trusted_keys, name one");
        }
        let tls = &self.tls;
        match (&tls.certificate, &tls.key) {
            (Some(_), None) => return wrong("tls.key", "missing: tls.certificate needs its private key"),
            (None, Some(_)) => return wrong("tls.certificate", "missing: tls.key needs its certificate"),
            _ => {}
        }
        match (&tls.client_ca, tls.client_certificate) {
            (None, ClientCertificate::Optional | ClientCertificate::Required) => {
                wrong("tls.client_ca", "missing: tls.client_certificate asks for certificates, say who signs them")
            }
            (Some(_), ClientCertificate::Off) => {
                wrong("tls.client_certificate", "\"off\" with a tls.client_ca: choose \"optional\" or \"required\"")
            }
            (Some(_), _) if tls.certificate.is_none() => wrong("tls.certificate", "missing: only TLS carries the certificates of clients"),
            _ => Ok(()),
        }
    }
}

fn typed<T: DeserializeOwned>(merged: config::Config, origins: &Origins) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(merged).map_err(|e| {
        let (path, message) = (e.path().to_string(), e.inner().to_string());
        // The path is told once.
        let message = message.strip_suffix(&format!(" for key `{path}`")).unwrap_or(&message);
        origins.refuse(&path, message)
    })
}

fn address<'de, D: Deserializer<'de>>(de: D) -> Result<SocketAddr, D::Error> {
    parse_address(&String::deserialize(de)?).map_err(D::Error::custom)
}

fn from_str<'de, T: FromStr<Err = String>, D: Deserializer<'de>>(de: D) -> Result<T, D::Error> {
    String::deserialize(de)?.parse().map_err(D::Error::custom)
}

/// A choice, or `auto`.
fn auto<'de, T: Deserialize<'de>, D: Deserializer<'de>>(de: D) -> Result<Option<T>, D::Error> {
    match String::deserialize(de)?.as_str() {
        "auto" => Ok(None),
        choice => T::deserialize(choice.to_owned().into_deserializer()).map(Some),
    }
}

fn auto_from_str<'de, T: FromStr<Err = String>, D: Deserializer<'de>>(de: D) -> Result<Option<T>, D::Error> {
    match String::deserialize(de)?.as_str() {
        "auto" => Ok(None),
        choice => choice.parse().map(Some).map_err(D::Error::custom),
    }
}

/// The most that any count or size of memory may be: beyond any machine, and small enough to be multiplied.
const MOST: usize = 1 << 48;
/// The most samples of one forward pass, and things done at the same time.
const MOST_AT_ONCE: usize = 1 << 20;
/// The most threads of the compute pool.
pub const MOST_THREADS: usize = 4096;

fn within<'de, D: Deserializer<'de>>(de: D, range: RangeInclusive<usize>) -> Result<usize, D::Error> {
    let (least, most) = (range.start(), range.end());
    // Signed, so that a negative number is told to be out of range too, and not to be of a wrong type.
    let n = i64::deserialize(de)?;
    usize::try_from(n).ok().filter(|n| range.contains(n)).ok_or_else(|| match n {
        ..=0 if *least == 1 => D::Error::custom(format!("{n} is out of range, it must be at least 1")),
        _ => D::Error::custom(format!("{n} is out of range, choose {least} to {most}")),
    })
}

fn positive<'de, D: Deserializer<'de>>(de: D) -> Result<usize, D::Error> {
    within(de, 1..=MOST)
}

fn at_once<'de, D: Deserializer<'de>>(de: D) -> Result<usize, D::Error> {
    within(de, 1..=MOST_AT_ONCE)
}

fn at_once_or_zero<'de, D: Deserializer<'de>>(de: D) -> Result<usize, D::Error> {
    within(de, 0..=MOST_AT_ONCE)
}

fn threads<'de, D: Deserializer<'de>>(de: D) -> Result<usize, D::Error> {
    within(de, 0..=MOST_THREADS)
}

fn any<'de, D: Deserializer<'de>>(de: D) -> Result<usize, D::Error> {
    within(de, 0..=MOST)
}

fn positive_or_auto<'de, D: Deserializer<'de>>(de: D) -> Result<Option<usize>, D::Error> {
    match String::deserialize(de)?.as_str() {
        "auto" => Ok(None),
        number => match number.parse() {
            Ok(n @ 1..=MOST) => Ok(Some(n)),
            _ => Err(D::Error::custom(format!("{number:?} is neither \"auto\" nor a whole number from 1 to {MOST}"))),
        },
    }
}

/// As many as HTTP/2 can count.
fn streams<'de, D: Deserializer<'de>>(de: D) -> Result<u32, D::Error> {
    u32::try_from(within(de, 1..=0x7fff_ffff)?).map_err(D::Error::custom)
}

fn seconds<'de, D: Deserializer<'de>>(de: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(de)?;
    if !(0.001..=86_400.0).contains(&seconds) {
        return Err(D::Error::custom(format!("{seconds} is out of range, choose 0.001 to 86400 seconds")));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A list, or one text with commas between, as the environment gives it.
fn list<'de, D: Deserializer<'de>>(de: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a list of texts, or one text with commas between")]
    enum List {
        Items(Vec<String>),
        Text(String),
    }
    Ok(match List::deserialize(de)? {
        List::Items(items) => items,
        List::Text(text) => text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect(),
    })
}

fn paths<'de, D: Deserializer<'de>>(de: D) -> Result<Vec<PathBuf>, D::Error> {
    Ok(list(de)?.into_iter().map(PathBuf::from).collect())
}

fn allowed_urls<'de, D: Deserializer<'de>>(de: D) -> Result<AllowedUrls, D::Error> {
    AllowedUrls::parse(list(de)?.iter().map(String::as_str)).map_err(D::Error::custom)
}

fn optional_path<'de, D: Deserializer<'de>>(de: D) -> Result<Option<PathBuf>, D::Error> {
    let path = String::deserialize(de)?;
    Ok((!path.is_empty()).then(|| path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::layered(Some(file.path()), HashMap::new(), vec![])
    }

    fn environment(key: &str, value: &str) -> HashMap<String, String> {
        HashMap::from([(key.to_owned(), value.to_owned())])
    }

    /// The setting's path in the error.
    fn path(result: Result<Config, ConfigError>) -> String {
        match result {
            Err(ConfigError::Setting { path, .. }) => path,
            other => panic!("not refused for a setting: {other:?}"),
        }
    }

    #[test]
    fn later_layers_win_over_earlier_ones() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[batching]\nmax_tokens = 1\nmax_samples = 2\nmax_queue_samples = 3").unwrap();
        let mut env = environment("DELO_BATCHING__MAX_SAMPLES", "20");
        env.extend(environment("DELO_BATCHING__MAX_QUEUE_SAMPLES", "30"));
        let config = Config::layered(Some(file.path()), env, vec![("batching.max_queue_samples", "300".to_owned())]).unwrap();
        assert_eq!((config.batching.max_tokens, config.batching.max_samples, config.batching.max_queue_samples), (Some(1), 20, 300));
        let defaults = Config::layered(None, HashMap::new(), vec![]).unwrap();
        assert_eq!(config.batching.max_queue_bytes, defaults.batching.max_queue_bytes);
    }

    #[test]
    fn refuses_an_unknown_key_of_a_file_with_its_path() {
        assert_eq!(path(with_file("[batching]\nmax_tokns = 1")), "batching.max_tokns");
        assert_eq!(path(with_file("[batchin]\nmax_tokens = 1")), "batchin");
    }

    #[test]
    fn refuses_an_unknown_key_of_the_environment_with_its_path() {
        assert_eq!(path(Config::layered(None, environment("DELO_BATCHING__MAX_TOKNS", "1"), vec![])), "batching.max_tokns");
        assert_eq!(path(Config::layered(None, environment("DELO_BACTHING__MAX_TOKENS", "1"), vec![])), "bacthing.max_tokens");
    }

    #[test]
    fn refuses_a_value_of_the_wrong_type_or_range_with_its_path() {
        assert_eq!(path(with_file("[batching]\nmax_tokens = \"many\"")), "batching.max_tokens");
        assert_eq!(path(with_file("[batching]\nmax_tokens = 0")), "batching.max_tokens");
        assert_eq!(path(with_file("[batching]\nmax_tokens = -1")), "batching.max_tokens");
        assert_eq!(path(with_file("[deadline]\nmax_seconds = nan")), "deadline.max_seconds");
        assert_eq!(path(with_file("[deadline]\ndefault_seconds = 500.0")), "deadline.default_seconds");
        assert_eq!(path(with_file("[server]\nlisten = \"nowhere\"")), "server.listen");
        assert_eq!(path(with_file("[metrics]\nlisten = \"nowhere\"")), "metrics.listen");
        assert_eq!(path(with_file("[routing]\nmetric = \"best\"")), "routing.metric");
        assert_eq!(path(with_file("[routing]\nsignal = \"parts\"")), "routing.signal");
        assert_eq!(path(Config::layered(None, environment("DELO_BATCHING__MAX_TOKENS", "many"), vec![])), "batching.max_tokens");
    }

    #[test]
    fn an_error_names_the_file_the_variable_or_the_flag_that_the_setting_comes_from() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[batching]\nmax_samples = 0\n[deadline]\ndefault_seconds = 500.0").unwrap();
        let origin = |file: Option<&Path>, environment, flags| match Config::layered(file, environment, flags) {
            Err(ConfigError::Setting { origin, .. }) => origin,
            other => panic!("not refused for a setting: {other:?}"),
        };
        let in_file = Origin::File(file.path().to_owned());
        assert_eq!(origin(Some(file.path()), HashMap::new(), vec![]), in_file);
        let variable = |name: &str| Origin::Variable(name.to_owned());
        let by_variable = environment("DELO_BATCHING__MAX_SAMPLES", "-3");
        assert_eq!(origin(Some(file.path()), by_variable, vec![]), variable("DELO_BATCHING__MAX_SAMPLES"));
        // The variable mends the first fault of the file, so that the second is met.
        assert_eq!(origin(Some(file.path()), environment("DELO_BATCHING__MAX_SAMPLES", "3"), vec![]), in_file);
        let by_variable = environment("DELO_MODEL__THREADS", "2");
        let by_flag = vec![("model.threads", "100000".to_owned())];
        assert_eq!(origin(None, by_variable, by_flag), Origin::Flag("--threads".to_owned()));
        let by_flag = vec![("admin.listen", "nowhere".to_owned())];
        assert_eq!(origin(None, HashMap::new(), by_flag), Origin::Flag("--admin-listen".to_owned()));
        assert_eq!(origin(None, environment("DELO_TLS__CERTIFICATE", "a.pem"), vec![]), Origin::Default);
    }

    #[test]
    fn every_number_out_of_range_is_refused_by_name_and_every_usual_one_is_taken() {
        let defaults = config::Config::builder().add_source(toml(DEFAULTS)).build().unwrap();
        let defaults: serde_json::Value = defaults.try_deserialize().unwrap();
        for setting in known_settings() {
            let value = setting.split('.').fold(&defaults, |value, key| &value[key]);
            let given = |text: &str| Config::layered(None, environment(&environment::name_of(&setting), text), vec![]);
            if value.is_number() || setting == "batching.max_tokens" {
                for text in
                    ["-1", "-9223372036854775808", "18446744073709551616", "1e400", "nan", "inf", "-inf", "many", "", " ", "0x10", "1;2"]
                {
                    let refused = given(text).unwrap_err().to_string();
                    assert!(refused.contains(&environment::name_of(&setting)), "{setting}={text}: {refused}");
                }
            }
            if value.is_u64() && !setting.starts_with("input.limits") {
                let most = given("9223372036854775807").unwrap_err().to_string();
                assert!(most.contains("out of range"), "{setting}: {most}");
            }
            let usual = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            assert!(value.is_array() || given(&usual).is_ok(), "{setting}={usual}");
        }
    }

    #[test]
    fn an_address_that_is_none_says_what_to_write() {
        for (text, said) in [
            ("localhost", "127.0.0.1:50051"),
            (":50061", "0.0.0.0:50061"),
            ("50061", "0.0.0.0:50061"),
            ("example.com:50061", "0.0.0.0:50061"),
            ("unix:/run/delo.sock", "Unix sockets are not served"),
            ("*:50061", "0.0.0.0:50061"),
            ("[::1]", "[::]:50051"),
            ("127.0.0.1:99999", "127.0.0.1:50051"),
            ("", "127.0.0.1:50051"),
        ] {
            let message = parse_address(text).unwrap_err();
            assert!(message.contains(said), "{message}");
            let error = with_file(&format!("[server]\nlisten = \"{text}\"")).unwrap_err().to_string();
            assert!(error.contains("server.listen") && error.contains(said), "{error}");
            assert!(text.parse::<Listen>().unwrap_err().contains("\"off\""));
        }
        assert_eq!(parse_address("localhost:7"), Ok("127.0.0.1:7".parse().unwrap()));
        assert_eq!(parse_address("[::]:7"), Ok("[::]:7".parse().unwrap()));
    }

    #[test]
    fn refuses_half_of_tls_and_says_which_is_missing() {
        assert_eq!(path(with_file("[tls]\ncertificate = \"a.pem\"")), "tls.key");
        assert_eq!(path(with_file("[tls]\nkey = \"a.pem\"")), "tls.certificate");
        assert_eq!(path(with_file("[tls]\nclient_certificate = \"required\"")), "tls.client_ca");
        let both = "[tls]\ncertificate = \"a.pem\"\nkey = \"a.pem\"\nclient_ca = \"ca.pem\"\n";
        assert_eq!(path(with_file(both)), "tls.client_certificate");
        assert!(with_file(&format!("{both}client_certificate = \"optional\"")).is_ok());
    }

    #[test]
    fn a_token_in_the_environment_is_no_setting() {
        assert!(Config::layered(None, environment("DELO_TOKEN", "secret"), vec![]).is_ok());
    }

    #[test]
    fn says_what_to_choose_instead_of_a_device_or_precision_that_this_build_lacks() {
        for (text, setting) in
            [("device = \"gpu\"", "model.device"), ("precision = \"f8\"", "model.precision"), ("isa = \"mmx\"", "model.isa")]
        {
            let error = with_file(&format!("[model]\n{text}")).unwrap_err().to_string();
            assert!(error.contains(setting), "{error}");
        }
    }

    #[test]
    fn names_a_file_that_is_missing_or_no_toml() {
        let error = Config::layered(Some(Path::new("/nowhere/delo.toml")), HashMap::new(), vec![]).unwrap_err();
        assert!(error.to_string().contains("/nowhere/delo.toml"), "{error}");
        assert!(matches!(with_file("[batching"), Err(ConfigError::Syntax { .. })));
    }

    #[test]
    fn loads_every_file_that_ships() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations-free-config");
        let mut files = vec![dir.join("default.toml")];
        files.extend(std::fs::read_dir(dir.join("examples")).unwrap().map(|f| f.unwrap().path()));
        assert!(files.len() > 1);
        for file in files {
            Config::layered(Some(&file), HashMap::new(), vec![]).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        }
    }

    #[test]
    fn the_default_file_states_the_limits_of_the_input_room() {
        assert_eq!(Config::layered(None, HashMap::new(), vec![]).unwrap().input.limits, Limits::default());
    }

    #[test]
    fn the_operator_can_choose_how_tasks_are_told() {
        let rule = |text: &str| with_file(text).unwrap().routing.rule();
        assert_eq!(rule(""), RoutingRule::default());
        let chosen = RoutingRule { metric: Some(Metric::Plain), signal: Some(KeySignal::Pooled), average: Some(KeyAverage::Ema) };
        assert_eq!(rule("[routing]\nmetric = \"plain\"\nsignal = \"pooled\"\naverage = \"ema\""), chosen);
    }

    #[test]
    fn lists_come_from_files_and_from_the_environment() {
        let config = with_file("[registry]\nallowed_urls = [\"https://a/\", \"s3://b/\"]").unwrap();
        assert!(config.registry.allowed_urls.check("s3://b/partition").is_ok());
        let env = environment("DELO_REGISTRY__TRUSTED_KEYS", "a.pem, b.pem");
        assert_eq!(Config::layered(None, env, vec![]).unwrap().registry.trusted_keys, [Path::new("a.pem"), Path::new("b.pem")]);
    }

    #[test]
    fn refuses_a_registry_that_could_not_do_what_it_says() {
        assert_eq!(path(with_file("[registry]\nrequire_signature = true")), "registry.require_signature");
        assert_eq!(path(with_file("[registry]\nallowed_urls = [\"example.com\"]")), "registry.allowed_urls");
        assert_eq!(path(with_file("[registry]\npoll_seconds = 0.0")), "registry.poll_seconds");
    }

    #[test]
    fn metrics_and_admin_can_be_off() {
        let config = with_file("[metrics]\nlisten = \"off\"\n[admin]\nlisten = \"off\"").unwrap();
        assert_eq!((config.metrics.listen, config.admin.listen), (Listen::Off, Listen::Off));
    }
}
