//! A small data set for the tests of the peers, and what every one of them promises.
use candle_core::Tensor;

use super::ContinualLearner;
use crate::data::{Label, Samples};
use crate::{Dataset, MissingKind, MissingTable, Session, Settings, Split};
use delo_fixtures::colours::write_data;
use delo_fixtures::{engine, key_rule, processor};
use delo_model::input::{InputProcessor, Sample};
use delo_model::routing::keys::{KeySignal, Metric};

/// Two sessions of two colours each; half of the items have lost a modality.
pub(super) struct Toy {
    _dir: tempfile::TempDir,
    data: Dataset,
    missing: MissingTable,
    processor: InputProcessor,
    pub settings: Settings,
}

impl Toy {
    pub fn new(multi_label: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_data(dir.path(), multi_label);
        let data = Dataset::open(dir.path()).unwrap();
        let missing = MissingTable::draw(&data, 0.5, MissingKind::Both, 0).unwrap();
        let settings = Settings { lr: 5e-3, batch: 4, epochs: 10, ..Settings::default() };
        Self { _dir: dir, data, missing, processor: processor(), settings }
    }

    pub fn session(&self, task: usize) -> Session<'_> {
        Session {
            engine: engine(),
            processor: &self.processor,
            backbone: "emoji-mini".to_owned(),
            data: &self.data,
            missing: &self.missing,
            task,
            settings: &self.settings,
            key: key_rule(Metric::Plain, KeySignal::Pooled),
            store: None,
        }
    }

    /// The training samples of a session.
    pub fn samples(&self, task: usize) -> Vec<Sample> {
        let rows = self.data.rows(task, Split::Train);
        Samples::new(&self.data, rows, &self.missing, &self.processor).read(&(0..rows.len()).collect::<Vec<_>>()).unwrap()
    }

    fn labels(&self, task: usize) -> Vec<&Label> {
        self.data.rows(task, Split::Train).iter().map(|&row| &self.data.items[row].label).collect()
    }

    /// The logits of a session's training samples over this session's classes.
    fn own_logits(&self, peer: &dyn ContinualLearner, task: usize) -> Vec<Vec<f32>> {
        let logits = peer.logits(&self.session(task), &self.samples(task)).unwrap();
        let own = self.data.first_class(task)..self.data.first_class(task) + self.data.tasks[task].labels.len();
        logits.into_iter().map(|row| row[own.clone()].to_vec()).collect()
    }
}

/// The values of a tensor.
pub(super) fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// It learns what it is shown, predicts over all classes seen so far, gives a sample the same bits in any
/// batch, and is the same to the bit for the same seed.
pub(super) fn keeps_its_promises<P: ContinualLearner>(new: impl Fn() -> P) {
    let toy = Toy::new(false);
    let [mut peer, mut twin] = [new(), new()];
    for task in 0..2 {
        peer.learn(&toy.session(task)).unwrap();
        let (mut loss, mut right) = (0.0, 0);
        let labels = toy.labels(task);
        for (logits, label) in toy.own_logits(&peer, task).iter().zip(&labels) {
            let &&Label::Class(class) = label else { panic!("one class an item") };
            loss += logits.iter().map(|x| x.exp()).sum::<f32>().ln() - logits[class];
            right += usize::from(logits[class] > logits[1 - class]);
        }
        loss /= labels.len() as f32;
        assert!(loss < 0.7 * 2f32.ln(), "session {task}: the loss of two equally likely classes is 0.69, this is {loss}");
        assert!(right * 10 >= labels.len() * 8, "session {task}: {right} of {} are right", labels.len());
        if task == 0 {
            twin.learn(&toy.session(0)).unwrap();
            let [one, other] = [&peer, &twin].map(|peer| toy.own_logits(peer, 0));
            assert_eq!(one, other, "the same seed, the same bits");
        }
    }
    let (session, samples) = (toy.session(1), [toy.samples(0), toy.samples(1)].concat());
    let together = peer.logits(&session, &samples).unwrap();
    assert!(together.iter().all(|row| row.len() == 4), "a logit for each class of both sessions");
    for (sample, together) in samples.iter().zip(&together) {
        assert_eq!(&peer.logits(&session, std::slice::from_ref(sample)).unwrap()[0], together);
    }
    assert!(peer.parameters() > 0);
}

/// It learns where a sample has any number of classes.
pub(super) fn learns_several_labels<P: ContinualLearner>(mut peer: P) {
    let mut toy = Toy::new(true);
    toy.settings.epochs = 5;
    for task in 0..2 {
        peer.learn(&toy.session(task)).unwrap();
        for (logits, label) in toy.own_logits(&peer, task).iter().zip(toy.labels(task)) {
            let Label::Classes(flags) = label else { panic!("a flag for each class") };
            // The first label is on every item.
            assert!(flags[0] && logits[0] > 0.0, "session {task}: {logits:?} for {flags:?}");
        }
    }
}
