//! Shadow versions: a version under trial computes what the live version has answered, and the two answers
//! are compared.
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::batcher::{Computed, Priority, TrafficClass};
use super::loaded_model::LoadedModel;
use super::reason::Reason;
use delo_catalogue::{Resident, Trial, TrialMode};
use delo_engine::Query;
use delo_model::input::Sample;

/// A shadow answer that is not computed within this time is given up.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The shadow version of a task, if it has one.
pub fn version_of(model: &LoadedModel, task: &str) -> Option<Arc<Resident>> {
    match model.registry.catalogue().trial(task)? {
        Trial { resident, mode: TrialMode::Shadow } => Some(resident.clone()),
        Trial { mode: TrialMode::Canary(_), .. } => None,
    }
}

/// Computes a sample once more, by the shadow version, and compares the best label with `live_label`, the
/// best label of the live version's answer. All other samples go first, and where the queue is full the
/// comparison is left out.
pub async fn compare(model: &LoadedModel, shadow: Arc<Resident>, sample: Arc<Sample>, live_label: Option<&str>) {
    let class = TrafficClass { client: "shadow".into(), priority: Priority::Bulk };
    let bytes = sample.bytes();
    let Ok(slot) = model.batcher.reserve(class, bytes, Instant::now() + TIMEOUT) else {
        Reason::Shadow.count();
        return;
    };
    if let Ok(Computed { outcome: Ok(shadowed), .. }) = slot.run(Query::given(sample, shadow), bytes).await {
        let counts = &shadowed.resident.counts;
        counts.answered();
        counts.compared(shadowed.best_label() == live_label);
    }
}
