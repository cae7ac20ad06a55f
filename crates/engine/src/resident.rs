//! A partition under a version, and what this version has answered so far.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Counts since the version became resident. Each is exact by itself; several read together may be a moment apart.
#[derive(Debug, Default)]
pub struct VersionCounts {
    answers: AtomicU64,
    right: AtomicU64,
    wrong: AtomicU64,
    agreed: AtomicU64,
    differed: AtomicU64,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Answers that callers got, of shadows the comparisons made.
    pub answers: u64,
    /// Reported outcomes whose best label was true, and those whose was not.
    pub right: u64,
    pub wrong: u64,
    /// Of a shadow: samples whose best label was that of the live version, and the others.
    pub agreed: u64,
    pub differed: u64,
}

impl VersionCounts {
    /// An answer that a caller got.
    pub fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// A reported outcome of this version's answer.
    pub fn judged(&self, right: bool) {
        let count = if right { &self.right } else { &self.wrong };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// A shadow's answer, held against the live version's.
    pub fn compared(&self, agreed: bool) {
        let count = if agreed { &self.agreed } else { &self.differed };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub fn read(&self) -> Counted {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counted {
            answers: read(&self.answers),
            right: read(&self.right),
            wrong: read(&self.wrong),
            agreed: read(&self.agreed),
            differed: read(&self.differed),
        }
    }
}
