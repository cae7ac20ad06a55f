//! The counts of a run.
use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use tonic::Code;

/// Latencies in microseconds, to three significant digits, up to an hour.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

/// The longest latency that is recorded exactly, in microseconds.
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

    /// The latency in seconds below which a share `quantile` in [0, 1] of all latencies lies; `None` where
    /// none was counted.
    pub fn quantile(&self, quantile: f64) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.value_at_quantile(quantile) as f64 / 1e6)
    }

    /// Number of latencies.
    pub fn count(&self) -> u64 {
        self.0.len()
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy)]
pub struct End {
    pub code: Code,
    /// The number of the group that sent it.
    pub group: usize,
    /// Time from its deadline to its answer DEADLINE_EXCEEDED; `None` for other answers.
    pub overrun: Option<Duration>,
}

impl From<Code> for End {
    fn from(code: Code) -> Self {
        Self { code, group: 0, overrun: None }
    }
}

/// One call, from its due time to its answer.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub end: End,
    /// Its due time, since the start.
    pub due: Duration,
    /// Time from its due time to its answer.
    pub latency: Duration,
    /// Time from its due time to its sending: the generator's own delay.
    pub lag: Duration,
}

/// All counts of a run.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Calls that were due.
    pub offered: u64,
    /// Calls that were not sent because too many were outstanding.
    pub dropped: u64,
    /// Latency of answered calls by status code.
    pub by_code: BTreeMap<i32, Latencies>,
    /// The generator's delays.
    pub lag: Latencies,
    /// Times from the deadlines of calls to their answers DEADLINE_EXCEEDED.
    pub overrun: Latencies,
    /// Calls by the group that sent them.
    pub groups: Vec<GroupTally>,
    /// Calls by the second in which they were due.
    pub seconds: Vec<Second>,
    /// Time from the start to the last arrival or answer, the later of the two.
    pub elapsed: Duration,
}

/// One group's calls.
#[derive(Debug, Clone, Default)]
pub struct GroupTally {
    /// Calls that ended.
    pub ended: u64,
    /// Latency of good answers.
    pub ok: Latencies,
}

/// The calls that were due within one second.
#[derive(Debug, Clone, Default)]
pub struct Second {
    /// Latencies of good answers, in microseconds.
    pub ok: Vec<u32>,
    /// Calls that ended with another code.
    pub others: u64,
}

impl Tally {
    /// Counts one call that has ended.
    pub fn record(&mut self, call: Call) {
        let End { code, group, overrun } = call.end;
        self.by_code.entry(code as i32).or_default().record(call.latency);
        self.lag.record(call.lag);
        overrun.into_iter().for_each(|overrun| self.overrun.record(overrun));
        let (group, second) = (at(&mut self.groups, group), at(&mut self.seconds, call.due.as_secs() as usize));
        group.ended += 1;
        if code == Code::Ok {
            group.ok.record(call.latency);
            second.ok.push(u32::try_from(call.latency.as_micros()).unwrap_or(u32::MAX));
        } else {
            second.others += 1;
        }
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

    /// Good answers per second in the slowest window of `window` seconds. Windows follow each other without
    /// overlap; where the run is shorter than one, the whole run is the window.
    pub fn slowest(&self, window: usize) -> f64 {
        let good = |second: usize| self.seconds.get(second).map_or(0, |second| second.ok.len());
        let seconds: Vec<usize> = (0..self.elapsed.as_secs() as usize).map(good).collect();
        let of_window = |seconds: &[usize]| seconds.iter().sum::<usize>() as f64 / window as f64;
        seconds.chunks_exact(window.max(1)).map(of_window).min_by(f64::total_cmp).unwrap_or_else(|| self.goodput())
    }
}

/// An element of a list, which grows to hold it.
fn at<T: Default>(list: &mut Vec<T>, i: usize) -> &mut T {
    if list.len() <= i {
        list.resize_with(i + 1, T::default);
    }
    &mut list[i]
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
    fn the_slowest_window_is_whole_and_the_one_with_the_fewest_good_answers() {
        let mut tally = Tally { elapsed: Duration::from_secs(7), ..Tally::default() };
        assert_eq!(tally.slowest(2), 0.0, "a standstill to the end");
        for (second, good) in [8, 4, 3, 5, 9, 2, 1].into_iter().enumerate() {
            for call in 0..10 {
                let code = if call < good { Code::Ok } else { Code::Unavailable };
                let end = End { code, group: 0, overrun: None };
                tally.record(Call { end, due: Duration::from_secs(second as u64), latency: Duration::ZERO, lag: Duration::ZERO });
            }
        }
        assert_eq!((tally.slowest(2), tally.slowest(3), tally.slowest(7)), (4.0, 5.0, 32.0 / 7.0));
        assert_eq!(tally.slowest(8), tally.goodput());
    }

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
            tally.record(Call { end: code.into(), due: Duration::ZERO, latency: Duration::from_millis(1), lag: Duration::ZERO });
        }
        assert_eq!((tally.sent(), tally.count(Code::Ok), tally.goodput()), (4, 3, 1.5));
    }

    #[test]
    fn calls_are_counted_by_the_second_they_were_due_in_and_by_group() {
        let mut tally = Tally::default();
        for (code, group, due) in [(Code::Ok, 0, 100), (Code::Ok, 1, 2900), (Code::ResourceExhausted, 1, 2100)] {
            let end = End { code, group, overrun: None };
            tally.record(Call { end, due: Duration::from_millis(due), latency: Duration::from_millis(7), lag: Duration::ZERO });
        }
        let seconds: Vec<_> = tally.seconds.iter().map(|s| (s.ok.len(), s.others)).collect();
        assert_eq!(seconds, [(1, 0), (0, 0), (1, 1)]);
        assert_eq!(tally.seconds[0].ok, [7000]);
        assert_eq!(tally.groups.iter().map(|g| (g.ended, g.ok.count())).collect::<Vec<_>>(), [(1, 1), (2, 1)]);
    }

    #[test]
    fn every_code_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = (0..17).map(code_name).collect();
        assert_eq!(names.len(), 17);
    }
}
