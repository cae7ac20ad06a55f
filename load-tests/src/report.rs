//! What a run showed: a table, JSON, and whether what the scenario expects holds.
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::Ordering;

use serde::Serialize;
use tonic::Code;

use crate::scenario::{Expect, Scenario};
use crate::server::Memory;
use crate::tally::{Latencies, Tally, code_name};
use crate::target::Truth;

/// A run's figures. Times are seconds, rates per second.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub scenario: String,
    /// Goodput of the closed loop before the run, where it was measured.
    pub capacity: Option<f64>,
    /// Requests per second asked for.
    pub rate: f64,
    pub seconds: f64,
    pub offered: u64,
    pub sent: u64,
    pub dropped: u64,
    pub ok: u64,
    pub goodput: f64,
    pub goodput_of_capacity: Option<f64>,
    /// By status code, `OK` for instance.
    pub codes: BTreeMap<&'static str, CodeReport>,
    /// How late the generator sent.
    pub lag: Quantiles,
    /// Shares of the answers in which task and label were right.
    pub right_task: Option<f64>,
    pub right_label: Option<f64>,
    pub outcomes_reported: u64,
    pub outcomes_refused: u64,
    /// Of a spawned server, before and after the run.
    pub memory: Option<[Memory; 2]>,
    /// Expectations that do not hold; empty where the run passed.
    pub failed: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct CodeReport {
    pub count: u64,
    pub latency: Quantiles,
}

/// Seconds, from the time the call was due.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Quantiles {
    pub p50: Option<f64>,
    pub p90: Option<f64>,
    pub p99: Option<f64>,
    pub p99_9: Option<f64>,
    pub max: Option<f64>,
}

impl From<&Latencies> for Quantiles {
    fn from(l: &Latencies) -> Self {
        Self { p50: l.quantile(0.5), p90: l.quantile(0.9), p99: l.quantile(0.99), p99_9: l.quantile(0.999), max: l.quantile(1.0) }
    }
}

impl Report {
    /// Puts a run's figures together and judges them by the scenario.
    pub fn new(scenario: &Scenario, capacity: Option<f64>, rate: f64, tally: &Tally, truth: &Truth, memory: Option<[Memory; 2]>) -> Self {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let answers = load(&truth.answers);
        let share = |n: u64| (answers > 0).then(|| n as f64 / answers as f64);
        let mut report = Self {
            scenario: scenario.name.clone(),
            capacity,
            rate,
            seconds: tally.elapsed.as_secs_f64(),
            offered: tally.offered,
            sent: tally.sent(),
            dropped: tally.dropped,
            ok: tally.count(Code::Ok),
            goodput: tally.goodput(),
            goodput_of_capacity: capacity.map(|c| tally.goodput() / c),
            codes: tally.by_code.iter().map(|(c, l)| (code_name(*c), CodeReport { count: l.count(), latency: l.into() })).collect(),
            lag: (&tally.lag).into(),
            right_task: share(load(&truth.right_task)),
            right_label: share(load(&truth.right_label)),
            outcomes_reported: load(&truth.reported),
            outcomes_refused: load(&truth.refused),
            memory,
            failed: Vec::new(),
        };
        report.failed = report.judge(&scenario.expect);
        report
    }

    /// The expectations that do not hold, each as a sentence.
    fn judge(&self, expect: &Expect) -> Vec<String> {
        let mut failed = Vec::new();
        if self.dropped > 0 {
            failed.push(format!("the generator dropped {} requests: raise max_outstanding or lower the rate", self.dropped));
        }
        if let Some(codes) = &expect.codes {
            let others: Vec<_> = self.codes.iter().filter(|(c, _)| !codes.iter().any(|e| e == *c)).collect();
            failed.extend(others.iter().map(|(code, r)| format!("{} calls ended in {code}", r.count)));
        }
        let mut at_least = |name: &str, got: Option<f64>, bound: Option<f64>| {
            if let Some(bound) = bound
                && got.is_none_or(|got| got < bound)
            {
                failed.push(format!("{name} is {}, at least {bound} expected", got.map_or("unknown".into(), |g| format!("{g:.4}"))));
            }
        };
        at_least("the share of good answers", Some(self.ok as f64 / self.offered.max(1) as f64), expect.min_ok_ratio);
        at_least("goodput over capacity", self.goodput_of_capacity, expect.min_goodput_of_capacity);
        if let Some(bound) = expect.max_p99_seconds {
            let p99 = self.codes.get(code_name(Code::Ok as i32)).and_then(|r| r.latency.p99);
            if p99.is_none_or(|p99| p99 > bound) {
                failed.push(format!(
                    "the 99th percentile is {}, at most {bound} s expected",
                    p99.map_or("unknown".into(), |p| format!("{p:.3} s"))
                ));
            }
        }
        if let (Some(bound), Some([before, after])) = (expect.max_memory_growth, self.memory) {
            let growth = after.resident as f64 / before.resident as f64 - 1.0;
            if growth > bound {
                failed.push(format!("memory grew by {:.1} %, at most {:.1} % expected", 100.0 * growth, 100.0 * bound));
            }
        }
        failed
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |x: Option<f64>| x.map_or("-".into(), |x| format!("{:.1} %", 100.0 * x));
        let ms = |x: Option<f64>| x.map_or("-".into(), |x| format!("{:.1}", 1000.0 * x));
        writeln!(f, "scenario   {}, {:.1} requests/s for {:.1} s", self.scenario, self.rate, self.seconds)?;
        if let Some(capacity) = self.capacity {
            writeln!(f, "capacity   {capacity:.1}/s, closed loop")?;
        }
        writeln!(f, "requests   {} offered, {} sent, {} dropped, {} ok", self.offered, self.sent, self.dropped, self.ok)?;
        writeln!(f, "goodput    {:.1}/s, {} of capacity", self.goodput, percent(self.goodput_of_capacity))?;
        writeln!(f, "answers    task right {}, label right {}", percent(self.right_task), percent(self.right_label))?;
        if self.outcomes_reported + self.outcomes_refused > 0 {
            writeln!(f, "outcomes   {} reported, {} refused", self.outcomes_reported, self.outcomes_refused)?;
        }
        if let Some([before, after]) = self.memory {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            writeln!(
                f,
                "memory     {:.1} MiB before, {:.1} after, peak {:.1}",
                mib(before.resident),
                mib(after.resident),
                mib(after.peak)
            )?;
        }
        writeln!(f)?;
        writeln!(f, "{:<20} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}", "latency, ms", "count", "p50", "p90", "p99", "p99.9", "max")?;
        let mut row = |name: &str, count: String, q: &Quantiles| {
            let [p50, p90, p99, p99_9, max] = [q.p50, q.p90, q.p99, q.p99_9, q.max].map(ms);
            writeln!(f, "{name:<20} {count:>9} {p50:>9} {p90:>9} {p99:>9} {p99_9:>9} {max:>9}")
        };
        for (code, report) in &self.codes {
            row(code, report.count.to_string(), &report.latency)?;
        }
        row("sent late by", self.sent.to_string(), &self.lag)?;
        for failure in &self.failed {
            writeln!(f, "FAILED     {failure}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tally::Call;

    fn report(expect: &str) -> Report {
        let text = format!("name = 'x'\ndata = 'd'\nrate = 10\nduration_seconds = 5\n[mix]\nboth = 1.0\n[expect]\n{expect}");
        let mut tally = Tally { offered: 100, elapsed: Duration::from_secs(10), ..Tally::default() };
        for n in 0..100 {
            let code = if n < 95 { Code::Ok } else { Code::ResourceExhausted };
            tally.record(Call { code, latency: Duration::from_millis(n + 1), lag: Duration::ZERO });
        }
        let memory = [100, 110].map(|m| Memory { resident: m, peak: m });
        Report::new(&toml::from_str(&text).unwrap(), Some(10.0), 10.0, &tally, &Truth::default(), Some(memory))
    }

    #[test]
    fn a_run_that_meets_what_is_expected_passes() {
        let expect = "codes = ['OK', 'RESOURCE_EXHAUSTED']\nmin_ok_ratio = 0.95\nmin_goodput_of_capacity = 0.95\nmax_p99_seconds = 0.1\nmax_memory_growth = 0.2";
        assert_eq!(report(expect).failed, Vec::<String>::new());
    }

    #[test]
    fn every_expectation_can_fail() {
        for (expect, says) in [
            ("codes = ['OK']", "5 calls ended in RESOURCE_EXHAUSTED"),
            ("min_ok_ratio = 0.96", "the share of good answers is 0.9500"),
            ("min_goodput_of_capacity = 0.96", "goodput over capacity is 0.9500"),
            ("max_p99_seconds = 0.09", "the 99th percentile is 0.09"),
            ("max_memory_growth = 0.05", "memory grew by 10.0 %"),
        ] {
            let failed = report(expect).failed;
            assert!(failed.len() == 1 && failed[0].starts_with(says), "{expect}: {failed:?}");
        }
    }

    #[test]
    fn the_table_and_the_json_show_every_code() {
        let report = report("");
        let (table, json) = (report.to_string(), serde_json::to_value(&report).unwrap());
        assert!(table.contains("OK                          95"), "{table}");
        assert!(table.contains("RESOURCE_EXHAUSTED           5"), "{table}");
        assert_eq!(json["codes"]["RESOURCE_EXHAUSTED"]["count"], 5);
        assert_eq!(json["offered"], 100);
        assert!((json["codes"]["OK"]["latency"]["p50"].as_f64().unwrap() - 0.048).abs() < 1e-3);
    }
}
