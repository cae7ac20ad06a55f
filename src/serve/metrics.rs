//! The server's metrics: their names, help and buckets, and the few places where a set of them is recorded. Labels are bounded: methods and codes
//! that exist, tasks that are loaded.
use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::feedback::Verdict;
use crate::engine::{Answer, Catalogue, Counted, TrialMode};
use crate::input::{Presence, TextReading};

/// From half a millisecond to two minutes.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Of stages, by which operators and load tests judge how even batches are: from a millisecond to one second, each at most 1.3 times the one before.
const STAGE_SECONDS: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.00125, 0.0016, 0.002, 0.0025, 0.0032, 0.004, 0.005, 0.0063, 0.008, 0.01, 0.0125, 0.016, 0.02, 0.025,
    0.032, 0.04, 0.05, 0.063, 0.08, 0.1, 0.125, 0.16, 0.2, 0.25, 0.32, 0.4, 0.5, 0.63, 0.8, 1.0, 1.6, 2.5, 5.0, 10.0, 30.0, 60.0,
];
const SAMPLES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
const TOKENS: &[f64] = &[32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const COSINE: &[f64] = &[-0.5, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];
const MARGIN: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0];

/// Between two times that measurements are summed up.
const UPKEEP: Duration = Duration::from_secs(5);

/// What a label says of a task that isn't loaded.
const OTHER: &str = "other";

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
        ("delo_routing_cosine", COSINE),
        ("delo_routing_margin", MARGIN),
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
    describe_counter!("delo_routed_total", "Samples by the task chosen for them and the modalities they had.");
    describe_histogram!("delo_routing_cosine", "Cosine of a sample with the key of the task chosen for it.");
    describe_histogram!("delo_routing_margin", "Distance of the chosen task's cosine to the second one's.");
    describe_counter!("delo_routing_outcomes_total", "Reported outcomes by the true task and the task that had been chosen.");
    describe_counter!("delo_label_outcomes_total", "Reported outcomes by the task that answered and whether its best label was true.");
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

/// Sums up what was measured, again and again: until then the recorder keeps every single measurement of a histogram, and where nobody scrapes, nothing
/// else would.
pub async fn keep_up(recorder: PrometheusHandle) {
    let mut pause = tokio::time::interval(UPKEEP);
    loop {
        pause.tick().await;
        recorder.run_upkeep();
    }
}

/// Everything that Prometheus is to see at this moment.
pub fn render(recorder: &PrometheusHandle, catalogue: &Catalogue) -> String {
    metrics_process::Collector::default().collect();
    begin_outcomes(catalogue);
    recorder.run_upkeep();
    let mut page = recorder.render();
    // Written from the catalogue itself: a gauge in the recorder would keep a series for every version that ever was.
    page.push_str("# HELP delo_partition_info Always 1; a partition that is live and its version.\n# TYPE delo_partition_info gauge\n");
    for resident in catalogue.residents() {
        let task = escaped(resident.task());
        // Writing to a string can't fail.
        let _ = writeln!(page, "delo_partition_info{{task=\"{task}\",version=\"{}\"}} 1", resident.version);
    }
    write_versions(&mut page, catalogue);
    page
}

/// What each resident version answered. Its counts belong to it, so that a version's series end with it.
fn write_versions(page: &mut String, catalogue: &Catalogue) {
    let live = catalogue.residents().map(|resident| (resident, "live"));
    let trials = catalogue.trials().map(|trial| match trial.mode {
        TrialMode::Canary(_) => (&trial.resident, "canary"),
        TrialMode::Shadow => (&trial.resident, "shadow"),
    });
    let versions: Vec<_> = live
        .chain(trials)
        .map(|(resident, role)| {
            let labels = format!("task=\"{}\",version=\"{}\",role=\"{role}\"", escaped(resident.task()), resident.version);
            (labels, resident.counts.read())
        })
        .collect();
    let mut write = |name: &str, help: &str, series: &mut dyn FnMut(&Counted) -> Vec<(&'static str, u64)>| {
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} counter");
        for (labels, counted) in &versions {
            for (label, count) in series(counted) {
                let _ = writeln!(page, "{name}{{{labels}{label}}} {count}");
            }
        }
    };
    write("delo_version_answers_total", "Answers by the version that gave them.", &mut |c| vec![("", c.answers)]);
    write("delo_version_outcomes_total", "Reported outcomes by the version that answered.", &mut |c| {
        vec![(",correct=\"true\"", c.right), (",correct=\"false\"", c.wrong)]
    });
    write(
        "delo_shadow_comparisons_total",
        "Samples that a version in the shadow computed too, by whether its best label was the live version's.",
        &mut |c| vec![(",agreed=\"true\"", c.agreed), (",agreed=\"false\"", c.differed)],
    );
}

/// Tasks up to which every pair of them has a counter of outcomes from the start; above, a pair appears with its first outcome.
const PAIRED_TASKS: usize = 32;

/// Shows the counters of outcomes of the loaded tasks at 0: an increase is seen only of a series that was there before it.
fn begin_outcomes(catalogue: &Catalogue) {
    let tasks: Vec<&str> = catalogue.residents().map(|r| r.task()).collect();
    for &task in &tasks {
        for correct in ["true", "false"] {
            counter!("delo_label_outcomes_total", "task" => task.to_owned(), "correct" => correct).increment(0);
        }
        for &routed in tasks.iter().filter(|&&routed| tasks.len() <= PAIRED_TASKS || routed == task) {
            counter!("delo_routing_outcomes_total", "true_task" => task.to_owned(), "routed_task" => routed.to_owned()).increment(0);
        }
    }
}

/// A label's value as the exposition format writes it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// One sample's routing and factors.
pub fn record_answer(answer: &Answer, presence: Presence) {
    answer.resident.counts.answered();
    let task = answer.resident.task().to_owned();
    if let Some(best) = answer.candidates.first() {
        let modalities = match presence {
            Presence::Complete => "complete",
            Presence::ImageOnly => "image_only",
            Presence::TextOnly => "text_only",
        };
        counter!("delo_routed_total", "task" => task.clone(), "modalities" => modalities).increment(1);
        histogram!("delo_routing_cosine", "task" => task.clone()).record(f64::from(best.cosine));
        if let Some(second) = answer.candidates.get(1) {
            histogram!("delo_routing_margin", "task" => task).record(f64::from(best.cosine - second.cosine));
        }
    }
    for (modality, selected) in ["visual", "textual"].into_iter().zip(answer.factors_selected) {
        counter!("delo_factor_selected_total", "modality" => modality).increment(selected);
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
pub fn record_outcome(verdict: &Verdict, true_task: Option<&str>, catalogue: &Catalogue) {
    let label = |task: &str| if catalogue.get(task).is_some() { task.to_owned() } else { OTHER.to_owned() };
    if let Some(true_task) = true_task.filter(|_| verdict.count_task) {
        let (true_task, routed) = (label(true_task), label(&verdict.routed_task));
        counter!("delo_routing_outcomes_total", "true_task" => true_task, "routed_task" => routed).increment(1);
    }
    if let Some(correct) = verdict.label_correct.filter(|_| verdict.count_label) {
        let correct = if correct { "true" } else { "false" };
        counter!("delo_label_outcomes_total", "task" => label(&verdict.routed_task), "correct" => correct).increment(1);
        if let Some(resident) = verdict.version.and_then(|version| catalogue.version(&verdict.routed_task, version)) {
            resident.counts.judged(correct == "true");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_what_would_break_a_label() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
