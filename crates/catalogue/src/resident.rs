//! A partition under a version.
use std::sync::Arc;

use super::VersionCounts;

use delo_model::Partition;

/// A partition and the version under which it is resident.
#[derive(Debug)]
pub struct Resident {
    pub partition: Partition,
    /// Counts the loads of this task name, from 1; a number is never used twice.
    pub version: u64,
    /// What this version answered. It belongs to the version, so that its series end when the version leaves.
    pub counts: VersionCounts,
}

impl Resident {
    pub fn new(partition: Partition, version: u64) -> Arc<Self> {
        Arc::new(Self { partition, version, counts: VersionCounts::default() })
    }

    pub fn task(&self) -> &str {
        &self.partition.meta.task
    }

    /// The first layer that it adapts: all before it is frozen and shared.
    pub fn first_adapted_layer(&self) -> usize {
        self.partition.meta.method.first_adapted_layer()
    }

    /// Height and width of the image that stands in for a missing one, in pixels.
    pub fn dummy_image(&self) -> [usize; 2] {
        self.partition.meta.dummy_image
    }

    /// Whether its training read special tokens in texts as such; `None` where the artifact does not say.
    pub fn special_tokens(&self) -> Option<bool> {
        self.partition.meta.special_tokens
    }
}
