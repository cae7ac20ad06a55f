//! A partition and the version under which it is resident.
use std::sync::Arc;

use super::VersionCounts;

use delo_model::Partition;

/// A partition and the version under which it is resident.
#[derive(Debug)]
pub struct Resident {
    /// The partition.
    pub partition: Partition,
    /// The number of the load of this task name, from 1; a number is never used twice.
    pub version: u64,
    /// The answers of this version. The counts belong to the version, so that its series of metrics end with
    /// it.
    pub counts: VersionCounts,
}

impl Resident {
    /// A partition under a version, with all counts at 0.
    pub fn new(partition: Partition, version: u64) -> Arc<Self> {
        Arc::new(Self { partition, version, counts: VersionCounts::default() })
    }

    /// The task's name.
    pub fn task(&self) -> &str {
        &self.partition.meta.task
    }

    /// The first layer that the partition adapts. All layers before it are frozen and shared by all tasks.
    pub fn first_adapted_layer(&self) -> usize {
        self.partition.meta.method.first_adapted_layer()
    }

    /// Height and width of the dummy image that stands in for a missing one, in pixels.
    pub fn dummy_image(&self) -> [usize; 2] {
        self.partition.meta.dummy_image
    }

    /// Whether special tokens in the texts of its training were read as special tokens; `None` where the
    /// artifact does not record it.
    pub fn special_tokens(&self) -> Option<bool> {
        self.partition.meta.special_tokens
    }

    /// The tokens of the longest text of its training; `None` where the checkpoint's own number was used.
    pub fn text_positions(&self) -> Option<usize> {
        self.partition.meta.text_positions
    }
}
