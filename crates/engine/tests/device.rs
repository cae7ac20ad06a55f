//! A GPU gives the results of the CPU's own kernels. candle's backend is tested also without a GPU, on
//! candle's CPU.
use std::sync::OnceLock;

use candle_core::Device;
use delo_catalogue::{Catalogue, Resident, RoutingRule};
use delo_engine::{Answer, DeviceChoice, Engine, Options, Query};
use delo_fixtures::{difference, engine, engine_with, key_rule, random_model, random_sample, resident, spec};
use delo_kernels::Precision;
use delo_model::input::Sample;
use delo_model::model_dir::ModelDir;
use delo_model::partition::{BackboneRecord, PartitionMeta, to_bytes};
use delo_model::vilt::{Loader, ViltConfig};
use delo_model::{KeySignal, Layout, Metric, Partition, PoolSpec, SessionKeys};
use proptest::prelude::*;

fn options(device: DeviceChoice, precision: Precision) -> Options {
    Options { device, precision: Some(precision), ..Options::default() }
}

/// candle's backend on the CPU, which stands in for a GPU.
fn stand_in() -> &'static Engine {
    &devices()[0]
}

/// The stand-in, then every GPU that this build supports and that opens. Messages on the error output name
/// the GPUs that do not open.
fn devices() -> &'static [Engine] {
    static ENGINES: OnceLock<Vec<Engine>> = OnceLock::new();
    ENGINES.get_or_init(|| choices().map(|choice| engine_with(options(choice, Precision::F32))).collect())
}

fn choices() -> impl Iterator<Item = DeviceChoice> {
    [DeviceChoice::Candle].into_iter().chain(gpus())
}

fn gpus() -> impl Iterator<Item = DeviceChoice> {
    DeviceChoice::gpus().filter(|choice| choice.open().inspect_err(|e| eprintln!("skipped: {e}")).is_ok())
}

/// Tasks of different layouts, depths, ranks, pool sizes and class counts; the last adapts no layer.
fn catalogue(metric: Metric, signal: KeySignal) -> Catalogue {
    let small = |layout, first| spec(layout, first);
    let specs = [
        small(Layout::RankOne, 0),
        PoolSpec { experts: 7, rank: 3, alpha: 1.5, ..small(Layout::Slotted, 2) },
        PoolSpec { rank: 1, ..small(Layout::RankOne, 4) },
        small(Layout::Slotted, 0),
        small(Layout::RankOne, 6),
    ];
    let residents = specs.into_iter().enumerate().map(|(i, spec)| {
        let model = random_model(spec, 3 + i, i as u64);
        resident(&format!("task-{i}"), &model, key_rule(metric, signal), i as u64)
    });
    Catalogue::empty(engine().backbone(), RoutingRule::default()).with_all(residents).unwrap()
}

/// The two metrics of the task keys, over a signal of a layer and over the pooled output.
fn catalogues() -> &'static [Catalogue; 2] {
    static CATALOGUES: OnceLock<[Catalogue; 2]> = OnceLock::new();
    CATALOGUES.get_or_init(|| [catalogue(Metric::Whitened, KeySignal::Parts { layer: 3 }), catalogue(Metric::Plain, KeySignal::Pooled)])
}

fn queries(catalogue: &Catalogue, seeds: impl IntoIterator<Item = (u64, Option<usize>)>) -> Vec<Query> {
    let query = |(seed, task): (u64, Option<usize>)| Query {
        given: task.map(|task| catalogue.get(&format!("task-{task}")).unwrap().clone()),
        ..Query::open(random_sample(seed))
    };
    seeds.into_iter().map(query).collect()
}

fn answers(engine: &Engine, catalogue: &Catalogue, queries: &[Query]) -> Vec<Answer> {
    engine.classify(catalogue, queries).into_iter().map(Result::unwrap).collect()
}

fn agree(device: &Engine, catalogue: &Catalogue, queries: &[Query]) {
    alike(&answers(device, catalogue, queries), &answers(engine(), catalogue, queries));
}

/// The same tasks, the same factors, and scores and cosines that differ by rounding alone.
fn alike(found: &[Answer], expected: &[Answer]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.resident.task(), expected.resident.task());
        assert!(found.selected().eq(expected.selected()));
        let cosines = |answer: &Answer| answer.candidates.iter().map(|candidate| candidate.cosine()).collect::<Vec<_>>();
        let pairs = [(found.scores.clone(), expected.scores.clone()), (cosines(found), cosines(expected))];
        for (x, y) in pairs.iter().flat_map(|(found, expected)| found.iter().zip(expected)) {
            assert!((x - y).abs() < 1e-4, "{x} for {y}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_mixed_batch_is_answered_as_on_the_cpu(seeds in prop::collection::vec((0u64..10_000, prop::option::of(0usize..5)), 1..9)) {
        for (device, catalogue) in devices().iter().flat_map(|device| catalogues().iter().map(move |catalogue| (device, catalogue))) {
            agree(device, catalogue, &queries(catalogue, seeds.clone()));
        }
    }
}

/// Samples of one size are multiplied as one group, also where samples of other sizes and tasks lie between
/// them.
#[test]
fn samples_of_one_size_are_answered_as_on_the_cpu_at_any_place_in_the_batch() {
    let [_, catalogue] = catalogues();
    let seeds = [0, 0, 1, 0, 2, 1, 0, 0, 2];
    for device in devices() {
        for tasks in [[0; 9], [0, 0, 1, 4, 2, 3, 1, 1, 0], [4; 9]] {
            agree(device, catalogue, &queries(catalogue, seeds.into_iter().zip(tasks.map(Some))));
        }
        agree(device, catalogue, &queries(catalogue, [0; 4].map(|seed| (seed, Some(1)))));
    }
}

#[test]
fn a_large_mixed_batch_is_answered_as_on_the_cpu() {
    for (device, catalogue) in devices().iter().flat_map(|device| catalogues().iter().map(move |catalogue| (device, catalogue))) {
        agree(device, catalogue, &queries(catalogue, (0..24).map(|seed| (seed, (seed % 3 == 2).then_some(seed as usize % 5)))));
    }
}

/// Widths that no kernel of `backend/cuda` supports: candle's backend computes them on NVIDIA GPUs too.
#[test]
fn a_backbone_of_unusual_widths_is_answered_as_on_the_cpu() {
    let patch_size = engine().backbone().config.patch_size;
    let config = ViltConfig {
        hidden_size: 30,
        num_attention_heads: 3,
        intermediate_size: 58,
        num_hidden_layers: 3,
        patch_size,
        image_size: 4 * patch_size,
        ..ViltConfig::default()
    };
    let load = |choice| {
        let loader = Loader::random(config.clone(), 0, &Device::Cpu);
        Engine::of(loader, delo_fixtures::EMPTY_TEXT.to_vec(), options(choice, Precision::F32)).unwrap()
    };
    let cpu = load(DeviceChoice::Cpu);
    let samples: Vec<Sample> = (0..12).map(random_sample).collect();
    let residents = [Layout::RankOne, Layout::Slotted].into_iter().enumerate().map(|(i, layout)| {
        let spec = PoolSpec { layers: config.num_hidden_layers, hidden: config.hidden_size, ..spec(layout, i) };
        let (model, key) = (random_model(spec, 4, i as u64), key_rule(Metric::Plain, KeySignal::Pooled));
        let packed = cpu.embed(&samples[6 * i..][..6], cpu.default_dummy_image()).unwrap();
        let keys = SessionKeys::of(&cpu.signals(&packed, &KeySignal::plain(config.num_hidden_layers)).unwrap(), &[], None).unwrap();
        let backbone = BackboneRecord { fingerprint: cpu.backbone().fingerprint.clone(), name: "random".to_owned() };
        let meta =
            PartitionMeta { backbone, dummy_image: cpu.default_dummy_image(), ..delo_fixtures::meta(&format!("task-{i}"), &model, key) };
        Resident::new(Partition::read(&to_bytes(&meta, &model, &keys, None).unwrap(), cpu.backbone()).unwrap(), 1)
    });
    let catalogue = Catalogue::empty(cpu.backbone(), RoutingRule::default()).with_all(residents).unwrap();
    let batch = queries(&catalogue, (0..9).map(|seed| (seed, (seed % 3 == 2).then_some(seed as usize % 2))));
    for choice in choices() {
        alike(&answers(&load(choice), &catalogue, &batch), &answers(&cpu, &catalogue, &batch));
    }
}

/// Several threads classify at once, as when a partition is tried before it is live while batches run.
#[test]
fn concurrent_callers_get_the_answers_of_sequential_ones() {
    let [catalogue, _] = catalogues();
    let batches: Vec<Vec<Query>> = (0..4).map(|caller| queries(catalogue, (0..6).map(|i| (100 * caller + i, None)))).collect();
    let expected: Vec<Vec<Answer>> = batches.iter().map(|batch| answers(engine(), catalogue, batch)).collect();
    for device in devices() {
        std::thread::scope(|scope| {
            for (batch, expected) in batches.iter().zip(&expected) {
                scope.spawn(move || {
                    for _ in 0..5 {
                        for (found, expected) in answers(device, catalogue, batch).iter().zip(expected) {
                            assert_eq!(found.resident.task(), expected.resident.task());
                            assert!(found.selected().eq(expected.selected()));
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn frozen_signals_are_those_of_the_cpu() {
    let samples: Vec<Sample> = (0..7).map(random_sample).collect();
    let dummy = engine().default_dummy_image();
    let layers = engine().backbone().config.num_hidden_layers;
    let mut wanted = vec![KeySignal::Pooled, KeySignal::Summary, KeySignal::TextCls { layer: 2 }, KeySignal::Parts { layer: 3 }];
    wanted.extend((0..=layers).map(|layer| KeySignal::MeanQuery { layer }));
    let signals = |engine: &Engine| {
        let packed = engine.embed(&samples, dummy).unwrap();
        (engine.signals(&packed, &wanted).unwrap(), engine.pooled(&samples, dummy).unwrap())
    };
    let (expected, expected_pooled) = signals(engine());
    for device in devices() {
        let (found, pooled) = signals(device);
        for (signal, expected) in &expected {
            assert!(difference(&found[signal], expected) < 1e-4, "{signal} on {}", device.kernel());
        }
        for (found, expected) in pooled.iter().flatten().zip(expected_pooled.iter().flatten()) {
            assert!((found - expected).abs() < 1e-4, "{}", device.kernel());
        }
    }
}

#[test]
fn a_device_keeps_one_copy_of_each_layer_s_factors() {
    let catalogue = catalogue(Metric::Plain, KeySignal::Pooled);
    let batch = queries(&catalogue, [(0, Some(1)), (1, Some(1))]);
    let copies = || {
        let adapter = &catalogue.get("task-1").unwrap().partition.adapter;
        adapter.layers().map(|layer| adapter.bank(layer).unwrap().copies().len()).collect::<Vec<_>>()
    };
    assert!(!copies().is_empty() && copies().iter().all(|&copies| copies == 0));
    for _ in 0..2 {
        answers(stand_in(), &catalogue, &batch);
        assert!(copies().iter().all(|&copies| copies == 1), "{:?}", copies());
    }
}

#[test]
fn an_engine_names_its_device() {
    assert_eq!((stand_in().kernel(), stand_in().precision()), ("f32 candle", Precision::F32));
    for (gpu, choice) in devices()[1..].iter().zip(gpus()) {
        assert_eq!((gpu.kernel(), gpu.precision()), (format!("f32 {choice}").as_str(), Precision::F32));
    }
}

#[test]
fn a_number_format_that_a_device_lacks_is_refused() {
    let error = Engine::load(&ModelDir::Embedded, delo_fixtures::EMPTY_TEXT.to_vec(), options(DeviceChoice::Candle, Precision::Bf16));
    assert!(error.unwrap_err().to_string().contains("f32"));
}

/// In bf16, the fastest number format of a GPU.
#[test]
fn scores_in_bf16_on_a_gpu_are_near_those_of_f32() {
    for choice in gpus() {
        let rounded = engine_with(options(choice, Precision::Bf16));
        assert_eq!(rounded.kernel(), format!("bf16 {choice}"));
        let ([_, catalogue], batch) = (catalogues(), queries(&catalogues()[1], (0..12).map(|seed| (seed, Some(0)))));
        for (found, expected) in answers(&rounded, catalogue, &batch).iter().zip(&answers(engine(), catalogue, &batch)) {
            for (x, y) in found.scores.iter().zip(&expected.scores) {
                assert!((x - y).abs() < 0.05, "{choice}: {x} for {y}");
            }
        }
    }
}
