//! `delo eval`: AP, FG and routing accuracy of partitions.
use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::json;

use super::Failure;
use super::backbone::{Backbone, BackboneArgs};
use super::choice::{averages, choice};
use super::compute::InferenceArgs;
use super::data::DataArgs;
use super::output::{print, print_json};
use delo_catalogue::RoutingRule;
use delo_model::routing::keys::{KeyAverage, KeySignal, Metric};
use delo_train::Split;
use delo_train::eval::{Curves, Evaluated, Evaluation, SampleRecord, curves, evaluate, read_directory, read_embedded};

/// Prints AP, FG and routing accuracy of partitions on a data set, task-agnostic and task-oracle, by modality
/// pattern.
///
/// The sessions count as learnt in the order of the data set. Task-agnostic: the task key chooses the task,
/// and a sample that goes to a wrong task counts as wrong. Task-oracle: the true task is given. Beside AP
/// stands a 95 % interval, by a bootstrap over groups of items (`group` of the list).
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    delo eval --data data/emoji-cmml\n  \
    delo eval --data data/emoji-cmml --partitions runs/emoji --metric all --json\n  \
    delo eval --data data/emoji-cmml --partitions runs/emoji --missing image --eta 1   # text only")]
pub struct EvalArgs {
    #[command(flatten)]
    data: DataArgs,
    /// A folder of partitions (*.safetensors); those in the program if left out
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    partitions: Option<PathBuf>,
    #[command(flatten)]
    backbone: BackboneArgs,
    /// The items to evaluate
    #[arg(long, default_value_t = Split::Test, value_parser = choice::<Split>(&[("train", ""), ("val", ""), ("test", "")]), help_heading = "Data")]
    split: Split,
    /// Metric that decides tasks; all prints a column for each [default: what the partitions say]
    #[arg(long, value_enum, help_heading = "Routing")]
    metric: Option<MetricChoice>,
    /// Signal of the task key, as parts@LAYER+pooled, parts@LAYER, summary, pooled, mean@LAYER or cls@LAYER; the partitions must
    /// hold its key, as those of their own two signals [default: what they say]
    #[arg(long, value_name = "SIGNAL", help_heading = "Routing", requires = "metric")]
    signal: Option<KeySignal>,
    /// Key of the plain metric [default: what the partitions say]
    #[arg(long, value_parser = averages(), help_heading = "Routing")]
    average: Option<KeyAverage>,
    /// Also write one JSON line for each sample: its group, its true task and labels, the labels answered,
    /// the task chosen
    #[arg(long, value_name = "FILE")]
    samples: Option<PathBuf>,
    /// Also print, and write to this file as JSON, what the policies of a server bring: accuracy against coverage
    /// (routing.reject), early answers (routing.early_answer) and second passes (routing.second_task), and how
    /// well the samples of each session are told from the others while its partition is not resident
    #[arg(long, value_name = "FILE")]
    curves: Option<PathBuf>,
    /// Print JSON, with the score of every task after every session
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: InferenceArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MetricChoice {
    Plain,
    Whitened,
    Lda,
    All,
    #[value(hide = true)]
    Both,
}

impl EvalArgs {
    fn rules(&self) -> Result<Vec<RoutingRule>, Failure> {
        let rule = |metric| RoutingRule { metric, signal: self.signal, average: self.average };
        Ok(match self.metric {
            None => vec![rule(None)],
            Some(MetricChoice::Plain) => vec![rule(Some(Metric::Plain))],
            Some(MetricChoice::Whitened) => vec![rule(Some(Metric::Whitened))],
            Some(MetricChoice::Lda) => vec![rule(Some(Metric::Lda))],
            Some(MetricChoice::All | MetricChoice::Both) if self.signal.is_some() => {
                return Err(Failure::usage("--signal goes with one metric: give --metric lda, whitened or plain"));
            }
            Some(MetricChoice::Both) => vec![rule(Some(Metric::Whitened)), rule(Some(Metric::Plain))],
            Some(MetricChoice::All) => vec![rule(Some(Metric::Lda)), rule(Some(Metric::Whitened)), rule(Some(Metric::Plain))],
        })
    }
}

pub fn run(args: EvalArgs) -> Result<(), Failure> {
    let rules = args.rules()?;
    let (data, missing) = args.data.open()?;
    let Backbone { engine, processor, name } = args.backbone.load(args.data.special_tokens, args.compute.start()?)?;
    let partitions = match &args.partitions {
        Some(dir) => read_directory(dir, engine.backbone())?,
        None => read_embedded(engine.backbone())?,
    };
    let target = if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    let evaluation = Evaluation {
        engine: &engine,
        processor: &processor,
        data: &data,
        missing: &missing,
        split: args.split,
        partitions: &partitions,
        rules: &rules,
        store: None,
    };
    let evaluated = evaluate(&evaluation, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let Evaluated { report, samples } = evaluated?;
    if let Some(path) = &args.samples {
        write_lines(path, &samples).map_err(|e| format!("can't write {}: {e}; name a file in a folder that exists", path.display()))?;
    }
    let curves = args.curves.as_ref().map(|path| write_curves(path, &evaluation)).transpose()?;
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["backbone"] = json!(name);
        return print_json(&value);
    }
    print(&report.table())?;
    curves.map_or(Ok(()), |curves| print(&format!("\n{}", curves.table())))
}

/// The curves, which are written to a file.
fn write_curves(path: &Path, evaluation: &Evaluation<'_>) -> Result<Curves, Failure> {
    let curves = curves(evaluation)?;
    let written = std::fs::write(path, serde_json::to_string_pretty(&curves)?);
    written.map_err(|e| format!("can't write {}: {e}; name a file in a folder that exists", path.display()))?;
    Ok(curves)
}

/// One JSON object a line.
fn write_lines(path: &Path, samples: &[SampleRecord]) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for sample in samples {
        serde_json::to_writer(&mut file, sample)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}
