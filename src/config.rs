//! Layered settings of the server: defaults < file < `DELO_` environment < flags. Unknown keys are refused with their path.
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _, IntoDeserializer};
use serde::{Deserialize, Deserializer};

use crate::delo::keys::{KeyAverage, KeySignal, Metric};
use crate::engine::{DeviceChoice, Options, RoutingRule};
use crate::input::Limits;
use crate::kernels::{Isa, Precision};
use crate::registry::remote::AllowedUrls;

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
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
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
    #[serde(deserialize_with = "positive")]
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
    #[serde(deserialize_with = "positive")]
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
            _ => text.parse().map(Self::At).map_err(|_| format!("{text:?} is neither an address like 127.0.0.1:9464 nor \"off\"")),
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
    #[error("configuration: {path}: {message}")]
    Setting { path: String, message: String },
}

/// Values that win over every other layer, by path: `[("server.listen", "0.0.0.0:50051")]`.
pub type Overrides = Vec<(&'static str, String)>;

impl Config {
    /// The settings from every layer, `file` and the process's environment included.
    ///
    /// # Errors
    /// A file that can't be read; a key that is unknown, missing its type, or out of range, with its path.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        Self::layered(
            file,
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect(),
            overrides,
        )
    }

    /// As [`Config::load`], with the environment given.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn layered(file: Option<&Path>, environment: HashMap<String, String>, overrides: Overrides) -> Result<Self, ConfigError> {
        let mut layers = config::Config::builder().add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
            let source = config::File::from_str(&text, config::FileFormat::Toml);
            config::Config::builder()
                .add_source(source.clone())
                .build()
                .map_err(|e| ConfigError::Syntax { path: path.to_owned(), message: e.to_string() })?;
            layers = layers.add_source(source);
        }
        // The client's token, `delo classify` reads it: it is no setting, and may well be there.
        let environment: HashMap<_, _> = environment.into_iter().filter(|(key, _)| key != "DELO_TOKEN").collect();
        let environment = config::Environment::with_prefix("DELO").prefix_separator("_").separator("__").source(Some(environment));
        layers = layers.add_source(environment);
        for (key, value) in overrides {
            layers = layers.set_override(key, value).map_err(|e| ConfigError::Setting { path: key.to_owned(), message: e.to_string() })?;
        }
        let merged = layers.build().map_err(|e| ConfigError::Setting { path: "DELO_ environment".to_owned(), message: e.to_string() })?;
        let config: Self = typed(merged)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |path: &str, message: &str| Err(ConfigError::Setting { path: path.to_owned(), message: message.to_owned() });
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

fn typed<T: DeserializeOwned>(merged: config::Config) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(merged)
        .map_err(|e| ConfigError::Setting { path: e.path().to_string(), message: e.into_inner().to_string() })
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

fn positive<'de, D: Deserializer<'de>>(de: D) -> Result<usize, D::Error> {
    match usize::deserialize(de)? {
        0 => Err(D::Error::custom("must be at least 1")),
        n => Ok(n),
    }
}

fn positive_or_auto<'de, D: Deserializer<'de>>(de: D) -> Result<Option<usize>, D::Error> {
    match String::deserialize(de)?.as_str() {
        "auto" => Ok(None),
        number => match number.parse() {
            Ok(0) | Err(_) => Err(D::Error::custom(format!("{number:?} is neither \"auto\" nor a whole number from 1 on"))),
            Ok(n) => Ok(Some(n)),
        },
    }
}

/// As many as HTTP/2 can count.
fn streams<'de, D: Deserializer<'de>>(de: D) -> Result<u32, D::Error> {
    match u32::deserialize(de)? {
        0 => Err(D::Error::custom("must be at least 1")),
        n if n > i32::MAX.unsigned_abs() => Err(D::Error::custom("must be at most 2147483647")),
        n => Ok(n),
    }
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
        assert_eq!(path(Config::layered(None, environment("DELO_BACTHING__MAX_TOKENS", "1"), vec![])), "bacthing");
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
