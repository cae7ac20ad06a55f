//! Which partitions are live, on trial or retained; where they come from; and how that outlives the process.
//!
//! **Invariant: the ledger decides, the catalogue follows.** A change is made in this order: the ledger of
//! after the change (a pure function), the catalogue of that ledger, a warm-up of each partition that enters
//! it, the ledger on the disk, the swap. Whatever fails before the swap leaves the live catalogue as it was;
//! a process that is killed at any moment finds the old ledger or the new one.
//!
//! | module | holds |
//! | --- | --- |
//! | [`catalogue`] | [`CatalogueOwner`]: the live catalogue and every way to change it |
//! | [`ledger`] | what a change means, as pure functions on plain facts |
//! | [`state`], `folder` | the ledger and its artifacts on the disk; the folder they lie in |
//! | [`artifact`] | an artifact's bytes with their SHA-256: read once, hashed once |
//! | `source`, `file_address` | which files may be read, and how a text names one |
//! | [`signature`] | ed25519 signatures of partitions, and the keys that a server trusts |
//! | [`remote`] | registries (partition stores outside the process): manifest, fetch, push, follow |
//! | `blocking` | work that must not run on a thread of the async runtime |
//! | `crash` | failpoints at which tests kill the process |
//!
//! "Registry" means such a remote store alone; the part of this process that owns the catalogue is the
//! catalogue owner.
#![warn(missing_docs)]

pub mod artifact;
mod blocking;
pub mod catalogue;
mod crash;
mod file_address;
mod folder;
pub mod ledger;
pub mod remote;
pub mod signature;
mod source;
pub mod state;

pub use artifact::ReadArtifact;
pub use blocking::Panicked;
pub use catalogue::{CatalogueOwner, CatalogueReport, ChangeError, Changed, Load, Settings};
pub use folder::FolderError;
pub use source::{PartitionSource, Root, SourceError};
