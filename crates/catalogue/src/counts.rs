//! How many answers a version gave since it became resident, and how many of them were right.
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one version since it became resident. Each count is exact; counts that are read together may be
/// of slightly different moments.
#[derive(Debug, Default)]
pub struct VersionCounts {
    answers: AtomicU64,
    right: AtomicU64,
    wrong: AtomicU64,
    agreed: AtomicU64,
    differed: AtomicU64,
}

/// The values of [`VersionCounts`] when they were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Answers that callers received; of a shadow, the comparisons with the live version.
    pub answers: u64,
    /// Reported outcomes for which the best label of the answer was true.
    pub right: u64,
    /// Reported outcomes for which the best label of the answer was not true.
    pub wrong: u64,
    /// Of a shadow: samples with the same best label as from the live version.
    pub agreed: u64,
    /// Of a shadow: samples with another best label than from the live version.
    pub differed: u64,
}

impl VersionCounts {
    /// Counts an answer that a caller received, or a comparison of a shadow.
    pub fn answered(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a reported outcome of an answer of this version.
    pub fn judged(&self, right: bool) {
        let count = if right { &self.right } else { &self.wrong };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a comparison of a shadow's best label with that of the live version.
    pub fn compared(&self, agreed: bool) {
        let count = if agreed { &self.agreed } else { &self.differed };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts at this moment.
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
