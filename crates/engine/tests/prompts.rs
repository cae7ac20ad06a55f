//! Partitions that add keys and values or tokens are served as they were learnt, and beside all others.
use std::sync::Arc;

use delo_catalogue::{Catalogue, Resident, RoutingRule};
use delo_engine::{Answer, DeviceChoice, Engine, EngineError, Options, Policy, Query};
use delo_fixtures::{
    artifact, difference, engine, engine_with, key_rule, other_methods, prompt_methods, random_model_of, random_sample, resident, spec,
};
use delo_kernels::{Isa, Precision};
use delo_model::input::Sample;
use delo_model::partition::Artifact;
use delo_model::{KeySignal, Layout, Method, Metric, TaskModel};

/// One task of each method: those of low-rank updates and of a head alone first.
fn methods() -> Vec<Method> {
    let delo = Method::Delo { pools: spec(Layout::Slotted, 2) };
    [delo].into_iter().chain(other_methods(1)).chain(prompt_methods()).collect()
}

fn residents(methods: Vec<Method>) -> Vec<Arc<Resident>> {
    let of_method = |(i, method): (usize, Method)| {
        let model = random_model_of(method, 3 + i, i as u64);
        resident(&format!("task-{i}"), &model, key_rule(Metric::Lda, KeySignal::PartsPooled { layer: 3, width: None }), i as u64)
    };
    methods.into_iter().enumerate().map(of_method).collect()
}

fn catalogue(residents: &[Arc<Resident>]) -> Catalogue {
    Catalogue::empty(engine().backbone(), RoutingRule::default()).with_all(residents.iter().cloned()).unwrap()
}

fn bits(answer: Result<Answer, EngineError>) -> (String, Vec<u32>) {
    let answer = answer.unwrap();
    (answer.resident.task().to_owned(), answer.scores.iter().map(|x| x.to_bits()).collect())
}

/// For each sample, all modality patterns in turn, a query of each task, one whose task the engine decides,
/// and one that is answered under two tasks.
fn queries(residents: &[Arc<Resident>], samples: u64) -> Vec<Query> {
    let of_sample = |seed| {
        let given = residents.iter().map(move |resident| Query::given(random_sample(seed), resident.clone()));
        let policy = Policy { second_task: Some(2.0), ..Policy::default() };
        given.chain([Query::open(random_sample(seed)), Query { policy, ..Query::open(random_sample(seed)) }])
    };
    (0..samples).flat_map(of_sample).collect()
}

#[test]
fn prompts_and_prefixes_are_served_as_they_were_learnt() {
    let samples: Vec<Sample> = (0..9).map(random_sample).collect();
    let embedded = engine().embed(&samples, engine().default_dummy_image()).unwrap();
    for method in prompt_methods() {
        let model = random_model_of(method.clone(), 5, 3);
        let frozen = random_model_of(other_methods(0)[1].clone(), 5, 3);
        let scores = |model: &TaskModel| {
            let entering = engine().run_frozen(&embedded, 0..model.method().first_adapted_layer()).unwrap();
            let logits = engine().run_task(&entering, model).unwrap().logits;
            candle_nn::ops::softmax(&logits, 1).unwrap().to_vec2::<f32>().unwrap()
        };
        let (expected, unchanged) = (scores(&model), scores(&frozen));
        let resident = resident("only", &model, key_rule(Metric::Plain, KeySignal::Pooled), 1);
        let queries: Vec<Query> = samples.iter().map(|sample| Query::open(sample.clone())).collect();
        let answers = engine().classify(&catalogue(&[resident]), &queries);
        for ((answer, expected), unchanged) in answers.into_iter().zip(expected).zip(unchanged) {
            let scores = answer.unwrap().scores;
            let difference = |other: &[f32]| scores.iter().zip(other).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(difference(&expected) < 1e-5, "{}: {scores:?} for {expected:?}", method.kind());
            assert!(difference(&unchanged) > 1e-3, "{}: the frozen backbone gives the same: {scores:?}", method.kind());
        }
    }
}

#[test]
fn a_sample_of_any_method_has_the_bits_alone_that_it_has_in_a_mixed_batch() {
    let pools = [1, 2].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    for precision in Precision::ALL {
        for isa in Isa::available() {
            let engine = engine_with(Options { precision: Some(precision), isa: Some(isa), ..Options::default() });
            let residents = residents(methods());
            // On the fastest instructions every method in every pattern, on the others every method once.
            let step = if isa == Isa::detect() { 1 } else { 3 };
            let queries: Vec<Query> = queries(&residents, 3).into_iter().step_by(step).collect();
            let catalogue = catalogue(&residents);
            let classify = |pool: usize, queries: &[Query]| pools[pool].install(|| engine.classify(&catalogue, queries));
            let alone: Vec<_> = queries.iter().map(|query| bits(classify(0, std::slice::from_ref(query)).remove(0))).collect();
            let batches = if isa == Isa::detect() { &[(1, queries.len()), (0, 5)][..] } else { &[(1, queries.len())] };
            for &(pool, chunk) in batches {
                let together = queries.chunks(chunk).flat_map(|queries| classify(pool, queries)).map(bits);
                for ((i, together), alone) in together.enumerate().zip(&alone) {
                    assert_eq!(together, *alone, "{precision} {isa}, query {i} in batches of {chunk}");
                }
            }
        }
    }
}

#[test]
fn prompts_beside_them_leave_the_bits_of_the_other_methods() {
    let residents = residents(methods());
    let others = &residents[..residents.len() - prompt_methods().len()];
    let without: Vec<Query> = (0..12).map(|seed| Query::given(random_sample(seed), others[seed as usize % others.len()].clone())).collect();
    let expected: Vec<_> = engine().classify(&catalogue(others), &without).into_iter().map(bits).collect();
    // Before each of these samples, one of a task with prompts.
    let prompted = residents[others.len()..].iter().cycle();
    let mixed: Vec<Query> = without
        .iter()
        .zip(prompted)
        .enumerate()
        .flat_map(|(i, (query, prompted))| [Query::given(random_sample(50 + i as u64), prompted.clone()), query.clone()])
        .collect();
    let found: Vec<_> = engine().classify(&catalogue(&residents), &mixed).into_iter().skip(1).step_by(2).map(bits).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_queries_of_each_layer_are_those_that_learn_also_beside_prompts() {
    let samples: Vec<Sample> = (0..3).map(random_sample).collect();
    let dummy = engine().default_dummy_image();
    let embedded = engine().embed(&samples, dummy).unwrap();
    for method in prompt_methods() {
        let model = random_model_of(method.clone(), 3, 1);
        let resident = resident("task", &model, key_rule(Metric::Plain, KeySignal::Pooled), 1);
        let found = engine().layer_queries(&samples, dummy, Some(&vec![resident; samples.len()])).unwrap();
        let learnt = engine().run_task(&embedded, &model).unwrap().queries;
        assert_eq!(found.len(), learnt.len());
        for (layer, (found, learnt)) in found.iter().zip(&learnt).enumerate() {
            let [image, text] = [&learnt.image, &learnt.text].map(|of| of.to_vec2::<f32>().unwrap());
            for (i, query) in found.iter().enumerate() {
                let close = |found: &[f32], learnt: &[f32]| found.iter().zip(learnt).all(|(a, b)| (a - b).abs() < 1e-4);
                assert!(close(&query.image, &image[i]) && close(&query.text, &text[i]), "{}, layer {layer}", method.kind());
            }
        }
    }
}

#[test]
fn a_query_counts_the_prompts_that_it_may_take() {
    let residents = residents(methods());
    let catalogue = catalogue(&residents);
    let plain = engine().tokens(catalogue.dummy_image(), &random_sample(0));
    let tokens = |given: Option<&Arc<Resident>>| {
        engine().query_tokens(&catalogue, &Query { given: given.cloned(), ..Query::open(random_sample(0)) })
    };
    let counted: Vec<usize> = residents.iter().map(|resident| tokens(Some(resident)) - plain).collect();
    assert_eq!(counted, [0, 0, 0, 0, 6], "2 prompts of 3 tokens");
    assert_eq!(tokens(None) - plain, 6);
    let without = catalogue.without("task-4").unwrap();
    assert_eq!(engine().query_tokens(&without, &Query::open(random_sample(0))), plain);
}

#[test]
fn a_partition_with_prompts_comes_back_from_its_artifact_and_older_programs_refuse_its_version() {
    for (method, version) in methods().into_iter().zip(["2", "2", "2", "4", "4"]) {
        let model = random_model_of(method.clone(), 3, 1);
        let bytes = artifact("task", &model, key_rule(Metric::Plain, KeySignal::Pooled), 1);
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
        assert!(header.contains(&format!("\"format_version\":\"{version}\"")), "{}", method.kind());
        let read = Artifact::parse(&bytes).unwrap();
        assert_eq!(read.meta.method, method);
        let back = TaskModel::from_tensors(read.meta.method, 3, &read.tensors).unwrap();
        for ((name, before), (_, after)) in model.to_tensors().unwrap().iter().zip(back.to_tensors().unwrap()) {
            assert_eq!(difference(before, &after), 0.0, "{name}");
        }
    }
}

/// candle's backend on the CPU stands in for a GPU.
#[test]
fn a_gpu_refuses_prompts_and_says_what_to_do() {
    let gpu: Engine = engine_with(Options { device: DeviceChoice::Candle, precision: Some(Precision::F32), ..Options::default() });
    for method in prompt_methods() {
        let model = random_model_of(method, 3, 1);
        let resident = resident("only", &model, key_rule(Metric::Plain, KeySignal::Pooled), 1);
        let refusal =
            gpu.classify(&catalogue(std::slice::from_ref(&resident)), &[Query::given(random_sample(0), resident)]).remove(0).unwrap_err();
        assert!(refusal.to_string().contains("give --device cpu"), "{refusal}");
        let embedded = gpu.embed(&[random_sample(0)], gpu.default_dummy_image()).unwrap();
        let refusal = gpu.run_task(&embedded, &model).unwrap_err().to_string();
        assert!(refusal.contains("give --device cpu"), "{refusal}");
    }
}
