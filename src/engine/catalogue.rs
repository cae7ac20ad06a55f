//! The partitions resident at one moment, and the task router solved for them. Immutable: a change makes another catalogue.
use std::sync::Arc;

use crate::delo::Partition;
use crate::vilt::Vilt;

/// A partition and the version under which it is live.
#[derive(Debug)]
pub struct Resident {
    pub partition: Partition,
    /// Counts the loads of this task name, from 1.
    pub version: u64,
}

/// Operator's choice over what the artifacts say; `None` leaves it to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoutingRule {
    pub metric: Option<Metric>,
}

/// How a query is compared with the task keys (METHOD.md 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The cosine itself.
    Plain,
    /// The cosine in the metric of the resident sessions' second moments.
    Whitened,
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("no task {0:?} is loaded")]
    UnknownTask(String),
    #[error("{0}")]
    Incompatible(String),
}

/// Which partitions are resident. Cheap to share (`Arc`), never changed in place; routing does not depend on the order of loads.
#[derive(Debug)]
pub struct Catalogue;

impl Catalogue {
    pub fn empty(_vilt: &Vilt, _rule: RoutingRule) -> Self {
        todo!()
    }

    /// This catalogue with one partition more, or with another version of one.
    pub fn with(&self, _resident: Arc<Resident>) -> Result<Self, CatalogueError> {
        todo!()
    }

    /// This catalogue with one partition less.
    pub fn without(&self, _task: &str) -> Result<Self, CatalogueError> {
        todo!()
    }

    pub fn get(&self, _task: &str) -> Option<&Arc<Resident>> {
        todo!()
    }

    /// The resident partitions, by task name.
    pub fn residents(&self) -> impl Iterator<Item = &Arc<Resident>> {
        [].iter()
    }

    /// The metric that decides; `plain` where a resident partition has no moments.
    pub fn metric(&self) -> Metric {
        todo!()
    }

    /// What to tell the operator of a fall-back (a partition without moments), if anything.
    pub fn notice(&self) -> Option<&str> {
        None
    }
}
