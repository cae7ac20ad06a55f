//! Ablations of DeLo: what is evaluated is what was trained, and what was left out matters.
use delo_catalogue::{Catalogue, Resident, RoutingRule};
use delo_engine::Query;
use delo_fixtures::{engine, key_rule, meta, random_model, random_sample, spec};
use delo_model::input::Presence;
use delo_model::partition::to_bytes;
use delo_model::{KeySignal, Layout, Metric, Partition, PoolSpec, SessionKeys, TaskModel};

/// The logits of samples by the forward that trains, and by the one that serves.
fn logits(spec: PoolSpec) -> [Vec<Vec<f32>>; 2] {
    let first = spec.first_adapted_layer;
    let model: TaskModel = random_model(spec, 5, 3);
    let samples: Vec<_> = (0..9).map(random_sample).collect();
    let embedded = engine().embed(&samples, engine().default_dummy_image()).unwrap();
    let prefix = engine().run_frozen(&embedded, 0..first).unwrap();
    let learning = engine().run_task(&prefix, &model).unwrap().logits.to_vec2::<f32>().unwrap();

    let key = key_rule(Metric::Plain, KeySignal::Pooled);
    let signals = engine().signals(&embedded, &[KeySignal::Pooled]).unwrap();
    let keys = SessionKeys::of(&signals, &[], None).unwrap();
    let bytes = to_bytes(&meta("task", &model, key), &model, &keys, None).unwrap();
    let resident = Resident::new(Partition::read(&bytes, engine().backbone()).unwrap(), 1);
    let catalogue = Catalogue::empty(engine().backbone(), RoutingRule::default()).with(resident.clone()).unwrap();
    let queries: Vec<Query> = samples.into_iter().map(|sample| Query::given(sample, resident.clone())).collect();
    let scores = engine().classify(&catalogue, &queries).into_iter().map(|answer| answer.unwrap().scores);
    // The logarithm of a score is its logit but for a constant of the sample.
    let serving = scores.map(|scores| scores.iter().map(|score| score.ln()).collect()).collect();
    [learning, serving]
}

/// The largest difference between two logits of a sample, after the mean of each is taken off.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let centred = |logits: &[f32]| {
        let mean = logits.iter().sum::<f32>() / logits.len() as f32;
        logits.iter().map(|x| x - mean).collect::<Vec<_>>()
    };
    centred(a).iter().zip(centred(b)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn an_ablation_is_served_on_a_cpu_as_it_was_trained_and_differs_from_the_whole() {
    let whole = spec(Layout::RankOne, 3);
    let [reference, _] = logits(whole.clone());
    let patterns: Vec<Presence> = (0..9).map(|seed| random_sample(seed).presence()).collect();
    for (guide, pools) in [(true, true), (false, true), (true, false), (false, false)] {
        let ablated = PoolSpec { cross_modal_guide: guide, modality_pools: pools, ..whole.clone() };
        let [learning, serving] = logits(ablated);
        for (sample, (a, b)) in learning.iter().zip(&serving).enumerate() {
            assert!(difference(a, b) < 1e-3, "guide {guide}, pools {pools}, sample {sample}: {a:?} {b:?}");
        }
        if !guide && pools {
            // A complete sample has no proxy.
            for (sample, pattern) in patterns.iter().enumerate() {
                let same = difference(&learning[sample], &reference[sample]) == 0.0;
                assert!(same || *pattern != Presence::Complete, "sample {sample}");
            }
            assert!(learning != reference, "the guide changes no sample");
        }
    }
}
