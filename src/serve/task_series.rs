//! The series that are labelled by a task or its versions. They begin with the task and end with it, which
//! the process's recorder can't do: it keeps every series that ever was. They are therefore counted here, and
//! written from the catalogue that is live at the moment of the scrape.
use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::factor_usage::FactorUsage;
use super::recent::Recent;
use crate::metric_table::{
    COSINE_BUCKETS, FACTOR_ENTROPY, LABEL_CONFUSION, LABEL_OUTCOMES, MARGIN_BUCKETS, PARTITION_INFO, PROBABILITY_BUCKETS, ROUTED,
    ROUTING_COSINE, ROUTING_MARGIN, ROUTING_OUTCOMES, ROUTING_PROBABILITY, ROUTING_TYPICALITY, Row, SHADOW_COMPARISONS, VERSION_ANSWERS,
    VERSION_OUTCOMES,
};
use delo_catalogue::{Catalogue, Counted, Resident, TrialMode};
use delo_engine::Answer;
use delo_model::input::Presence;
use delo_proto as pb;

/// What a label says of a task that isn't loaded. A task of this name may be loaded as well: series of tasks
/// that are not loaded have one label more.
const OTHER: &str = "other";
/// Tasks up to which every one has the series of the router, and every pair of them a counter of outcomes, from the
/// start; above, those of a further task appear with its first sample, and a pair with its first outcome.
const PAIRED_TASKS: usize = 32;

/// Pairs of true and best label that are counted of a task; further ones are counted as pairs of [`OTHER`].
const LABEL_PAIRS: usize = 1024;
/// Digits of an artifact's digest that a label has.
const DIGEST_SHOWN: usize = 16;
/// Tenths of typicality, by their lower bound.
const TENTHS: [&str; 10] = ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9"];

/// What was counted of each task since it was loaded.
#[derive(Debug, Default)]
pub struct TaskSeries(Mutex<Counts>);

#[derive(Clone, Debug, Default)]
struct Counts {
    routed: BTreeMap<Arc<str>, Routed>,
    /// Reported outcomes by the true task and the task that was chosen.
    outcomes: BTreeMap<[Name; 2], u64>,
    /// Reported outcomes by the task that answered: those whose best label was true, and those whose was not.
    labels: BTreeMap<Name, [u64; 2]>,
    /// Reported outcomes of each task that answered, by the true label and the best one of the answer.
    confusion: BTreeMap<Arc<str>, BTreeMap<[Arc<str>; 2], u64>>,
    recent: Recent,
}

/// Decisions of the router for one task.
#[derive(Clone, Debug)]
struct Routed {
    /// Complete, image only, text only.
    by_presence: [u64; 3],
    cosine: Histogram,
    probability: Histogram,
    margin: Histogram,
    /// By tenths of typicality.
    typicality: [u64; TENTHS.len()],
    factors: FactorUsage,
}

impl Default for Routed {
    fn default() -> Self {
        Self {
            by_presence: [0; 3],
            cosine: Histogram::new(COSINE_BUCKETS),
            probability: Histogram::new(PROBABILITY_BUCKETS),
            margin: Histogram::new(MARGIN_BUCKETS),
            typicality: [0; TENTHS.len()],
            factors: FactorUsage::default(),
        }
    }
}

/// A task by its name, or all those that are not loaded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Loaded(Arc<str>),
    NotLoaded,
}

impl Name {
    fn of(task: &str, catalogue: &Catalogue) -> Self {
        if catalogue.get(task).is_some() { Self::Loaded(task.into()) } else { Self::NotLoaded }
    }

    fn is_of(&self, catalogue: &Catalogue) -> bool {
        match self {
            Self::Loaded(task) => catalogue.get(task).is_some(),
            Self::NotLoaded => true,
        }
    }

    fn label(&self) -> &str {
        match self {
            Self::Loaded(task) => task,
            Self::NotLoaded => OTHER,
        }
    }

    /// The label that only series of tasks that are not loaded have.
    fn not_loaded(&self, label: &'static str) -> Option<(&'static str, &'static str)> {
        (*self == Self::NotLoaded).then_some((label, "false"))
    }
}

/// How many values were at most each bound, and their sum.
#[derive(Clone, Debug)]
struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is above the last.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn record(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += 1;
        self.sum += value;
    }
}

impl Counts {
    fn task(&mut self, task: &str) -> &mut Routed {
        if !self.routed.contains_key(task) {
            self.routed.insert(task.into(), Routed::default());
        }
        self.routed.entry(task.into()).or_default()
    }

    fn end_all_but(&mut self, catalogue: &Catalogue) {
        self.routed.retain(|task, _| catalogue.get(task).is_some());
        self.outcomes.retain(|pair, _| pair.iter().all(|name| name.is_of(catalogue)));
        self.labels.retain(|name, _| name.is_of(catalogue));
        self.confusion.retain(|task, _| catalogue.get(task).is_some());
    }
}

impl TaskSeries {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sample was answered: what was decided of it, and which experts its pass used.
    pub fn answered(&self, answer: &Answer, presence: Presence) {
        let mut counts = self.counts();
        let Some(chosen) = answer.chosen() else {
            counts.task(answer.resident.task()).factors.count(answer);
            return;
        };
        let (score, margin) = (chosen.score, answer.margin());
        counts.recent.routed(&chosen.task, score.probability, Instant::now());
        let routed = counts.task(&chosen.task);
        routed.factors.count(answer);
        routed.by_presence[presence as usize] += 1;
        if let Some(typicality) = score.typicality {
            routed.typicality[((typicality * TENTHS.len() as f32) as usize).min(TENTHS.len() - 1)] += 1;
        }
        if let Some(cosine) = score.cosine {
            routed.cosine.record(cosine.into());
        }
        if let Some(probability) = score.probability {
            routed.probability.record(probability.into());
        }
        if let Some(margin) = margin {
            routed.margin.record(margin.into());
        }
    }

    /// A sample of `true_task` had been routed to `routed_task`.
    pub fn outcome(&self, true_task: &str, routed_task: &str, catalogue: &Catalogue) {
        let pair = [true_task, routed_task].map(|task| Name::of(task, catalogue));
        let mut counts = self.counts();
        counts.recent.outcome(routed_task, true_task == routed_task, Instant::now());
        *counts.outcomes.entry(pair).or_default() += 1;
    }

    /// How the last minutes went, over all tasks and for each of them.
    pub fn recent(&self) -> (pb::RecentRouting, BTreeMap<Arc<str>, pb::RecentRouting>) {
        self.counts().recent.shown(Instant::now())
    }

    /// The best label of an answer of `task` was true, or not.
    pub fn label_outcome(&self, task: &str, correct: bool, catalogue: &Catalogue) {
        let of_task = &mut self.counts().labels;
        of_task.entry(Name::of(task, catalogue)).or_default()[usize::from(!correct)] += 1;
    }

    /// The true label of a sample and the best one of the answer that a version gave. A true label that is not the
    /// task's own is [`OTHER`].
    pub fn label_pair(&self, resident: &Resident, true_label: &str, best: &str) {
        let known = resident.partition.meta.labels.iter().any(|label| label == true_label);
        let pair: [Arc<str>; 2] = [if known { true_label } else { OTHER }, best].map(Into::into);
        let mut counts = self.counts();
        let pairs = counts.confusion.entry(resident.task().into()).or_default();
        let pair = if pairs.len() < LABEL_PAIRS || pairs.contains_key(&pair) { pair } else { [OTHER, OTHER].map(Into::into) };
        *pairs.entry(pair).or_default() += 1;
    }

    /// Ends the series of tasks that are not in `catalogue`. A batch that was in flight when its task was
    /// unloaded counts after that: its series end with the next call.
    pub fn end_all_but(&self, catalogue: &Catalogue) {
        self.counts().end_all_but(catalogue);
    }

    /// Writes the series of the tasks in `catalogue`, and of their versions.
    pub fn write(&self, page: &mut String, catalogue: &Catalogue) {
        // Written from a copy: what is counted meanwhile does not wait.
        let mut counts = {
            let mut counts = self.counts();
            counts.end_all_but(catalogue);
            counts.clone()
        };
        // There at 0 before the first sample: an increase is seen only of a series that was there before it.
        for resident in catalogue.residents().take(PAIRED_TASKS) {
            counts.task(resident.task());
        }
        let mut page = Page(page);
        write_routed(&mut page, &counts.routed);
        write_outcomes(&mut page, counts, catalogue);
        page.family(&PARTITION_INFO);
        for resident in catalogue.residents() {
            let digest = &resident.partition.digest;
            let digest = digest.get(..DIGEST_SHOWN).unwrap_or(digest);
            let labels = [("task", resident.task()), ("version", &resident.version.to_string()), ("digest", digest)];
            page.sample(PARTITION_INFO.name, &labels, 1);
        }
        write_versions(&mut page, catalogue);
    }
}

fn write_routed(page: &mut Page<'_>, routed: &BTreeMap<Arc<str>, Routed>) {
    page.family(&ROUTED);
    for (task, routed) in routed {
        for (modalities, count) in ["complete", "image_only", "text_only"].into_iter().zip(routed.by_presence) {
            page.sample(ROUTED.name, &[("task", task), ("modalities", modalities)], count);
        }
    }
    page.family(&ROUTING_COSINE);
    routed.iter().for_each(|(task, routed)| page.histogram(ROUTING_COSINE.name, task, &routed.cosine));
    page.family(&ROUTING_PROBABILITY);
    routed.iter().for_each(|(task, routed)| page.histogram(ROUTING_PROBABILITY.name, task, &routed.probability));
    page.family(&ROUTING_MARGIN);
    routed.iter().for_each(|(task, routed)| page.histogram(ROUTING_MARGIN.name, task, &routed.margin));
    page.family(&ROUTING_TYPICALITY);
    for (task, routed) in routed {
        for (tenth, count) in TENTHS.into_iter().zip(routed.typicality) {
            page.sample(ROUTING_TYPICALITY.name, &[("task", task), ("tenth", tenth)], count);
        }
    }
    page.family(&FACTOR_ENTROPY);
    for (task, routed) in routed {
        for (modality, entropy) in routed.factors.entropy().iter() {
            if let Some(entropy) = entropy {
                page.sample(FACTOR_ENTROPY.name, &[("task", task), ("modality", modality.pool_name())], entropy);
            }
        }
    }
}

/// Outcomes of the loaded tasks are there at 0: an increase is seen only of a series that was there before
/// it.
fn write_outcomes(page: &mut Page<'_>, Counts { mut outcomes, mut labels, confusion, .. }: Counts, catalogue: &Catalogue) {
    let tasks: Vec<Name> = catalogue.residents().map(|resident| Name::Loaded(resident.task().into())).collect();
    for task in &tasks {
        labels.entry(task.clone()).or_default();
        for routed in tasks.iter().filter(|&routed| tasks.len() <= PAIRED_TASKS || routed == task) {
            outcomes.entry([task.clone(), routed.clone()]).or_default();
        }
    }
    page.family(&ROUTING_OUTCOMES);
    for ([true_task, routed_task], count) in &outcomes {
        let mut series = vec![("true_task", true_task.label()), ("routed_task", routed_task.label())];
        series.extend(true_task.not_loaded("true_task_loaded"));
        series.extend(routed_task.not_loaded("routed_task_loaded"));
        page.sample(ROUTING_OUTCOMES.name, &series, count);
    }
    page.family(&LABEL_OUTCOMES);
    for (task, of_task) in &labels {
        for (correct, count) in ["true", "false"].into_iter().zip(of_task) {
            let mut series = vec![("task", task.label()), ("correct", correct)];
            series.extend(task.not_loaded("task_loaded"));
            page.sample(LABEL_OUTCOMES.name, &series, count);
        }
    }
    page.family(&LABEL_CONFUSION);
    for (task, pairs) in &confusion {
        for ([true_label, label], count) in pairs {
            page.sample(LABEL_CONFUSION.name, &[("task", task), ("true_label", true_label), ("label", label)], count);
        }
    }
}

/// What each resident version answered. Its counts belong to it.
fn write_versions(page: &mut Page<'_>, catalogue: &Catalogue) {
    let live = catalogue.residents().map(|resident| (resident, "live"));
    let trials = catalogue.trials().map(|trial| match trial.mode {
        TrialMode::Canary(_) => (&trial.resident, "canary"),
        TrialMode::Shadow => (&trial.resident, "shadow"),
    });
    let versions: Vec<_> =
        live.chain(trials).map(|(resident, role)| (resident.task(), resident.version.to_string(), role, resident.counts.read())).collect();
    // A version's own labels, and one more where its count is split in two.
    let mut write = |row: &Row, split: Option<&str>, read: &dyn Fn(&Counted) -> [u64; 2]| {
        page.family(row);
        for (task, version, role, counted) in &versions {
            let labels = [("task", *task), ("version", version), ("role", role)];
            let [yes, no] = read(counted);
            match split {
                None => page.sample(row.name, &labels, yes),
                Some(by) => [("true", yes), ("false", no)].iter().for_each(|&(value, count)| {
                    page.sample(row.name, &[labels.as_slice(), &[(by, value)]].concat(), count);
                }),
            }
        }
    };
    write(&VERSION_ANSWERS, None, &|c| [c.answers, 0]);
    write(&VERSION_OUTCOMES, Some("correct"), &|c| [c.right, c.wrong]);
    write(&SHADOW_COMPARISONS, Some("agreed"), &|c| [c.agreed, c.differed]);
}

/// A page in Prometheus' text format.
struct Page<'a>(&'a mut String);

impl Page<'_> {
    fn family(&mut self, row: &Row) {
        let (name, kind, help) = (row.name, row.kind.name(), row.help);
        // Writing to a string can't fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.0, "{name}{{");
        for (i, (label, value)) in labels.iter().enumerate() {
            let separator = if i == 0 { "" } else { "," };
            let _ = write!(self.0, "{separator}{label}=\"{}\"", escaped(value));
        }
        let _ = writeln!(self.0, "}} {value}");
    }

    fn histogram(&mut self, name: &str, task: &str, histogram: &Histogram) {
        let (bucket, mut count) = (format!("{name}_bucket"), 0);
        let bounds = histogram.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, in_bucket) in bounds.zip(&histogram.counts) {
            count += in_bucket;
            self.sample(&bucket, &[("task", task), ("le", &bound)], count);
        }
        self.sample(&format!("{name}_sum"), &[("task", task)], histogram.sum);
        self.sample(&format!("{name}_count"), &[("task", task)], count);
    }
}

/// A label's value as the text format writes it: these three characters are escaped, all others stand as they
/// are.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_what_would_break_a_label() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
        assert_eq!(escaped(r#"\" \\ \n"#), r#"\\\" \\\\ \\n"#);
    }

    #[test]
    fn a_histogram_counts_a_value_in_every_bucket_whose_bound_it_does_not_exceed() {
        let mut histogram = Histogram::new(&[0.0, 1.0]);
        [-1.0, 0.0, 0.5, 1.0, 7.0].into_iter().for_each(|value| histogram.record(value));
        let mut text = String::new();
        Page(&mut text).histogram("h", "a", &histogram);
        let expected = "h_bucket{task=\"a\",le=\"0\"} 2\nh_bucket{task=\"a\",le=\"1\"} 4\nh_bucket{task=\"a\",le=\"+Inf\"} 5\n\
                        h_sum{task=\"a\"} 7.5\nh_count{task=\"a\"} 5\n";
        assert_eq!(text, expected);
    }
}
