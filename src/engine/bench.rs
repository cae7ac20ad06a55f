//! How fast the engine is: samples of one shape, each of another task, through the whole forward.
use std::time::Instant;

use candle_core::Result;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::{Catalogue, Engine, Query, Resident, RoutingRule};
use crate::delo::keys::{KeyAverage, KeySignal, Metric, SessionKeys};
use crate::delo::partition::{BackboneRecord, KeyRule, PartitionMeta, to_bytes};
use crate::delo::task_model::{TARGETS, TaskModel};
use crate::delo::{Partition, PoolSpec};
use crate::input::{Pixels, Sample};

/// Forwards that are run before any is timed.
const WARM_UP: usize = 2;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Height and width of every image, in pixels, multiples of the patch size.
    pub image: [usize; 2],
    /// Tokens of every text, CLS and SEP included.
    pub text: usize,
    /// Resident tasks, given in turn to the samples of a batch; 0 runs the frozen backbone alone.
    pub tasks: usize,
    pub pools: PoolSpec,
    /// Timed forwards of each batch size.
    pub runs: usize,
}

/// One batch size's figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub precision: &'static str,
    pub batch: usize,
    /// Median time of a forward.
    pub seconds: f64,
    pub requests_per_second: f64,
}

/// The vector instructions that matrix products run on, chosen at run time.
pub fn kernel() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "f32 avx512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "f32 avx2";
        }
    }
    if cfg!(target_arch = "aarch64") { "f32 neon" } else { "f32 portable" }
}

/// Measures each batch size on random samples and random partitions.
///
/// # Errors
/// A workload that does not fit the backbone.
pub fn measure(engine: &Engine, workload: &Workload, batches: &[usize]) -> Result<Vec<Row>> {
    let residents = (0..workload.tasks).map(|task| resident(engine, workload, task)).collect::<Result<Vec<_>>>()?;
    let catalogue = Catalogue::empty(engine.vilt(), RoutingRule::default())
        .with_all(residents.into_iter().map(Into::into))
        .map_err(|e| candle_core::Error::Msg(e.to_string()))?;
    batches.iter().map(|&batch| row(engine, workload, &catalogue, batch)).collect()
}

fn row(engine: &Engine, workload: &Workload, catalogue: &Catalogue, batch: usize) -> Result<Row> {
    let mut rng = ChaCha8Rng::seed_from_u64(batch as u64);
    let samples: Vec<Sample> = (0..batch).map(|_| sample(engine, workload, &mut rng)).collect();
    let task = |i: usize| Some(format!("task-{}", i % workload.tasks));
    let queries: Vec<Query> = match workload.tasks {
        0 => Vec::new(),
        _ => samples.iter().enumerate().map(|(i, s)| Query { sample: s.clone(), task: task(i), explain: false }).collect(),
    };
    let mut seconds = Vec::with_capacity(workload.runs);
    for run in 0..WARM_UP + workload.runs {
        let start = Instant::now();
        if workload.tasks == 0 {
            engine.signals(&engine.embed(&samples, workload.image)?, &[KeySignal::Pooled])?;
        } else if let Some(Err(e)) = engine.classify(catalogue, &queries).into_iter().find(|a| a.is_err()) {
            candle_core::bail!("{e}");
        }
        if run >= WARM_UP {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let seconds = seconds[seconds.len() / 2];
    Ok(Row { precision: "f32", batch, seconds, requests_per_second: batch as f64 / seconds })
}

fn sample(engine: &Engine, workload: &Workload, rng: &mut ChaCha8Rng) -> Sample {
    let [height, width] = workload.image;
    let vocabulary = engine.vilt().config.vocab_size as u32;
    Sample {
        text: Some((0..workload.text).map(|_| rng.random_range(0..vocabulary)).collect()),
        image: Some(Pixels { height, width, data: (0..3 * height * width).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect() }),
    }
}

/// A partition of random factors; its keys are random too, for the tasks are given.
fn resident(engine: &Engine, workload: &Workload, task: usize) -> Result<Resident> {
    let model = TaskModel::init(workload.pools.clone(), 10, task as u64)?;
    for pools in &model.layers {
        pools.b.set(&pools.a)?;
    }
    let signal = KeySignal::MeanQuery { layer: 0 };
    let mut keys = SessionKeys::default();
    keys.mean.insert(signal.to_string(), vec![1.0; workload.pools.hidden]);
    let meta = PartitionMeta {
        task: format!("task-{task}"),
        labels: (0..10).map(|label| label.to_string()).collect(),
        multi_label: false,
        pools: workload.pools.clone(),
        targets: TARGETS.map(str::to_owned).to_vec(),
        key: KeyRule { metric: Metric::Plain, signal, plain_signal: signal, plain_average: KeyAverage::Mean },
        dummy_image: engine.default_dummy_image(),
        backbone: BackboneRecord { fingerprint: engine.vilt().fingerprint.clone(), name: "bench".to_owned() },
        training: serde_json::Value::Null,
        data: serde_json::Value::Null,
        seed: task as u64,
        metrics: Default::default(),
        created: String::new(),
        delo_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let refused = |e: crate::delo::PartitionError| candle_core::Error::Msg(e.to_string());
    let bytes = to_bytes(&meta, &model, &keys).map_err(refused)?;
    Ok(Resident { partition: Partition::read(&bytes, engine.vilt()).map_err(refused)?, version: 1 })
}
