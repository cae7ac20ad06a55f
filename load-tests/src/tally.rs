//! What a run counted.
use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use tonic::Code;

/// Latencies in microseconds, to three significant digits, up to an hour.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

/// The longest latency that is told apart, in microseconds.
const LONGEST: u64 = 3_600_000_000;

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST, 3).expect("1 and the bound are apart by more than two and 3 digits are allowed"))
    }
}

impl Latencies {
    /// Counts one latency; longer than an hour counts as an hour.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(LONGEST).clamp(1, LONGEST));
    }

    /// Seconds below which a share `quantile` in [0, 1] lies; `None` where nothing was counted.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(quantile) as f64 / 1e6)
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }
}

/// One call, from the time it was due to its answer.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// How it ended.
    pub code: Code,
    /// From the time the call was due to its answer.
    pub latency: Duration,
    /// From the time the call was due to when it was sent: the generator's own delay.
    pub lag: Duration,
}

/// Everything a run counted.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Calls that were due.
    pub offered: u64,
    /// Calls that were not sent, because too many were outstanding.
    pub dropped: u64,
    /// Latency of answered calls by status code.
    pub by_code: BTreeMap<i32, Latencies>,
    /// How late the generator sent.
    pub lag: Latencies,
    /// From the start to the last arrival or answer, whichever came later.
    pub elapsed: Duration,
}

impl Tally {
    /// Counts one call that has ended.
    pub fn record(&mut self, call: Call) {
        self.by_code.entry(call.code as i32).or_default().record(call.latency);
        self.lag.record(call.lag);
    }

    /// Calls that were sent and have ended.
    pub fn sent(&self) -> u64 {
        self.by_code.values().map(Latencies::count).sum()
    }

    /// Calls that ended with `code`.
    pub fn count(&self, code: Code) -> u64 {
        self.by_code.get(&(code as i32)).map_or(0, Latencies::count)
    }

    /// Good answers per second.
    pub fn goodput(&self) -> f64 {
        if self.elapsed.is_zero() { 0.0 } else { self.count(Code::Ok) as f64 / self.elapsed.as_secs_f64() }
    }
}

/// A status code as gRPC spells it, `RESOURCE_EXHAUSTED` for instance.
pub fn code_name(code: i32) -> &'static str {
    match Code::from_i32(code) {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_thousandth() {
        let mut latencies = Latencies::default();
        for ms in 1..=10_000 {
            latencies.record(Duration::from_millis(ms));
        }
        for (quantile, seconds) in [(0.5, 5.0), (0.9, 9.0), (0.99, 9.9), (0.999, 9.99), (1.0, 10.0)] {
            let got = latencies.quantile(quantile).unwrap();
            assert!((got - seconds).abs() / seconds < 1e-3, "{quantile}: {got}");
        }
        assert_eq!(latencies.count(), 10_000);
    }

    #[test]
    fn latencies_out_of_range_are_kept_at_the_ends() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::ZERO);
        latencies.record(Duration::from_secs(100_000));
        assert_eq!(latencies.count(), 2);
        assert!(latencies.quantile(0.0).unwrap() <= 1e-6);
        assert!((latencies.quantile(1.0).unwrap() / 3600.0 - 1.0).abs() < 1e-3);
    }

    #[test]
    fn nothing_counted_has_no_quantile() {
        assert_eq!(Latencies::default().quantile(0.5), None);
    }

    #[test]
    fn goodput_counts_good_answers_only() {
        let mut tally = Tally { elapsed: Duration::from_secs(2), ..Tally::default() };
        for code in [Code::Ok, Code::Ok, Code::Ok, Code::ResourceExhausted] {
            tally.record(Call { code, latency: Duration::from_millis(1), lag: Duration::ZERO });
        }
        assert_eq!((tally.sent(), tally.count(Code::Ok), tally.goodput()), (4, 3, 1.5));
    }

    #[test]
    fn every_code_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = (0..17).map(code_name).collect();
        assert_eq!(names.len(), 17);
    }
}
