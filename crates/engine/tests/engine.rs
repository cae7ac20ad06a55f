//! The packed forward gives the results of the padded reference and of the model in training, in any batch.
use std::sync::{Arc, OnceLock};

use candle_core::Device;
use delo_catalogue::{Catalogue, CatalogueError, Resident, RoutingRule, Share, Trial, TrialMode};
use delo_engine::{Answer, EngineError, Options, Policy, Query, Scored};
use delo_fixtures::{
    difference, engine, engine_with, key_rule, mixed_resident, other_methods, random_model, random_model_of, random_sample, resident, spec,
};
use delo_kernels::{Isa, Precision};
use delo_model::input::{Pixels, Sample};
use delo_model::model_dir::ModelDir;
use delo_model::vilt::{PaddedInput, Vilt};
use delo_model::{KeySignal, Layout, Method, MethodKind, Metric, TaskModel};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A query for a task of this catalogue, or one whose task the engine decides.
fn query(catalogue: &Catalogue, sample: Sample, task: Option<&str>) -> Query {
    match task {
        Some(task) => Query::given(sample, catalogue.get(task).unwrap().clone()),
        None => Query::open(sample),
    }
}

/// The backbone as plain candle operations, padded.
fn reference() -> &'static Vilt {
    static VILT: OnceLock<Vilt> = OnceLock::new();
    VILT.get_or_init(|| Vilt::load(&ModelDir::Embedded, &Device::Cpu).unwrap())
}

/// The same sample as input of the padded reference.
fn padded(sample: &Sample) -> PaddedInput {
    let [height, width] = engine().default_dummy_image();
    PaddedInput {
        text: sample.text.clone().unwrap_or(delo_fixtures::EMPTY_TEXT.to_vec()),
        image: sample.image.clone().unwrap_or_else(|| Pixels::dummy(height, width)),
    }
}

/// Four tasks of different layouts, depths and class counts.
fn catalogue(metric: Metric, signal: KeySignal) -> Catalogue {
    let shapes = [(Layout::RankOne, 0), (Layout::Slotted, 3), (Layout::RankOne, 4), (Layout::Slotted, 6)];
    let residents = shapes.into_iter().enumerate().map(|(i, (layout, first))| {
        let model = random_model(spec(layout, first), 3 + i, i as u64);
        resident(&format!("task-{i}"), &model, key_rule(metric, signal), i as u64)
    });
    Catalogue::empty(engine().backbone(), RoutingRule::default()).with_all(residents).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn packed_equals_padded(seeds in prop::collection::vec(0u64..10_000, 1..5)) {
        let samples: Vec<Sample> = seeds.iter().map(|&s| random_sample(s)).collect();
        let reference = reference().forward(&samples.iter().map(padded).collect::<Vec<_>>()).unwrap();
        let packed = engine().embed(&samples, engine().default_dummy_image()).unwrap();
        let signals = engine().signals(&packed, &[KeySignal::Pooled]).unwrap();
        prop_assert!(difference(&signals[&KeySignal::Pooled], &reference.pooled) < 1e-5);
    }

    #[test]
    fn a_sample_alone_equals_itself_in_any_mixed_batch(seeds in prop::collection::vec((0u64..10_000, prop::option::of(0usize..4)), 2..7)) {
        for (metric, signal) in [
            (Metric::Whitened, KeySignal::Parts { layer: 3 }),
            (Metric::Plain, KeySignal::Pooled),
        ] {
            let catalogue = catalogue(metric, signal);
            let queries: Vec<Query> =
                seeds.iter().map(|&(s, task)| query(&catalogue, random_sample(s), task.map(|t| format!("task-{t}")).as_deref())).collect();
            let together = engine().classify(&catalogue, &queries);
            for (query, together) in queries.iter().zip(together) {
                let together = together.unwrap();
                let alone = engine().classify(&catalogue, std::slice::from_ref(query)).remove(0).unwrap();
                prop_assert_eq!(alone.resident.task(), together.resident.task());
                for (x, y) in alone.scores.iter().zip(&together.scores) {
                    prop_assert!((x - y).abs() < 1e-5, "{} and {}", x, y);
                }
            }
        }
    }
}

/// Scores have the same bits alone, in random mixed batches, on one thread and on two; for every precision
/// and every set of instructions.
#[test]
fn scores_do_not_depend_on_the_batch_nor_on_the_threads() {
    let catalogue = catalogue(Metric::Whitened, KeySignal::Parts { layer: 3 });
    let queries: Vec<Query> = (0..24).map(|s| query(&catalogue, random_sample(s), (s % 4 == 3).then_some("task-1"))).collect();
    let pools = [1, 2].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    let bits = |answer: Result<Answer, EngineError>| {
        let answer = answer.unwrap();
        let cosines: Vec<u32> = answer.candidates.iter().map(|c| c.cosine().to_bits()).collect();
        (answer.resident.task().to_owned(), answer.scores.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), cosines)
    };
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for precision in Precision::ALL {
        for isa in Isa::available() {
            let engine = engine_with(Options { precision: Some(precision), isa: Some(isa), ..Options::default() });
            let classify = |pool: usize, chosen: &[Query]| pools[pool].install(|| engine.classify(&catalogue, chosen));
            let alone: Vec<_> = queries.iter().map(|q| bits(classify(0, std::slice::from_ref(q)).remove(0))).collect();
            let batches = if isa == Isa::detect() { 100 } else { 4 };
            for batch in 0..batches {
                let rows: Vec<usize> = (0..rng.random_range(1..12)).map(|_| rng.random_range(0..queries.len())).collect();
                let chosen: Vec<Query> = rows.iter().map(|&row| queries[row].clone()).collect();
                for (row, answer) in rows.iter().zip(classify(batch % 2, &chosen)) {
                    assert_eq!(bits(answer), alone[*row], "{precision} {isa}, batch {batch}");
                }
            }
        }
    }
}

/// bf16 moves no score by more than its rounding explains.
#[test]
fn bf16_scores_are_near_those_of_f32() {
    let catalogue = catalogue(Metric::Plain, KeySignal::Pooled);
    for isa in Isa::available() {
        let engine = engine_with(Options { precision: Some(Precision::Bf16), isa: Some(isa), ..Options::default() });
        for seed in 0..12 {
            let query = query(&catalogue, random_sample(seed), Some("task-0"));
            let [exact, rounded] =
                [delo_fixtures::engine(), &engine].map(|e| e.classify(&catalogue, std::slice::from_ref(&query)).remove(0).unwrap());
            for (x, y) in exact.scores.iter().zip(&rounded.scores) {
                assert!((x - y).abs() < 0.05, "{isa}: {x} and {y}");
            }
        }
    }
}

#[test]
fn all_b_zero_equals_the_frozen_backbone() {
    let samples: Vec<Sample> = (0..6).map(random_sample).collect();
    let packed = engine().embed(&samples, engine().default_dummy_image()).unwrap();
    for layout in [Layout::RankOne, Layout::Slotted] {
        let model = TaskModel::init(Method::Delo { pools: spec(layout, 0) }, 4, 9).unwrap();
        let frozen = engine().signals(&packed, &[KeySignal::Pooled]).unwrap();
        let adapted = engine().run_task(&packed, &model).unwrap().logits;
        assert!(difference(&model.head(&frozen[&KeySignal::Pooled]).unwrap(), &adapted) < 1e-6);
    }
}

#[test]
fn serving_computes_what_the_learning_model_computes() {
    let samples: Vec<Sample> = (0..9).map(random_sample).collect();
    let experts = [(Layout::RankOne, 0), (Layout::Slotted, 0), (Layout::RankOne, 3), (Layout::Slotted, 5), (Layout::RankOne, 6)];
    let experts = experts.map(|(layout, first)| Method::Delo { pools: spec(layout, first) });
    for method in experts.into_iter().chain([0, 4].into_iter().flat_map(other_methods)) {
        let model = random_model_of(method.clone(), 5, 3);
        let entering = engine().embed(&samples, engine().default_dummy_image()).unwrap();
        let entering = engine().run_frozen(&entering, 0..method.first_adapted_layer()).unwrap();
        let logits = engine().run_task(&entering, &model).unwrap().logits;
        let expected = candle_nn::ops::softmax(&logits, 1).unwrap().to_vec2::<f32>().unwrap();
        let resident = resident("only", &model, key_rule(Metric::Plain, KeySignal::Pooled), 1);
        let catalogue = Catalogue::empty(engine().backbone(), RoutingRule::default()).with(resident).unwrap();
        let queries: Vec<Query> = samples.iter().map(|s| Query::open(s.clone())).collect();
        for (answer, expected) in engine().classify(&catalogue, &queries).into_iter().zip(expected) {
            for (x, y) in answer.unwrap().scores.iter().zip(expected) {
                assert!((x - y).abs() < 1e-5, "{method:?}: {x} for {y}");
            }
        }
    }
}

#[test]
fn methods_are_served_side_by_side_in_one_batch_as_each_is_alone() {
    let methods = [Method::Delo { pools: spec(Layout::Slotted, 2) }].into_iter().chain([1, 3].into_iter().flat_map(other_methods));
    let residents: Vec<_> = methods
        .enumerate()
        .map(|(i, method)| {
            let model = random_model_of(method, 3 + i, i as u64);
            resident(&format!("task-{i}"), &model, key_rule(Metric::Plain, KeySignal::Pooled), i as u64)
        })
        .collect();
    let catalogue = Catalogue::empty(engine().backbone(), RoutingRule::default()).with_all(residents.iter().cloned()).unwrap();
    for precision in Precision::ALL {
        let engine = engine_with(Options { precision: Some(precision), ..Options::default() });
        let samples = (0..20u64).map(|seed| Query::given(random_sample(seed), residents[seed as usize % residents.len()].clone()));
        let queries: Vec<Query> = samples.collect();
        let together = engine.classify(&catalogue, &queries);
        for (query, answer) in queries.iter().zip(together) {
            let (answer, alone) = (answer.unwrap(), engine.classify(&catalogue, std::slice::from_ref(query)).remove(0).unwrap());
            let bits = |answer: &Answer| answer.scores.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&answer), bits(&alone), "{} in {precision}", answer.resident.task());
            let routed = answer.resident.partition.meta.method.kind() == MethodKind::Delo;
            assert_eq!(routed, answer.selected().any(|selected| !selected.choice.a.is_empty()));
        }
    }
}

#[test]
fn a_signal_in_the_frozen_prefix_routes_as_a_pass_of_its_own_does() {
    // From layer 3 on, `parts@3` is read on the way; a task adapted from layer 0 forces a pass of its own.
    let deep = |first| {
        let residents = (0..3).map(|i| {
            let model = random_model(spec(Layout::RankOne, first), 3, i);
            resident(&format!("task-{i}"), &model, key_rule(Metric::Whitened, KeySignal::Parts { layer: 3 }), i)
        });
        Catalogue::empty(engine().backbone(), RoutingRule::default()).with_all(residents).unwrap()
    };
    let (shared, own) = (deep(3), deep(0));
    for seed in 0..9 {
        let route = |c| engine().classify(c, &[Query::open(random_sample(seed))]).remove(0).unwrap();
        let (shared, own) = (route(&shared), route(&own));
        assert_eq!(shared.resident.task(), own.resident.task());
        assert!((shared.candidates[0].cosine() - own.candidates[0].cosine()).abs() < 1e-5);
    }
}

#[test]
fn routing_does_not_depend_on_the_order_of_loads_nor_on_unloaded_partitions() {
    let samples: Vec<Sample> = (0..12).map(random_sample).collect();
    for metric in Metric::ALL {
        let one = |i: u64| {
            let model = random_model(spec(Layout::RankOne, 4), 3, i);
            resident(&format!("task-{i}"), &model, key_rule(metric, KeySignal::Parts { layer: 3 }), i)
        };
        let empty = || Catalogue::empty(engine().backbone(), RoutingRule::default());
        let forward = empty().with(one(0)).unwrap().with(one(1)).unwrap().with(one(2)).unwrap();
        let back =
            empty().with(one(2)).unwrap().with(one(3)).unwrap().with(one(1)).unwrap().with(one(0)).unwrap().without("task-3").unwrap();
        assert_eq!(engine().route(&forward, &samples).unwrap(), engine().route(&back, &samples).unwrap());
    }
}

#[test]
fn a_partition_without_moments_falls_back_to_the_plain_cosine_and_says_so() {
    let model = random_model(spec(Layout::RankOne, 4), 3, 1);
    let whitened = resident("whitened", &model, key_rule(Metric::Whitened, KeySignal::Parts { layer: 3 }), 1);
    let plain = resident("plain", &model, key_rule(Metric::Plain, KeySignal::Parts { layer: 3 }), 2);
    let alone = Catalogue::empty(engine().backbone(), RoutingRule::default()).with(whitened).unwrap();
    assert_eq!((alone.metric(), alone.notice()), (Metric::Whitened, None));
    let rule = RoutingRule { metric: Some(Metric::Whitened), ..RoutingRule::default() };
    let both = Catalogue::empty(engine().backbone(), rule).with_all(alone.residents().cloned().chain([plain])).unwrap();
    assert_eq!(both.metric(), Metric::Plain);
    assert!(both.notice().unwrap().contains("\"plain\" has no second moment of parts@3"));
}

#[test]
fn a_partition_without_class_means_falls_back_to_the_whitened_cosine_and_says_so() {
    let model = random_model(spec(Layout::RankOne, 4), 3, 1);
    let one = |task: &str, metric, seed| resident(task, &model, key_rule(metric, KeySignal::Parts { layer: 3 }), seed);
    let alone = Catalogue::empty(engine().backbone(), RoutingRule::default()).with(one("new", Metric::Lda, 1)).unwrap();
    assert_eq!((alone.metric(), alone.notice()), (Metric::Lda, None));
    let both = alone.with(one("old", Metric::Whitened, 2)).unwrap();
    assert_eq!(both.metric(), Metric::Whitened);
    assert!(both.notice().unwrap().contains("\"old\" has no class means of parts@3"), "{:?}", both.notice());
    assert_eq!(both.without("old").unwrap().metric(), Metric::Lda);
}

#[test]
fn the_probabilities_of_all_tasks_sum_to_one_and_the_cosines_stand_beside_them() {
    let catalogue = catalogue(Metric::Lda, KeySignal::PartsPooled { layer: 3, width: None });
    for seed in 0..6 {
        let answer = engine().classify(&catalogue, &[Query::open(random_sample(seed))]).remove(0).unwrap();
        let sum: f32 = answer.candidates.iter().map(|candidate| candidate.score.probability.unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        assert!(answer.candidates.iter().all(|candidate| candidate.score.cosine.is_some()));
        assert!(answer.candidates.is_sorted_by(|a, b| a.score.probability >= b.score.probability));
    }
}

#[test]
fn a_policy_answers_some_samples_otherwise_and_leaves_the_bits_of_the_others() {
    for first in [0, 4] {
        let residents = (0..3).map(|i| {
            let model = random_model(spec(Layout::RankOne, first), 3, i);
            mixed_resident(&format!("task-{i}"), &model, "parts@3+pooled".parse().unwrap(), i)
        });
        let catalogue = Catalogue::empty(engine().backbone(), RoutingRule::default()).with_all(residents).unwrap();
        let policies = [
            Policy::default(),
            Policy { reject: Some(2.0), ..Policy::default() },
            Policy { early_answer: Some(f32::MIN), ..Policy::default() },
            Policy { second_task: Some(2.0), ..Policy::default() },
        ];
        let queries: Vec<Query> = (0..8).map(|i| Query { policy: policies[i % 4], ..Query::open(random_sample(i as u64)) }).collect();
        let answers: Vec<Answer> = engine().classify(&catalogue, &queries).into_iter().map(Result::unwrap).collect();
        for (i, answer) in answers.iter().enumerate() {
            let plain = engine().classify(&catalogue, &[Query::open(random_sample(i as u64))]).remove(0).unwrap();
            assert_eq!(answer.candidates, plain.candidates, "the decision does not depend on the policy");
            let chosen = answer.chosen().unwrap();
            assert_eq!(&*chosen.task, answer.resident.task());
            let others = answer.candidates.iter().filter(|candidate| candidate.task != chosen.task);
            let best = others.map(|candidate| candidate.score.score).fold(f32::MIN, f32::max);
            assert_eq!(answer.margin(), Some(chosen.score.score - best));
            match i % 4 {
                0 => assert_eq!((answer.scored, &answer.scores), (Scored::Adapted, &plain.scores)),
                1 => assert_eq!((answer.scored, answer.scores.len()), (Scored::Rejected, 0)),
                2 => {
                    assert_eq!((answer.scored, answer.scores.len()), (Scored::Early, 3));
                    assert!((answer.scores.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                    assert_eq!(answer.selected().count(), 0, "no adapter took part");
                }
                _ => {
                    // The better of the two likeliest tasks, each computed by itself.
                    let best = plain.candidates[..2].iter().map(|candidate| {
                        let given = query(&catalogue, random_sample(i as u64), Some(&candidate.task));
                        let alone = engine().classify(&catalogue, &[given]).remove(0).unwrap();
                        let top = alone.scores.iter().copied().fold(0.0, f32::max);
                        (candidate.score.probability.unwrap() * top, alone)
                    });
                    let (_, best) = best.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
                    assert_eq!((answer.resident.task(), &answer.scores), (best.resident.task(), &best.scores));
                }
            }
        }
    }
}

#[test]
fn a_policy_does_not_concern_a_sample_whose_task_is_given() {
    let catalogue = catalogue(Metric::Lda, KeySignal::Parts { layer: 3 });
    let policy = Policy { reject: Some(2.0), early_answer: Some(f32::MIN), second_task: Some(2.0) };
    let given = Query { policy, ..query(&catalogue, random_sample(1), Some("task-1")) };
    let plain = query(&catalogue, random_sample(1), Some("task-1"));
    let [one, other] = [given, plain].map(|query| engine().classify(&catalogue, &[query]).remove(0).unwrap());
    assert_eq!((one.scored, one.scores), (Scored::Adapted, other.scores));
}

#[test]
fn a_sample_whose_task_is_given_does_not_change_the_decisions_of_its_batch() {
    for (first, signal) in [(4, "parts@3"), (4, "parts@3+pooled"), (0, "parts@3+pooled")] {
        let residents = (0..3).map(|i| {
            let model = random_model(spec(Layout::RankOne, first), 3, i);
            resident(&format!("task-{i}"), &model, key_rule(Metric::Lda, signal.parse().unwrap()), i)
        });
        let catalogue = Catalogue::empty(engine().backbone(), RoutingRule::default()).with_all(residents).unwrap();
        let queries: Vec<Query> = (0..6).map(|i| query(&catalogue, random_sample(i), Some("task-1").filter(|_| i % 2 == 0))).collect();
        for (i, answer) in engine().classify(&catalogue, &queries).into_iter().enumerate() {
            let alone = engine().classify(&catalogue, &queries[i..=i]).remove(0).unwrap();
            let answer = answer.unwrap();
            assert_eq!((answer.candidates, answer.scores), (alone.candidates, alone.scores), "sample {i}, {signal} from {first}");
        }
    }
}

#[test]
fn a_joined_signal_is_the_same_read_on_the_way_and_in_a_pass_of_its_own() {
    let (middle, projected) = (KeySignal::PartsPooled { layer: 3, width: None }, "parts@3+pooled:64".parse().unwrap());
    let packed = engine().embed(&(0..3).map(random_sample).collect::<Vec<_>>(), engine().default_dummy_image()).unwrap();
    let wanted = [middle, projected, KeySignal::Parts { layer: 3 }, KeySignal::Pooled];
    let signals = engine().signals(&packed, &wanted).unwrap();
    let alone = engine().signals(&packed, &[middle]).unwrap();
    assert_eq!(difference(&signals[&middle], &alone[&middle]), 0.0);
    let d = engine().backbone().config.hidden_size;
    let parts = signals[&KeySignal::Parts { layer: 3 }].narrow(1, 0, 4 * d).unwrap();
    assert_eq!(difference(&alone[&middle].narrow(1, 0, 4 * d).unwrap(), &parts), 0.0);
    assert_eq!(signals[&projected].dims(), [3, 67]);
    // Whether the adapters begin before or after the layer of the parts, the decision is the same.
    let deep = |first| {
        let residents = (0..3).map(|i| {
            let model = random_model(spec(Layout::RankOne, first), 3, i);
            resident(&format!("task-{i}"), &model, key_rule(Metric::Lda, middle), i)
        });
        Catalogue::empty(engine().backbone(), RoutingRule::default()).with_all(residents).unwrap()
    };
    let (shared, own) = (deep(4), deep(0));
    let samples: Vec<Query> = (0..6).map(|seed| Query::open(random_sample(seed))).collect();
    for (shared, own) in engine().classify(&shared, &samples).into_iter().zip(engine().classify(&own, &samples)) {
        assert_eq!(shared.unwrap().candidates, own.unwrap().candidates);
    }
}

#[test]
fn a_partition_that_is_given_serves_though_the_catalogue_lacks_it() {
    let full = catalogue(Metric::Plain, KeySignal::Pooled);
    let none = Catalogue::empty(engine().backbone(), RoutingRule::default());
    let given = query(&full, random_sample(0), Some("task-1"));
    let open = Query::open(random_sample(1));
    let expected = engine().classify(&full, std::slice::from_ref(&given)).remove(0).unwrap();
    let mut answers = engine().classify(&none, &[open, given]);
    assert_eq!(answers.remove(1).unwrap().scores, expected.scores);
    assert!(matches!(answers.remove(0), Err(EngineError::NothingLoaded)), "one refused sample does not fail its neighbour");
}

/// A catalogue with `task-0` on trial, and the resident that is on trial.
fn on_trial(mode: TrialMode) -> (Catalogue, Arc<Resident>) {
    let catalogue = catalogue(Metric::Plain, KeySignal::Pooled);
    let live = catalogue.get("task-0").unwrap();
    let trial = Resident::new(live.partition.clone(), 2);
    (catalogue.with_trial(Trial { resident: trial.clone(), mode }).unwrap(), trial)
}

#[test]
fn a_canary_answers_its_share_of_its_task_and_a_ticket_always_meets_the_same_version() {
    for share in [0.1, 0.5, 1.0] {
        let (catalogue, _) = on_trial(TrialMode::Canary(Share::try_from(share).unwrap()));
        let version = |ticket| catalogue.pick("task-0", ticket).unwrap().version;
        let tried = (0..10_000).filter(|&ticket| version(ticket) == 2).count() as f64 / 10_000.0;
        assert!((tried - share).abs() < 0.02, "{tried} of the tickets, not {share}");
        assert!((0..100).all(|ticket| version(ticket) == version(ticket)));
        assert!((0..1000).all(|ticket| catalogue.pick("task-1", ticket).unwrap().version == 1), "other tasks have none");
    }
}

#[test]
fn a_larger_share_keeps_the_tickets_that_meet_the_canary_already() {
    let picks = |share| {
        let (catalogue, _) = on_trial(TrialMode::Canary(Share::try_from(share).unwrap()));
        (0..5000).filter(|&ticket| catalogue.pick("task-0", ticket).unwrap().version == 2).collect::<Vec<_>>()
    };
    let (few, many) = (picks(0.1), picks(0.6));
    assert!((400..600).contains(&few.len()) && (2800..3200).contains(&many.len()), "{} and {} of 5,000", few.len(), many.len());
    assert!(few.iter().all(|ticket| many.contains(ticket)));
}

#[test]
fn the_engine_answers_by_the_canary_where_the_ticket_says_so() {
    let (catalogue, trial) = on_trial(TrialMode::Canary(Share::try_from(0.5).unwrap()));
    let queries: Vec<Query> = (0..64).map(|ticket| Query { ticket, ..Query::open(random_sample(ticket % 8)) }).collect();
    let mut versions = [0; 2];
    for (query, answer) in queries.iter().zip(engine().classify(&catalogue, &queries)) {
        let answer = answer.unwrap();
        let expected = catalogue.pick(&answer.candidates[0].task, query.ticket).unwrap();
        assert!(Arc::ptr_eq(&answer.resident, expected));
        versions[usize::from(Arc::ptr_eq(&answer.resident, &trial))] += 1;
    }
    assert!(versions.iter().all(|&answers| answers > 0), "both versions answer: {versions:?}");
}

#[test]
fn a_shadow_answers_no_query_and_a_trial_needs_a_live_version() {
    let (catalogue, trial) = on_trial(TrialMode::Shadow);
    assert!((0..1000).all(|ticket| catalogue.pick("task-0", ticket).unwrap().version == 1));
    assert_eq!(catalogue.trial("task-0").unwrap().resident.version, 2);
    assert!(catalogue.without_trial("task-0").trial("task-0").is_none());
    let gone = catalogue.without("task-0").unwrap();
    assert!(gone.trial("task-0").is_none(), "a trial goes with its task");
    assert!(matches!(gone.with_trial(Trial { resident: trial, mode: TrialMode::Shadow }), Err(CatalogueError::NothingToCompare(_))));
}

#[test]
fn a_share_is_above_zero_and_at_most_one() {
    assert!([0.0, -0.1, 1.1, f64::NAN, f64::INFINITY].into_iter().all(|share| Share::try_from(share).is_err()));
    assert!([1e-6, 0.5, 1.0].into_iter().all(|share| Share::try_from(share).is_ok()));
}

#[test]
fn the_queries_of_each_layer_are_those_that_decide_and_those_that_learn() {
    let samples: Vec<Sample> = (0..6).map(random_sample).collect();
    let dummy = engine().default_dummy_image();
    let layers = engine().backbone().config.num_hidden_layers;
    let first = 2;
    let model = random_model(spec(Layout::RankOne, first), 3, 1);
    let resident = resident("task", &model, key_rule(Metric::Plain, KeySignal::Pooled), 1);
    let frozen = engine().layer_queries(&samples, dummy, None).unwrap();
    let adapted = engine().layer_queries(&samples, dummy, Some(&vec![resident; samples.len()])).unwrap();
    assert_eq!((frozen.len(), adapted.len()), (layers, layers));

    let close = |found: &[f32], expected: &[f32]| found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4);
    let packed = engine().embed(&samples, dummy).unwrap();
    let wanted: Vec<KeySignal> = (0..layers).map(|layer| KeySignal::MeanQuery { layer }).collect();
    let signals = engine().signals(&packed, &wanted).unwrap();
    for (layer, signal) in wanted.iter().enumerate() {
        for (query, expected) in frozen[layer].iter().zip(signals[signal].to_vec2::<f32>().unwrap()) {
            let mean: Vec<f32> = query.image.iter().zip(&query.text).map(|(v, t)| (v + t) / 2.0).collect();
            assert!(close(&mean, &expected), "layer {layer}");
        }
    }

    let output = engine().run_task(&engine().run_frozen(&packed, 0..first).unwrap(), &model).unwrap();
    for (layer, expected) in (first..layers).zip(&output.queries) {
        let [image, text] = [&expected.image, &expected.text].map(|of| of.to_vec2::<f32>().unwrap());
        for (i, query) in adapted[layer].iter().enumerate() {
            assert!(close(&query.image, &image[i]) && close(&query.text, &text[i]), "layer {layer}");
        }
    }
    assert!(adapted[..=first] == frozen[..=first] && adapted[first + 1] != frozen[first + 1]);
}
