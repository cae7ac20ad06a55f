//! Training in candle's operations, as on a GPU, and by our kernels on the CPU: the same losses and nearly
//! the same artifact. Here both compute on the CPU.
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::Tensor;
use delo_engine::checkpoint::{Checkpoint, TextOptions};
use delo_engine::{DeviceChoice, Options};
use delo_fixtures::colours::write_data;
use delo_fixtures::key_rule;
use delo_kernels::Precision;
use delo_model::input::Limits;
use delo_model::model_dir::ModelDir;
use delo_model::partition::Artifact;
use delo_model::{KeySignal, MethodKind, Metric};
use delo_train::training::renew;
use delo_train::{Dataset, MissingKind, MissingTable, Outputs, Session, Settings, Trained, train};

/// The largest relative difference of a step's loss, and of all learnt parameters together (the norm of the
/// difference over the norm), after six steps. Where experts are chosen, a choice between two that have
/// nearly the same score may fall otherwise, and one pool then learns another expert.
const ERRORS_WITHOUT_CHOICE: (f64, f32) = (1e-4, 1e-3);
const ERRORS_WITH_CHOICE: (f64, f32) = (1e-3, 0.03);
/// The largest relative difference of a tensor that is computed from the frozen backbone alone. The analytic
/// classifier solves equations, which magnifies rounding.
const FROZEN_ERROR: f32 = 1e-3;

fn checkpoint(device: DeviceChoice) -> Checkpoint {
    let options = Options { precision: Some(Precision::F32), device, training: Some(Precision::F32), ..Options::default() };
    Checkpoint::load(&ModelDir::Embedded, Limits::default(), TextOptions::default(), options).unwrap()
}

fn outputs(dir: &Path, name: &str) -> Outputs {
    Outputs {
        artifact: dir.join(format!("{name}.safetensors")),
        log: dir.join(format!("{name}.jsonl")),
        force: false,
        resume: false,
        checkpoint_every: 0,
        cache_bytes: 1 << 30,
        created: "2026-01-01T00:00:00Z".to_owned(),
    }
}

/// The norm of all numbers of some tensors.
fn norm<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> f32 {
    let squares = |tensor: &Tensor| tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    tensors.into_iter().map(squares).sum::<f32>().sqrt()
}

fn losses(outputs: &Outputs) -> Vec<f64> {
    let log = std::fs::read_to_string(&outputs.log).unwrap();
    log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap()).collect()
}

#[test]
fn a_session_on_another_device_has_the_same_losses_and_nearly_the_same_artifact() {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path(), false);
    let data = Dataset::open(dir.path()).unwrap();
    let missing = MissingTable::draw(&data, 0.5, MissingKind::Both, 0).unwrap();
    for (method, residual) in [(MethodKind::Delo, false), (MethodKind::Delo, true), (MethodKind::Lora, false)] {
        let head_weight = if residual { 0.65 } else { 1.0 };
        let small = Settings { experts: 4, rank: 2, first_adapted_layer: 4, lr: 2e-3, batch: 3, epochs: 2, ..Settings::default() };
        let settings = Settings { method, residual, head_weight, ..small };
        let metric = if residual { Metric::Lda } else { Metric::Whitened };
        let run = |device: DeviceChoice, learnt: Option<&Artifact>| -> (Trained, Outputs) {
            let Checkpoint { engine, processor } = checkpoint(device);
            let session = Session {
                engine: &engine,
                processor: &processor,
                backbone: "emoji-mini".to_owned(),
                data: &data,
                missing: &missing,
                task: 0,
                settings: &settings,
                key: key_rule(metric, KeySignal::Parts { layer: 2 }),
                store: None,
            };
            let outputs = outputs(dir.path(), &format!("{method}-{residual}-{device}-{}", learnt.is_some()));
            let trained = match learnt {
                Some(learnt) => renew(&session, learnt, &outputs),
                None => train(&session, &outputs, &mut |_| ControlFlow::Continue(())),
            };
            (trained.unwrap(), outputs)
        };
        let read = |outputs: &Outputs| Artifact::parse(&std::fs::read(&outputs.artifact).unwrap()).unwrap();
        let [(ours, our_outputs), (theirs, their_outputs)] = [DeviceChoice::Cpu, DeviceChoice::Candle].map(|device| run(device, None));
        assert_eq!((ours.steps, ours.pool_parameters), (theirs.steps, theirs.pool_parameters));
        let (loss_error, parameter_error) = if method == MethodKind::Delo { ERRORS_WITH_CHOICE } else { ERRORS_WITHOUT_CHOICE };
        for (step, (ours, theirs)) in losses(&our_outputs).into_iter().zip(losses(&their_outputs)).enumerate() {
            assert!((ours - theirs).abs() <= loss_error * ours.abs(), "{method}: the loss of step {step} is {theirs}, not {ours}");
        }
        let [ours, theirs] = [&our_outputs, &their_outputs].map(read);
        assert_eq!(ours.meta.training, theirs.meta.training);
        assert_eq!(ours.tensors.keys().collect::<Vec<_>>(), theirs.tensors.keys().collect::<Vec<_>>());
        let difference = |name: &str| (&ours.tensors[name] - &theirs.tensors[name]).unwrap();
        let (learnt, frozen): (Vec<&str>, Vec<&str>) =
            ours.tensors.keys().map(String::as_str).partition(|name| name.starts_with("layers.") || name.starts_with("head."));
        let error = norm(&learnt.iter().map(|name| difference(name)).collect::<Vec<_>>());
        let size = norm(learnt.iter().map(|&name| &ours.tensors[name]));
        assert!(error <= parameter_error * size, "{method}: the parameters differ by {error}, their norm is {size}");
        for name in frozen {
            let (error, size) = (norm([&difference(name)]), norm([&ours.tensors[name]]));
            assert!(error <= FROZEN_ERROR * size, "{method}: {name} differs by {error}, its norm is {size}");
        }
        // What one device has learnt, another takes over.
        let (_, renewed) = run(DeviceChoice::Candle, Some(&ours));
        let renewed = read(&renewed);
        for name in learnt {
            let renewed = (&ours.tensors[name] - &renewed.tensors[name]).unwrap();
            assert_eq!(norm([&renewed]), 0.0, "{method}: {name}");
        }
    }
}
