//! `delo bench`: how fast the engine is on this machine.
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::Failure;
use super::output::{print, print_json, table};
use crate::delo::{Layout, PoolSpec};
use crate::engine::Engine;
use crate::engine::bench::{Workload, kernel, measure};
use crate::model_dir::ModelDir;
use crate::vilt::{Vilt, ViltConfig};

/// The backbone of random weights, in the shape of ViLT-B/32.
const RANDOM_VILT_B32: &str = "random:vilt-b32";

/// Measures the engine.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    Engine(EngineArgs),
}

/// Number format of the backbone's products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Precision {
    F32,
    Bf16,
}

/// Measures whole forwards of batches whose samples are each of another task: the median of several, in requests per second.
///
/// Prints `{"rows": [{"precision", "batch", "seconds", "requests_per_second"}…], "kernel", "threads"}` with --json.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  delo bench engine --json\n  delo bench engine --backbone random:vilt-b32 --image 384 384 --text 40 --batch 1 4 8"
)]
struct EngineArgs {
    /// A Hugging Face ViLT checkpoint directory, or random:vilt-b32; the checkpoint in the program if left out
    #[arg(long, value_name = "DIR")]
    backbone: Option<String>,
    /// Height and width of the images, in pixels [default: the backbone's own image size]
    #[arg(long, num_args = 2, value_names = ["HEIGHT", "WIDTH"])]
    image: Option<Vec<usize>>,
    /// Tokens of the texts [default: all of the backbone's text positions]
    #[arg(long, value_name = "TOKENS")]
    text: Option<usize>,
    /// Resident tasks; 0 measures the frozen backbone alone
    #[arg(long, default_value_t = 10)]
    tasks: usize,
    /// Samples of a batch
    #[arg(long, num_args = 1.., default_values_t = [1, 4, 8])]
    batch: Vec<usize>,
    /// Number format of the backbone's products; this build computes in f32
    #[arg(long, value_enum, num_args = 1.., default_values_t = [Precision::F32])]
    precision: Vec<Precision>,
    /// E: factors in a pool
    #[arg(long, value_name = "E", default_value_t = 16)]
    experts: usize,
    /// r: factors selected of a pool
    #[arg(long, value_name = "R", default_value_t = 4)]
    rank: usize,
    /// Adapters from this layer on
    #[arg(long, value_name = "LAYER", default_value_t = 0)]
    first_adapted_layer: usize,
    /// Timed forwards of each batch size
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: BenchArgs) -> Result<(), Failure> {
    let BenchCommand::Engine(args) = args.command;
    engine(&args)
}

fn engine(args: &EngineArgs) -> Result<(), Failure> {
    if args.precision.contains(&Precision::Bf16) {
        return Err(Failure::usage("--precision bf16: this build computes in f32; leave the flag out"));
    }
    if args.runs == 0 || args.batch.contains(&0) {
        return Err(Failure::usage("--runs and --batch take numbers above 0"));
    }
    let vilt = backbone(args.backbone.as_deref())?;
    let workload = workload(args, &vilt.config)?;
    let rows = measure(&Engine::new(Arc::new(vilt), Vec::new()), &workload, &args.batch)?;
    let threads = rayon::current_num_threads();
    if args.json {
        return print_json(&json!({ "rows": rows, "kernel": kernel(), "threads": threads }));
    }
    let mut cells = vec![["precision", "batch", "seconds", "requests/s"].map(str::to_owned).to_vec()];
    cells.extend(
        rows.iter().map(|r| {
            vec![r.precision.to_owned(), r.batch.to_string(), format!("{:.5}", r.seconds), format!("{:.2}", r.requests_per_second)]
        }),
    );
    print(&format!("{}, {threads} threads, {} tasks\n\n{}", kernel(), args.tasks, table(&cells)))
}

fn backbone(name: Option<&str>) -> Result<Vilt, Failure> {
    if name == Some(RANDOM_VILT_B32) {
        return Ok(Vilt::random(ViltConfig::default(), 0)?);
    }
    Ok(Vilt::load(&ModelDir::from(name.map(Path::new)), &Device::Cpu)?)
}

fn workload(args: &EngineArgs, config: &ViltConfig) -> Result<Workload, Failure> {
    let patch = config.patch_size;
    let image = match args.image.as_deref() {
        Some(&[height, width]) => [height, width],
        _ => [config.image_size; 2],
    };
    if image.iter().any(|&side| side == 0 || side % patch != 0) {
        return Err(Failure::usage(format!("--image {} {}: give multiples of the patch size, {patch}", image[0], image[1])));
    }
    let text = args.text.unwrap_or(config.max_position_embeddings);
    if !(2..=config.max_position_embeddings).contains(&text) {
        return Err(Failure::usage(format!("--text {text}: give 2 to {}", config.max_position_embeddings)));
    }
    let pools = PoolSpec {
        layout: Layout::RankOne,
        experts: args.experts,
        rank: args.rank,
        alpha: 2.0,
        first_adapted_layer: args.first_adapted_layer,
        layers: config.num_hidden_layers,
        hidden: config.hidden_size,
    };
    pools.validate().map_err(Failure::usage)?;
    Ok(Workload { image, text, tasks: args.tasks, pools, runs: args.runs })
}
