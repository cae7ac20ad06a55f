//! Which partitions are resident at one moment, which version of a task answers, and which rule decides the task.
//!
//! Invariant: a catalogue never changes. A change makes another one, and its bits do not depend on the order of changes.
#![warn(missing_docs)]

mod catalogue;
mod counts;
mod resident;
mod rollout;

pub use catalogue::{Candidate, Catalogue, CatalogueError, RoutingRule};
pub use counts::{Counted, VersionCounts};
pub use resident::Resident;
pub use rollout::{Share, Trial, TrialMode};
