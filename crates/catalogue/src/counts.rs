//! What a version has answered since it became resident.
use std::sync::atomic::{AtomicU64, Ordering};

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
