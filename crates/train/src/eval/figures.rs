//! The figures of METHOD.md 6, computed from samples that were routed and scored.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::interval::{Groups, Member};
use super::metrics::{ScoreMatrix, mean};
use super::protocol::{Evaluation, Stages};
use super::report::{Column, Report, SampleRecord, TaskRow};
use crate::data::{ByPattern, Dataset, Label, MissingTable, Split, Tally};
use delo_catalogue::Resident;
use delo_model::input::Presence;

/// One evaluated sample.
pub(super) struct Scored {
    /// Index in the data set's list.
    pub(super) item: usize,
    /// Position among the evaluated tasks.
    pub(super) task: usize,
    pub(super) presence: Presence,
    pub(super) predictions: Predictions,
    /// For each rule, the position of the task chosen once tasks 0..=j are learnt, for every j.
    pub(super) routes: Vec<Vec<Option<usize>>>,
    /// Without a given task, the labels of every task count, whichever is chosen.
    pub(super) unrouted: bool,
}

/// By position of a task: what is predicted over the classes of that task. The true task is among them and,
/// for multi-label, every task whose labels count.
pub(super) enum Predictions {
    /// Partitions do not change with later sessions.
    Fixed(BTreeMap<usize, Label>),
    /// Entry j: once the tasks until the j-th after the sample's own are learnt.
    BySession(Vec<BTreeMap<usize, Label>>),
}

impl Scored {
    /// What is predicted over the classes of a task, once tasks 0..=stage are learnt.
    pub(super) fn predicted(&self, task: usize, stage: usize) -> Option<&Label> {
        match &self.predictions {
            Predictions::Fixed(predictions) => predictions.get(&task),
            Predictions::BySession(stages) => stages.get(stage.checked_sub(self.task)?)?.get(&task),
        }
    }

    /// The sample once every task is learnt. `tasks`: their indices in the data set.
    pub(super) fn record(&self, data: &Dataset, tasks: &[usize]) -> SampleRecord {
        let item = &data.items[self.item];
        let labels = &data.tasks[tasks[self.task]].labels;
        let named = |label: &Label| -> Vec<String> {
            match label {
                Label::Class(class) => vec![labels[*class].clone()],
                Label::Classes(flags) => labels.iter().zip(flags).filter(|(_, flag)| **flag).map(|(label, _)| label.clone()).collect(),
            }
        };
        let routed = |stages: &Vec<Option<usize>>| Some(data.tasks[tasks[(*stages.last()?)?]].name.clone());
        SampleRecord {
            item: self.item,
            image: item.image.clone(),
            group: item.group.clone(),
            task: data.tasks[tasks[self.task]].name.clone(),
            pattern: self.presence,
            truth: named(&item.label),
            prediction: self.predicted(self.task, tasks.len() - 1).map(named).unwrap_or_default(),
            routed: self.routes.iter().map(routed).collect(),
            unrouted: self.unrouted,
        }
    }
}

/// How the task of a sample is decided.
#[derive(Clone, Copy)]
enum Decision {
    /// The true task is given.
    Oracle,
    /// By the routing rule of this index.
    Key(usize),
}

impl Decision {
    /// Position of the sample's task once tasks 0..=stage are learnt.
    fn route(self, sample: &Scored, stage: usize) -> Option<usize> {
        match self {
            Self::Oracle => Some(sample.task),
            Self::Key(rule) => sample.routes[rule][stage],
        }
    }

    /// The sample's labels among the classes of a task once tasks 0..=stage are learnt; `None` where they do
    /// not count, because another task is chosen.
    fn labels(self, sample: &Scored, task: usize, stage: usize) -> Option<&Label> {
        let counts = self.route(sample, stage) == Some(task) || (sample.unrouted && matches!(self, Self::Key(_)));
        sample.predicted(task, stage).filter(|_| counts)
    }

    /// The sample's prediction over the classes of its own task; `None` where another task is chosen.
    fn prediction(self, sample: &Scored, stage: usize) -> Option<&Label> {
        self.labels(sample, sample.task, stage)
    }
}

/// What all columns are computed from.
struct Figures<'a> {
    data: &'a Dataset,
    /// Indices in the data set of the evaluated tasks.
    tasks: Vec<usize>,
    scored: &'a [Scored],
    groups: Groups,
}

/// The report on samples that were scored by the partitions of `tasks`, as (index in the data set, partition).
pub(super) fn report(evaluation: &Evaluation<'_>, tasks: &[(usize, Arc<Resident>)], rules: &[Stages], scored: &[Scored]) -> Report {
    let of = Evaluated { data: evaluation.data, missing: evaluation.missing, split: evaluation.split };
    let rules_named = rules.iter().map(Stages::name).collect();
    of.report(tasks.iter().map(|(task, _)| *task).collect(), rules_named, scored, notes(evaluation, tasks, rules))
}

/// The items that figures are of.
#[derive(Clone, Copy)]
pub(super) struct Evaluated<'a> {
    pub(super) data: &'a Dataset,
    pub(super) missing: &'a MissingTable,
    pub(super) split: Split,
}

impl Evaluated<'_> {
    /// The report on samples of the tasks with these indices in the data set. `rules`: names of the ways in
    /// which the task is decided.
    pub(super) fn report(self, tasks: Vec<usize>, rules: Vec<String>, scored: &[Scored], notes: Vec<String>) -> Report {
        let Self { data, missing, split } = self;
        let figures = Figures::of(data, tasks, scored);
        Report {
            data: data.name.clone(),
            split,
            measure: if data.multi_label { "F1-macro" } else { "accuracy" }.to_owned(),
            eta: missing.eta,
            missing: missing.kind,
            seed: missing.seed,
            samples: scored.len(),
            oracle: figures.column("task-oracle".to_owned(), Decision::Oracle),
            agnostic: rules
                .iter()
                .enumerate()
                .map(|(rule, name)| figures.column(format!("task-agnostic, {name}"), Decision::Key(rule)))
                .collect(),
            notes,
        }
    }
}

impl<'a> Figures<'a> {
    fn of(data: &'a Dataset, tasks: Vec<usize>, scored: &'a [Scored]) -> Self {
        let members = scored.iter().map(|s| Member { group: data.items[s.item].group.as_deref(), task: s.task });
        Self { data, tasks, scored, groups: Groups::of(members) }
    }

    fn column(&self, name: String, decision: Decision) -> Column {
        let (tasks, scored) = (&self.tasks, self.scored);
        let last = tasks.len() - 1;
        let of_task = |task: usize| scored.iter().filter(move |s| s.task == task);
        let matrix = ScoreMatrix::of(tasks.len(), |i, j| self.score(decision, of_task(i), j));
        let presence: Vec<Presence> = scored.iter().map(|s| s.presence).collect();
        let by_pattern = ByPattern::of(&presence, |chosen| {
            let chosen = chosen.iter().map(|&i| &scored[i]);
            if !self.data.multi_label {
                return self.score(decision, chosen, last);
            }
            // Classes differ between tasks: F1-macro within each, then the mean over those that have such
            // samples.
            mean((0..tasks.len()).filter_map(|task| self.score(decision, chosen.clone().filter(move |s| s.task == task), last)))
        });
        let right = |s: &Scored| decision.route(s, last) == Some(s.task);
        let share = |hits: usize, of: usize| (of > 0).then(|| 100.0 * hits as f64 / of as f64);
        let routing = ByPattern::of(&presence, |chosen| share(chosen.iter().filter(|&&i| right(&scored[i])).count(), chosen.len()));
        let stages = if self.data.multi_label { 0..tasks.len() } else { 0..0 };
        let over_all_seen: Vec<Option<f64>> = stages.map(|stage| self.over_all_seen(decision, stage)).collect();
        Column {
            ap: matrix.average_performance(),
            ap_interval: self.groups.interval(|tally, i| self.count(tally, decision, &scored[i], last)),
            fg: matrix.forgetting(),
            fg_since_learnt: matrix.forgetting_since_learnt(),
            f1_macro_own: matrix.average_performance().filter(|_| self.data.multi_label),
            f1_macro_all_seen: over_all_seen.last().copied().flatten(),
            f1_macro_all_seen_by_session: over_all_seen,
            score: by_pattern,
            routing: matches!(decision, Decision::Key(_)).then_some(routing),
            tasks: tasks
                .iter()
                .enumerate()
                .map(|(position, task)| TaskRow {
                    task: self.data.tasks[*task].name.clone(),
                    samples: of_task(position).count(),
                    scores: matrix.rows()[position].clone(),
                    routing: share(of_task(position).filter(|s| right(s)).count(), of_task(position).count()),
                })
                .collect(),
            name,
        }
    }

    /// Adds to `tally` a sample's prediction over the classes of its own task.
    fn count(&self, tally: &mut Tally, decision: Decision, sample: &Scored, stage: usize) {
        tally.count(decision.prediction(sample, stage), &self.data.items[sample.item].label);
    }

    fn score<'s>(&self, decision: Decision, samples: impl Iterator<Item = &'s Scored>, stage: usize) -> Option<f64> {
        let mut tally = Tally::default();
        samples.for_each(|sample| self.count(&mut tally, decision, sample, stage));
        tally.score()
    }

    /// F1-macro over the classes of tasks 0..=stage on all their samples, in percent. The labels that the
    /// chosen task's partition predicts count as such, also where it is not the sample's own task.
    fn over_all_seen(&self, decision: Decision, stage: usize) -> Option<f64> {
        let mut tally = Tally::default();
        for sample in self.scored.iter().filter(|s| s.task <= stage) {
            let true_classes = &self.data.items[sample.item].all_classes;
            let (mut predicted, mut truth) = (Vec::new(), Vec::new());
            for (position, task) in self.tasks[..=stage].iter().enumerate() {
                let (first, count) = (self.data.first_class(*task), self.data.tasks[*task].labels.len());
                truth.extend((first..first + count).map(|class| true_classes.contains(class)));
                match decision.labels(sample, position, stage) {
                    Some(Label::Classes(flags)) => predicted.extend(flags),
                    _ => predicted.resize(truth.len(), false),
                }
            }
            tally.count(Some(&Label::Classes(predicted)), &Label::Classes(truth));
        }
        tally.score()
    }
}

/// What limits the figures.
fn notes(evaluation: &Evaluation<'_>, tasks: &[(usize, Arc<Resident>)], rules: &[Stages]) -> Vec<String> {
    let data = evaluation.data;
    let names = |names: Vec<&str>| (!names.is_empty()).then(|| names.join(", "));
    let mut notes: Vec<String> = rules.iter().filter_map(Stages::notice).map(str::to_owned).collect();
    let lacking = data.tasks.iter().enumerate().filter(|(i, _)| tasks.iter().all(|(t, _)| t != i));
    if let Some(lacking) = names(lacking.map(|(_, t)| t.name.as_str()).collect()) {
        notes.push(format!("no partition for {lacking}: left out of every figure"));
    }
    notes.extend(data.shared_classes());
    let known: BTreeSet<&str> = data.tasks.iter().map(|t| t.name.as_str()).collect();
    if let Some(foreign) = names(evaluation.partitions.iter().map(|r| r.task()).filter(|t| !known.contains(t)).collect()) {
        notes.push(format!("not of this data set, and not loaded: {foreign}"));
    }
    let empty = tasks.iter().filter(|(task, _)| data.rows(*task, evaluation.split).is_empty());
    if let Some(empty) = names(empty.map(|(_, r)| r.task()).collect()) {
        notes.push(format!("no {} items of {empty}: left out of AP and FG, but loaded and routed to", evaluation.split));
    }
    notes.extend(other_tables(evaluation.missing, tasks.iter().map(|(_, r)| (r.task(), &r.partition.meta.data))));
    notes
}

/// A note for each missing table that partitions were trained on and that is not the evaluated one.
/// `recorded`: tasks, and what their partitions say of their data.
fn other_tables<'a>(evaluated: &MissingTable, recorded: impl Iterator<Item = (&'a str, &'a Value)>) -> Vec<String> {
    let described = |eta: &Value, missing: &Value, seed: &Value| {
        format!("--eta {} --missing {} --seed {seed}", eta.as_f64().unwrap_or_default(), missing.as_str().unwrap_or_default())
    };
    let expected = described(&evaluated.eta.into(), &evaluated.kind.to_string().into(), &evaluated.seed.into());
    let mut others: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (task, data) in recorded {
        // A partition that records no table is compared with none.
        if let (Some(eta), Some(missing), Some(seed)) = (data.get("eta"), data.get("missing"), data.get("missing_seed")) {
            let found = described(eta, missing, seed);
            if found != expected {
                others.entry(found).or_default().push(task);
            }
        }
    }
    let note = |(found, tasks): (String, Vec<&str>)| {
        format!("evaluated with the missing table of {expected}, but trained with that of {found}: {}", tasks.join(", "))
    };
    others.into_iter().map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{ClassSet, Item, MissingKind, Task};

    fn item(task: usize, label: Label, all_classes: &[usize]) -> Item {
        let all_classes = all_classes.iter().copied().collect::<ClassSet>();
        Item { task, split: Split::Test, image: String::new(), text: String::new(), label, all_classes, group: None }
    }

    fn data(multi_label: bool, tasks: &[&[&str]], items: Vec<Item>) -> Dataset {
        let task = |(id, labels): (usize, &&[&str])| Task {
            id: id as u64,
            name: format!("task-{id}"),
            labels: labels.iter().map(ToString::to_string).collect(),
        };
        Dataset::new("".into(), "tiny".into(), multi_label, tasks.iter().enumerate().map(task).collect(), items)
    }

    /// A sample with the predictions of some tasks, and the routes of one rule.
    fn scored(data: &Dataset, item: usize, predictions: &[(usize, Label)], routes: &[usize]) -> Scored {
        Scored {
            item,
            task: data.items[item].task,
            presence: Presence::Complete,
            predictions: Predictions::Fixed(predictions.iter().cloned().collect()),
            routes: vec![routes.iter().map(|task| Some(*task)).collect()],
            unrouted: false,
        }
    }

    #[test]
    fn labels_that_another_tasks_partition_gives_are_false_positives_over_all_seen_classes() {
        let flags = |flags: &[u8]| Label::Classes(flags.iter().map(|flag| *flag == 1).collect());
        // Task 0 has the classes 0 and 1, task 1 has 2 and 3. The first item has class 2 beside its own class 0.
        let items = vec![item(0, flags(&[1, 0]), &[0, 2]), item(0, flags(&[0, 1]), &[1]), item(1, flags(&[1, 0]), &[2])];
        let data = data(true, &[&["a", "b"], &["c", "d"]], items);
        let scored = [
            scored(&data, 0, &[(0, flags(&[1, 0])), (1, flags(&[1, 1]))], &[0, 1]),
            scored(&data, 1, &[(0, flags(&[0, 1]))], &[0, 0]),
            scored(&data, 2, &[(1, flags(&[1, 0])), (0, flags(&[0, 1]))], &[0, 1]),
        ];
        let figures = Figures::of(&data, vec![0, 1], &scored);
        let close = |found: Option<f64>, expected: f64| assert!((found.unwrap() - expected).abs() < 1e-9, "{found:?}, not {expected}");

        let key = figures.column("key".into(), Decision::Key(0));
        // After session 0 only classes 0 and 1 count, and every sample of task 0 has its own partition.
        close(key.f1_macro_all_seen_by_session[0], 100.0);
        // Item 0 goes to task 1, which says 2 and 3. Class 0: missed. Class 1: hit. Class 2: hit twice, for item
        // 0 has it too. Class 3: one false positive.
        close(key.f1_macro_all_seen, 100.0 * (0.0 + 1.0 + 1.0 + 0.0) / 4.0);
        // Task 0 by itself: class 0 missed, class 1 hit; task 1: class 2 hit, class 3 never occurs.
        close(key.f1_macro_own, 100.0 * (0.5 + 0.5) / 2.0);

        let oracle = figures.column("oracle".into(), Decision::Oracle);
        // Its own partition misses class 2 of item 0: 1 hit, 1 error.
        close(oracle.f1_macro_all_seen, 100.0 * (1.0 + 1.0 + 2.0 / 3.0 + 0.0) / 4.0);
        close(oracle.f1_macro_own, 100.0 * (1.0 + 0.5) / 2.0);
        assert_eq!(oracle.ap, oracle.f1_macro_own);
    }

    #[test]
    fn a_task_without_items_is_in_no_figure_and_lends_its_samples_to_none() {
        let items = vec![item(0, Label::Class(0), &[]), item(0, Label::Class(0), &[]), item(2, Label::Class(0), &[])];
        let data = data(false, &[&["a", "b"], &["c"], &["d"]], items);
        let scored = [
            scored(&data, 0, &[(0, Label::Class(0))], &[0, 0, 0]),
            scored(&data, 1, &[(0, Label::Class(0))], &[0, 0, 1]),
            scored(&data, 2, &[(2, Label::Class(0))], &[0, 0, 2]),
        ];
        let column = Figures::of(&data, vec![0, 1, 2], &scored).column("key".into(), Decision::Key(0));
        assert_eq!(column.ap, Some((50.0 + 100.0) / 2.0));
        assert_eq!((column.fg, column.fg_since_learnt), (Some(50.0), Some(50.0)));
        assert_eq!((column.tasks[1].samples, column.tasks[1].scores.len()), (0, 0));
        assert_eq!((column.f1_macro_own, column.f1_macro_all_seen), (None, None));
        let [low, high] = column.ap_interval.unwrap();
        assert_eq!((low, high), (50.0, 100.0));
    }

    #[test]
    fn partitions_that_were_trained_with_another_missing_table_are_named() {
        let table = MissingTable { eta: 0.7, kind: MissingKind::Both, seed: 0, items: BTreeMap::new() };
        let record = |eta: f64, missing: &str, seed: u64| serde_json::json!({"eta": eta, "missing": missing, "missing_seed": seed});
        let records = [
            ("same", record(0.7, "both", 0)),
            ("seed", record(0.7, "both", 1)),
            ("eta", record(1.0, "both", 0)),
            ("kind", record(0.7, "text", 0)),
            ("seed too", record(0.7, "both", 1)),
            ("silent", serde_json::json!({})),
        ];
        let notes = other_tables(&table, records.iter().map(|(task, record)| (*task, record)));
        let expected = "evaluated with the missing table of --eta 0.7 --missing both --seed 0, but trained with that of";
        assert_eq!(
            notes,
            [
                format!("{expected} --eta 0.7 --missing both --seed 1: seed, seed too"),
                format!("{expected} --eta 0.7 --missing text --seed 0: kind"),
                format!("{expected} --eta 1 --missing both --seed 0: eta"),
            ]
        );
    }
}
