//! What holds of every peer: it learns sessions one after another, predicts each sample by itself, and its
//! figures have the readings of METHOD.md 6.
use delo_fixtures::colours::write_data;
use delo_fixtures::{engine, key_rule, processor};
use delo_model::input::InputProcessor;
use delo_model::{KeySignal, Metric};
use delo_train::data::Samples;
use delo_train::eval::LearnerEvaluation;
use delo_train::eval::protocol::Evaluated;
use delo_train::peers::ContinualLearner;
use delo_train::peers::named::{named, names};
use delo_train::{Dataset, MissingKind, MissingTable, Session, Settings, Split};
use serde_json::{Map, Value};

struct Fixture {
    _dir: tempfile::TempDir,
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
        let settings = Settings { lr: 1e-2, batch: 3, epochs: 2, ..Settings::default() };
        Self { _dir: dir, data, missing, processor: processor(), settings }
    }

    fn session(&self, task: usize) -> Session<'_> {
        Session {
            engine: engine(),
            processor: &self.processor,
            backbone: "emoji-mini".to_owned(),
            data: &self.data,
            missing: &self.missing,
            task,
            settings: &self.settings,
            key: key_rule(Metric::Whitened, KeySignal::Pooled),
            store: None,
        }
    }

    /// The peer of this name after both sessions, and its evaluation on the train split.
    fn learn(&self, name: &str) -> (Box<dyn ContinualLearner>, Evaluated) {
        let small = if name == "ranpac" { Map::from_iter([("features".to_owned(), Value::from(64))]) } else { Map::new() };
        let mut learner = named(name, small).unwrap();
        let mut evaluation = LearnerEvaluation::new(&self.data, &self.missing, &self.processor, Split::Train);
        for task in 0..2 {
            learner.learn(&self.session(task)).unwrap();
            evaluation.after_session(&*learner, &self.session(task)).unwrap();
        }
        (learner, evaluation.finish())
    }
}

#[test]
fn every_peer_predicts_each_sample_by_itself_over_all_classes_seen() {
    let f = Fixture::new(false);
    for name in names() {
        let (learner, Evaluated { report, samples }) = f.learn(name);
        assert_eq!((report.samples, samples.len(), report.agnostic.len()), (16, 16, 1), "{name}");
        let rows: Vec<usize> = (0..2).flat_map(|task| f.data.rows(task, Split::Train).to_vec()).collect();
        let read = Samples::new(&f.data, &rows, &f.missing, &f.processor).read(&(0..16).collect::<Vec<_>>()).unwrap();
        let together = learner.logits(&f.session(1), &read).unwrap();
        for (sample, logits) in read.iter().zip(&together) {
            assert_eq!(logits.len(), 4, "{name}");
            assert_eq!(learner.logits(&f.session(1), std::slice::from_ref(sample)).unwrap()[0], *logits, "{name}");
        }
        // The best class is right exactly where its task is and the best class of that task is.
        let (oracle, agnostic) = (report.oracle.score.all.unwrap(), report.agnostic[0].score.all.unwrap());
        assert!(agnostic <= oracle, "{name}");
        let right = samples.iter().filter(|s| s.truth == s.prediction && s.routed[0].as_ref() == Some(&s.task)).count();
        assert_eq!(agnostic, 100.0 * right as f64 / 16.0, "{name}");
        // One task alone takes every sample.
        assert_eq!(report.agnostic[0].tasks[0].scores[0], report.oracle.tasks[0].scores[0], "{name}");
        assert!(learner.head_parameters() > 0, "{name}");
    }
}

#[test]
fn peers_without_a_gradient_and_heads_tell_the_colours_apart() {
    let f = Fixture::new(false);
    for name in ["nearest_mean", "ridge", "ranpac", "lda", "linear_head", "joint_head"] {
        let (learner, Evaluated { report, .. }) = f.learn(name);
        let oracle = report.oracle.score.all.unwrap();
        assert!(oracle >= 80.0, "{name}: {oracle} % of the training samples with the task given");
        assert_eq!(learner.choices().is_null(), name == "nearest_mean", "{name}");
    }
}

#[test]
fn a_multi_label_peer_is_scored_over_its_own_classes_and_over_all_seen() {
    let f = Fixture::new(true);
    for name in names() {
        let (_, Evaluated { report, samples }) = f.learn(name);
        let (oracle, agnostic) = (&report.oracle, &report.agnostic[0]);
        assert_eq!((oracle.f1_macro_own, agnostic.f1_macro_own), (oracle.ap, oracle.ap), "{name}: no task is chosen");
        assert!(agnostic.f1_macro_all_seen.is_some() && agnostic.f1_macro_all_seen <= oracle.f1_macro_all_seen, "{name}");
        assert!(samples.iter().all(|sample| sample.unrouted), "{name}");
        assert!(report.notes.iter().any(|note| note.contains("F1 all seen")), "{name}: {:?}", report.notes);
    }
}
