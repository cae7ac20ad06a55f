//! Each picture holds the marks and texts of its numbers, as SVG and as PNG.
use delo_model::input::Presence;
use delo_report::diagnostics::loss::LossPoint;
use delo_report::diagnostics::queries::QueryPoint;
use delo_report::diagnostics::selection::PoolSelection;
use delo_report::diagnostics::similarity::{BINS, Distribution, LayerSimilarity};
use delo_report::diagnostics::{Coverage, LossCurve, QueryMap, Reliability, Similarity, TaskSelection, calibration, coverage};
use delo_report::figures::comparison::{Run, performance_by_method, performance_by_missing_ratio, performance_by_train_share};
use delo_report::figures::{Figure, confidence, queries, scores, selection, training};
use delo_report::picture::style::{BARS, Colour, GREY, SCALE, SERIES, WIDTH};
use delo_train::data::{ByPattern, MissingKind, Split};
use delo_train::eval::{Column, Report, TaskRow};

/// The SVG, after the checks that hold for every picture: it is drawn alike twice, has no number that is
/// none, and the PNG shows the same in another size.
fn svg(figure: &Figure) -> String {
    let svg = figure.svg().unwrap();
    assert_eq!(svg, figure.svg().unwrap(), "the same numbers give the same bytes");
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{}", figure.name);
    assert!(shown(&svg, figure.title()), "{} lacks its title", figure.name);
    let size = |name: &str| -> u32 {
        let rest = svg.split_once(&format!("{name}=\"")).unwrap().1;
        rest.split('"').next().unwrap().parse().unwrap()
    };
    assert_eq!(size("width"), WIDTH);
    assert!(svg.contains(&format!("viewBox=\"0 0 {} {}\"", WIDTH * SCALE, size("height") * SCALE)));

    let png = figure.png().unwrap();
    assert_eq!(png, figure.png().unwrap(), "the same numbers give the same bytes");
    let png = image::load_from_memory(&png).unwrap().to_rgb8();
    assert_eq!(png.dimensions(), (2 * WIDTH, 2 * size("height")));
    let drawn = png.pixels().filter(|pixel| pixel.0 != [255; 3]).count();
    assert!(drawn * 200 > png.pixels().len(), "{} is blank", figure.name);
    svg
}

/// Whether a text stands in an SVG, with its special characters escaped.
fn shown(svg: &str, text: &str) -> bool {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;");
    svg.lines().any(|line| line == escaped)
}

/// The elements of this kind that are filled or stroked with a colour.
fn count(svg: &str, element: &str, Colour { 0: r, 1: g, 2: b }: Colour) -> usize {
    let colour = format!("\"#{r:02X}{g:02X}{b:02X}\"");
    svg.split('<').filter(|tag| tag.starts_with(element) && tag.contains(&colour)).count()
}

#[test]
fn the_losses_have_a_panel_for_each_term_that_was_computed_and_a_line_for_each_task() {
    let point = |step: f64| LossPoint { step, loss: 2.0, classification: 2.0 / (1.0 + step), alignment: Some(0.5), consistency: None };
    let curve = |task: &str| LossCurve { task: task.to_owned(), steps: 30, points: (0..30).map(|i| point(f64::from(i))).collect() };
    let svg = svg(&training::losses("TINY", &["<pies> & cakes", "salads"], &[curve("soups"), curve("<pies> & cakes")]).unwrap());
    assert!(shown(&svg, "classification loss") && shown(&svg, "alignment loss") && shown(&svg, "training step"));
    assert!(!shown(&svg, "consistency loss"));
    assert!(shown(&svg, "soups") && shown(&svg, "<pies> & cakes"));
    // In two panels and in the key: the first task, none of the second, and then the curve of no task.
    assert_eq!([0, 1, 2].map(|index| count(&svg, "polyline", SERIES[index])), [3, 0, 3]);
    assert_eq!(training::losses("TINY", &[], &[]), None);
}

fn column(name: &str, scores: &[&[f64]]) -> Column {
    let pattern = ByPattern { all: Some(50.0), complete: None, image_only: None, text_only: None };
    let row = |(i, scores): (usize, &&[f64])| TaskRow { task: format!("task-{i}"), samples: 4, scores: scores.to_vec(), routing: None };
    Column {
        name: name.to_owned(),
        ap: scores.first().and_then(|row| row.last().copied()),
        ap_interval: None,
        fg: Some(2.5),
        fg_since_learnt: None,
        f1_macro_own: None,
        f1_macro_all_seen: None,
        f1_macro_all_seen_by_session: Vec::new(),
        score: pattern,
        routing: None,
        tasks: scores.iter().enumerate().map(row).collect(),
    }
}

fn report(eta: f64, missing: MissingKind, seed: u64, oracle: &[&[f64]], agnostic: &[&[f64]]) -> Report {
    Report {
        data: "TINY".to_owned(),
        split: Split::Test,
        measure: "accuracy".to_owned(),
        eta,
        missing,
        seed,
        samples: 8,
        oracle: column("task-oracle", oracle),
        agnostic: vec![column("task-agnostic, lda pooled", agnostic)],
        notes: Vec::new(),
    }
}

#[test]
fn the_score_matrix_writes_every_score_and_the_one_with_the_task_given() {
    let report = report(0.7, MissingKind::Both, 0, &[&[91.0, 91.0], &[82.0]], &[&[73.0, 64.0], &[55.0]]);
    let svg = svg(&scores::score_matrix(&report).unwrap());
    for text in ["73", "64", "55", "91", "82", "task-0", "task-1", "after session", "task given", "accuracy, %"] {
        assert!(shown(&svg, text), "{text}");
    }
    assert!(svg.contains("missing both 0.7"));
    assert_eq!(scores::score_matrix(&Report { agnostic: Vec::new(), ..report }), None);
}

#[test]
fn selections_have_a_cell_for_each_layer_target_and_expert() {
    let pools = |shares: &[f64]| {
        let pool = |layer: usize, target: &str, modality: &str| PoolSelection {
            layer,
            target: target.to_owned(),
            modality: modality.to_owned(),
            a: shares.to_vec(),
            b: vec![0.0; shares.len()],
        };
        let of_layer = |layer| ["query", "key", "value"].map(|target| ["visual", "textual"].map(|modality| pool(layer, target, modality)));
        (0..2).flat_map(of_layer).flatten().collect::<Vec<_>>()
    };
    let task = |name: &str| TaskSelection { task: name.to_owned(), samples: 9, rank: 1, pools: pools(&[0.25, 0.5, 0.25]) };
    let figures = selection::selections("TINY", "test", &[task("soups"), task("pies")]);
    assert_eq!(figures.iter().map(|figure| figure.name).collect::<Vec<_>>(), ["selection-a", "selection-b"]);
    let svg = svg(&figures[0]);
    assert!(shown(&svg, "soups, visual (9 samples)") && shown(&svg, "pies, textual (9 samples)"));
    // 2 tasks × 2 modalities × 2 layers × 3 targets, each with one expert of share 1/2.
    assert_eq!(count(&svg, "rect", delo_report::picture::style::shade(0.5)), 2 * 2 * 2 * 3);
    assert!(selection::selections("TINY", "test", &[]).is_empty());
}

#[test]
fn the_query_map_has_a_point_for_each_sample_by_pattern_and_a_named_diamond_for_each_key() {
    let point =
        |task: &str, pattern: Option<Presence>, x: f64| QueryPoint { task: task.to_owned(), pattern, pca: [x, -x], tsne: Some([x, x * x]) };
    let samples = [Presence::Complete, Presence::ImageOnly, Presence::TextOnly].map(|p| point("soups", Some(p), p as u8 as f64));
    let samples = samples.into_iter().chain([point("pies", Some(Presence::Complete), 4.0)]).collect();
    let keys = vec![point("soups", None, 0.5), point("pies", None, 5.0)];
    let map = QueryMap { signal: "pooled".to_owned(), explained: [0.6, 0.3], samples, keys };
    let svg = svg(&queries::query_map("TINY", "test", &map));
    assert!(shown(&svg, "component 1 (60 % of the variance)") && shown(&svg, "t-SNE") && shown(&svg, "text only"));
    // One complete sample a task and panel, and the task in the key.
    assert_eq!((count(&svg, "circle", SERIES[0]), count(&svg, "circle", SERIES[1])), (3, 3));
    assert_eq!((count(&svg, "rect", SERIES[0]), count(&svg, "polyline", SERIES[0])), (2, 2 * 2), "a square, and the lines of a cross");
    assert_eq!((count(&svg, "polygon", SERIES[0]), count(&svg, "polygon", SERIES[1])), (2, 2), "the keys");
}

#[test]
fn similarities_have_a_panel_for_each_layer_with_both_means() {
    let distribution = |mean: f64, bins: &[usize]| {
        let mut counts = vec![0; BINS];
        bins.iter().for_each(|&bin| counts[bin] += 1);
        Distribution { mean, counts }
    };
    let layer = |mean| LayerSimilarity { frozen: distribution(mean, &[50, 54, 58]), adapted: distribution(0.5, &[74, 74, 75]) };
    let similarity = Similarity { samples: 3, layers: vec![layer(0.1), layer(-0.2)] };
    let svg = svg(&queries::similarities("TINY", "test", &similarity));
    assert!(shown(&svg, "layer 0: mean 0.10 frozen, 0.50 adapted") && shown(&svg, "layer 1: mean −0.20 frozen, 0.50 adapted"));
    // A block for each filled bin of the frozen backbone, and its square in the key; an outline each of the
    // adapted one.
    assert_eq!((count(&svg, "rect", GREY), count(&svg, "polyline", SERIES[1])), (2 * 3 + 1, 2 + 1));
}

#[test]
fn the_reliability_diagrams_say_the_error_before_and_after_and_draw_filled_bins() {
    let before = Reliability::of(&[(0.95, true), (0.95, false), (0.45, true)]);
    let after = Reliability::of(&[(0.55, true), (0.55, false), (0.45, true)]);
    let svg = svg(&confidence::reliability("TINY", "test", &calibration::Calibration { before, after }));
    // |1/2 − 0.95| · 2/3 + |1 − 0.45| / 3 and |1/2 − 0.55| · 2/3 + |1 − 0.45| / 3.
    assert!(shown(&svg, "temperature 1: calibration error 48.3 %"));
    assert!(shown(&svg, "temperature of the partitions: calibration error 21.7 %"));
    // Two bars in each diagram and each histogram, and a square in the key.
    assert_eq!((count(&svg, "rect", BARS), count(&svg, "rect", GREY), count(&svg, "circle", SERIES[1])), (5, 4, 5));
}

#[test]
fn the_coverage_has_a_line_for_the_class_only_where_there_is_one() {
    let decided = |confidence: f64, right: Option<bool>| coverage::Decided { confidence, task_right: true, right };
    let single = Coverage::of("probability", &[decided(0.9, Some(true)), decided(0.5, Some(false))]).unwrap();
    let several = Coverage::of("cosine", &[decided(0.9, None), decided(0.5, None)]).unwrap();
    let svg_single = svg(&confidence::coverage("TINY", "test", &single));
    assert!(shown(&svg_single, "right task and class") && svg_single.contains("by the probability of"));
    let svg_several = svg(&confidence::coverage("TINY", "test", &several));
    assert!(!shown(&svg_several, "right task and class") && svg_several.contains("by the cosine of"));
}

#[test]
fn ap_against_eta_has_a_panel_for_each_pattern_and_a_band_where_there_are_seeds() {
    let mut reports = Vec::new();
    for (missing, seeds) in [(MissingKind::Both, 3), (MissingKind::Text, 1)] {
        for eta in [0.1, 0.7] {
            for seed in 0..seeds {
                let ap = 60.0 - 20.0 * eta + seed as f64;
                reports.push(("DeLo", report(eta, missing, seed, &[&[90.0]], &[&[ap]])));
                if missing == MissingKind::Both {
                    reports.push(("L2P", report(eta, missing, seed, &[&[80.0]], &[&[ap - 10.0]])));
                }
            }
        }
    }
    let runs: Vec<Run<'_>> = reports.iter().map(|(method, report)| Run { method, report }).collect();
    let svg = svg(&performance_by_missing_ratio(&runs).unwrap());
    assert!(shown(&svg, "missing: half the image, half the text") && shown(&svg, "missing: the text"));
    assert!(!shown(&svg, "missing: the image"));
    // A line for each method and panel that has it, and one in the key; a point for each η; a band for
    // several seeds.
    assert_eq!((count(&svg, "polyline", SERIES[0]), count(&svg, "polyline", SERIES[1])), (3, 2));
    assert_eq!((count(&svg, "circle", SERIES[0]), count(&svg, "circle", SERIES[1])), (4, 2));
    assert_eq!((count(&svg, "polygon", SERIES[0]), count(&svg, "polygon", SERIES[1])), (1, 1));
    assert_eq!(performance_by_missing_ratio(&[]), None);
}

#[test]
fn ap_against_the_share_of_training_items_has_a_point_for_each_share_in_one_panel() {
    let of = |share: f64, seed| (share, report(0.7, MissingKind::Both, seed, &[&[90.0]], &[&[20.0 + 40.0 * share]]));
    let reports = [of(0.1, 0), of(0.1, 1), of(1.0, 0)];
    let runs: Vec<(f64, Run<'_>)> = reports.iter().map(|(share, report)| (*share, Run { method: "DeLo", report })).collect();
    let svg = svg(&performance_by_train_share(&runs).unwrap());
    assert!(shown(&svg, "training items, %"));
    assert_eq!((count(&svg, "circle", SERIES[0]), count(&svg, "polyline", SERIES[0])), (2, 2));
    assert_eq!(performance_by_train_share(&[]), None);
}

#[test]
fn methods_stand_in_their_order_with_interval_and_the_score_with_the_task_given() {
    let mut alone = report(0.7, MissingKind::Both, 0, &[&[80.0]], &[&[50.0]]);
    alone.agnostic[0].ap_interval = Some([45.0, 55.0]);
    let seeds = [0, 1].map(|seed| report(0.7, MissingKind::Both, seed, &[&[85.0]], &[&[60.0 + seed as f64]]));
    let runs =
        [Run { method: "L2P", report: &alone }, Run { method: "DeLo", report: &seeds[0] }, Run { method: "DeLo", report: &seeds[1] }];
    let figure = performance_by_method(&runs).unwrap();
    let svg = svg(&figure);
    // A bar for each method, and a square in the key; a diamond for each, and one in the key.
    assert_eq!((count(&svg, "rect", BARS), count(&svg, "polygon", GREY)), (2 + 1, 2 + 1));
    let at = |text: &str| svg.lines().position(|line| line == text).unwrap();
    // Names are drawn from below.
    assert!(at("DeLo") < at("L2P"));
    assert_eq!(performance_by_method(&[Run { method: "L2P", report: &Report { agnostic: Vec::new(), ..alone.clone() } }]), None);
}
