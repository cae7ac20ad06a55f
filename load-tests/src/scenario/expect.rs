//! What must hold for a run to pass.
use serde::Deserialize;

use super::{ScenarioError, must};
use crate::tally::code_name;

/// What must hold; what is left out isn't asked. A figure that the run could not measure fails what is asked of it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Status codes that may appear, `OK` for instance.
    pub codes: Option<Vec<String>>,
    /// Good answers over calls offered.
    pub min_ok_ratio: Option<f64>,
    /// Goodput over capacity: the mean of the one measured before and, with `capacity.after`, the one after.
    pub min_goodput_of_capacity: Option<f64>,
    /// 99th percentile of good answers' latency.
    pub max_p99_seconds: Option<f64>,
    /// Growth of a spawned server's resident memory during the run, as a share of what it was after the measurement of capacity.
    pub max_memory_growth: Option<f64>,
    /// Change of a spawned server's resident memory, up or down, as a share: the medians of the five seconds from the first moment of
    /// `memory_between_seconds` on and of those up to the second.
    pub max_memory_change: Option<f64>,
    /// Two moments in seconds since the run began, the second at its end where it ends before; the whole run where it is left out. Not asked where `churn.rest_seconds`
    /// says which moments are compared.
    pub memory_between_seconds: Option<[u64; 2]>,
    /// 99.9th percentile over median of the time that a batch took to compute, of the server's own histogram, interpolated within its buckets.
    pub max_batch_p999_over_p50: Option<f64>,
    /// How long after its deadline a call may be answered with DEADLINE_EXCEEDED.
    pub max_deadline_overrun_seconds: Option<f64>,
    /// Samples computed whose answer nobody got (the server's count of computed samples less the good answers), as a share of those computed.
    pub max_computed_unanswered: Option<f64>,
    /// Complete cycles of the churn.
    pub min_churn_cycles: Option<u64>,
}

impl Expect {
    /// Refuses what can't be asked of a run, with or without churn.
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
