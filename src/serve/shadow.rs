//! A version in the shadow: it computes what the live version answered, and what it would have said is compared and counted.
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batcher::{Claim, Priority};
use super::room::Room;
use super::status::refused;
use delo_engine::{Answer, Query, Resident, Trial, TrialMode};
use delo_model::input::Sample;

/// A shadow that is not computed by then is left out.
const PATIENCE: Duration = Duration::from_secs(10);

/// The version in the shadow of the one that may answer a sample of this task, if there is one. The sample is kept for it where the answer is awaited.
pub fn of(room: &Room, task: &str) -> Option<Arc<Resident>> {
    match room.registry.catalogue().trial(task)? {
        Trial { resident, mode: TrialMode::Shadow } => Some(resident.clone()),
        Trial { mode: TrialMode::Canary(_), .. } => None,
    }
}

/// Whether any task has a version in the shadow.
pub fn any(room: &Room) -> bool {
    room.registry.catalogue().trials().any(|trial| trial.mode == TrialMode::Shadow)
}

/// Computes a sample that was answered once more and compares. It goes behind everyone else, and not at all where the queue has no room.
pub async fn compare(room: &Room, shadow: Arc<Resident>, sample: Sample, answered: Answer) {
    let claim = Claim { client: "shadow".into(), priority: Priority::Bulk };
    let bytes = sample.bytes();
    let Ok(slot) = room.batcher.reserve(claim, bytes, Instant::now() + PATIENCE) else {
        refused("shadow");
        return;
    };
    if let Ok(Ok(tried)) = slot.run(Query::given(sample, shadow), bytes).await {
        tried.resident.counts.answered();
        tried.resident.counts.compared(tried.best_label() == answered.best_label());
    }
}
