//! The partitions that are resident at one moment, the version of a task that answers, and the rule that
//! decides the task (METHOD.md 4).
//!
//! | module | holds |
//! | --- | --- |
//! | `catalogue` | the resident partitions, the versions on trial, and the rule that decides tasks |
//! | `resident` | a partition and its version number |
//! | `rollout` | versions on trial: canaries with their share of the traffic, and shadows |
//! | `counts` | the answers of a version, and how many were right |
//!
//! Invariant: a catalogue never changes. A change makes another catalogue, and its numbers are the same to
//! the bit whatever the order of changes.

#![warn(missing_docs)]

mod catalogue;
mod counts;
mod resident;
mod rollout;

pub use catalogue::{Candidate, Catalogue, CatalogueError, RoutingRule};
pub use counts::{Counted, VersionCounts};
pub use resident::Resident;
pub use rollout::{Share, Trial, TrialMode};
