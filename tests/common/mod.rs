//! Fixtures that several tests build on.
#![allow(dead_code, reason = "each test binary uses some of them")]
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor};
use delo::delo::partition::{BackboneRecord, KeyRule, PartitionMeta, to_bytes};
use delo::delo::{KeyAverage, KeySignal, Layout, Metric, Partition, PoolSpec, SessionKeys, TaskModel};
use delo::engine::{Engine, Options, Resident};
use delo::input::{Pixels, Sample};
use delo::kernels::Precision;
use delo::model_dir::ModelDir;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `[CLS] [SEP]` of the embedded model's vocabulary.
pub const EMPTY_TEXT: [u32; 2] = [101, 102];

/// An engine over the embedded backbone, loaded once for all tests of a binary.
pub fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| engine_with(Options { precision: Some(Precision::F32), ..Options::default() }))
}

/// Another engine over the embedded backbone.
pub fn engine_with(options: Options) -> Engine {
    Engine::load(&ModelDir::Embedded, EMPTY_TEXT.to_vec(), options).unwrap()
}

/// Shape of a small pool on the embedded backbone.
pub fn spec(layout: Layout, first_adapted_layer: usize) -> PoolSpec {
    let config = &engine().backbone().config;
    PoolSpec { layout, experts: 5, rank: 2, alpha: 2.0, first_adapted_layer, layers: config.num_hidden_layers, hidden: config.hidden_size }
}

/// A model whose B factors are not zero, so that its adapters do something.
pub fn random_model(spec: PoolSpec, classes: usize, seed: u64) -> TaskModel {
    let model = TaskModel::init(spec, classes, seed).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xb);
    for pools in &model.layers {
        let values: Vec<f32> = (0..pools.b.elem_count()).map(|_| (rng.random::<f32>() - 0.5) * 0.2).collect();
        pools.b.set(&Tensor::from_vec(values, pools.b.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    model
}

/// A text, an image or both, of random content and sizes.
pub fn random_sample(seed: u64) -> Sample {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let patch = engine().backbone().config.patch_size;
    let words = rng.random_range(1..12);
    let text: Vec<u32> = [101].into_iter().chain((0..words).map(|_| rng.random_range(1000..30_000))).chain([102]).collect();
    let (height, width) = (patch * rng.random_range(1..9), patch * rng.random_range(1..9));
    let image = Pixels { height, width, data: (0..3 * height * width).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect() };
    match seed % 3 {
        0 => Sample { text: Some(text), image: Some(image) },
        1 => Sample { text: Some(text), image: None },
        _ => Sample { text: None, image: Some(image) },
    }
}

/// The header of a partition of a random model.
pub fn meta(task: &str, model: &TaskModel, key: KeyRule) -> PartitionMeta {
    PartitionMeta {
        task: task.to_owned(),
        labels: (0..model.head_bias.elem_count()).map(|i| format!("{task}-{i}")).collect(),
        multi_label: false,
        pools: model.spec.clone(),
        targets: ["query", "key", "value"].map(str::to_owned).to_vec(),
        key,
        dummy_image: engine().default_dummy_image(),
        special_tokens: None,
        backbone: BackboneRecord { fingerprint: engine().backbone().fingerprint.clone(), name: "emoji-mini".to_owned() },
        training: serde_json::Value::Null,
        data: serde_json::Value::Null,
        seed: 0,
        metrics: Default::default(),
        created: "2026-01-01T00:00:00Z".to_owned(),
        delo_version: "0.0.0".to_owned(),
    }
}

/// A rule over the signal entering layer 3 for the whitened metric, and the pooled output for the plain one.
pub fn key_rule(metric: Metric, signal: KeySignal) -> KeyRule {
    KeyRule { metric, signal, plain_signal: KeySignal::Pooled, plain_average: KeyAverage::Mean }
}

/// The bytes of a partition of a random model, whose keys are drawn from a few random samples.
pub fn artifact(task: &str, model: &TaskModel, key: KeyRule, seed: u64) -> Vec<u8> {
    let samples: Vec<Sample> = (0..12).map(|i| random_sample(seed * 1000 + i)).collect();
    let packed = engine().embed(&samples, engine().default_dummy_image()).unwrap();
    let mut wanted = KeySignal::plain(model.spec.layers);
    wanted.push(key.signal);
    let whitened: &[KeySignal] = if key.metric == Metric::Whitened { &[key.signal] } else { &[] };
    let keys = SessionKeys::of(&engine().signals(&packed, &wanted).unwrap(), whitened).unwrap();
    to_bytes(&meta(task, model, key), model, &keys).unwrap()
}

/// A partition of a random model, as version 1.
pub fn resident(task: &str, model: &TaskModel, key: KeyRule, seed: u64) -> Arc<Resident> {
    let partition = Partition::read(&artifact(task, model, key, seed), engine().backbone()).unwrap();
    Resident::new(partition, 1)
}

/// The largest absolute difference between two tensors.
pub fn difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}
