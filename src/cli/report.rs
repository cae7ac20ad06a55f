//! `delo report`: diagnostics of partitions, and pictures of them.
use std::io::IsTerminal;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressDrawTarget};

use super::Failure;
use super::backbone::{Backbone, BackboneArgs};
use super::choice::choice;
use super::compute::InferenceArgs;
use super::data::DataArgs;
use super::output::print;
use delo_catalogue::RoutingRule;
use delo_report::diagnostics::loss::read_logs;
use delo_report::page::check_folder;
use delo_report::{Page, diagnose, write};
use delo_train::Split;
use delo_train::eval::{Evaluation, evaluate, read_directory, read_embedded};

/// Writes a page about partitions on a data set, with pictures: each task's score after each session, the
/// samples and task keys in two dimensions, how often each factor is selected, the reliability of the task's
/// probability, accuracy against coverage, and the losses of the training.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    delo report --data data/emoji-cmml --out report\n  \
    delo report --data data/emoji-cmml --partitions runs/emoji --logs runs/emoji --out report")]
pub struct ReportArgs {
    #[command(flatten)]
    data: DataArgs,
    /// A folder of partitions (*.safetensors); those in the program if left out
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    partitions: Option<PathBuf>,
    #[command(flatten)]
    backbone: BackboneArgs,
    /// A folder of training logs (*.jsonl), as `delo train` writes them beside its partitions; without it, no
    /// losses
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    logs: Option<PathBuf>,
    /// The items to evaluate
    #[arg(long, default_value_t = Split::Test, value_parser = choice::<Split>(&[("train", ""), ("val", ""), ("test", "")]), help_heading = "Data")]
    split: Split,
    /// The folder to write: report.md, report.json, and each picture as SVG and PNG
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace a report that the folder holds
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    compute: InferenceArgs,
}

pub fn run(args: ReportArgs) -> Result<(), Failure> {
    check_folder(&args.out, args.force)?;
    let (data, missing) = args.data.open()?;
    let losses = args.logs.as_deref().map_or(Ok(Vec::new()), read_logs)?;
    let Backbone { engine, processor, name } = args.backbone.load(args.data.special_tokens, args.compute.start()?)?;
    let partitions = match &args.partitions {
        Some(dir) => read_directory(dir, engine.backbone())?,
        None => read_embedded(engine.backbone())?,
    };
    let evaluation = Evaluation {
        engine: &engine,
        processor: &processor,
        data: &data,
        missing: &missing,
        split: args.split,
        partitions: &partitions,
        rules: &[RoutingRule::default()],
        store: None,
    };
    let target = if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    let mut show = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let evaluated = evaluate(&evaluation, &mut show)?;
    let diagnostics = diagnose(&evaluation, &mut show)?;
    bar.finish_and_clear();
    let page = Page { backbone: name, evaluation: evaluated.report, diagnostics, losses };
    print(&write(&page, &args.out, args.force)?.display().to_string())
}
