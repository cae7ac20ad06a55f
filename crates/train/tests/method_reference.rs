//! Routing, adapters, losses, gradients and task keys are those of an independent implementation of METHOD.md
//! and ROUTING.md. Fixtures: tools/fixtures/method.py.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use delo_engine::{Engine, Options, Packed};
use delo_kernels::{Isa, Precision};
use delo_model::PerModality;
use delo_model::analytic::{Analytic, AnalyticRecord};
use delo_model::input::{Pixels, Presence, Sample};
use delo_model::method::{Layout, Method, MethodSpec, PoolId, PoolSpec, TaskModel};
use delo_model::model_dir::ModelDir;
use delo_model::routing::KeyChoice;
use delo_model::routing::keys::{KeyAverage, KeySignal, Metric, SessionKeys, Signals};
use delo_train::data::Label;
use delo_train::training::objective::{AlignedLayers, Batch, Objective, targets};

/// Side of the backbone's square, and so of the dummy image, in pixels.
const SQUARE: usize = 48;
const CLS: u32 = 1;
const SEP: u32 = 2;

fn fixtures() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("tests/fixtures")
}

fn tensors(file: &str) -> BTreeMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join("method").join(file), &Device::Cpu).unwrap().into_iter().collect()
}

fn engine() -> Engine {
    let dir = ModelDir::Path(fixtures().join("vilt/masked-lm"));
    Engine::load(&dir, vec![CLS, SEP], Options { precision: Some(Precision::F32), ..Options::default() }).unwrap()
}

fn samples() -> Vec<Sample> {
    let tensors = tensors("samples.safetensors");
    let text = |i: usize| tensors.get(&format!("{i}.ids")).map(|t| t.to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect());
    let image = |i: usize| {
        tensors.get(&format!("{i}.pixels")).map(|t| {
            let (_, height, width) = t.dims3().unwrap();
            let data = t.flatten_all().unwrap().to_vec1::<u8>().unwrap().into_iter().map(|x| f32::from(x) / 127.5 - 1.0).collect();
            Pixels { height, width, data }
        })
    };
    (0..30).map(|i| Sample { text: text(i), image: image(i) }).collect()
}

fn embedded(engine: &Engine, samples: &[Sample]) -> Packed {
    engine.embed(samples, [SQUARE, SQUARE]).unwrap()
}

struct Case {
    name: String,
    tensors: BTreeMap<String, Tensor>,
    losses: serde_json::Value,
    spec: PoolSpec,
    task: TaskModel,
}

fn cases() -> Vec<Case> {
    let losses: serde_json::Value = serde_json::from_slice(&std::fs::read(fixtures().join("method/losses.json")).unwrap()).unwrap();
    let named = [("rank_one", Layout::RankOne), ("slotted", Layout::Slotted)];
    named
        .into_iter()
        .flat_map(|named| [(named, 0), (named, 1)])
        .map(|((name, layout), first_adapted_layer)| {
            let name = format!("{name}-{first_adapted_layer}");
            let tensors = tensors(&format!("{name}.safetensors"));
            let spec = PoolSpec {
                layout,
                experts: 5,
                rank: 2,
                alpha: 2.0,
                first_adapted_layer,
                layers: 3,
                hidden: 24,
                cross_modal_guide: true,
                modality_pools: true,
            };
            let task = TaskModel::from_tensors(Method::Delo { pools: spec.clone() }, 3, &tensors).unwrap();
            Case { losses: losses[&name].clone(), name, tensors, spec, task }
        })
        .collect()
}

/// The largest difference, and the largest magnitude of what is expected.
fn difference(got: &Tensor, expected: &Tensor) -> (f32, f32) {
    assert_eq!(got.shape(), expected.shape());
    let largest = |t: &Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
    (largest(&(got - expected).unwrap()), largest(expected))
}

fn close(what: &str, got: &Tensor, expected: &Tensor, bar: f32) -> f32 {
    let (worst, scale) = difference(got, expected);
    assert!(worst <= bar * scale.max(1.0), "{what}: differs by {worst} of {scale}");
    worst
}

#[test]
fn task_layers_give_the_reference_logits_and_queries() {
    let (engine, samples) = (engine(), samples());
    let packed = embedded(&engine, &samples[..7]);
    for Case { name, tensors, spec, task, .. } in cases() {
        let entering = engine.run_frozen(&packed, 0..spec.first_adapted_layer).unwrap();
        let output = engine.run_task(&entering, &task).unwrap();
        let logits = close(&name, &output.logits, &tensors["logits"], 1e-4);
        let stacked =
            |query: fn(&PerModality<Tensor>) -> &Tensor| Tensor::stack(&output.queries.iter().map(query).collect::<Vec<_>>(), 0).unwrap();
        let visual = close(&name, &stacked(|queries| &queries.image), &tensors["query.visual"], 1e-4);
        let textual = close(&name, &stacked(|queries| &queries.text), &tensors["query.textual"], 1e-4);
        println!("{name}: logits {logits:e}, q^v {visual:e}, q^t {textual:e}");
    }
}

#[test]
fn served_pools_choose_the_reference_factors() {
    for Case { name, tensors, spec, .. } in cases() {
        let adapter = spec.adapter(&tensors).unwrap();
        for (at, layer) in adapter.layers().enumerate() {
            let bank = adapter.bank(layer).unwrap();
            let query = |side: &str| tensors[&format!("query.{side}")].get(at).unwrap().to_vec2::<f32>().unwrap();
            for (sample, (image, text)) in query("visual").into_iter().zip(query("textual")).enumerate() {
                let choices = bank.choose(Isa::detect(), &PerModality { image, text });
                for (pool, choice) in PoolId::all().zip(choices) {
                    let prefix = pool.prefix(layer).replacen("layers", "factors", 1);
                    let factors = |side: &str| tensors[&format!("{prefix}.{side}")].get(sample).unwrap().to_vec1::<i64>().unwrap();
                    let expected = [factors("a"), factors("b")].map(|f| f.into_iter().map(|e| e as u32).collect::<Vec<_>>());
                    assert_eq!([choice.a, choice.b], expected, "{name}, sample {sample}, {prefix}");
                }
            }
        }
    }
}

#[test]
fn the_objective_gives_the_reference_losses_and_gradients() {
    let (engine, samples) = (engine(), samples());
    let packed = embedded(&engine, &samples[..4]);
    for Case { name, tensors, spec, task, losses } in cases() {
        for (hidden, left) in [("text", Presence::ImageOnly), ("image", Presence::TextOnly)] {
            let proxied = packed.select(&[0, 1]).unwrap().with_presence(&[left, left]);
            let entering = Packed::concat(&[packed.clone(), proxied]).unwrap();
            let entering = engine.run_frozen(&entering, 0..spec.first_adapted_layer).unwrap();
            let output = engine.run_task(&entering, &task).unwrap();
            let expected = |term: &str| losses[term].as_f64().unwrap();
            for multi_label in [true, false] {
                let objective =
                    Objective { multi_label, alignment: 0.1, consistency: 0.1, aligned_layers: AlignedLayers::Last, key_pull: 0.0 };
                let labels: Vec<Label> = if multi_label {
                    let flags = [[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]];
                    flags.into_iter().map(|flags| Label::Classes(flags.into_iter().map(|f| f == 1).collect())).collect()
                } else {
                    [2, 0, 1, 2].into_iter().map(Label::Class).collect()
                };
                let targets = targets(&labels.iter().collect::<Vec<_>>(), &Device::Cpu).unwrap();
                let found = objective.losses(&output, &Batch { targets, complete: vec![0, 1] }).unwrap();
                let suffix = if multi_label { "_multi_label" } else { "" };
                for (term, value) in [
                    (format!("classification{suffix}"), Some(&found.classification)),
                    ("alignment".to_owned(), found.alignment.as_ref()),
                    (format!("consistency{suffix}_{hidden}"), found.consistency.as_ref()),
                ] {
                    let value = f64::from(value.unwrap().to_scalar::<f32>().unwrap());
                    assert!((value - expected(&term)).abs() < 1e-4, "{name}: {term} is {value}, not {}", expected(&term));
                }
                if !multi_label {
                    let (worst, largest) = gradients_agree(&name, hidden, &task, &found.total, &tensors);
                    println!("{name}, {hidden} hidden: gradients differ by {worst:e} of {largest}");
                }
            }
        }
    }
}

/// Every gradient of the loss, by the parameter's name in the artifact.
fn gradients_agree(name: &str, hidden: &str, task: &TaskModel, loss: &Tensor, expected: &BTreeMap<String, Tensor>) -> (f32, f32) {
    let gradients = loss.backward().unwrap();
    let of = TaskModel::from_tensors(task.method().clone(), 3, expected).unwrap();
    let vars = task.vars();
    for (parameter, var) in of.vars() {
        var.set(gradients.get(vars[&parameter].as_tensor()).unwrap()).unwrap();
    }
    let found = of.to_tensors().unwrap();
    let mut worst = (0f32, 0f32);
    for (parameter, gradient) in found {
        let wanted = &expected[&format!("gradient.{hidden}.{parameter}")];
        let (off, scale) = difference(&gradient, wanted);
        assert!(off <= 1e-5 * scale.max(1.0), "{name}, {hidden} hidden: gradient of {parameter} differs by {off} of {scale}");
        worst = (worst.0.max(off), worst.1.max(scale));
    }
    worst
}

#[test]
fn frozen_signals_and_task_cosines_are_the_reference_ones() {
    let (engine, samples, expected) = (engine(), samples(), tensors("signals.safetensors"));
    let names: Vec<String> = expected.keys().filter(|name| !name.contains('.')).cloned().collect();
    let wanted: Vec<KeySignal> = names.iter().map(|name| name.parse().unwrap()).collect();
    let signals = engine.signals(&embedded(&engine, &samples), &wanted).unwrap();
    let session = |k: usize| -> SessionKeys {
        let rows: Signals =
            signals.iter().map(|(signal, all)| (*signal, all.narrow(0, 10 * k, 10).unwrap().contiguous().unwrap())).collect();
        SessionKeys::of(&rows, &wanted, None).unwrap()
    };
    let sessions: Vec<SessionKeys> = (0..3).map(session).collect();
    for (name, signal) in names.iter().zip(wanted) {
        let worst = close(name, &signals[&signal], &expected[name], 1e-4);
        for metric in [Metric::Plain, Metric::Whitened] {
            let choice = KeyChoice { signal, average: KeyAverage::Mean };
            let rule = metric.definition().rule(&sessions.iter().collect::<Vec<_>>(), choice).unwrap();
            let rows = signals[&signal].to_vec2::<f32>().unwrap();
            let cosines: Vec<f32> = rows.iter().flat_map(|row| rule.scores(row)).filter_map(|task| task.cosine).collect();
            let cosines = Tensor::from_vec(cosines, (30, 3), &Device::Cpu).unwrap();
            let off = close(&format!("{metric} cosines of {name}"), &cosines, &expected[&format!("{metric}.{name}")], 1e-4);
            println!("{name}: signal {worst:e}, {metric} cosines {off:e}");
        }
    }
}

#[test]
fn joined_signals_task_probabilities_and_analytic_logits_are_the_reference_ones() {
    let (engine, samples, expected) = (engine(), samples(), tensors("discriminant.safetensors"));
    let names = ["summary", "parts@1+pooled", "pooled", "parts@1"];
    let wanted: Vec<KeySignal> = names.iter().map(|name| name.parse().unwrap()).collect();
    let signals = engine.signals(&embedded(&engine, &samples), &wanted).unwrap();
    let session = |k: usize| -> SessionKeys {
        let rows: Signals =
            signals.iter().map(|(signal, all)| (*signal, all.narrow(0, 10 * k, 10).unwrap().contiguous().unwrap())).collect();
        let classes = [2, 2, 3][k];
        let shares = (10 * k..10 * k + 10).flat_map(|i| (0..classes).map(move |class| f32::from(u8::from(i % classes == class))));
        let shares = Tensor::from_vec(shares.collect::<Vec<_>>(), (10, classes), &Device::Cpu).unwrap();
        let mut keys = SessionKeys::of(&rows, &wanted, Some(&shares)).unwrap();
        keys.classes.temperature = Some([1.0, 2.0, 4.0][k]);
        keys
    };
    let sessions: Vec<SessionKeys> = (0..3).map(session).collect();
    for (name, &signal) in names.iter().zip(&wanted) {
        if let Some(rows) = expected.get(*name) {
            close(name, &signals[&signal], rows, 1e-4);
        }
        let choice = KeyChoice { signal, average: KeyAverage::Mean };
        let rule = Metric::Lda.definition().rule(&sessions.iter().collect::<Vec<_>>(), choice).unwrap();
        let rows = signals[&signal].to_vec2::<f32>().unwrap();
        let found: Vec<f32> = rows.iter().flat_map(|row| rule.scores(row)).filter_map(|task| task.probability).collect();
        let found = Tensor::from_vec(found, (30, 3), &Device::Cpu).unwrap();
        close(&format!("probabilities of {name}"), &found, &expected[&format!("lda.{name}")], 1e-3);

        let record = AnalyticRecord { signal, weight: 0.5, head_weight: 0.5 };
        let mean = sessions[0].key(signal, KeyAverage::Mean).unwrap();
        let analytic = Analytic::of(record, sessions[0].statistics(signal).unwrap(), 2, &[], mean).unwrap();
        let found = Tensor::from_vec(rows.iter().flat_map(|row| analytic.logits(row)).collect::<Vec<_>>(), (30, 2), &Device::Cpu).unwrap();
        close(&format!("analytic logits of {name}"), &found, &expected[&format!("analytic.{name}")], 1e-3);
    }
}
