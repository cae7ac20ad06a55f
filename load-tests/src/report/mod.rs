//! What a run showed: a table, JSON, and whether what the scenario expects holds.
mod judge;
mod table;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;
use tonic::Code;

use crate::churn::Churned;
use crate::memory::{Memory, Series};
use crate::scenario::Scenario;
use crate::scrape::Page;
use crate::tally::{Latencies, Tally, code_name};
use crate::target::{Answered, Truth};

/// What was seen of a run, besides the calls.
#[derive(Debug, Default)]
pub struct Seen {
    /// Goodput of the closed loops before the run and after it, of those that were measured.
    pub capacities: Vec<f64>,
    /// Of a spawned server, before and after the run.
    pub memory: Option<[Memory; 2]>,
    /// Of a spawned server, once a second.
    pub memory_series: Option<Series>,
    /// The server's metrics before and after the run.
    pub pages: Option<[Page; 2]>,
    /// What the churn did, and the answers to check by it.
    pub churn: Option<(Churned, Vec<Answered>)>,
}

/// A run's figures. Times are seconds, rates per second.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub scenario: String,
    /// Mean of `capacities`, where any was measured.
    pub capacity: Option<f64>,
    /// Goodput of the closed loops before the run and after it.
    pub capacities: Vec<f64>,
    /// Requests per second asked for, without bursts.
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
    /// By group of callers, where there are several.
    pub clients: BTreeMap<String, ClientReport>,
    /// How late the generator sent.
    pub lag: Quantiles,
    /// How long after their deadlines calls were answered with DEADLINE_EXCEEDED.
    pub deadline_overrun: Quantiles,
    /// Shares of the answers in which task and label were right.
    pub right_task: Option<f64>,
    pub right_label: Option<f64>,
    pub outcomes_reported: u64,
    pub outcomes_refused: u64,
    /// What the server's metrics say of the run.
    pub server: Option<ServerReport>,
    pub churn: Option<ChurnReport>,
    /// Of a spawned server, before and after the run.
    pub memory: Option<[Memory; 2]>,
    /// Of a spawned server, resident bytes once a second.
    pub memory_series: Option<Series>,
    /// Change of that between the moments that the scenario names, or between the rests of its churn, as a share.
    pub memory_change: Option<f64>,
    /// Expectations that do not hold; empty where the run passed.
    pub failed: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct CodeReport {
    pub count: u64,
    pub latency: Quantiles,
}

/// One group of callers.
#[derive(Debug, Clone, Serialize)]
pub struct ClientReport {
    /// Calls that ended.
    pub ended: u64,
    pub ok: u64,
    pub latency: Quantiles,
}

/// Batches, by the server's histograms: times are interpolated within their buckets.
#[derive(Debug, Clone, Serialize)]
pub struct ServerReport {
    pub batches: f64,
    /// Samples that were computed.
    pub samples: f64,
    /// Samples that were computed less good answers.
    pub unanswered: f64,
    pub compute_p50: Option<f64>,
    pub compute_p99_9: Option<f64>,
}

/// The partitions that came and went.
#[derive(Debug, Clone, Serialize)]
pub struct ChurnReport {
    pub cycles: u64,
    pub changes: u64,
    pub failed: u64,
    pub failures: Vec<String>,
    pub took: Quantiles,
    /// Seconds since the churn began at which its rests were over.
    pub rests: Vec<f64>,
    /// Good answers that were checked, and those of a version that was not live between their sending and their receipt.
    pub answers: u64,
    pub answers_of_no_live_version: u64,
}

/// Seconds.
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
    pub fn new(scenario: &Scenario, rate: f64, tally: &Tally, truth: &Truth, seen: Seen) -> Self {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let answers = load(&truth.answers);
        let share = |n: u64| (answers > 0).then(|| n as f64 / answers as f64);
        let measured = seen.capacities.len();
        let capacity = (measured > 0).then(|| seen.capacities.iter().sum::<f64>() / measured as f64);
        let [from, to] = scenario.expect.memory_between_seconds.unwrap_or([0, scenario.duration_seconds]);
        let rests = seen.churn.as_ref().filter(|_| scenario.churn.as_ref().is_some_and(|churn| churn.rest_seconds > 0.0));
        let memory_change = seen.memory_series.as_ref().and_then(|series| match rests.map(|(churned, _)| &churned.rests[..]) {
            Some([first, .., last]) => series.change_between_rests(*first, *last),
            Some(_) => None,
            None => series.change(from, to),
        });
        let mut report = Self {
            scenario: scenario.name.clone(),
            capacity,
            capacities: seen.capacities,
            rate,
            seconds: tally.elapsed.as_secs_f64(),
            offered: tally.offered,
            sent: tally.sent(),
            dropped: tally.dropped,
            ok: tally.count(Code::Ok),
            goodput: tally.goodput(),
            goodput_of_capacity: capacity.map(|c| tally.goodput() / c),
            codes: tally.by_code.iter().map(|(c, l)| (code_name(*c), CodeReport { count: l.count(), latency: l.into() })).collect(),
            clients: clients(scenario, tally),
            lag: (&tally.lag).into(),
            deadline_overrun: (&tally.overrun).into(),
            right_task: share(load(&truth.right_task)),
            right_label: share(load(&truth.right_label)),
            outcomes_reported: load(&truth.reported),
            outcomes_refused: load(&truth.refused),
            server: seen.pages.and_then(|[before, after]| ServerReport::between(&before, &after, tally.count(Code::Ok))),
            churn: seen.churn.map(|(churned, answers)| ChurnReport::new(churned, &answers)),
            memory: seen.memory,
            memory_change,
            memory_series: seen.memory_series,
            failed: Vec::new(),
        };
        report.failed = report.judge(scenario);
        report
    }
}

fn clients(scenario: &Scenario, tally: &Tally) -> BTreeMap<String, ClientReport> {
    let groups = scenario.clients.iter().enumerate().map(|(i, client)| {
        let tally = tally.groups.get(i).cloned().unwrap_or_default();
        (client.name.clone(), ClientReport { ended: tally.ended, ok: tally.ok.count(), latency: (&tally.ok).into() })
    });
    groups.collect()
}

impl ServerReport {
    fn between(before: &Page, after: &Page, ok: u64) -> Option<Self> {
        let compute = after.since(before, "delo_stage_duration_seconds", "stage=\"compute\"")?;
        let samples = after.since(before, "delo_batch_samples", "")?;
        Some(Self {
            batches: samples.count(),
            samples: samples.sum,
            unanswered: samples.sum - ok as f64,
            compute_p50: compute.quantile(0.5),
            compute_p99_9: compute.quantile(0.999),
        })
    }
}

impl ChurnReport {
    fn new(churned: Churned, answers: &[Answered]) -> Self {
        Self {
            cycles: churned.cycles,
            changes: churned.changes,
            failed: churned.failed,
            took: (&churned.took).into(),
            rests: churned.rests.iter().map(Duration::as_secs_f64).collect(),
            answers: answers.len() as u64,
            answers_of_no_live_version: answers.iter().filter(|answer| !churned.ledger.covers(answer)).count() as u64,
            failures: churned.failures,
        }
    }
}
