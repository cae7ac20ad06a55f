//! The report of a run: its figures as a table and as JSON, and the scenario's expectations that failed.
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

/// The observations of a run besides its calls.
#[derive(Debug, Default)]
pub struct Seen {
    /// Goodput of the closed loops before and after the run, where they were measured.
    pub capacities: Vec<f64>,
    /// Memory of a spawned server before and after the run.
    pub memory: Option<[Memory; 2]>,
    /// Memory of a spawned server, once a second.
    pub memory_series: Option<Series>,
    /// The server's metrics before and after the run.
    pub pages: Option<[Page; 2]>,
    /// The churn's figures, and the answers whose versions are checked by it.
    pub churn: Option<(Churned, Vec<Answered>)>,
}

/// A run's figures. Times are seconds, rates per second.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub scenario: String,
    /// Mean of `capacities`; `None` where none was measured.
    pub capacity: Option<f64>,
    /// Goodput of the closed loops before and after the run.
    pub capacities: Vec<f64>,
    /// The scenario's requests per second, without bursts.
    pub rate: f64,
    pub seconds: f64,
    pub offered: u64,
    pub sent: u64,
    pub dropped: u64,
    pub ok: u64,
    pub goodput: f64,
    pub goodput_of_capacity: Option<f64>,
    /// Calls by status code, `OK` for instance.
    pub codes: BTreeMap<&'static str, CodeReport>,
    /// Calls by group of callers, where there are several.
    pub clients: BTreeMap<String, ClientReport>,
    /// The generator's delays.
    pub lag: Quantiles,
    /// Times from the deadlines of calls to their answers DEADLINE_EXCEEDED.
    pub deadline_overrun: Quantiles,
    /// Shares of the answers with the right task, and with the right label.
    pub right_task: Option<f64>,
    pub right_label: Option<f64>,
    pub outcomes_reported: u64,
    pub outcomes_refused: u64,
    /// Batches of the run, by the server's metrics.
    pub server: Option<ServerReport>,
    pub churn: Option<ChurnReport>,
    /// Memory of a spawned server before and after the run.
    pub memory: Option<[Memory; 2]>,
    /// Resident bytes of a spawned server, once a second.
    pub memory_series: Option<Series>,
    /// Change of these bytes, as a share, between the moments that the scenario names or between the rests of
    /// its churn.
    pub memory_change: Option<f64>,
    /// Expectations that failed; empty where the run passed.
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

/// The batches of a run, by the server's histograms; times are interpolated within buckets.
#[derive(Debug, Clone, Serialize)]
pub struct ServerReport {
    pub batches: f64,
    /// Samples that were computed.
    pub samples: f64,
    /// Computed samples minus good answers.
    pub unanswered: f64,
    pub compute_p50: Option<f64>,
    pub compute_p99_9: Option<f64>,
}

/// The churn of a run.
#[derive(Debug, Clone, Serialize)]
pub struct ChurnReport {
    pub cycles: u64,
    pub changes: u64,
    pub failed: u64,
    pub failures: Vec<String>,
    pub took: Quantiles,
    /// The ends of its rests, in seconds since the start of the churn.
    pub rests: Vec<f64>,
    /// Good answers that were checked, and those of a version that was not live between request and answer.
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
