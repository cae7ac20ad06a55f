//! Measures the speed of the engine and its kernels: whole forwards of random samples with random partitions
//! of some methods, and single products.
use std::sync::Arc;
use std::time::Instant;

use candle_core::Result;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use delo_catalogue::{Catalogue, Resident, RoutingRule};
use delo_engine::{Engine, Query};
use delo_kernels::attention::{Attended, attention};
use delo_kernels::{Float, Format, Isa, Kernel, MapSink, Matrix, PANEL, PackedMatrix, Start, parallel, product, threads};
use delo_model::input::{Pixels, Sample};
use delo_model::partition::{BackboneRecord, KeyRule, PartitionMeta, to_bytes};
use delo_model::routing::keys::{KeyAverage, KeySignal, Metric, SessionKeys};
use delo_model::{Method, MethodKind, Partition, TaskModel};

/// Forwards of each case before the first one that is timed.
const WARM_UP: usize = 2;
/// Classes of a task.
const CLASSES: usize = 10;

/// The modalities of a batch's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A text and an image.
    Complete,
    /// A text without an image.
    TextOnly,
    /// An image without a text.
    ImageOnly,
    /// Six kinds in turn: complete, text only, image only; then complete with an image of half the side,
    /// image only of three quarters, complete of five quarters.
    Mixed,
}

/// What is measured: each combination of method, batch size, number of tasks, kind, and whether the task is
/// given or decided. The combinations take turns run by run, so that a busy machine slows all of them.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Height and width of every image, in pixels, multiples of the patch size.
    pub image: [usize; 2],
    /// Height and width of the image that stands in for a missing one, in pixels.
    pub dummy_image: [usize; 2],
    /// Tokens of every text, including CLS and SEP.
    pub text: usize,
    /// Resident tasks, given in turn to the samples of a batch; 0 runs the frozen backbone alone.
    pub tasks: Vec<usize>,
    /// The kinds of batches.
    pub kinds: Vec<Kind>,
    /// Samples of each batch.
    pub batches: Vec<usize>,
    /// Where given, also measures batches whose tasks the engine decides, by [`Self::metric`] over this
    /// signal.
    pub route: Option<KeySignal>,
    /// The metric that decides tasks.
    pub metric: Metric,
    /// The methods of the random partitions, one for each combination.
    pub methods: Vec<Method>,
    /// Timed forwards of each combination.
    pub runs: usize,
}

/// The figures of one combination.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Number format of the engine's products.
    pub precision: String,
    /// The method of the partitions; `None`: the frozen backbone alone.
    pub method: Option<MethodKind>,
    /// Samples of the batch.
    pub batch: usize,
    /// Resident tasks; 0: the frozen backbone alone.
    pub tasks: usize,
    /// The modalities of the samples.
    pub kind: Kind,
    /// Whether the engine decided the task.
    pub routed: bool,
    /// Tokens of the batch, including dummies and prompts.
    pub tokens: usize,
    /// Median time of a forward, in seconds.
    pub seconds: f64,
    /// Samples of the batch divided by the median time.
    pub requests_per_second: f64,
}

/// The inputs of one combination, and its times.
struct Case<'a> {
    row: Row,
    samples: Vec<Sample>,
    queries: Vec<Query>,
    catalogue: &'a Catalogue,
    /// The times of the forwards so far.
    seconds: Vec<f64>,
}

/// Measures each combination on random samples and random partitions. Blocking.
///
/// # Errors
/// A workload that does not fit the backbone.
pub fn measure(engine: &Engine, workload: &Workload) -> Result<Vec<Row>> {
    let most = workload.tasks.iter().copied().max().unwrap_or(0);
    let mut catalogues = Vec::new();
    for (number, method) in workload.methods.iter().enumerate() {
        let residents = residents(engine, workload, method, most)?;
        // The frozen backbone alone is the same beside all methods.
        for &tasks in workload.tasks.iter().filter(|&&tasks| number == 0 || tasks > 0) {
            let catalogue = Catalogue::empty(engine.backbone(), RoutingRule::default()).with_all(residents[..tasks].iter().cloned());
            catalogues.push(catalogue.map_err(|e| candle_core::Error::Msg(e.to_string()))?);
        }
    }
    let mut cases = Vec::new();
    for &batch in &workload.batches {
        for catalogue in &catalogues {
            for &kind in &workload.kinds {
                for routed in [false, true] {
                    let tasks = catalogue.residents().count();
                    if !routed || (workload.route.is_some() && tasks > 0) {
                        cases.push(case(engine, workload, catalogue, batch, kind, routed));
                    }
                }
            }
        }
    }
    for run in 0..WARM_UP + workload.runs {
        for case in &mut cases {
            let start = Instant::now();
            if case.row.tasks == 0 {
                engine.pooled(&case.samples, workload.dummy_image)?;
            } else if let Some(Err(e)) = engine.classify(case.catalogue, &case.queries).into_iter().find(|a| a.is_err()) {
                candle_core::bail!("{e}");
            }
            if run >= WARM_UP {
                case.seconds.push(start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(cases.into_iter().map(finish).collect())
}

fn case<'a>(engine: &Engine, workload: &Workload, catalogue: &'a Catalogue, batch: usize, kind: Kind, routed: bool) -> Case<'a> {
    let mut rng = ChaCha8Rng::seed_from_u64(batch as u64);
    let samples: Vec<Sample> = (0..batch).map(|i| sample(engine, workload, kind, i, &mut rng)).collect();
    let tasks = catalogue.residents().count();
    let task = |i: usize| if routed || tasks == 0 { None } else { catalogue.get(&name(i % tasks)).cloned() };
    let query = |(i, s): (usize, &Sample)| match task(i) {
        Some(task) => Query::given(s.clone(), task),
        None => Query::open(s.clone()),
    };
    let queries: Vec<Query> = samples.iter().enumerate().map(query).collect();
    let tokens = |query: &Query| {
        if tasks == 0 { engine.tokens(workload.dummy_image, &query.sample) } else { engine.query_tokens(catalogue, query) }
    };
    let row = Row {
        precision: engine.precision().to_string(),
        method: catalogue.residents().next().map(|resident| resident.partition.meta.method.kind()),
        batch,
        tasks,
        kind,
        routed,
        tokens: queries.iter().map(tokens).sum(),
        seconds: 0.0,
        requests_per_second: 0.0,
    };
    Case { row, samples, queries, catalogue, seconds: Vec::with_capacity(workload.runs) }
}

fn finish(mut case: Case<'_>) -> Row {
    let seconds = median(&mut case.seconds);
    Row { seconds, requests_per_second: case.row.batch as f64 / seconds, ..case.row }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn sample(engine: &Engine, workload: &Workload, kind: Kind, index: usize, rng: &mut ChaCha8Rng) -> Sample {
    let config = &engine.backbone().config;
    // Quarters of the image's side.
    let (text, image) = match kind {
        Kind::Complete => (true, Some(4)),
        Kind::TextOnly => (true, None),
        Kind::ImageOnly => (false, Some(4)),
        Kind::Mixed => [(true, Some(4)), (true, None), (false, Some(4)), (true, Some(2)), (false, Some(3)), (true, Some(5))][index % 6],
    };
    let side = |pixels: usize, quarters: usize| (pixels / config.patch_size * quarters / 4).max(1) * config.patch_size;
    Sample {
        text: text.then(|| (0..workload.text).map(|_| rng.random_range(0..config.vocab_size as u32)).collect()),
        image: image.map(|quarters| {
            let [height, width] = workload.image.map(|pixels| side(pixels, quarters));
            Pixels { height, width, data: (0..3 * height * width).map(|_| rng.random::<f32>() * 2.0 - 1.0).collect() }
        }),
    }
}

fn name(task: usize) -> String {
    format!("task-{task:04}")
}

/// `tasks` residents of a method with random factors, each with a copy of its own in memory.
fn residents(engine: &Engine, workload: &Workload, method: &Method, tasks: usize) -> Result<Vec<Arc<Resident>>> {
    if tasks == 0 {
        return Ok(Vec::new());
    }
    let signal = workload.route.unwrap_or(KeySignal::MeanQuery { layer: 0 });
    let model = TaskModel::init(method.clone(), CLASSES, 0)?;
    let vars = model.vars();
    for (name, b) in &vars {
        if let Some(layer) = name.strip_suffix(".b") {
            b.set(&vars[&format!("{layer}.a")])?;
        }
    }
    let width = signal.width(method.backbone().hidden);
    let mut keys = SessionKeys::default();
    keys.mean.insert(signal, vec![1.0; width]);
    if workload.route.is_some() {
        // The identity: every direction has the same weight.
        let moment = (0..width).flat_map(|i| (i..width).map(move |j| f32::from(u8::from(i == j))));
        keys.moments.insert(signal, moment.collect());
    }
    let metric = if workload.route.is_some() { workload.metric } else { Metric::Plain };
    if metric == Metric::Lda {
        keys.classes.counts = vec![10.0; CLASSES];
        keys.classes.means.insert(signal, vec![0.0; CLASSES * width]);
    }
    let meta = PartitionMeta {
        task: name(0),
        labels: (0..CLASSES).map(|label| label.to_string()).collect(),
        multi_label: false,
        targets: model.method().target_names(),
        method: model.method().clone(),
        key: KeyRule { metric, signal, plain_signal: signal, plain_average: KeyAverage::Mean, temperature: None },
        analytic: None,
        dummy_image: workload.dummy_image,
        special_tokens: None,
        text_positions: engine.backbone().text_positions(),
        backbone: BackboneRecord { fingerprint: engine.backbone().fingerprint.clone(), name: "bench".to_owned() },
        training: serde_json::Value::Null,
        data: serde_json::Value::Null,
        seed: 0,
        metrics: Default::default(),
        created: String::new(),
        delo_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let refused = |e: delo_model::PartitionError| candle_core::Error::Msg(e.to_string());
    let bytes = to_bytes(&meta, &model, &keys, None).map_err(refused)?;
    let first = Partition::read(&bytes, engine.backbone()).map_err(refused)?.in_precision(engine.precision());
    let resident = |task: usize| {
        let mut partition = first.clone();
        partition.meta.task = name(task);
        let mut rng = ChaCha8Rng::seed_from_u64(task as u64);
        let key = (0..width).map(|_| rng.random::<f32>() - 0.5).collect();
        partition.keys.mean.insert(signal, key);
        partition.keys.classes.means.values_mut().flatten().for_each(|x| *x = (rng.random::<f32>() - 0.5) / (width as f32).sqrt());
        Resident::new(partition, 1)
    };
    Ok((0..tasks).map(resident).collect())
}

/// The speed of one product.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelRow {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Which product of the backbone, or `ceiling`: a product whose operands stay in the first-level cache.
    pub product: String,
    /// Rows, k and columns.
    pub shape: [usize; 3],
    /// 10⁹ floating-point operations per second.
    pub gflops: f64,
}

/// Measures the products of a layer of width `hidden` with an MLP of width `intermediate`, and the attention
/// of one sample, once for each number of `rows`. The first result is the kernel's highest speed (`ceiling`).
/// Each figure is the best of several runs. Blocking.
pub fn measure_kernel<E: Float>(isa: Isa, hidden: usize, intermediate: usize, heads: usize, rows: &[usize]) -> Vec<KernelRow> {
    let kernel = E::kernel(isa);
    let row = |product: &str, shape: [usize; 3], gflops| KernelRow { kernel: kernel.name, product: product.to_owned(), shape, gflops };
    let mut out = vec![row("ceiling", [kernel.rows, 128.max(E::K_STEP), PANEL], ceiling(&kernel))];
    for &rows in rows {
        for (name, k, n) in [
            ("query, key, value", hidden, 3 * hidden),
            ("attention output", hidden, hidden),
            ("intermediate", hidden, intermediate),
            ("output", intermediate, hidden),
        ] {
            let weights = PackedMatrix::<E>::new(&[&vec![0.01; k * n]], k);
            let (x, mut to) = (Matrix::<E>::zeros(rows, k), Matrix::<f32>::zeros(rows, n));
            let work = 2.0 * (rows * k * n) as f64;
            out.push(row(
                name,
                [rows, k, n],
                best(work, || product(&kernel, x.view(), &weights, None, &MapSink { isa, f: |x| x, out: to.view_mut() })),
            ));
        }
        let (qkv, mut to) = (Matrix::<E>::zeros(rows, 3 * hidden), Matrix::<E>::zeros(rows, hidden));
        let parts = [0, 1, 2].map(|part| qkv.view().columns(part * hidden..(part + 1) * hidden));
        let one = [Attended::to_itself(0..rows)];
        let work = 4.0 * (rows * rows * hidden) as f64;
        out.push(row("attention", [rows, rows, hidden], best(work, || attention(&kernel, parts, &one, heads, &to.view_mut()))));
    }
    out
}

/// GFLOP/s of the fastest of several runs of `f`, which does `work` operations.
fn best(work: f64, mut f: impl FnMut() + Send) -> f64 {
    delo_engine::in_pool(|| {
        let mut seconds = f64::INFINITY;
        for _ in 0..12 {
            let start = Instant::now();
            f();
            seconds = seconds.min(start.elapsed().as_secs_f64());
        }
        work / seconds / 1e9
    })
}

/// GFLOP/s of the micro-kernel on all threads of the pool, with operands that stay in the first-level cache.
fn ceiling<E: Float>(kernel: &Kernel<E>) -> f64 {
    const REPEATS: usize = 20_000;
    let k = 128.max(E::K_STEP);
    let work = 2.0 * (threads() * REPEATS * kernel.rows * k * PANEL) as f64;
    best(work, || {
        parallel(threads(), |_| {
            let (x, weights) = (Matrix::<E>::zeros(kernel.rows, k), PackedMatrix::<E>::new(&[&vec![0.0; k * PANEL]], k));
            let mut out = vec![0.0; kernel.rows * PANEL];
            for _ in 0..REPEATS {
                kernel.multiply(std::hint::black_box(x.view()), k, weights.panel(0), Start::Zero, &mut out, PANEL);
            }
            std::hint::black_box(&out);
        });
    })
}
