//! The server's metrics: their names, help and buckets, and the few places where a set of them is recorded. Labels are bounded: methods and codes
//! that exist, tasks that are loaded.
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::feedback::Verdict;
use super::loaded_model::{LoadedModel, ModelCell};
use super::task_series::TaskSeries;
use delo_engine::{Answer, Catalogue};
use delo_model::input::{Presence, TextReading};

/// From half a millisecond to two minutes.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Of stages, by which operators and load tests judge how even batches are: from a millisecond to one second, each at most 1.3 times the one before.
const STAGE_SECONDS: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.00125, 0.0016, 0.002, 0.0025, 0.0032, 0.004, 0.005, 0.0063, 0.008, 0.01, 0.0125, 0.016, 0.02, 0.025,
    0.032, 0.04, 0.05, 0.063, 0.08, 0.1, 0.125, 0.16, 0.2, 0.25, 0.32, 0.4, 0.5, 0.63, 0.8, 1.0, 1.6, 2.5, 5.0, 10.0, 30.0, 60.0,
];
const SAMPLES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
const TOKENS: &[f64] = &[32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// Between two times that measurements are summed up.
const UPKEEP: Duration = Duration::from_secs(5);

/// The process's recorder, installed on first use: metrics are global to a process, however many servers run in it.
///
/// # Errors
/// Another recorder is installed already.
pub fn recorder() -> Result<PrometheusHandle, BuildError> {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    static INSTALL: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = INSTALL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(handle) = HANDLE.get() {
        return Ok(handle.clone());
    }
    let mut builder = PrometheusBuilder::new();
    for (name, buckets) in [
        ("delo_request_duration_seconds", SECONDS),
        ("delo_stage_duration_seconds", STAGE_SECONDS),
        ("delo_partition_load_seconds", SECONDS),
        ("delo_batch_samples", SAMPLES),
        ("delo_batch_tokens", TOKENS),
    ] {
        builder = builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)?;
    }
    let handle = builder.install_recorder()?;
    describe();
    Ok(HANDLE.get_or_init(|| handle).clone())
}

fn describe() {
    describe_counter!("delo_requests_total", "Calls by method and gRPC status code.");
    describe_histogram!("delo_request_duration_seconds", "Time from a call's arrival to the end of its answer.");
    describe_histogram!("delo_stage_duration_seconds", "Time a sample spends being read (input), waiting (queue), and a batch in compute.");
    describe_gauge!("delo_queue_depth", "Samples that wait for compute.");
    describe_gauge!("delo_queue_capacity", "Samples that may be on their way through the queue before more are refused.");
    describe_histogram!("delo_batch_samples", "Samples of a batch.");
    describe_histogram!("delo_batch_tokens", "Tokens of a batch.");
    describe_counter!("delo_rejected_total", "Samples and calls that were not served, by reason.");
    describe_counter!("delo_texts_total", "Texts of answered samples, by how they were read.");
    describe_counter!("delo_factor_selected_total", "Low-rank factors applied, by modality of their pool.");
    describe_histogram!("delo_partition_load_seconds", "Time from a load's start until the partition is live.");
    describe_gauge!(
        "delo_registry_revision",
        "Revision of the registry's manifest that is followed; 0 before one was read since the start."
    );
    describe_gauge!("delo_registry_in_sync", "1 where what the registry's manifest makes live is live here, else 0.");
    describe_counter!("delo_registry_syncs_total", "Comparisons with the registry's manifest, by whether all was live after.");
    describe_counter!("delo_registry_fetched_bytes_total", "Bytes of partitions received from registries and addresses.");
    describe_gauge!("delo_connections", "Open connections of each gRPC port.");
    describe_counter!("delo_connections_refused_total", "Connections closed before they were served, by port and reason.");
    describe_gauge!(
        "delo_tls_certificate_expiry_timestamp_seconds",
        "When the server's certificate expires, in seconds since 1970; 0 without TLS."
    );
    describe_gauge!("delo_build_info", "Always 1; says which program runs.");
    describe_gauge!("delo_engine_info", "Always 1; says which kernel multiplies, and on how many threads.");
    metrics_process::Collector::default().describe();
    gauge!("delo_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    // Present from the first scrape on.
    gauge!("delo_queue_depth").set(0.0);
    TEXT_READINGS.iter().for_each(|reading| counter!("delo_texts_total", "reading" => *reading).increment(0));
    gauge!("delo_tls_certificate_expiry_timestamp_seconds").set(0.0);
}

/// Sums up what was measured and ends the series of tasks that are gone, again and again: until then the
/// recorder keeps every single measurement of a histogram, and where nobody scrapes, nothing else would.
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
    recorder.run_upkeep();
    let mut page = recorder.render();
    model.series.write(&mut page, &model.registry.catalogue());
    page
}

/// One sample's routing and factors.
pub fn record_answer(series: &TaskSeries, answer: &Answer, presence: Presence) {
    answer.resident.counts.answered();
    if let Some(best) = answer.candidates.first() {
        let margin = answer.candidates.get(1).map(|second| best.cosine() - second.cosine());
        series.routed(answer.resident.task(), presence, best.cosine(), margin);
    }
    for (modality, &selected) in answer.factors_selected.iter() {
        counter!("delo_factor_selected_total", "modality" => modality.pool_name()).increment(selected);
    }
}

/// How a text was read: no token known to the vocabulary; else cut off at its end; else as it is.
const TEXT_READINGS: [&str; 3] = ["unknown", "truncated", "understood"];

/// One answered sample's text.
pub fn record_text(reading: TextReading) {
    let [unknown, truncated, understood] = TEXT_READINGS;
    let label = match reading {
        _ if !reading.understood() => unknown,
        TextReading { truncated: true, .. } => truncated,
        _ => understood,
    };
    counter!("delo_texts_total", "reading" => label).increment(1);
}

/// One reported outcome; each part is counted where the verdict says so.
pub fn record_outcome(series: &TaskSeries, verdict: &Verdict, true_task: Option<&str>, catalogue: &Catalogue) {
    if let Some(true_task) = true_task.filter(|_| verdict.count_task) {
        series.outcome(true_task, &verdict.routed_task, catalogue);
    }
    if let Some(correct) = verdict.label_correct.filter(|_| verdict.count_label) {
        series.label_outcome(&verdict.routed_task, correct, catalogue);
        if let Some(resident) = verdict.version.and_then(|version| catalogue.version(&verdict.routed_task, version)) {
            resident.counts.judged(correct);
        }
    }
}
