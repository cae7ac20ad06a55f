//! Registries: stores outside this process, from which servers take their partitions. A registry is a
//! directory, an HTTP server (read only) or an object store. It holds partitions named by the SHA-256 of
//! their file, and a manifest that says which of them are live. Replicas that follow the same manifest agree
//! without talking to each other.
//!
//! `manifest.json` is changed by conditional writes alone, so that concurrent pushes both survive;
//! `partitions/<sha256>.safetensors` never changes.
//!
//! [`Storage`] reads and writes objects; `fetch` reads whole objects within limits, `publish` changes the
//! manifest, and the [`Follower`] makes the catalogue follow it. [`AllowedUrls`] says which addresses a
//! caller may name.
mod allowed;
mod error;
mod fetch;
mod follower;
mod manifest;
mod publish;
mod storage;

pub use allowed::{AllowedUrls, without_query};
pub use error::RemoteError;
pub use fetch::{FetchLimits, fetch_url};
pub use follower::{Follower, Occasion, SyncChanges, SyncReport};
pub use manifest::{Entry, Manifest};
pub use publish::{Pushed, list, promote, push, withdraw};
pub use storage::Storage;
