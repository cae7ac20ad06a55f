//! The table of metrics: one row for each, with its name, what it counts, its labels and its buckets. All
//! other code takes them from here: the places that record, the page that is scraped, and the check of
//! `deploy/METRICS.md`. Labels are bounded: methods and codes that exist, tasks that are loaded.
use std::marker::PhantomData;

use metrics::{Key, Label, Level, Metadata, Recorder, SharedString, with_recorder};

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

impl Kind {
    /// The type's name in the text format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub labels: &'static [&'static str],
}

impl Row {
    /// A metric whose series have a task: `serve::task_series` counts them and writes them to the page.
    const fn of_tasks(name: &'static str, kind: Kind, help: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, kind, help, labels }
    }

    const fn row(&self) -> Self {
        *self
    }
}

/// A metric with `N` labels that the recorder of the process keeps.
pub struct Metric<H, const N: usize> {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    labels: [&'static str; N],
    handle: PhantomData<fn() -> H>,
}

/// A count that only rises.
pub type Counter<const N: usize> = Metric<metrics::Counter, N>;
/// A value that rises and falls.
pub type Gauge<const N: usize> = Metric<metrics::Gauge, N>;
/// A distribution of values.
pub type Histogram<const N: usize> = Metric<metrics::Histogram, N>;

/// What a series is recorded through.
pub trait Handle {
    fn register(recorder: &dyn Recorder, key: &Key) -> Self;
}

static METADATA: Metadata<'static> = Metadata::new("delo", Level::INFO, None);

impl Handle for metrics::Counter {
    fn register(recorder: &dyn Recorder, key: &Key) -> Self {
        recorder.register_counter(key, &METADATA)
    }
}

impl Handle for metrics::Gauge {
    fn register(recorder: &dyn Recorder, key: &Key) -> Self {
        recorder.register_gauge(key, &METADATA)
    }
}

impl Handle for metrics::Histogram {
    fn register(recorder: &dyn Recorder, key: &Key) -> Self {
        recorder.register_histogram(key, &METADATA)
    }
}

impl<H: Handle, const N: usize> Metric<H, N> {
    /// The series with these values of the labels, in the order of the table.
    pub fn with(&self, values: [&'static str; N]) -> H {
        self.series(values.map(SharedString::const_str))
    }

    /// As [`Self::with`], with values that are known only when the program runs.
    pub fn with_owned(&self, values: [String; N]) -> H {
        self.series(values.map(SharedString::from_owned))
    }

    fn series(&self, values: [SharedString; N]) -> H {
        let labels: Vec<Label> = self.labels.into_iter().zip(values).map(|(label, value)| Label::new(label, value)).collect();
        with_recorder(|recorder| H::register(recorder, &Key::from_parts(self.name, labels)))
    }
}

impl<H, const N: usize> Metric<H, N> {
    const fn new(name: &'static str, kind: Kind, help: &'static str, labels: [&'static str; N]) -> Self {
        Self { name, kind, help, labels, handle: PhantomData }
    }

    /// The metric's name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    const fn row(&'static self) -> Row {
        Row { name: self.name, kind: self.kind, help: self.help, labels: &self.labels }
    }
}

const fn counter<const N: usize>(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Counter<N> {
    Metric::new(name, Kind::Counter, help, labels)
}

const fn gauge<const N: usize>(name: &'static str, help: &'static str, labels: [&'static str; N]) -> Gauge<N> {
    Metric::new(name, Kind::Gauge, help, labels)
}

const fn histogram<const N: usize>(
    name: &'static str,
    help: &'static str,
    labels: [&'static str; N],
    buckets: &'static [f64],
) -> Histogram<N> {
    Metric::new(name, Kind::Histogram(buckets), help, labels)
}

/// Declares the rows, and the list of them all.
macro_rules! table {
    ($($(#[$attribute:meta])* pub static $name:ident: $kind:ty = $row:expr;)*) => {
        $($(#[$attribute])* pub static $name: $kind = $row;)*

        /// All rows.
        pub static ALL: &[Row] = &[$($name.row()),*];
    };
}

/// From half a millisecond to two minutes.
pub const SECOND_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Of stages, by which operators and load tests judge how even batches are: from a millisecond to one second,
/// each at most 1.3 times the one before.
const STAGE_BUCKETS: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.00125, 0.0016, 0.002, 0.0025, 0.0032, 0.004, 0.005, 0.0063, 0.008, 0.01, 0.0125, 0.016, 0.02, 0.025,
    0.032, 0.04, 0.05, 0.063, 0.08, 0.1, 0.125, 0.16, 0.2, 0.25, 0.32, 0.4, 0.5, 0.63, 0.8, 1.0, 1.6, 2.5, 5.0, 10.0, 30.0, 60.0,
];
const SAMPLE_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
const TOKEN_BUCKETS: &[f64] = &[32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
/// Buckets of [`ROUTING_PROBABILITY`].
pub const PROBABILITY_BUCKETS: &[f64] = &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];
/// Buckets of [`ROUTING_COSINE`].
pub const COSINE_BUCKETS: &[f64] = &[-0.5, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];
/// Buckets of [`ROUTING_MARGIN`].
pub const MARGIN_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0];

table! {
    pub static BUILD_INFO: Gauge<1> = gauge("delo_build_info", "Always 1; says which program runs.", ["version"]);
    pub static ENGINE_INFO: Gauge<2> =
        gauge("delo_engine_info", "Always 1; says which kernel multiplies, and on how many threads.", ["kernel", "threads"]);

    pub static REQUESTS: Counter<2> = counter("delo_requests_total", "Calls by method and gRPC status code.", ["method", "code"]);
    pub static REQUEST_SECONDS: Histogram<1> = histogram(
        "delo_request_duration_seconds",
        "Time from a call's arrival to the end of its answer.",
        ["method"],
        SECOND_BUCKETS,
    );
    pub static REJECTED: Counter<1> =
        counter("delo_rejected_total", "Samples and calls that were not served, by reason.", ["reason"]);
    /// `stage` is `input`, `queue` or `compute`.
    pub static STAGE_SECONDS: Histogram<1> = histogram(
        "delo_stage_duration_seconds",
        "Time a sample spends being read (input), waiting (queue), and a batch in compute.",
        ["stage"],
        STAGE_BUCKETS,
    );
    pub static QUEUE_DEPTH: Gauge<0> = gauge("delo_queue_depth", "Samples that wait for compute.", []);
    pub static QUEUE_CAPACITY: Gauge<0> = gauge(
        "delo_queue_capacity",
        "Samples that may be on their way through the queue before more are refused.",
        [],
    );
    pub static RUNNING_SAMPLES: Gauge<0> = gauge("delo_running_samples", "Samples that are being computed.", []);
    pub static BATCHES: Counter<1> = counter(
        "delo_batches_total",
        "Batches, by what ended their forming: nothing else waited, or a bound was reached.",
        ["ended_by"],
    );
    pub static BATCH_SAMPLES: Histogram<0> = histogram("delo_batch_samples", "Samples of a batch.", [], SAMPLE_BUCKETS);
    pub static BATCH_TOKENS: Histogram<0> = histogram("delo_batch_tokens", "Tokens of a batch.", [], TOKEN_BUCKETS);
    pub static TEXTS: Counter<1> =
        counter("delo_texts_total", "Texts of answered samples, by how they were read.", ["reading"]);
    pub static TEXT_TOKENS: Counter<1> =
        counter("delo_text_tokens_total", "Tokens of the texts of answered samples, by whether the vocabulary knows them.", ["known"]);
    pub static ANSWERS: Counter<1> = counter(
        "delo_answers_total",
        "Answered samples, by what the scores come from: an adapted pass, the frozen backbone alone, or nothing (rejected).",
        ["scored"],
    );
    pub static DECISION_RECORDS: Counter<1> = counter(
        "delo_decision_records_total",
        "Decisions and outcomes for records.file, by whether they were written or dropped.",
        ["outcome"],
    );
    pub static REJECTION_OUTCOMES: Counter<1> = counter(
        "delo_rejection_outcomes_total",
        "Reported outcomes of rejected samples, by whether their true task is one that is not loaded.",
        ["right"],
    );
    pub static FACTORS_SELECTED: Counter<1> =
        counter("delo_factor_selected_total", "Low-rank factors applied, by modality of their pool.", ["modality"]);

    pub static ROUTED: Row = Row::of_tasks(
        "delo_routed_total",
        Kind::Counter,
        "Samples by the task chosen for them and the modalities they had.",
        &["task", "modalities"],
    );
    pub static ROUTING_COSINE: Row = Row::of_tasks(
        "delo_routing_cosine",
        Kind::Histogram(COSINE_BUCKETS),
        "Cosine of a sample with the key of the task chosen for it.",
        &["task"],
    );
    pub static ROUTING_PROBABILITY: Row = Row::of_tasks(
        "delo_routing_probability",
        Kind::Histogram(PROBABILITY_BUCKETS),
        "Probability of the task chosen for a sample, where tasks are decided by probability.",
        &["task"],
    );
    pub static ROUTING_MARGIN: Row = Row::of_tasks(
        "delo_routing_margin",
        Kind::Histogram(MARGIN_BUCKETS),
        "How far the chosen task is ahead of the second one, in probability or cosine, whichever decides.",
        &["task"],
    );
    pub static ROUTING_TYPICALITY: Row = Row::of_tasks(
        "delo_routing_typicality_total",
        Kind::Counter,
        "Samples by the task chosen for them and the tenth of the task's own samples that they are as typical as.",
        &["task", "tenth"],
    );
    pub static FACTOR_ENTROPY: Row = Row::of_tasks(
        "delo_factor_entropy",
        Kind::Gauge,
        "How evenly a task's routers use their experts, from 0 (one alone) to 1 (all alike), by modality of the pool.",
        &["task", "modality"],
    );
    pub static LABEL_CONFUSION: Row = Row::of_tasks(
        "delo_label_confusion_total",
        Kind::Counter,
        "Reported outcomes with one true label, by that label and the best label of the answer.",
        &["task", "true_label", "label"],
    );
    pub static ROUTING_OUTCOMES: Row = Row::of_tasks(
        "delo_routing_outcomes_total",
        Kind::Counter,
        "Reported outcomes by the true task and the task that had been chosen.",
        &["true_task", "routed_task", "true_task_loaded", "routed_task_loaded"],
    );
    pub static LABEL_OUTCOMES: Row = Row::of_tasks(
        "delo_label_outcomes_total",
        Kind::Counter,
        "Reported outcomes by the task that answered and whether its best label was true.",
        &["task", "correct", "task_loaded"],
    );
    pub static PARTITION_INFO: Row = Row::of_tasks(
        "delo_partition_info",
        Kind::Gauge,
        "Always 1; a partition that is live, its version, and the begin of its file's SHA-256.",
        &["task", "version", "digest"],
    );
    pub static VERSION_ANSWERS: Row = Row::of_tasks(
        "delo_version_answers_total",
        Kind::Counter,
        "Answers by the version that gave them.",
        &["task", "version", "role"],
    );
    pub static VERSION_OUTCOMES: Row = Row::of_tasks(
        "delo_version_outcomes_total",
        Kind::Counter,
        "Reported outcomes by the version that answered.",
        &["task", "version", "role", "correct"],
    );
    pub static SHADOW_COMPARISONS: Row = Row::of_tasks(
        "delo_shadow_comparisons_total",
        Kind::Counter,
        "Samples that a version in the shadow computed too, by whether its best label was the live version's.",
        &["task", "version", "role", "agreed"],
    );

    // The crate delo-registry records these.
    pub static PARTITION_LOAD_SECONDS: Histogram<0> = histogram(
        "delo_partition_load_seconds",
        "Time from a load's start until the partition is live.",
        [],
        SECOND_BUCKETS,
    );
    pub static REGISTRY_REVISION: Gauge<0> = gauge(
        "delo_registry_revision",
        "Revision of the registry's manifest that is followed; 0 before one was read since the start.",
        [],
    );
    pub static REGISTRY_IN_SYNC: Gauge<0> = gauge(
        "delo_registry_in_sync",
        "1 where what the registry's manifest makes live is live here, else 0.",
        [],
    );
    pub static REGISTRY_SYNCS: Counter<1> = counter(
        "delo_registry_syncs_total",
        "Comparisons with the registry's manifest, by whether all was live after.",
        ["outcome"],
    );
    pub static REGISTRY_FETCHED_BYTES: Counter<0> = counter(
        "delo_registry_fetched_bytes_total",
        "Bytes of partitions received from registries and addresses.",
        [],
    );

    pub static CONNECTIONS: Gauge<1> = gauge("delo_connections", "Open connections of each gRPC port.", ["port"]);
    pub static CONNECTIONS_REFUSED: Counter<2> = counter(
        "delo_connections_refused_total",
        "Connections closed before they were served, by port and reason.",
        ["port", "reason"],
    );
    pub static CERTIFICATE_EXPIRY: Gauge<0> = gauge(
        "delo_tls_certificate_expiry_timestamp_seconds",
        "When the server's certificate expires, in seconds since 1970; 0 without TLS.",
        [],
    );
    pub static LOG_LINES_LOST: Counter<0> =
        counter("delo_log_lines_lost_total", "Lines of the log that stderr did not take.", []);
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;

    /// The rows of the table in `deploy/METRICS.md`, the metrics of the process left out: name to type and
    /// labels.
    fn documented() -> BTreeMap<&'static str, (&'static str, Vec<&'static str>)> {
        let rows = include_str!("../deploy/METRICS.md").lines().filter(|line| line.starts_with("| `delo_"));
        rows.map(|row| {
            let mut cells = row.split('|').map(str::trim).skip(1);
            let (name, kind, labels) = (cells.next().unwrap(), cells.next().unwrap(), cells.next().unwrap());
            let labels = labels.split(',').map(|label| label.trim().trim_matches('`')).filter(|label| !label.is_empty());
            (name.trim_matches('`'), (kind, labels.collect()))
        })
        .collect()
    }

    #[test]
    fn the_documentation_lists_each_metric_with_its_type_and_labels_and_no_others() {
        let table: BTreeMap<_, _> = ALL.iter().map(|row| (row.name, (row.kind.name(), row.labels.to_vec()))).collect();
        assert_eq!(table.len(), ALL.len(), "a name stands twice");
        assert_eq!(documented(), table);
    }

    #[test]
    fn buckets_rise() {
        for row in ALL {
            if let Kind::Histogram(buckets) = row.kind {
                assert!(buckets.is_sorted_by(|a, b| a < b), "{}", row.name);
            }
        }
    }

    /// The names that the crate delo-registry records, in its sources.
    #[test]
    fn what_the_registry_records_stands_in_the_table() {
        let sources = [
            include_str!("../crates/registry/src/catalogue/change.rs"),
            include_str!("../crates/registry/src/remote/fetch.rs"),
            include_str!("../crates/registry/src/remote/follower.rs"),
        ];
        let known: HashSet<&str> = ALL.iter().map(|row| row.name).collect();
        let recorded: HashSet<&str> =
            sources.iter().flat_map(|source| source.split('"')).filter(|text| text.starts_with("delo_")).collect();
        assert!(recorded.len() >= 5 && recorded.is_subset(&known), "{recorded:?}");
    }
}
