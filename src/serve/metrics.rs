//! The page that Prometheus scrapes, and the few places where a set of metrics is recorded.
use std::cell::RefCell;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics::{Recorder, SharedString, with_local_recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::feedback::Verdict;
use super::loaded_model::{LoadedModel, ModelCell};
use super::task_series::TaskSeries;
use super::{layers, reason};
use crate::metric_table::{
    ALL, ANSWERS, BUILD_INFO, CERTIFICATE_EXPIRY, FACTORS_SELECTED, Kind, QUEUE_DEPTH, REJECTION_OUTCOMES, RUNNING_SAMPLES, TEXT_TOKENS,
    TEXTS,
};
use delo_catalogue::Catalogue;
use delo_engine::{Answer, Scored};
use delo_model::PerModality;
use delo_model::input::{Presence, TextReading};

/// Between two times that measurements are summed up.
const UPKEEP: Duration = Duration::from_secs(5);

thread_local! {
    /// The page of this thread's own recorder, where it has one.
    static OWN: RefCell<Option<PrometheusHandle>> = const { RefCell::new(None) };
}

/// A recorder beside the process's, for a process in which several servers run: on the threads of a server's
/// runtime, all that is recorded goes to the server's own page.
pub struct OwnRecorder {
    /// As long as the process, as threads end at any time.
    recorder: &'static PrometheusRecorder,
}

impl OwnRecorder {
    /// A recorder in which nothing is recorded yet.
    ///
    /// # Errors
    /// A row of the table without buckets.
    pub fn new() -> Result<Self, BuildError> {
        let recorder: &'static PrometheusRecorder = Box::leak(Box::new(build()?));
        with_local_recorder(recorder, describe);
        Ok(Self { recorder })
    }

    /// Has the current thread record here until it ends.
    pub fn take_thread(&self) {
        OWN.set(Some(self.recorder.handle()));
        // Dropping the guard would end it.
        std::mem::forget(metrics::set_default_local_recorder(self.recorder));
    }
}

/// The page of the current thread's recorder: its own, or that of the process, which is installed on first
/// use.
///
/// # Errors
/// Another recorder is installed already.
pub fn recorder() -> Result<PrometheusHandle, BuildError> {
    static PROCESS: OnceLock<PrometheusHandle> = OnceLock::new();
    static INSTALL: Mutex<()> = Mutex::new(());
    if let Some(own) = OWN.with_borrow(Option::clone) {
        return Ok(own);
    }
    let _one_at_a_time = INSTALL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = PROCESS.get() {
        return Ok(handle.clone());
    }
    let recorder = build()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    describe();
    Ok(PROCESS.get_or_init(|| handle).clone())
}

fn build() -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for row in ALL {
        if let Kind::Histogram(buckets) = row.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(row.name.to_owned()), buckets)?;
        }
    }
    Ok(builder.build_recorder())
}

fn describe() {
    metrics::with_recorder(|recorder: &dyn Recorder| {
        for row in ALL {
            let (name, help) = (row.name.into(), SharedString::const_str(row.help));
            match row.kind {
                Kind::Counter => recorder.describe_counter(name, None, help),
                Kind::Gauge => recorder.describe_gauge(name, None, help),
                Kind::Histogram(_) => recorder.describe_histogram(name, None, help),
            }
        }
    });
    metrics_process::Collector::default().describe();
    BUILD_INFO.with([env!("CARGO_PKG_VERSION")]).set(1.0);
    // Present from the first scrape on.
    QUEUE_DEPTH.with([]).set(0.0);
    RUNNING_SAMPLES.with([]).set(0.0);
    ["true", "false"].iter().for_each(|right| REJECTION_OUTCOMES.with([right]).increment(0));
    ["true", "false"].iter().for_each(|known| TEXT_TOKENS.with([known]).increment(0));
    TEXT_READINGS.iter().for_each(|reading| TEXTS.with([reading]).increment(0));
    CERTIFICATE_EXPIRY.with([]).set(0.0);
    reason::show();
    layers::show_calls();
}

/// Sums up what was measured and ends the series of tasks that are gone, again and again: until then the
/// recorder keeps every single measurement of a histogram, and where nobody scrapes, nothing else would sum
/// them up.
pub async fn keep_up(recorder: PrometheusHandle, model: ModelCell) {
    let mut pause = tokio::time::interval(UPKEEP);
    loop {
        pause.tick().await;
        recorder.run_upkeep();
        if let Some(model) = model.get() {
            model.series.end_all_but(&model.registry.catalogue());
        }
    }
}

/// Everything that Prometheus is to see at this moment.
pub fn render(recorder: &PrometheusHandle, model: &LoadedModel) -> String {
    metrics_process::Collector::default().collect();
    model.gpu.record();
    recorder.run_upkeep();
    let mut page = recorder.render();
    model.series.write(&mut page, &model.registry.catalogue());
    page
}

/// Records one sample's routing and factors.
pub fn record_answer(series: &TaskSeries, answer: &Answer, presence: Presence) {
    answer.resident.counts.answered();
    series.answered(answer, presence);
    let scored = match answer.scored {
        Scored::Adapted => "adapted",
        Scored::Early => "early",
        Scored::Rejected => "rejected",
    };
    ANSWERS.with([scored]).increment(1);
    let mut selected: PerModality<u64> = PerModality::default();
    answer.selected().for_each(|factors| selected[factors.pool.modality] += factors.choice.a.len() as u64);
    for (modality, &selected) in selected.iter() {
        FACTORS_SELECTED.with([modality.pool_name()]).increment(selected);
    }
}

/// What a reported outcome says to be true.
#[derive(Clone, Copy, Debug)]
pub struct Truth<'a> {
    pub task: Option<&'a str>,
    pub labels: &'a [String],
}

/// How a text was read: the vocabulary knows no token of it; else its end was cut off; else neither.
const TEXT_READINGS: [&str; 3] = ["unknown", "truncated", "understood"];

/// Records how the text of one answered sample was read.
pub fn record_text(reading: TextReading) {
    let [unknown, truncated, understood] = TEXT_READINGS;
    let label = match reading {
        _ if !reading.understood() => unknown,
        TextReading { truncated: true, .. } => truncated,
        _ => understood,
    };
    TEXTS.with([label]).increment(1);
    TEXT_TOKENS.with(["false"]).increment(reading.unknown_tokens as u64);
    TEXT_TOKENS.with(["true"]).increment((reading.tokens - reading.unknown_tokens) as u64);
}

/// Counts the parts of one reported outcome that the verdict says to count.
pub fn record_outcome(series: &TaskSeries, verdict: &Verdict, truth: Truth<'_>, catalogue: &Catalogue) {
    if let Some(true_task) = truth.task.filter(|_| verdict.count_task) {
        if verdict.rejected {
            let right = if catalogue.get(true_task).is_none() { "true" } else { "false" };
            REJECTION_OUTCOMES.with([right]).increment(1);
        } else {
            series.outcome(true_task, &verdict.routed_task, catalogue);
        }
    }
    if let Some(correct) = verdict.label_correct.filter(|_| verdict.count_label) {
        series.label_outcome(&verdict.routed_task, correct, catalogue);
        if let Some(resident) = verdict.version.and_then(|version| catalogue.version(&verdict.routed_task, version)) {
            resident.counts.judged(correct);
            let best = verdict.best.and_then(|best| resident.partition.meta.labels.get(best as usize));
            if let ([true_label], Some(best)) = (truth.labels, best) {
                series.label_pair(resident, true_label, best);
            }
        }
    }
}
