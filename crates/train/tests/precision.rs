//! What bf16 costs in answers: the test split of Emoji-CMML, with the partitions in the program, in both
//! number formats.
use std::path::Path;

use delo_catalogue::{Catalogue, RoutingRule};
use delo_engine::{Answer, Options, Query};
use delo_kernels::Precision;
use delo_model::input::Sample;
use delo_train::data::{Label, Samples};
use delo_train::eval::read_embedded;
use delo_train::{Dataset, MissingKind, MissingTable, Split};

/// Share of samples, in percent, whose best label bf16 must leave as f32 has it.
const SAME_LABEL: f64 = 99.0;
/// How far the average accuracy over tasks may move, in points. One item of the smallest of the seven tasks
/// is 0.28.
const AVERAGE: f64 = 0.5;

/// A sample's task, true label and what is sent.
struct Item {
    task: String,
    label: Label,
    sample: Sample,
}

fn items(tasks: &[&str]) -> Vec<Item> {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("data/emoji-cmml");
    let data = Dataset::open(&dir).unwrap();
    let missing = MissingTable::draw(&data, 0.7, MissingKind::Both, 0).unwrap();
    let processor = delo_fixtures::processor();
    let mut items = Vec::new();
    for (index, task) in data.tasks.iter().enumerate().filter(|(_, task)| tasks.contains(&task.name.as_str())) {
        let rows = data.rows(index, Split::Test);
        let samples = Samples::new(&data, rows, &missing, &processor);
        let read = samples.read(&(0..samples.len()).collect::<Vec<_>>()).unwrap();
        let of = |(sample, row): (Sample, &usize)| Item { task: task.name.clone(), label: data.items[*row].label.clone(), sample };
        items.extend(read.into_iter().zip(rows).map(of));
    }
    items
}

/// Every item's answer with its task given, and with its task decided.
fn answers(precision: Precision, items: &[Item]) -> [Vec<Answer>; 2] {
    let engine = delo_fixtures::engine_with(Options { precision: Some(precision), ..Options::default() });
    let residents = read_embedded(engine.backbone()).unwrap();
    let catalogue = Catalogue::empty(engine.backbone(), RoutingRule::default()).with_all(residents).unwrap();
    [true, false].map(|given| {
        let query =
            |item: &Item| Query { given: given.then(|| catalogue.get(&item.task).unwrap().clone()), ..Query::open(item.sample.clone()) };
        let queries: Vec<Query> = items.iter().map(query).collect();
        queries.chunks(16).flat_map(|chunk| engine.classify(&catalogue, chunk)).map(Result::unwrap).collect()
    })
}

fn best(answer: &Answer) -> usize {
    (0..answer.scores.len()).max_by(|&i, &j| answer.scores[i].total_cmp(&answer.scores[j])).unwrap()
}

/// Mean over tasks of the accuracy, in percent; a sample that was routed to another task counts as wrong.
fn average(items: &[Item], answers: &[Answer]) -> f64 {
    let mut tasks: Vec<&str> = items.iter().map(|item| item.task.as_str()).collect();
    tasks.dedup();
    let of_task = |task: &&str| {
        let own: Vec<_> = items.iter().zip(answers).filter(|(item, _)| item.task == *task).collect();
        let right =
            own.iter().filter(|(item, answer)| answer.resident.task() == item.task && Label::Class(best(answer)) == item.label).count();
        100.0 * right as f64 / own.len() as f64
    };
    tasks.iter().map(of_task).sum::<f64>() / tasks.len() as f64
}

#[test]
fn bf16_answers_as_f32_does() {
    let residents = read_embedded(delo_fixtures::engine().backbone()).unwrap();
    let items = items(&residents.iter().map(|r| r.task()).collect::<Vec<_>>());
    assert!(items.len() > 500);
    let (exact, rounded) = (answers(Precision::F32, &items), answers(Precision::Bf16, &items));
    for (way, (exact, rounded)) in ["task given", "task decided"].iter().zip(exact.iter().zip(&rounded)) {
        let same = exact.iter().zip(rounded).filter(|(x, y)| x.resident.task() == y.resident.task() && best(x) == best(y)).count();
        let share = 100.0 * same as f64 / items.len() as f64;
        let (x, y) = (average(&items, exact), average(&items, rounded));
        println!("{way}: {share:.2} % of {} answers the same, average accuracy {x:.2} in f32, {y:.2} in bf16", items.len());
        assert!(share >= SAME_LABEL, "{way}: {share}");
        assert!((x - y).abs() <= AVERAGE, "{way}: {x} and {y}");
    }
}
