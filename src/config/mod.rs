//! Layered settings of the server: defaults < file < `DELO_` environment < flags. Unknown keys are refused
//! with their path, and an error names the file, the variable or the flag that the setting comes from.
//!
//! - `schema`: the settings and their types; `listen`: addresses; `values`: how values are written, and their
//!   ranges.
//! - `layers`: the layers, merged; `environment`: the variables that are settings; `origin`: where a value
//!   comes from.
//! - `checks`: what must hold of several settings together.
mod checks;
mod environment;
mod layers;
mod listen;
mod origin;
mod schema;
#[cfg(test)]
mod tests;
mod values;

pub use layers::Overrides;
pub use listen::{Listen, parse_address};
pub use origin::{ConfigError, Origin};
pub use schema::{
    Admin, Audit, Auth, Batching, Catalogue, ClientCertificate, Config, Deadline, Feedback, Http, Input, LogFormat, Logging, Metrics,
    Model, Records, Registry, Routing, Server, Shutdown, Tls, Tracing,
};
pub use values::MOST_THREADS;

/// Every setting and its default, with comments.
pub const DEFAULTS: &str = include_str!("../../migrations-free-config/default.toml");
