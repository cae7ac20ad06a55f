//! The settings and their types.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::listen::Listen;
use super::values::{
    address, allowed_urls, any, at_once, at_once_or_zero, auto, auto_from_str, from_str, optional_collector, optional_path, paths,
    positive, positive_or_auto, seconds, seconds_or_off, share, share_or_off, streams, threads,
};
use delo_catalogue::RoutingRule;
use delo_engine::Policy;
use delo_engine::{DeviceChoice, Options};
use delo_kernels::{Isa, Precision};
use delo_model::input::Limits;
use delo_model::routing::keys::{KeyAverage, KeySignal, Metric};
use delo_registry::remote::AllowedUrls;

/// The settings of `delo serve`. Each field is explained in `migrations-free-config/default.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub server: Server,
    pub admin: Admin,
    pub auth: Auth,
    pub tls: Tls,
    pub metrics: Metrics,
    pub http: Http,
    pub tracing: Tracing,
    pub audit: Audit,
    pub records: Records,
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
    /// Environment variables whose names begin with `DELO_` and that are no settings: ignored, and named in
    /// the log.
    #[serde(skip)]
    pub ignored_variables: Vec<String>,
}

/// The classifier's port.
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
    /// How long a connection may take until it speaks HTTP/2.
    #[serde(rename = "handshake_seconds", deserialize_with = "seconds")]
    pub handshake: Duration,
    #[serde(rename = "keepalive_seconds", deserialize_with = "seconds")]
    pub keepalive: Duration,
    #[serde(rename = "keepalive_timeout_seconds", deserialize_with = "seconds")]
    pub keepalive_timeout: Duration,
    /// `None`, written `off`: a connection may be as old as its client wants.
    #[serde(rename = "max_connection_age_seconds", deserialize_with = "seconds_or_off")]
    pub max_connection_age: Option<Duration>,
}

/// The admin service's port.
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

/// Who may call.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// `None`: everybody may call everything.
    #[serde(deserialize_with = "optional_path")]
    pub clients_file: Option<PathBuf>,
}

/// TLS of both gRPC ports.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// `None`, and no key either: plaintext.
    #[serde(deserialize_with = "optional_path")]
    pub certificate: Option<PathBuf>,
    #[serde(deserialize_with = "optional_path")]
    pub key: Option<PathBuf>,
    /// Certificates of the authorities that sign those of clients.
    #[serde(deserialize_with = "optional_path")]
    pub client_ca: Option<PathBuf>,
    pub client_certificate: ClientCertificate,
    /// How often the files of `[tls]` and `[auth]` are read again.
    #[serde(rename = "reload_seconds", deserialize_with = "seconds")]
    pub reload: Duration,
    #[serde(rename = "handshake_seconds", deserialize_with = "seconds")]
    pub handshake: Duration,
}

/// Whether clients need a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificate {
    Off,
    /// One that is shown must be good.
    Optional,
    Required,
}

/// The port for Prometheus and health probes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    pub listen: Listen,
}

/// The port for HTTP/JSON and for browsers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    pub listen: Listen,
}

/// The record of changes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// `None`: the log alone has them.
    #[serde(deserialize_with = "optional_path")]
    pub file: Option<PathBuf>,
}

/// Traces of calls.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tracing {
    /// `None`: spans go nowhere.
    #[serde(deserialize_with = "optional_collector")]
    pub otlp_endpoint: Option<String>,
    /// Of the traces that begin here, the share that is kept.
    #[serde(deserialize_with = "share")]
    pub sample_share: f64,
    pub service_name: String,
    #[serde(rename = "export_timeout_seconds", deserialize_with = "seconds")]
    pub export_timeout: Duration,
}

/// The backbone, the partitions at the start, and what computes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// `None`: the backbone in the binary.
    #[serde(deserialize_with = "optional_path")]
    pub backbone: Option<PathBuf>,
    #[serde(deserialize_with = "optional_path")]
    pub partitions: Option<PathBuf>,
    /// `None`, written `auto`: the checkpoint's own number.
    #[serde(deserialize_with = "positive_or_auto")]
    pub text_positions: Option<usize>,
    #[serde(deserialize_with = "from_str")]
    pub device: DeviceChoice,
    /// `None`, written `auto`: the fastest number format on this processor.
    #[serde(deserialize_with = "auto_from_str")]
    pub precision: Option<Precision>,
    /// The best vector instructions that may be used. `None`, written `auto`: the best that the processor
    /// has.
    #[serde(deserialize_with = "auto_from_str")]
    pub isa: Option<Isa>,
    /// Threads of the compute pool; 0 for as many as there are cores.
    #[serde(deserialize_with = "threads")]
    pub threads: usize,
}

impl Model {
    /// What the engine computes with.
    pub fn options(&self) -> Options {
        Options { precision: self.precision, isa: self.isa, device: self.device, training: None }
    }
}

/// Which versions are kept, and where.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    #[serde(deserialize_with = "optional_path")]
    pub state_dir: Option<PathBuf>,
    #[serde(deserialize_with = "any")]
    pub retained_versions: usize,
}

/// Records of decisions, for `delo replay`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Records {
    /// `None`: no record is kept.
    #[serde(deserialize_with = "optional_path")]
    pub file: Option<PathBuf>,
    #[serde(deserialize_with = "share")]
    pub sample_share: f64,
    /// Of the file, and of the full one beside it.
    #[serde(deserialize_with = "positive")]
    pub max_bytes: usize,
    /// Whether a record holds the image and the text.
    pub payload: bool,
}

/// The registry that is followed, and partitions from addresses.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// Empty: no manifest is followed.
    pub manifest: String,
    #[serde(rename = "poll_seconds", deserialize_with = "seconds")]
    pub poll: Duration,
    /// How long a server that starts waits until it serves what the manifest makes live.
    #[serde(rename = "start_wait_seconds", deserialize_with = "seconds_or_off")]
    pub start_wait: Option<Duration>,
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

/// How tasks are recognised.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    /// `None`, written `auto`: as the partitions say. So it is with the other two.
    #[serde(deserialize_with = "auto")]
    pub metric: Option<Metric>,
    #[serde(deserialize_with = "auto")]
    pub signal: Option<KeySignal>,
    #[serde(deserialize_with = "auto")]
    pub average: Option<KeyAverage>,
    /// See [`Policy`]; `None`, written `off`. So it is with the other two.
    #[serde(deserialize_with = "share_or_off")]
    pub reject: Option<f32>,
    #[serde(deserialize_with = "share_or_off")]
    pub early_answer: Option<f32>,
    #[serde(deserialize_with = "share_or_off")]
    pub second_task: Option<f32>,
}

/// Bounds of batches and of the queue.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batching {
    /// `None`, written `auto`: as many as the engine advises.
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

/// Bounds of images and texts.
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

/// How long calls may take.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deadline {
    #[serde(rename = "default_seconds", deserialize_with = "seconds")]
    pub default: Duration,
    #[serde(rename = "max_seconds", deserialize_with = "seconds")]
    pub max: Duration,
}

/// What is remembered for reported outcomes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feedback {
    #[serde(deserialize_with = "any")]
    pub remembered_answers: usize,
}

/// How long a drain may take.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    #[serde(rename = "drain_seconds", deserialize_with = "seconds")]
    pub drain: Duration,
}

/// The log on stderr.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logging {
    pub format: LogFormat,
    pub filter: String,
}

impl Routing {
    /// The rule for the catalogue.
    pub fn rule(&self) -> RoutingRule {
        RoutingRule { metric: self.metric, signal: self.signal, average: self.average }
    }

    /// When samples are answered otherwise than by one adapted pass.
    pub fn policy(&self) -> Policy {
        Policy { reject: self.reject, early_answer: self.early_answer, second_task: self.second_task }
    }
}

/// How logs are written to stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Human,
    Json,
}
