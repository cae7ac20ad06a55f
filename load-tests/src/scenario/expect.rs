//! The expectations of a scenario, which must hold for a run to pass.
use serde::Deserialize;

use super::{ScenarioError, must};
use crate::tally::code_name;

/// The expectations. A field that is left out is not checked; an expectation of a figure that the run could
/// not measure fails.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Status codes that may appear, `OK` for instance.
    pub codes: Option<Vec<String>>,
    /// Good answers divided by due calls, at least.
    pub min_ok_ratio: Option<f64>,
    /// Goodput divided by capacity, at least. Capacity is measured before the run; with `capacity.after`, it
    /// is the mean of the capacities before and after.
    pub min_goodput_of_capacity: Option<f64>,
    /// The 99th percentile of the latency of good answers, at most.
    pub max_p99_seconds: Option<f64>,
    /// Growth of a spawned server's resident memory during the run, at most, as a share of its memory after
    /// the measurement of capacity.
    pub max_memory_growth: Option<f64>,
    /// Change of a spawned server's resident memory, up or down, at most, as a share. Compared are two
    /// medians of five seconds: those after the first moment of `memory_between_seconds`, and those before
    /// the second.
    pub max_memory_change: Option<f64>,
    /// Two moments in seconds since the start of the run; a second moment after the end of the run means its
    /// end. Where it is left out, the whole run is compared. Not used with `churn.rest_seconds`, which
    /// compares the ends of the rests.
    pub memory_between_seconds: Option<[u64; 2]>,
    /// The 99.9th percentile of a batch's compute time divided by its median, at most; from the server's own
    /// histogram, interpolated within buckets.
    pub max_batch_p999_over_p50: Option<f64>,
    /// Time from the deadline of a call to its answer DEADLINE_EXCEEDED, at most.
    pub max_deadline_overrun_seconds: Option<f64>,
    /// Computed samples without a good answer (the server's count of computed samples minus the good
    /// answers), at most, as a share of the computed samples.
    pub max_computed_unanswered: Option<f64>,
    /// Complete cycles of the churn, at least.
    pub min_churn_cycles: Option<u64>,
}

impl Expect {
    /// Refuses expectations that no run can meet. `churn`: whether the scenario has a churn.
    pub(super) fn check(&self, churn: bool) -> Result<(), ScenarioError> {
        for code in self.codes.iter().flatten() {
            must((0..17).any(|c| code_name(c) == code), "expect.codes", format!("{code:?} is no gRPC status code"))?;
        }
        if let Some([from, to]) = self.memory_between_seconds {
            must(from < to, "expect.memory_between_seconds", "the first before the second".into())?;
        }
        must(churn || self.min_churn_cycles.is_none(), "expect.min_churn_cycles", "needs a [churn]".into())
    }
}
