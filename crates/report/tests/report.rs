//! The diagnostics of small random partitions hold what their definitions say, and a report is a folder of
//! files.
use std::sync::Arc;

use delo_catalogue::{Resident, RoutingRule};
use delo_fixtures::colours::write_data;
use delo_fixtures::{artifact, engine, key_rule, processor, random_model, spec};
use delo_model::partition::KeyRule;
use delo_model::{KeySignal, Layout, Metric, Partition};
use delo_report::diagnostics::Diagnostics;
use delo_report::{Page, diagnose, write};
use delo_train::eval::{Evaluation, Report, evaluate};
use delo_train::{Dataset, MissingKind, MissingTable, Split};

/// The layer from which the partitions adapt.
const FIRST: usize = 3;

/// Partitions of the two tasks of colours, of random factors and with keys of random samples.
fn residents(rule: &KeyRule) -> Vec<Arc<Resident>> {
    let labels = [("warm", ["red", "orange"]), ("cool", ["blue", "green"])];
    let resident = |(seed, (task, labels)): (u64, (&str, [&str; 2]))| {
        let bytes = artifact(task, &random_model(spec(Layout::RankOne, FIRST), 2, seed), rule.clone(), seed);
        let mut partition = Partition::read(&bytes, engine().backbone()).unwrap();
        partition.meta.labels = labels.map(str::to_owned).to_vec();
        Resident::new(partition, 1)
    };
    (0..).zip(labels).map(resident).collect()
}

/// The report and the diagnostics of these partitions on the training split.
fn examined(rule: &KeyRule) -> (Report, Diagnostics) {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path(), false);
    let data = Dataset::open(dir.path()).unwrap();
    let missing = MissingTable::draw(&data, 0.5, MissingKind::Both, 0).unwrap();
    let processor = processor();
    let evaluation = Evaluation {
        engine: engine(),
        processor: &processor,
        data: &data,
        missing: &missing,
        split: Split::Train,
        partitions: &residents(rule),
        rules: &[RoutingRule::default()],
        store: None,
    };
    let report = evaluate(&evaluation, &mut |_, _| ()).unwrap().report;
    let mut done = Vec::new();
    let diagnostics = diagnose(&evaluation, &mut |samples, total| done.push((samples, total))).unwrap();
    assert_eq!(done.last(), Some(&(16, 16)));
    (report, diagnostics)
}

#[test]
fn diagnostics_agree_with_the_evaluation_and_with_each_other() {
    let rule = KeyRule { temperature: Some(4.0), ..key_rule(Metric::Lda, KeySignal::Parts { layer: FIRST }) };
    let (report, found) = examined(&rule);
    assert_eq!((found.samples, found.rule.as_str()), (16, "lda parts@3"));

    let coverage = found.coverage.unwrap();
    let all = coverage.points.last().unwrap();
    let share = |figure: Option<f64>| figure.unwrap() / 100.0;
    assert_eq!((coverage.confidence.as_str(), all.coverage), ("probability", 1.0));
    assert!((all.routing - share(report.agnostic[0].routing.unwrap().all)).abs() < 1e-12);
    assert!((all.accuracy.unwrap() - share(report.agnostic[0].score.all)).abs() < 1e-12);

    let calibration = found.calibration.unwrap();
    for reliability in [&calibration.before, &calibration.after] {
        assert_eq!(reliability.bins.iter().map(|bin| bin.samples).sum::<usize>(), 16);
    }
    let right: f64 = calibration.after.bins.iter().map(|bin| bin.samples as f64 * bin.accuracy).sum();
    assert!((right / 16.0 - all.routing).abs() < 1e-9);
    let sureness = |r: &delo_report::diagnostics::Reliability| r.bins.iter().map(|b| b.samples as f64 * b.confidence).sum::<f64>();
    assert!(sureness(&calibration.before) > sureness(&calibration.after), "τ = 4 makes unsure");

    let layers = engine().backbone().config.num_hidden_layers;
    assert_eq!(found.selection.iter().map(|task| task.task.as_str()).collect::<Vec<_>>(), ["warm", "cool"]);
    for task in &found.selection {
        assert_eq!((task.samples, task.rank, task.pools.len()), (8, 2, 6 * (layers - FIRST)));
        for pool in &task.pools {
            assert_eq!((pool.a.len(), pool.b.len()), (5, 5));
            for shares in [&pool.a, &pool.b] {
                assert!((shares.iter().sum::<f64>() - 2.0).abs() < 1e-9, "each sample selects two of each");
            }
        }
    }

    let similarity = found.similarity.unwrap();
    assert_eq!((similarity.samples, similarity.layers.len()), (8, layers));
    for (layer, found) in similarity.layers.iter().enumerate() {
        assert_eq!(found.frozen.counts.iter().sum::<u64>(), 8);
        // The state that enters the first adapted layer is still that of the frozen backbone.
        assert_eq!(found.frozen == found.adapted, layer <= FIRST, "layer {layer}");
    }

    let map = found.queries.unwrap();
    assert_eq!((map.samples.len(), map.keys.len(), map.signal.as_str()), (16, 2, "parts@3"));
    assert!(map.samples.iter().chain(&map.keys).all(|point| point.tsne.is_some()));
}

#[test]
fn a_metric_without_probabilities_has_no_calibration_and_its_coverage_is_by_the_cosine() {
    let (_, found) = examined(&key_rule(Metric::Whitened, KeySignal::Summary));
    assert_eq!(found.calibration, None);
    assert_eq!(found.coverage.unwrap().confidence, "cosine");
}

#[test]
fn a_report_is_a_folder_whose_page_names_the_pictures_beside_it() {
    let rule = key_rule(Metric::Lda, KeySignal::Parts { layer: FIRST });
    let (evaluation, diagnostics) = examined(&rule);
    let page = Page { backbone: "tiny".to_owned(), evaluation, diagnostics, losses: Vec::new() };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("report");
    let path = write(&page, &out, false).unwrap();
    let text = std::fs::read_to_string(path).unwrap();
    let names = ["scores", "queries", "reliability", "coverage", "similarity", "selection-a", "selection-b"];
    assert_eq!(page.figures().iter().map(|figure| figure.name).collect::<Vec<_>>(), names);
    for name in names {
        assert!(text.contains(&format!("({name}.png)")) && text.contains(&format!("([SVG]({name}.svg))")), "{name}");
        assert!(out.join(format!("{name}.png")).exists() && out.join(format!("{name}.svg")).exists(), "{name}");
    }
    let read: Page = serde_json::from_slice(&std::fs::read(out.join("report.json")).unwrap()).unwrap();
    // Of 8 samples a task: their shares are the same number again.
    assert_eq!((read.diagnostics.samples, &read.diagnostics.selection), (16, &page.diagnostics.selection));
    let error = write(&page, &out, false).unwrap_err().to_string();
    assert!(error.contains("--force"), "{error}");
    write(&page, &out, true).unwrap();
}
