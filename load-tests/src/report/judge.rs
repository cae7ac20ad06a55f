//! The comparison of a report with the expectations of its scenario.
use tonic::Code;

use super::Report;
use crate::scenario::Scenario;
use crate::tally::code_name;

/// Expectations that failed, each as a sentence.
#[derive(Default)]
struct Failed(Vec<String>);

impl Failed {
    fn at_least(&mut self, name: &str, got: Option<f64>, bound: Option<f64>) {
        if let Some(bound) = bound.filter(|bound| got.is_none_or(|got| got < *bound)) {
            self.0.push(format!("{name} is {}, at least {bound} expected", shown(got)));
        }
    }

    fn at_most(&mut self, name: &str, got: Option<f64>, bound: Option<f64>) {
        if let Some(bound) = bound.filter(|bound| got.is_none_or(|got| got > *bound)) {
            self.0.push(format!("{name} is {}, at most {bound} expected", shown(got)));
        }
    }
}

fn shown(figure: Option<f64>) -> String {
    figure.map_or("unknown".into(), |figure| format!("{figure:.4}"))
}

impl Report {
    pub(super) fn judge(&self, scenario: &Scenario) -> Vec<String> {
        let expect = &scenario.expect;
        let mut failed = Failed::default();
        if self.dropped > 0 {
            failed.0.push(format!("the generator dropped {} requests: raise max_outstanding or lower the rate", self.dropped));
        }
        if let Some(codes) = &expect.codes {
            let others = self.codes.iter().filter(|(c, _)| !codes.iter().any(|e| e == *c));
            failed.0.extend(others.map(|(code, r)| format!("{} calls ended in {code}", r.count)));
        }
        failed.at_least("the share of good answers", Some(self.ok as f64 / self.offered.max(1) as f64), expect.min_ok_ratio);
        failed.at_least("goodput over capacity", self.goodput_of_capacity, expect.min_goodput_of_capacity);
        let p99 = self.codes.get(code_name(Code::Ok as i32)).and_then(|r| r.latency.p99);
        failed.at_most("the 99th percentile in seconds", p99, expect.max_p99_seconds);
        let overrun = self.deadline_overrun.max.or((!self.codes.contains_key("DEADLINE_EXCEEDED")).then_some(0.0));
        failed.at_most("the longest wait after a deadline in seconds", overrun, expect.max_deadline_overrun_seconds);
        self.judge_memory(scenario, &mut failed);
        self.judge_server(scenario, &mut failed);
        self.judge_churn(scenario, &mut failed);
        for client in &scenario.clients {
            let report = self.clients.get(&client.name);
            let ok = report.map(|r| r.ok as f64 / r.ended.max(1) as f64);
            failed.at_most(
                &format!("the 99th percentile of {} in seconds", client.name),
                report.and_then(|r| r.latency.p99),
                client.max_p99_seconds,
            );
            failed.at_least(&format!("the share of good answers of {}", client.name), ok, client.min_ok_ratio);
        }
        failed.0
    }

    /// Memory is judged only for a spawned server: that of another process is not read.
    fn judge_memory(&self, scenario: &Scenario, failed: &mut Failed) {
        let Some([before, after]) = self.memory else { return };
        let growth = after.resident as f64 / before.resident as f64 - 1.0;
        failed.at_most("the growth of memory", Some(growth), scenario.expect.max_memory_growth);
        failed.at_most("the change of memory", self.memory_change.map(f64::abs), scenario.expect.max_memory_change);
    }

    fn judge_server(&self, scenario: &Scenario, failed: &mut Failed) {
        let expect = &scenario.expect;
        let server = self.server.as_ref();
        let ratio = server.and_then(|s| Some(s.compute_p99_9? / s.compute_p50?));
        failed.at_most("the 99.9th percentile over the median of a batch's time", ratio, expect.max_batch_p999_over_p50);
        let unanswered = server.map(|s| if s.samples > 0.0 { s.unanswered / s.samples } else { 0.0 });
        failed.at_most("the share of samples computed but not answered", unanswered, expect.max_computed_unanswered);
    }

    fn judge_churn(&self, scenario: &Scenario, failed: &mut Failed) {
        let Some(churn) = &self.churn else { return };
        if churn.failed > 0 {
            failed.0.push(format!("{} changes of partitions failed: {}", churn.failed, churn.failures.join("; ")));
        }
        if churn.answers_of_no_live_version > 0 {
            failed.0.push(format!("{} answers are of a version that was not live meanwhile", churn.answers_of_no_live_version));
        }
        failed.at_least("the number of cycles", Some(churn.cycles as f64), scenario.expect.min_churn_cycles.map(|n| n as f64));
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::Seen;
    use super::*;
    use crate::churn::Churned;
    use crate::memory::{Memory, Series};
    use crate::scrape::Page;
    use crate::tally::{Call, End, Tally};
    use crate::target::{Answered, Truth};

    /// A report of 95 good answers in 10 seconds, four refusals and one late timeout, of a server of known
    /// memory.
    fn report(more: &str) -> Report {
        let text = format!("name = 'x'\ndata = 'd'\nrate = 10\nduration_seconds = 20\n[mix]\nboth = 1.0\n{more}");
        let mut tally = Tally { offered: 100, elapsed: Duration::from_secs(10), ..Tally::default() };
        for n in 0..100 {
            let (code, overrun) = match n {
                ..95 => (Code::Ok, None),
                99 => (Code::DeadlineExceeded, Some(Duration::from_millis(30))),
                _ => (Code::ResourceExhausted, None),
            };
            let end = End { code, group: (n % 2) as usize, overrun };
            tally.record(Call { end, due: Duration::ZERO, latency: Duration::from_millis(n + 1), lag: Duration::ZERO });
        }
        let buckets = |le: &str, n: u32| format!("delo_stage_duration_seconds_bucket{{stage=\"compute\",le=\"{le}\"}} {n}\n");
        let page = [buckets("0.1", 90), buckets("0.5", 100), buckets("+Inf", 100)].concat()
            + "delo_stage_duration_seconds_sum{stage=\"compute\"} 9\ndelo_batch_samples_bucket{le=\"+Inf\"} 50\ndelo_batch_samples_sum 100\n";
        let seen = Seen {
            capacities: vec![8.0, 12.0],
            memory: Some([100, 110].map(|m| Memory { resident: m, peak: m })),
            memory_series: Some(Series((0..20).map(|second| 100 + second).collect())),
            pages: Some([Page::default(), Page::parse(&page)]),
            churn: text.contains("[churn]").then(|| {
                let now = Instant::now();
                let answer = Answered { task: "a".into(), version: 1, sent: now, received: now };
                let rests = [10, 18].map(Duration::from_secs).to_vec();
                (Churned { cycles: 2, failed: 1, failures: vec!["load: INTERNAL: no".into()], rests, ..Churned::default() }, vec![answer])
            }),
        };
        Report::new(&toml::from_str(&text).unwrap(), 10.0, &tally, &Truth::default(), seen)
    }

    #[test]
    fn a_run_that_meets_what_is_expected_passes() {
        let expect = "[expect]\ncodes = ['OK', 'RESOURCE_EXHAUSTED', 'DEADLINE_EXCEEDED']\nmin_ok_ratio = 0.95\nmin_goodput_of_capacity = 0.95\n\
                      max_p99_seconds = 0.1\nmax_memory_growth = 0.2\nmax_memory_change = 0.16\nmax_batch_p999_over_p50 = 9\n\
                      max_deadline_overrun_seconds = 0.031\nmax_computed_unanswered = 0.05";
        assert_eq!(report(expect).failed, Vec::<String>::new());
    }

    #[test]
    fn every_expectation_can_fail() {
        for (expect, expected) in [
            ("codes = ['OK', 'DEADLINE_EXCEEDED']", "4 calls ended in RESOURCE_EXHAUSTED"),
            ("min_ok_ratio = 0.96", "the share of good answers is 0.9500"),
            ("min_goodput_of_capacity = 0.96", "goodput over capacity is 0.9500"),
            ("max_p99_seconds = 0.09", "the 99th percentile in seconds is 0.09"),
            ("max_memory_growth = 0.05", "the growth of memory is 0.1000"),
            ("max_memory_change = 0.05", "the change of memory is 0.14"),
            ("max_memory_change = 0.05\nmemory_between_seconds = [4, 18]", "the change of memory is 0.09"),
            ("max_batch_p999_over_p50 = 3", "the 99.9th percentile over the median of a batch's time is 8.9"),
            ("max_deadline_overrun_seconds = 0.02", "the longest wait after a deadline in seconds is 0.03"),
            ("max_computed_unanswered = 0.04", "the share of samples computed but not answered is 0.0500"),
        ] {
            let failed = report(&format!("[expect]\n{expect}")).failed;
            assert!(failed.len() == 1 && failed[0].starts_with(expected), "{expect}: {failed:?}");
        }
    }

    #[test]
    fn churn_fails_a_run_by_a_failed_change_an_answer_of_no_live_version_too_few_cycles_or_memory_that_changes_between_rests() {
        let failed =
            report("[churn]\npartitions = ['p']\nrest_seconds = 8\n[expect]\nmin_churn_cycles = 3\nmax_memory_change = 0.08").failed;
        let expected = [
            "the change of memory is 0.084",
            "1 changes of partitions failed: load: INTERNAL: no",
            "1 answers are of a version",
            "the number of cycles is 2",
        ];
        assert!(failed.len() == 4 && failed.iter().zip(expected).all(|(failed, expected)| failed.starts_with(expected)), "{failed:?}");
    }

    #[test]
    fn a_group_of_callers_has_expectations_of_its_own() {
        let groups =
            "[[client]]\nname = 'even'\nshare = 1\nmax_p99_seconds = 0.09\n[[client]]\nname = 'odd'\nshare = 1\nmin_ok_ratio = 0.95";
        let report = report(groups);
        let expected = ["the 99th percentile of even in seconds is 0.09", "the share of good answers of odd is 0.94"];
        assert!(report.failed.len() == 2 && report.failed.iter().zip(expected).all(|(f, s)| f.starts_with(s)), "{:?}", report.failed);
        assert_eq!((report.clients["even"].ended, report.clients["even"].ok), (50, 48));
    }

    #[test]
    fn the_table_and_the_json_show_every_code() {
        let report = report("");
        let (table, json) = (report.to_string(), serde_json::to_value(&report).unwrap());
        assert!(table.contains("OK                          95"), "{table}");
        assert!(table.contains("RESOURCE_EXHAUSTED           4"), "{table}");
        assert!(table.contains("capacity   8.0/s before, 12.0/s after"), "{table}");
        assert_eq!(json["codes"]["RESOURCE_EXHAUSTED"]["count"], 4);
        assert_eq!((&json["offered"], &json["server"]["samples"]), (&100.into(), &100.0.into()));
        assert!((json["codes"]["OK"]["latency"]["p50"].as_f64().unwrap() - 0.048).abs() < 1e-3);
    }
}
