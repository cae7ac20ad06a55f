//! What the trainer promises of a session: the same artifact for the same seed, also when it is interrupted,
//! and figures that follow it into `eval`.
use std::ops::ControlFlow;

use delo_catalogue::{Catalogue, Resident, RoutingRule};
use delo_engine::checkpoint::{Checkpoint, TextOptions};
use delo_engine::{DeviceChoice, Engine, Options, Query};
use delo_fixtures::colours::write_data;
use delo_fixtures::{engine, key_rule, processor};
use delo_kernels::Precision;
use delo_model::analytic::AnalyticRecord;
use delo_model::input::{InputProcessor, Limits, Presence, Sample};
use delo_model::model_dir::ModelDir;
use delo_model::partition::{Artifact, KeyRule};
use delo_model::{KeyAverage, KeySignal, MethodKind, Metric, Partition};
use delo_train::data::{Label, Samples};
use delo_train::eval::{EvalError, Evaluation, SampleRecord, evaluate};
use delo_train::training::{renew, settings_of};
use delo_train::{Dataset, DatasetError, Event, MissingKind, MissingTable, Outputs, Session, Settings, Split, TrainError, Trained, train};

struct Fixture {
    dir: tempfile::TempDir,
    data: Dataset,
    missing: MissingTable,
    processor: InputProcessor,
    settings: Settings,
}

impl Fixture {
    fn new(multi_label: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_data(dir.path(), multi_label);
        let data = Dataset::open(dir.path()).unwrap();
        let missing = MissingTable::draw(&data, 0.5, MissingKind::Both, 0).unwrap();
        let settings = Settings { experts: 4, rank: 2, first_adapted_layer: 4, lr: 2e-3, batch: 3, epochs: 3, ..Settings::default() };
        Self { dir, data, missing, processor: processor(), settings }
    }

    /// With scores of head and analytic classifier together.
    fn mixing(mut self) -> Self {
        self.settings.head_weight = 0.65;
        self
    }

    /// 8 training samples in steps of 3: three steps an epoch.
    fn outputs(&self, name: &str) -> Outputs {
        Outputs {
            artifact: self.dir.path().join(format!("{name}.safetensors")),
            log: self.dir.path().join(format!("{name}.jsonl")),
            force: false,
            resume: false,
            checkpoint_every: 0,
            cache_bytes: 1 << 30,
            created: "2026-01-01T00:00:00Z".to_owned(),
        }
    }

    /// Trains a task; stops after `steps` steps where given.
    fn train(&self, task: usize, settings: &Settings, outputs: &Outputs, steps: Option<usize>) -> Result<Trained, TrainError> {
        self.train_with_key(task, settings, outputs, steps, key_rule(Metric::Whitened, KeySignal::Parts { layer: 2 }))
    }

    fn train_with_key(
        &self,
        task: usize,
        settings: &Settings,
        outputs: &Outputs,
        steps: Option<usize>,
        key: KeyRule,
    ) -> Result<Trained, TrainError> {
        let session = Session {
            engine: engine(),
            processor: &self.processor,
            backbone: "emoji-mini".to_owned(),
            data: &self.data,
            missing: &self.missing,
            task,
            settings,
            key,
            store: None,
        };
        train(&session, outputs, &mut |event| match (event, steps) {
            (Event::Step { record, .. }, Some(last)) if record.step + 1 == last => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.outputs(name).artifact).unwrap()
    }

    /// The log without its times.
    fn losses(&self, name: &str) -> Vec<serde_json::Value> {
        let log = std::fs::read_to_string(self.outputs(name).log).unwrap();
        let line = |line| {
            let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
            record["seconds"] = 0.into();
            record
        };
        log.lines().map(line).collect()
    }

    fn partition(&self, name: &str) -> Partition {
        Partition::read(&self.bytes(name), engine().backbone()).unwrap()
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let f = Fixture::new(false);
    f.train(0, &f.settings, &f.outputs("one"), None).unwrap();
    // Whether the frozen states are kept or computed at each step makes no difference. An image has 65
    // tokens, so that memory for 110 keeps the states of some of the 8 samples.
    let hidden = engine().backbone().config.hidden_size;
    f.train(0, &f.settings, &Outputs { cache_bytes: 0, ..f.outputs("two") }, None).unwrap();
    f.train(0, &f.settings, &Outputs { cache_bytes: 110 * hidden * 4, ..f.outputs("some") }, None).unwrap();
    f.train(0, &Settings { seed: 1, ..f.settings.clone() }, &f.outputs("three"), None).unwrap();
    for name in ["two", "some"] {
        assert!(f.bytes("one") == f.bytes(name), "{name}");
        assert_eq!(f.losses("one"), f.losses(name), "{name}");
    }
    assert_ne!(f.partition("one").checksum, f.partition("three").checksum);
}

#[test]
fn every_method_learns_resumes_and_serves_beside_the_others() {
    let f = Fixture::new(false);
    let mut residents = Vec::new();
    for (i, method) in MethodKind::ALL.into_iter().enumerate() {
        let (settings, task) = (Settings { method, lr: 1e-2, epochs: 12, ..f.settings.clone() }, i % 2);
        let (whole, parts) = (f.outputs(&format!("{method}")), f.outputs(&format!("{method}-parts")));
        let trained = f.train(task, &settings, &whole, None).unwrap();
        assert_eq!(trained.pool_parameters == 0, method == MethodKind::Linear);
        let losses: Vec<f64> = f.losses(&format!("{method}")).iter().map(|record| record["classification"].as_f64().unwrap()).collect();
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (mean(&losses[..3]), mean(&losses[losses.len() - 3..]));
        assert!(last < 0.7 * first, "{method}: the loss went from {first} to {last}");
        assert!(matches!(f.train(task, &settings, &parts, Some(5)), Err(TrainError::Stopped { step: 5 })));
        f.train(task, &settings, &Outputs { resume: true, ..parts }, None).unwrap();
        assert!(f.bytes(&format!("{method}")) == f.bytes(&format!("{method}-parts")), "{method}");
        let mut partition = f.partition(&format!("{method}"));
        assert_eq!(partition.meta.method.kind(), method);
        partition.meta.task = method.to_string();
        residents.push((task, Resident::new(partition, 1)));
    }
    let catalogue = Catalogue::empty(engine().backbone(), RoutingRule::default());
    let catalogue = catalogue.with_all(residents.iter().map(|(_, resident)| resident.clone())).unwrap();
    let rows = |task| f.data.rows(task, Split::Train).to_vec();
    let queries: Vec<Query> = residents
        .iter()
        .flat_map(|(task, resident)| {
            let rows = rows(*task);
            let samples = Samples::new(&f.data, &rows, &f.missing, &f.processor);
            samples
                .read(&(0..samples.len()).collect::<Vec<_>>())
                .unwrap()
                .into_iter()
                .map(|sample| Query::given(sample, resident.clone()))
                .collect::<Vec<_>>()
        })
        .collect();
    let answers = engine().classify(&catalogue, &queries);
    let truth = residents.iter().flat_map(|(task, _)| rows(*task));
    for ((method, _), answers) in MethodKind::ALL.iter().zip(&residents).zip(answers.chunks(rows(0).len())) {
        assert_eq!(answers.len(), rows(0).len(), "{method}");
    }
    let right = answers.iter().zip(truth).filter(|(answer, row)| {
        let answer = answer.as_ref().unwrap();
        let best = answer.best_label().map(str::to_owned);
        let Label::Class(class) = f.data.items[*row].label else { panic!("one class an item") };
        best.as_ref() == answer.resident.partition.meta.labels.get(class)
    });
    let (right, all) = (right.count(), queries.len());
    assert!(right * 10 >= all * 8, "{right} of {all} training samples are told right");
}

#[test]
fn a_resumed_session_gives_the_artifact_and_log_of_one_never_interrupted() {
    let f = Fixture::new(false);
    f.train(1, &f.settings, &f.outputs("whole"), None).unwrap();
    // Stopped in the second epoch, two steps after the checkpoint; then in the third, with checkpoints inside
    // epochs.
    let often = Outputs { checkpoint_every: 2, ..f.outputs("parts") };
    assert!(matches!(f.train(1, &f.settings, &f.outputs("parts"), Some(5)), Err(TrainError::Stopped { step: 5 })));
    assert!(matches!(f.train(1, &f.settings, &often, None), Err(TrainError::Interrupted(_))));
    let resumed = Outputs { resume: true, ..often };
    assert!(matches!(f.train(1, &f.settings, &resumed, Some(7)), Err(TrainError::Stopped { step: 7 })));
    f.train(1, &f.settings, &resumed, None).unwrap();
    assert!(f.bytes("whole") == f.bytes("parts"));
    assert_eq!(f.losses("whole"), f.losses("parts"));
    assert_eq!(f.losses("parts").len(), 9);
    assert!(!f.dir.path().join("parts.safetensors.checkpoint").exists());
}

#[test]
fn a_checkpoint_of_other_settings_is_refused_by_name() {
    let f = Fixture::new(false);
    f.train(0, &f.settings, &f.outputs("p"), Some(4)).unwrap_err();
    let other = Settings { lr: 0.5, ..f.settings.clone() };
    let error = f.train(0, &other, &Outputs { resume: true, ..f.outputs("p") }, None).unwrap_err().to_string();
    assert!(error.contains("was made with lr 0.002, this run has 0.5"), "{error}");
}

#[test]
fn an_artifact_is_overwritten_only_on_demand() {
    let f = Fixture::new(false);
    let settings = Settings { epochs: 1, first_adapted_layer: 6, ..f.settings.clone() };
    f.train(0, &settings, &f.outputs("p"), None).unwrap();
    let trained = f.bytes("p");
    std::fs::write(f.outputs("p").artifact, "something else").unwrap();
    assert!(matches!(f.train(0, &settings, &f.outputs("p"), None), Err(TrainError::Exists(_))));
    assert_eq!(f.bytes("p"), b"something else");
    f.train(0, &settings, &Outputs { force: true, ..f.outputs("p") }, None).unwrap();
    assert!(f.bytes("p") == trained);
}

#[test]
fn an_image_that_cannot_be_read_is_named_before_the_first_step() {
    let f = Fixture::new(false);
    let complete = MissingTable::draw(&f.data, 0.0, MissingKind::Both, 0).unwrap();
    let f = Fixture { missing: complete, ..f };
    let last = &f.data.items[*f.data.rows(0, Split::Train).last().unwrap()];
    std::fs::write(f.data.image_path(last), "no image").unwrap();
    for cache_bytes in [0, 1 << 30] {
        let outputs = Outputs { cache_bytes, ..f.outputs("p") };
        let error = f.train(0, &f.settings, &outputs, None).unwrap_err();
        assert!(matches!(&error, TrainError::Dataset(DatasetError::Sample { .. })), "{error}");
        assert!(error.to_string().contains(&last.image), "{error}");
        assert!(!outputs.log.exists() && !outputs.artifact.exists());
    }
}

#[test]
fn a_text_without_a_token_does_not_stand_for_a_lost_image() {
    let mut f = Fixture::new(false);
    f.data.items[0].text = "\u{200b}".to_owned();
    let missing = MissingTable { items: [(0, Presence::TextOnly), (1, Presence::TextOnly)].into(), ..f.missing };
    let samples = Samples::new(&f.data, &[0, 1], &missing, &f.processor).read(&[1, 0]).unwrap();
    assert_eq!(samples.iter().map(Sample::presence).collect::<Vec<_>>(), [Presence::TextOnly, Presence::ImageOnly]);
}

#[test]
fn the_loss_falls_and_every_term_is_logged() {
    let f = Fixture::new(false);
    let settings = Settings { epochs: 12, ..f.settings.clone() };
    f.train(0, &settings, &f.outputs("p"), None).unwrap();
    let log = f.losses("p");
    let mean = |rows: &[serde_json::Value]| rows.iter().map(|r| r["classification"].as_f64().unwrap()).sum::<f64>() / rows.len() as f64;
    assert!(mean(&log[log.len() - 6..]) < 0.5 * mean(&log[..6]), "{} then {}", mean(&log[..6]), mean(&log[log.len() - 6..]));
    assert!(log.iter().any(|r| r["alignment"].as_f64().is_some_and(|x| x > 0.0)));
    assert!(log.iter().any(|r| r["consistency"].as_f64().is_some_and(|x| x > 0.0)));
}

#[test]
fn a_linear_head_trains_without_adapters() {
    let f = Fixture::new(false);
    let trained = f.train(0, &Settings { first_adapted_layer: 6, ..f.settings.clone() }, &f.outputs("p"), None).unwrap();
    assert_eq!((trained.pool_parameters, trained.samples, trained.steps), (0, 8, 9));
    assert!(f.losses("p").iter().all(|r| r["alignment"].is_null() && r["consistency"].is_null()));
}

#[test]
fn evaluation_shows_both_columns_and_agrees_with_the_artifact() {
    for multi_label in [false, true] {
        let f = Fixture::new(multi_label);
        f.train(0, &f.settings, &f.outputs("a"), None).unwrap();
        f.train(1, &f.settings, &f.outputs("b"), None).unwrap();
        let residents = ["b", "a"].map(|name| Resident::new(f.partition(name), 1));
        let rules = [
            RoutingRule { metric: Some(Metric::Whitened), ..Default::default() },
            RoutingRule { metric: Some(Metric::Plain), ..Default::default() },
        ];
        let evaluation = Evaluation {
            engine: engine(),
            processor: &f.processor,
            data: &f.data,
            missing: &f.missing,
            split: Split::Val,
            partitions: &residents,
            rules: &rules,
            store: None,
        };
        let evaluated = evaluate(&evaluation, &mut |_, _| ()).unwrap();
        let report = &evaluated.report;
        assert_eq!(report.samples, 4);
        // The data set's order, not the folder's.
        let tasks: Vec<_> = report.oracle.tasks.iter().map(|t| t.task.as_str()).collect();
        assert_eq!(tasks, ["warm", "cool"]);
        let name = if multi_label { "val_f1_macro" } else { "val_accuracy" };
        for (row, resident) in report.oracle.tasks.iter().zip(residents.iter().rev()) {
            assert_eq!(row.scores.last(), Some(&resident.partition.meta.metrics[name]), "{name}");
        }
        // The samples that the figures are drawn from.
        let rows: Vec<usize> = (0..2).flat_map(|task| f.data.rows(task, Split::Val).to_vec()).collect();
        assert_eq!(evaluated.samples.iter().map(|s| s.item).collect::<Vec<_>>(), rows);
        let share = |right: fn(&SampleRecord) -> bool| {
            Some(100.0 * evaluated.samples.iter().filter(|s| right(s)).count() as f64 / evaluated.samples.len() as f64)
        };
        assert_eq!(share(|s| s.routed[1].as_ref() == Some(&s.task)), report.agnostic[1].routing.unwrap().all);
        if !multi_label {
            assert_eq!(share(|s| s.truth == s.prediction), report.oracle.score.all);
        }
        assert_eq!(report.oracle.fg, Some(0.0));
        assert_eq!(report.agnostic.len(), 2);
        for column in &report.agnostic {
            assert!(column.ap <= report.oracle.ap);
            assert_eq!(column.tasks[0].scores.len(), 2);
            // One task alone takes every sample.
            assert_eq!(column.tasks[0].scores[0], report.oracle.tasks[0].scores[0]);
        }

        // The routing accuracy is that of the catalogue that serves.
        let catalogue = Catalogue::empty(engine().backbone(), rules[0]).with_all(residents.clone()).unwrap();
        let rows: Vec<usize> = (0..2).flat_map(|task| f.data.rows(task, Split::Val).to_vec()).collect();
        let samples = Samples::new(&f.data, &rows, &f.missing, &f.processor).read(&[0, 1, 2, 3]).unwrap();
        let chosen = engine().route(&catalogue, &samples).unwrap();
        let hits = rows.iter().zip(&chosen).filter(|(row, c)| *c[0].task == f.data.tasks[f.data.items[**row].task].name).count();
        assert_eq!(report.agnostic[0].routing.unwrap().all, Some(25.0 * hits as f64));

        for column in std::iter::once(&report.oracle).chain(&report.agnostic) {
            assert_eq!((column.f1_macro_own, column.f1_macro_all_seen.is_some()), (column.ap.filter(|_| multi_label), multi_label));
            let ([low, high], ap) = (column.ap_interval.unwrap(), column.ap.unwrap());
            assert!(low <= ap && ap <= high, "{ap} [{low}, {high}]");
        }
        assert!(report.notes.is_empty(), "{:?}", report.notes);

        // A task without items in the split is named and in no mean; the missing table is another one.
        let only_warm: Vec<_> = f.data.items.iter().filter(|item| item.task == 0 || item.split == Split::Train).cloned().collect();
        let only_warm = Dataset::new(f.dir.path().to_owned(), f.data.name.clone(), multi_label, f.data.tasks.clone(), only_warm);
        let missing = MissingTable::draw(&only_warm, 0.5, MissingKind::Text, 0).unwrap();
        let evaluation = Evaluation { data: &only_warm, missing: &missing, ..evaluation };
        let report = evaluate(&evaluation, &mut |_, _| ()).unwrap().report;
        assert_eq!(report.oracle.ap.as_ref(), report.oracle.tasks[0].scores.last());
        let notes = report.notes.join("\n");
        assert!(notes.contains("no val items of cool: left out of AP and FG"), "{notes}");
        assert!(
            notes.contains("--missing text --seed 0, but trained with that of --eta 0.5 --missing both --seed 0: warm, cool"),
            "{notes}"
        );

        let evaluation = Evaluation { data: &f.data, missing: &f.missing, ..evaluation };
        let alone = Evaluation { partitions: &residents[..1], ..evaluation };
        assert!(evaluate(&alone, &mut |_, _| ()).unwrap().report.notes[0].contains("no partition for warm"));
        let none = Evaluation { partitions: &[], ..alone };
        assert!(matches!(evaluate(&none, &mut |_, _| ()), Err(EvalError::NoTask(_))));
    }
}

#[test]
fn f1_macro_over_all_seen_classes_is_that_of_what_the_server_answers() {
    let f = Fixture::new(true);
    f.train(0, &f.settings, &f.outputs("a"), None).unwrap();
    f.train(1, &f.settings, &f.outputs("b"), None).unwrap();
    let (warm, mut cool) = (f.partition("a"), f.partition("b"));
    // With equal keys, the samples of both tasks go to one of them.
    cool.keys = warm.keys.clone();
    let residents = [Resident::new(warm, 1), Resident::new(cool, 1)];
    let rule = RoutingRule::default();
    let evaluation = Evaluation {
        engine: engine(),
        processor: &f.processor,
        data: &f.data,
        missing: &f.missing,
        split: Split::Train,
        partitions: &residents,
        rules: &[rule],
        store: None,
    };
    let report = evaluate(&evaluation, &mut |_, _| ()).unwrap().report;

    let catalogue = Catalogue::empty(engine().backbone(), rule).with_all(residents.clone()).unwrap();
    let rows: Vec<usize> = (0..2).flat_map(|task| f.data.rows(task, Split::Train).to_vec()).collect();
    let samples = Samples::new(&f.data, &rows, &f.missing, &f.processor).read(&(0..rows.len()).collect::<Vec<_>>()).unwrap();
    let answers = engine().classify(&catalogue, &samples.into_iter().map(Query::open).collect::<Vec<_>>());
    let (mut hits, mut errors, mut misrouted) = ([0.0; 4], [0.0; 4], 0);
    for (row, answer) in rows.iter().zip(answers) {
        let (item, answer) = (&f.data.items[*row], answer.unwrap());
        misrouted += usize::from(answer.resident.task() != f.data.tasks[item.task].name);
        let Label::Classes(flags) = &item.label else { panic!("a list of flags") };
        for (class, name) in ["red", "orange", "blue", "green"].iter().enumerate() {
            let labels = &answer.resident.partition.meta.labels;
            let predicted = labels.iter().zip(&answer.scores).any(|(label, score)| label == name && *score > 0.5);
            match (predicted, item.task == class / 2 && flags[class % 2]) {
                (true, true) => hits[class] += 1.0,
                (false, false) => {}
                _ => errors[class] += 1.0,
            }
        }
    }
    assert_eq!(misrouted, rows.len() / 2);
    let f1 = |class: usize| if hits[class] == 0.0 { 0.0 } else { 2.0 * hits[class] / (2.0 * hits[class] + errors[class]) };
    let expected = 25.0 * (0..4).map(f1).sum::<f64>();
    let found = report.agnostic[0].f1_macro_all_seen.unwrap();
    assert!(expected > 0.0 && (found - expected).abs() < 1e-9, "{found}, not {expected}");
}

#[test]
fn an_artifact_holds_the_keys_of_its_two_rules_and_no_others() {
    let f = Fixture::new(false);
    let settings = Settings { epochs: 1, first_adapted_layer: 6, ..f.settings.clone() };
    let (parts, mean) = (KeySignal::Parts { layer: 2 }, KeySignal::MeanQuery { layer: 0 });
    let names = |keys: &std::collections::BTreeMap<KeySignal, Vec<f32>>| {
        let mut names: Vec<String> = keys.keys().map(KeySignal::to_string).collect();
        names.sort();
        names
    };
    for (i, (metric, signal, plain_signal, plain_average, means, emas)) in [
        (Metric::Whitened, parts, KeySignal::Pooled, KeyAverage::Mean, &["parts@2", "pooled"][..], &[][..]),
        (Metric::Plain, parts, mean, KeyAverage::Ema, &["parts@2"], &["mean@0"]),
        (Metric::Whitened, mean, mean, KeyAverage::Ema, &["mean@0"], &["mean@0"]),
    ]
    .into_iter()
    .enumerate()
    {
        let (name, key) = (format!("p{i}"), KeyRule { metric, signal, plain_signal, plain_average, temperature: None });
        f.train_with_key(0, &settings, &f.outputs(&name), None, key).unwrap();
        let keys = f.partition(&name).keys;
        assert!(names(&keys.mean) == means && names(&keys.ema) == emas, "{name}: {}", keys.held());
        assert_eq!(names(&keys.moments), [signal.to_string()]);
    }

    // A rule with another signal is refused with the signals that the artifact holds, and how to train with
    // another.
    let rule = RoutingRule { metric: Some(Metric::Plain), signal: Some(mean), average: Some(KeyAverage::Ema) };
    let told = Catalogue::empty(engine().backbone(), rule).with(Resident::new(f.partition("p0"), 1)).unwrap_err().to_string();
    for words in [
        "no ema key of the signal mean@0",
        "mean keys of parts@2, pooled; second moment of parts@2",
        "--plain-signal mean@0 --plain-average ema",
    ] {
        assert!(told.contains(words), "{told}");
    }
    let rule = RoutingRule { metric: Some(Metric::Whitened), signal: Some(KeySignal::Summary), average: None };
    let catalogue = Catalogue::empty(engine().backbone(), rule).with(Resident::new(f.partition("p0"), 1)).unwrap();
    let notice = catalogue.notice().unwrap();
    assert!(notice.contains("second moment of parts@2") && notice.contains("--key-signal summary"), "{notice}");
}

#[test]
fn adapters_that_are_taken_over_give_the_artifact_that_training_gives() {
    for (multi_label, residual) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut f = Fixture::new(multi_label).mixing();
        if residual {
            f.settings = Settings { residual, head_weight: 1.0, ..f.settings };
        }
        let key = key_rule(Metric::Lda, KeySignal::PartsPooled { layer: 3, width: None });
        let outputs = f.outputs("trained");
        f.train_with_key(0, &f.settings, &outputs, None, key.clone()).unwrap();
        let trained = std::fs::read(&outputs.artifact).unwrap();
        let learnt = Artifact::parse(&trained).unwrap();
        let AnalyticRecord { weight, head_weight, .. } = learnt.meta.analytic.unwrap();
        // Both factors are divided by the temperature of the scores.
        assert!(head_weight > 0.0 && head_weight <= if residual { 1.0 } else { 0.65 }, "{head_weight}");
        let share = weight / head_weight;
        assert!(if residual { share > 0.0 } else { (share - 0.35 / 0.65).abs() < 1e-5 }, "{share}");
        let settings = settings_of(&learnt).unwrap();
        assert_eq!(settings, f.settings);
        let session = |settings| Session {
            engine: engine(),
            processor: &f.processor,
            backbone: "emoji-mini".to_owned(),
            data: &f.data,
            missing: &f.missing,
            task: 0,
            settings,
            key: key.clone(),
            store: None,
        };
        let again = f.outputs("again");
        renew(&session(&settings), &learnt, &again).unwrap();
        assert!(std::fs::read(&again.artifact).unwrap() == trained, "the same session gives the same bytes");

        let other = MissingTable::draw(&f.data, 0.5, MissingKind::Text, 0).unwrap();
        let wrong = Session { missing: &other, ..session(&settings) };
        let told = renew(&wrong, &learnt, &f.outputs("other")).unwrap_err().to_string();
        assert!(told.contains("--missing"), "{told}");
    }
}

#[test]
fn the_scores_are_those_of_head_and_analytic_classifier_together() {
    for multi_label in [false, true] {
        let f = Fixture::new(multi_label).mixing();
        let key = key_rule(Metric::Lda, KeySignal::PartsPooled { layer: 3, width: None });
        f.train_with_key(0, &f.settings, &f.outputs("p"), None, key.clone()).unwrap();
        let head_alone = Settings { head_weight: 1.0, ..f.settings.clone() };
        f.train_with_key(0, &head_alone, &f.outputs("head"), None, key).unwrap();
        let (mixed, head) = (f.partition("p"), f.partition("head"));
        assert!(head.analytic.is_none());
        assert_eq!(mixed.meta.key.temperature, None, "two val samples fit none");
        let analytic = mixed.analytic.clone().unwrap();
        let (weight, head_weight) = (analytic.record.weight, analytic.record.head_weight);
        // (0.35 z + 0.65 logits) / τ: never surer than the classifiers.
        assert!((weight / head_weight - 0.35 / 0.65).abs() < 1e-5 && head_weight <= 0.65, "{:?}", analytic.record);
        let samples = Samples::new(&f.data, f.data.rows(0, Split::Test), &f.missing, &f.processor).read(&[0, 1]).unwrap();
        let packed = engine().embed(&samples, engine().default_dummy_image()).unwrap();
        let signals = engine().signals(&packed, &[analytic.record.signal]).unwrap()[&analytic.record.signal].to_vec2::<f32>().unwrap();
        let empty = Catalogue::empty(engine().backbone(), RoutingRule::default());
        let scores = |partition: &Partition| -> Vec<Vec<f32>> {
            let resident = Resident::new(partition.clone(), 1);
            let queries: Vec<Query> = samples.iter().map(|sample| Query::given(sample.clone(), resident.clone())).collect();
            engine().classify(&empty, &queries).into_iter().map(|answer| answer.unwrap().scores).collect()
        };
        // The logarithm of a score, or of its odds, is its logit but for a constant of the sample.
        let logit = |p: &f32| if multi_label { (p / (1.0 - p)).ln() } else { p.ln() };
        for ((mixed, head), signal) in scores(&mixed).iter().zip(scores(&head)).zip(&signals) {
            let logits: Vec<f32> = head.iter().zip(analytic.logits(signal)).map(|(p, z)| head_weight * logit(p) + weight * z).collect();
            let largest = logits.iter().copied().fold(f32::MIN, f32::max);
            let sum: f32 = logits.iter().map(|x| (x - largest).exp()).sum();
            let expected = |x: &f32| if multi_label { 1.0 / (1.0 + (-x).exp()) } else { (x - largest).exp() / sum };
            for (found, logit) in mixed.iter().zip(&logits) {
                assert!((found - expected(logit)).abs() < 1e-4, "{mixed:?} {head:?} {logits:?}");
            }
        }
    }
}

#[test]
fn the_artifact_says_how_special_tokens_were_read_and_evaluation_reads_them_so() {
    for special_tokens in [false, true] {
        let f = Fixture::new(false);
        let f = Fixture { processor: f.processor.with_special_tokens(special_tokens), ..f };
        f.train(0, &Settings { epochs: 1, first_adapted_layer: 6, ..f.settings.clone() }, &f.outputs("p"), None).unwrap();
        let partition = f.partition("p");
        assert_eq!(partition.meta.special_tokens, Some(special_tokens));
        let evaluation = |processor: &InputProcessor| {
            let residents = [Resident::new(partition.clone(), 1)];
            let evaluation = Evaluation {
                engine: engine(),
                processor,
                data: &f.data,
                missing: &f.missing,
                split: Split::Val,
                partitions: &residents,
                rules: &[RoutingRule::default()],
                store: None,
            };
            evaluate(&evaluation, &mut |_, _| ()).map(drop).map_err(|e| e.to_string())
        };
        evaluation(&f.processor).unwrap();
        let other = Fixture::new(false).processor.with_special_tokens(!special_tokens);
        let error = evaluation(&other).unwrap_err();
        assert!(error.contains("--special-tokens"), "{error}");
    }
}

/// The embedded checkpoint for texts of up to 64 tokens.
fn longer() -> Checkpoint {
    let options = Options { precision: Some(Precision::F32), device: DeviceChoice::Cpu, ..Options::default() };
    let texts = TextOptions { positions: Some(64), ..TextOptions::default() };
    Checkpoint::load(&ModelDir::Embedded, Limits::default(), texts, options).unwrap()
}

#[test]
fn the_artifact_says_how_long_its_texts_were_and_goes_with_no_other_length() {
    let f = Fixture::new(false);
    let settings = Settings { epochs: 1, first_adapted_layer: 6, ..f.settings.clone() };
    let Checkpoint { engine: longer_engine, processor: longer_processor } = longer();
    let session = |engine| Session {
        engine,
        processor: &longer_processor,
        backbone: "emoji-mini".to_owned(),
        data: &f.data,
        missing: &f.missing,
        task: 0,
        settings: &settings,
        key: key_rule(Metric::Whitened, KeySignal::Parts { layer: 2 }),
        store: None,
    };
    train(&session(&longer_engine), &f.outputs("long"), &mut |_| ControlFlow::Continue(())).unwrap();
    f.train(0, &settings, &f.outputs("short"), None).unwrap();
    let [long, short] = ["long", "short"].map(|name| f.partition(name));
    assert_eq!((long.meta.text_positions, short.meta.text_positions), (Some(64), None));
    assert_eq!(long.meta.backbone.fingerprint, short.meta.backbone.fingerprint);
    // A program that knows no such field must not cut the texts without a word.
    let header = |name: &str| safetensors::SafeTensors::read_metadata(&f.bytes(name)).unwrap().1.metadata().clone().unwrap();
    assert_eq!((header("long")["format_version"].as_str(), header("short")["format_version"].as_str()), ("3", "2"));
    assert!(!header("short")["partition"].contains("text_positions"));

    let refusal = |engine: &Engine, partition: &Partition| {
        let empty = Catalogue::empty(engine.backbone(), RoutingRule::default());
        empty.with(Resident::new(partition.clone(), 1)).err().map(|e| e.to_string())
    };
    assert_eq!((refusal(&longer_engine, &long), refusal(engine(), &short)), (None, None));
    let own = engine().backbone().config.max_position_embeddings;
    for (engine, partition, trained, read) in [(engine(), &long, 64, own), (&longer_engine, &short, own, 64)] {
        let refusal = refusal(engine, partition).unwrap();
        let [start, retrain] = [format!("model.text_positions = {trained}"), format!("train it with --text-positions {read}")];
        assert!(refusal.contains(&start) && refusal.contains(&retrain), "{refusal}");
    }
    let learnt = Artifact::parse(&f.bytes("long")).unwrap();
    let refusal = renew(&session(engine()), &learnt, &f.outputs("renewed")).unwrap_err().to_string();
    assert!(refusal.contains("--text-positions 64"), "{refusal}");
    renew(&session(&longer_engine), &learnt, &f.outputs("renewed")).unwrap();

    let every_step = Outputs { checkpoint_every: 1, ..f.outputs("resumed") };
    let stop_at_once = |event: Event<'_>| match event {
        Event::Step { .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    train(&session(&longer_engine), &every_step, &mut { stop_at_once }).unwrap_err();
    let resumed = f.train(0, &settings, &Outputs { resume: true, ..every_step }, None).unwrap_err().to_string();
    assert!(resumed.contains("--text-positions 64"), "{resumed}");
}
