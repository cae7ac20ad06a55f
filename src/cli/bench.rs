//! `delo bench`: how fast the engine is on this machine.
use std::path::Path;

use candle_core::Device;
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::Failure;
use super::choice::metrics;
use super::compute::{ComputeArgs, at_least_one};
use super::output::{print, print_json, table};
use crate::bench::{Kind, Workload, measure, measure_kernel};
use delo_engine::{DeviceChoice, Engine, Options};
use delo_kernels::{Isa, Precision, bf16, threads};
use delo_model::model_dir::ModelDir;
use delo_model::vilt::{Loader, ViltConfig};
use delo_model::{KeySignal, MethodKind, Metric};
use delo_train::Settings;

/// The backbone of random weights, in the shape of ViLT-B/32.
const RANDOM_VILT_B32: &str = "random:vilt-b32";
/// Token ids that stand in for a missing text; what they are does not matter here, but that they are two
/// does.
const DUMMY_TEXT: [u32; 2] = [0, 0];

/// Measures the engine and its kernels.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    Engine(Box<EngineArgs>),
    Kernels(KernelArgs),
}

/// Measures whole forwards of batches whose samples are each of another task: the median of several, in
/// requests per second.
///
/// Several --method, --tasks, --samples and --batch give a row for each combination, measured in turn, so
/// that rows can be compared on a busy machine. Prints `{"rows": [{"precision", "method", "batch", "tasks",
/// "kind", "routed", "tokens", "seconds", "requests_per_second"}…], "kernel", "threads"}` with --json.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    delo bench engine --json\n  \
    delo bench engine --backbone random:vilt-b32 --image 384 384 --text 40 --precision f32 bf16 --batch 1 4 8\n  \
    delo bench engine --tasks 0 1 10 --samples complete mixed --first-adapted-layer 3 --route")]
struct EngineArgs {
    /// A Hugging Face ViLT checkpoint directory, or random:vilt-b32; the checkpoint in the program if left
    /// out
    #[arg(long, value_name = "DIR")]
    backbone: Option<String>,
    /// Height and width of the images, in pixels [default: the backbone's own image size]
    #[arg(long, num_args = 2, value_names = ["HEIGHT", "WIDTH"])]
    image: Option<Vec<usize>>,
    /// Height and width of the image that stands in for a missing one, in pixels [default: one patch]
    #[arg(long, num_args = 2, value_names = ["HEIGHT", "WIDTH"])]
    dummy_image: Option<Vec<usize>>,
    /// Text positions, to which the backbone's position table is interpolated [default: the checkpoint's own]
    #[arg(long, value_name = "N")]
    text_positions: Option<usize>,
    /// Tokens of the texts [default: all text positions]
    #[arg(long, value_name = "TOKENS")]
    text: Option<usize>,
    /// Resident tasks; 0 measures the frozen backbone alone
    #[arg(long, num_args = 1.., default_values_t = [10])]
    tasks: Vec<usize>,
    /// What the samples hold
    #[arg(long, value_enum, num_args = 1.., default_values_t = [Kind::Complete])]
    samples: Vec<Kind>,
    /// Samples of a batch
    #[arg(long, num_args = 1.., default_values_t = [1, 4, 8])]
    batch: Vec<usize>,
    /// Number formats of the backbone's products: f32, bf16 [default: the fastest on this processor]
    #[arg(long, value_name = "FORMAT", num_args = 1..)]
    precision: Vec<Precision>,
    /// What the random partitions add to the backbone: delo, lora, linear, dualprompt, l2p
    #[arg(long, num_args = 1.., default_values_t = [MethodKind::default()])]
    method: Vec<MethodKind>,
    /// E: factors in a pool
    #[arg(long, value_name = "E", default_value_t = 16)]
    experts: usize,
    /// r: factors selected of a pool
    #[arg(long, value_name = "R", default_value_t = 4)]
    rank: usize,
    /// Adapters from this layer on
    #[arg(long, value_name = "LAYER", default_value_t = 0)]
    first_adapted_layer: usize,
    /// Beside the rows whose tasks are given, rows whose tasks the engine decides, by SIGNAL [default:
    /// mean@LAYER of the first adapted layer]
    #[arg(long, value_name = "SIGNAL", num_args = 0..=1)]
    route: Option<Option<KeySignal>>,
    /// The metric that decides tasks
    #[arg(long, default_value_t = Metric::default(), value_parser = metrics(), requires = "route")]
    metric: Metric,
    /// Timed forwards of each row
    #[arg(long, default_value_t = 7, value_parser = at_least_one)]
    runs: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Where to compute: auto, cpu, cuda:N or metal:N; the GPUs in a build that has them
    #[arg(long, default_value_t = DeviceChoice::Auto, help_heading = "Compute")]
    device: DeviceChoice,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Measures the products of a layer, one by one, beside what the kernel does at most, in GFLOP/s.
///
/// Prints `{"rows": [{"kernel", "product", "shape", "gflops"}…], "threads"}` with --json.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  delo bench kernels\n  delo bench kernels --all --rows 185 1480 --json")]
struct KernelArgs {
    /// d: width of the hidden states
    #[arg(long, value_name = "D", default_value_t = 768)]
    hidden: usize,
    /// Width of the MLP
    #[arg(long, value_name = "WIDTH", default_value_t = 3072)]
    intermediate: usize,
    /// Attention heads
    #[arg(long, default_value_t = 12)]
    heads: usize,
    /// Tokens of a batch
    #[arg(long, num_args = 1.., default_values_t = [185, 1480])]
    rows: Vec<usize>,
    /// Every kernel that this processor can run, not only the best of each number format
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub fn run(args: BenchArgs) -> Result<(), Failure> {
    match args.command {
        BenchCommand::Engine(args) => engine(&args),
        BenchCommand::Kernels(args) => kernels(&args),
    }
}

fn engine(args: &EngineArgs) -> Result<(), Failure> {
    if args.batch.contains(&0) {
        return Err(Failure::usage("--batch takes numbers above 0"));
    }
    let options = args.compute.start(None, args.device)?;
    let precisions = if args.precision.is_empty() { vec![None] } else { args.precision.iter().copied().map(Some).collect() };
    let (mut rows, mut names) = (Vec::new(), Vec::new());
    for precision in precisions {
        let loader = loader(args.backbone.as_deref())?.with_text_positions(args.text_positions).map_err(Failure::usage)?;
        let workload = workload(args, loader.config())?;
        let engine = Engine::of(loader, DUMMY_TEXT.to_vec(), Options { precision, ..options })?;
        names.push(engine.kernel().to_owned());
        rows.extend(measure(&engine, &workload)?);
    }
    if args.json {
        return print_json(&json!({ "rows": rows, "kernel": names.join(", "), "threads": threads() }));
    }
    let header = ["precision", "method", "batch", "tasks", "samples", "task", "tokens", "seconds", "requests/s"];
    let mut cells = vec![header.map(str::to_owned).to_vec()];
    cells.extend(rows.iter().map(|r| {
        let kind = r.kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        vec![
            r.precision.clone(),
            r.method.map_or("–".to_owned(), |method| method.to_string()),
            r.batch.to_string(),
            r.tasks.to_string(),
            kind,
            if r.routed { "decided" } else { "given" }.to_owned(),
            r.tokens.to_string(),
            format!("{:.5}", r.seconds),
            format!("{:.2}", r.requests_per_second),
        ]
    }));
    print(&format!("{}, {} threads\n\n{}", names.join(", "), threads(), table(&cells)))
}

fn kernels(args: &KernelArgs) -> Result<(), Failure> {
    let divides = args.heads > 0 && args.hidden > 0 && args.hidden.is_multiple_of(args.heads);
    if !divides || args.intermediate == 0 || args.rows.contains(&0) {
        return Err(Failure::usage("--hidden must be a multiple of --heads, and every size above 0"));
    }
    let best = Isa::at_most(args.compute.start(None, DeviceChoice::Cpu)?.isa);
    let mut rows = Vec::new();
    for isa in Isa::available().filter(|isa| if args.all { *isa <= best } else { *isa == best }) {
        rows.extend(measure_kernel::<f32>(isa, args.hidden, args.intermediate, args.heads, &args.rows));
        rows.extend(measure_kernel::<bf16>(isa, args.hidden, args.intermediate, args.heads, &args.rows));
    }
    // Two sets of instructions may share a kernel of one number format.
    let mut seen = Vec::new();
    rows.retain(|row| {
        let key = (row.kernel, row.product.clone(), row.shape);
        let fresh = !seen.contains(&key);
        seen.push(key);
        fresh
    });
    if args.json {
        return print_json(&json!({ "rows": rows, "threads": threads() }));
    }
    let mut cells = vec![["kernel", "product", "rows × k × columns", "GFLOP/s", "of the ceiling"].map(str::to_owned).to_vec()];
    let mut ceiling = f64::NAN;
    for row in &rows {
        if row.product == "ceiling" {
            ceiling = row.gflops;
        }
        let [m, k, n] = row.shape;
        let share = format!("{:.0} %", 100.0 * row.gflops / ceiling);
        cells.push(vec![row.kernel.to_owned(), row.product.clone(), format!("{m} × {k} × {n}"), format!("{:.1}", row.gflops), share]);
    }
    print(&format!("{} threads\n\n{}", threads(), table(&cells)))
}

fn loader(name: Option<&str>) -> Result<Loader, Failure> {
    if name == Some(RANDOM_VILT_B32) {
        return Ok(Loader::random(ViltConfig::default(), 0, &Device::Cpu));
    }
    Ok(Loader::open(&ModelDir::from(name.map(Path::new)), &Device::Cpu)?)
}

fn workload(args: &EngineArgs, config: &ViltConfig) -> Result<Workload, Failure> {
    let patch = config.patch_size;
    let size = |flag: &str, given: Option<&[usize]>, default: usize| match given {
        Some(&[height, width]) if height > 0 && width > 0 && height % patch == 0 && width % patch == 0 => Ok([height, width]),
        None => Ok([default; 2]),
        Some(given) => Err(Failure::usage(format!("{flag} {given:?}: give multiples of the patch size, {patch}"))),
    };
    let text = args.text.unwrap_or(config.max_position_embeddings);
    if !(2..=config.max_position_embeddings).contains(&text) {
        return Err(Failure::usage(format!("--text {text}: give 2 to {}", config.max_position_embeddings)));
    }
    let of_kind = |&method: &MethodKind| {
        let EngineArgs { experts, rank, first_adapted_layer, .. } = *args;
        let settings = Settings { method, experts, rank, first_adapted_layer, ..Settings::default() };
        let method = settings.method(config.num_hidden_layers, config.hidden_size);
        method.validate().map(|()| method).map_err(Failure::usage)
    };
    let methods = args.method.iter().map(of_kind).collect::<Result<Vec<_>, _>>()?;
    let route = args.route.map(|signal| signal.unwrap_or(KeySignal::MeanQuery { layer: args.first_adapted_layer }));
    if route.and_then(KeySignal::layer).is_some_and(|layer| layer > config.num_hidden_layers) {
        return Err(Failure::usage(format!("--route: the backbone has layers 0 to {}", config.num_hidden_layers)));
    }
    Ok(Workload {
        image: size("--image", args.image.as_deref(), config.image_size)?,
        dummy_image: size("--dummy-image", args.dummy_image.as_deref(), patch)?,
        text,
        tasks: args.tasks.clone(),
        kinds: args.samples.clone(),
        batches: args.batch.clone(),
        route,
        metric: args.metric,
        methods,
        runs: args.runs,
    })
}
