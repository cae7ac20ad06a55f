//! The two implementations of a task's layers in training: our kernels on the CPU, and candle's operations,
//! which run on a GPU and here on the CPU. They give the same outputs and the same gradients.
use std::sync::OnceLock;

use candle_core::Tensor;
use delo_engine::{DeviceChoice, Engine, Options, Packed, TaskOutput};
use delo_fixtures::{difference, engine, engine_with, other_methods, random_model_of, random_sample, spec};
use delo_kernels::Precision;
use delo_model::input::{Presence, Sample};
use delo_model::{Layout, Method};

/// The largest difference of an output, whose numbers are of the order of 1.
const OUTPUT_ERROR: f32 = 2e-5;
/// The largest difference of a gradient, as a part of the largest number of its tensor.
const GRADIENT_ERROR: f32 = 1e-3;

fn candle() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| engine_with(Options { device: DeviceChoice::Candle, precision: Some(Precision::F32), ..Options::default() }))
}

/// Every method, from the first layer and from a later one, and adapters in no layer.
fn methods() -> Vec<Method> {
    let delo = |layout, first| Method::Delo { pools: spec(layout, first) };
    let mut methods = vec![delo(Layout::RankOne, 0), delo(Layout::Slotted, 3), delo(Layout::RankOne, 5)];
    methods.extend(other_methods(2));
    methods
}

/// Samples of all modality patterns and of several lengths, two of them of the same; then a copy of one
/// without its text's query.
fn batch(first_layer: usize) -> Packed {
    let samples: Vec<Sample> = [0, 1, 2, 3, 0, 5].map(random_sample).into();
    let embedded = engine().embed(&samples, engine().default_dummy_image()).unwrap();
    let frozen = engine().run_frozen(&embedded, 0..first_layer).unwrap();
    let proxied = frozen.select(&[0]).unwrap().with_presence(&[Presence::ImageOnly]);
    Packed::concat(&[frozen, proxied]).unwrap()
}

/// A number that depends on every logit and every query.
fn loss(output: &TaskOutput) -> Tensor {
    let mut sum = output.logits.sqr().unwrap().mean_all().unwrap();
    for (i, queries) in output.queries.iter().enumerate() {
        for (modality, query) in queries.iter() {
            let weight = 1e-2 * (i + modality as usize + 1) as f64;
            sum = (sum + (query.sqr().unwrap().mean_all().unwrap() * weight).unwrap()).unwrap();
        }
    }
    sum
}

#[test]
fn both_implementations_give_the_same_outputs_and_gradients() {
    for method in methods() {
        let name = format!("{} from layer {}", method.kind(), method.first_adapted_layer());
        let packed = batch(method.first_adapted_layer());
        let model = random_model_of(method, 5, 7);
        let [ours, theirs] = [engine(), candle()].map(|engine| engine.run_task(&packed, &model).unwrap());
        assert!(difference(&ours.logits, &theirs.logits) < OUTPUT_ERROR, "{name}: logits");
        assert_eq!(ours.queries.len(), theirs.queries.len());
        for (of_ours, of_theirs) in ours.queries.iter().zip(&theirs.queries) {
            for ((_, of_ours), (_, of_theirs)) in of_ours.iter().zip(of_theirs.iter()) {
                assert!(difference(of_ours, of_theirs) < OUTPUT_ERROR, "{name}: queries");
            }
        }
        let [ours, theirs] = [ours, theirs].map(|output| loss(&output).backward().unwrap());
        let mut compared = 0;
        for (parameter, var) in model.vars() {
            let (Some(of_ours), Some(of_theirs)) = (ours.get(&var), theirs.get(&var)) else {
                assert!(ours.get(&var).is_none() && theirs.get(&var).is_none(), "{name}: one of them has no gradient of {parameter}");
                continue;
            };
            let largest: f32 = of_ours.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
            let error = difference(of_ours, of_theirs);
            assert!(error <= GRADIENT_ERROR * largest + 1e-9, "{name}: {parameter} differs by {error}, its largest number is {largest}");
            compared += usize::from(largest > 0.0);
        }
        assert!(compared >= 2, "{name}: {compared} gradients are not zero");
    }
}

/// The largest difference of an output whose frozen products are in bf16.
const HALF_OUTPUT_ERROR: f32 = 0.03;
/// The norm of the difference of a gradient whose frozen products are in bf16, as a part of the gradient's norm.
const HALF_GRADIENT_ERROR: f32 = 0.1;

#[test]
fn products_in_bf16_change_outputs_and_gradients_little() {
    let half = engine_with(Options { precision: Some(Precision::F32), training: Some(Precision::Bf16), ..Options::default() });
    // A method without a choice between experts: one of nearly the same score may be taken instead.
    for method in other_methods(0) {
        let name = format!("{} from layer {}", method.kind(), method.first_adapted_layer());
        let packed = batch(method.first_adapted_layer());
        let model = random_model_of(method, 5, 7);
        let [exact, predicted] = [engine(), &half].map(|engine| engine.predict_task(&packed, &model).unwrap());
        assert_eq!(difference(&exact, &predicted), 0.0, "{name}: where nothing learns, products are in f32");
        let [whole, half] = [engine(), &half].map(|engine| engine.run_task(&packed, &model).unwrap());
        assert_eq!(difference(&exact, &whole.logits), 0.0, "{name}");
        let error = difference(&whole.logits, &half.logits);
        let adapted = model.method().first_adapted_layer() < engine().backbone().config.num_hidden_layers;
        assert!(error < HALF_OUTPUT_ERROR && (error > 0.0) == adapted, "{name}: logits differ by {error}");
        let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let [whole, half] = [whole, half].map(|output| loss(&output).backward().unwrap());
        for (parameter, var) in model.vars() {
            let (Some(of_whole), Some(of_half)) = (whole.get(&var), half.get(&var)) else { continue };
            let error = norm(&(of_whole - of_half).unwrap());
            assert!(error <= HALF_GRADIENT_ERROR * norm(of_whole) + 1e-9, "{name}: {parameter} differs by {error} of {}", norm(of_whole));
        }
    }
}

#[test]
fn training_in_another_format_than_f32_is_refused() {
    let half = engine_with(Options { precision: Some(Precision::Bf16), ..Options::default() });
    let model = random_model_of(Method::Delo { pools: spec(Layout::RankOne, 5) }, 3, 1);
    let refusal = half.run_task(&batch(5), &model).unwrap_err().to_string();
    assert!(refusal.contains("f32"), "{refusal}");
}
