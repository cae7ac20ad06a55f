//! `delo train`: one session becomes a partition.
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Failure;
use super::backbone::{Backbone, BackboneArgs};
use super::choice::{averages, metrics};
use super::compute::ComputeArgs;
use super::data::DataArgs;
use super::output::print;
use super::settings::SettingsArgs;
use delo_engine::{DeviceChoice, Options};
use delo_kernels::Precision;
use delo_model::partition::Artifact;
use delo_model::routing::keys::{KeyAverage, KeySignal, Metric};
use delo_train::training::{KeyChoices, artifact_names, renew, settings_to_renew};
use delo_train::{Dataset, Event, Outputs, Session, TrainError, Trained, train};

/// Trains one session of a data set, or all of them one after another, and writes their partitions.
///
/// Only the session's factor pools, routers and head learn; the backbone stays frozen, and no other session's
/// data is needed. The same command gives the same partition. A log with every step's losses and the missing
/// table are written beside it. A run that was interrupted goes on with --resume, to the same result.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    delo train --data data/emoji-cmml --task 7 --out symbols.safetensors --lr 1e-3\n  \
    delo train --data data/emoji-cmml --task symbols --out linear.safetensors --first-adapted-layer 6 --lr 1e-3\n  \
    delo train --data data/emoji-cmml --all --out runs/emoji --lr 1e-3 --resume\n  \
    delo train --data UPMC-Food101-CMML --task 0 --backbone vilt-b32-mlm --out food-0.safetensors --resume")]
pub struct TrainArgs {
    #[command(flatten)]
    data: DataArgs,
    /// The session: its task_id or its name
    #[arg(long, value_name = "N", required_unless_present = "all", help_heading = "Data", allow_hyphen_values = true)]
    task: Option<String>,
    /// Every session, in the data set's order; --out then names a folder, and --resume leaves the partitions
    /// that are in it
    #[arg(long, conflicts_with_all = ["task", "log"], help_heading = "Data")]
    all: bool,
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Learn nothing: take over what this partition has learnt, and compute its keys, class statistics and
    /// analytic classifier again. --head-weight and the flags of data and task key count; all other
    /// hyper-parameters are those of the partition. With --all a folder of NAME.safetensors
    #[arg(long, value_name = "FILE", conflicts_with = "resume", help_heading = "Method")]
    adapters_of: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
    /// How the partition's key is compared with a sample
    #[arg(long, default_value_t = Metric::default(), value_parser = metrics(), help_heading = "Task key")]
    key_metric: Metric,
    /// Signal of the metrics lda and whitened, and of the analytic classifier: parts@LAYER+pooled, summary,
    /// pooled, or parts@LAYER, mean@LAYER, cls@LAYER; partitions that serve together need the same [default:
    /// parts@LAYER+pooled of half the layers, projected to 1024 values on a backbone wider than 307; for
    /// whitened summary]
    #[arg(long, value_name = "SIGNAL", help_heading = "Task key")]
    key_signal: Option<KeySignal>,
    /// Signal of the plain metric; the partition holds the keys of these two signals alone, so that no other
    /// can be chosen later
    #[arg(long, value_name = "SIGNAL", default_value_t = KeySignal::Pooled, help_heading = "Task key")]
    plain_signal: KeySignal,
    /// Key of the plain metric: the mean over the session, or the paper's moving average
    #[arg(long, default_value_t = KeyAverage::Mean, value_parser = averages(), help_heading = "Task key")]
    plain_average: KeyAverage,
    /// The partition to write; with --all the folder for NAME.safetensors of every session
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    out: PathBuf,
    /// The log, a JSON object for each step [default: FILE with .jsonl]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    log: Option<PathBuf>,
    /// Go on from the checkpoint of an interrupted run, if there is one
    #[arg(long, help_heading = "Output")]
    resume: bool,
    /// Overwrite the partition; start over where a checkpoint lies
    #[arg(long, conflicts_with = "resume", help_heading = "Output")]
    force: bool,
    /// Steps between checkpoints; 0 means at the end of each epoch
    #[arg(long, value_name = "STEPS", default_value_t = 0, help_heading = "Output")]
    checkpoint_every: usize,
    /// Memory for the states of the frozen layers, in MiB; samples whose states do not fit are decoded and
    /// computed at each step. Images are not kept, however many there are
    #[arg(long, value_name = "MIB", default_value_t = 1024, help_heading = "Output")]
    cache_mib: usize,
    /// Where to compute: cpu, cuda:N or metal:N, the GPUs in a build that has them; auto for the first GPU that
    /// opens, else the CPU. A GPU rounds otherwise: the same command gives the same partition on the same
    /// device, and nearly the same on another
    #[arg(long, default_value_t = DeviceChoice::Cpu, help_heading = "Compute")]
    device: DeviceChoice,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub fn run(args: TrainArgs) -> Result<(), Failure> {
    let (data, missing) = args.data.open()?;
    let runs = runs(&args, &data)?;
    let options = Options { training: Some(args.settings.precision()), ..args.compute.start(Some(Precision::F32), args.device)? };
    let backbone = args.backbone.load(args.data.special_tokens, options)?;
    let config = &backbone.engine.backbone().config;
    let key = KeyChoices {
        metric: args.key_metric,
        key_signal: args.key_signal,
        plain_signal: args.plain_signal,
        plain_average: args.plain_average,
    };
    let key = key.rule(config.num_hidden_layers, config.hidden_size).map_err(Failure::usage)?;
    let settings = args.settings.settings(args.data.seed);
    let Backbone { engine, processor, name } = &backbone;
    for (task, artifact) in runs {
        if args.all && args.resume && artifact.exists() {
            print(&format!("{}: there already", artifact.display()))?;
            continue;
        }
        let artifact_name = artifact.file_name().map(PathBuf::from).unwrap_or_default();
        let outputs = Outputs {
            log: args.log.clone().unwrap_or_else(|| artifact.with_extension("jsonl")),
            artifact,
            force: args.force,
            resume: args.resume,
            checkpoint_every: args.checkpoint_every,
            cache_bytes: args.cache_mib << 20,
            created: created()?,
        };
        let learnt = args.adapters_of.as_deref().map(|path| learnt(path, &artifact_name, args.all)).transpose()?;
        let settings = match &learnt {
            Some(learnt) => settings_to_renew(learnt, settings.head_weight)
                .map_err(|e| format!("the partition records other hyper-parameters than this program knows: {e}"))?,
            None => settings.clone(),
        };
        let session = Session {
            engine,
            processor,
            backbone: name.clone(),
            data: &data,
            missing: &missing,
            task,
            settings: &settings,
            key: key.clone(),
            store: None,
        };
        let bar = Bar::new(&data.tasks[task].name);
        let trained = match &learnt {
            Some(learnt) => renew(&session, learnt, &outputs),
            None => train(&session, &outputs, &mut |event| bar.show(&event)),
        };
        bar.0.finish_and_clear();
        let trained = trained.map_err(|e| if matches!(e, TrainError::Settings(_)) { Failure::usage(e) } else { e.into() })?;
        let table = outputs.artifact.with_extension("missing.json");
        missing.write(&table)?;
        print(&summary(&trained, &data.tasks[task].name, data.multi_label, &outputs.log, &table))?;
    }
    Ok(())
}

/// The partition whose parameters are taken over: the file, or the file of this name in the folder.
fn learnt(path: &Path, name: &Path, folder: bool) -> Result<Artifact, Failure> {
    let file = if folder { path.join(name) } else { path.to_owned() };
    let bytes = std::fs::read(&file).map_err(|e| format!("can't read {}: {e}", file.display()))?;
    Ok(Artifact::parse(&bytes).map_err(|e| format!("{}: {e}", file.display()))?)
}

/// The sessions to train, each with the file of its partition.
fn runs(args: &TrainArgs, data: &Dataset) -> Result<Vec<(usize, PathBuf)>, Failure> {
    if let Some(task) = &args.task {
        return Ok(vec![(data.task(task).map_err(Failure::usage)?, args.out.clone())]);
    }
    if args.out.is_file() {
        return Err(Failure::usage(format!("--out {} is a file: with --all, name a folder", args.out.display())));
    }
    Ok(artifact_names(data).into_iter().map(|name| args.out.join(name)).enumerate().collect())
}

fn summary(trained: &Trained, task: &str, multi_label: bool, log: &Path, table: &Path) -> String {
    let measure = if multi_label { "F1-macro" } else { "accuracy" };
    let shown = |figure: Option<f64>| figure.map_or("–".to_owned(), |x| format!("{x:.1}"));
    let v = &trained.validation;
    // What takes over adapters makes no steps.
    let log = if trained.steps > 0 { format!("log {}, ", log.display()) } else { String::new() };
    format!(
        "{}: {task}, {} samples, {} steps, {} learning parameters in pools, {:.0} s\n\
         val {measure}, task given: {} % (complete {}, image only {}, text only {})\n{log}missing table {}",
        trained.artifact.display(),
        trained.samples,
        trained.steps,
        trained.pool_parameters,
        trained.seconds,
        shown(v.all),
        shown(v.complete),
        shown(v.image_only),
        shown(v.text_only),
        table.display(),
    )
}

/// The time of creation that the artifact states: SOURCE_DATE_EPOCH where it is set, so that a run can be
/// repeated with the same bytes.
#[expect(clippy::disallowed_methods, reason = "an artifact tells people when it was made; nothing is decided by it")]
pub(super) fn created() -> Result<String, Failure> {
    let now = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => seconds
            .parse()
            .ok()
            .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
            .ok_or_else(|| Failure::usage(format!("SOURCE_DATE_EPOCH {seconds:?}: give seconds since 1970, or unset it")))?,
        Err(_) => OffsetDateTime::now_utc().replace_nanosecond(0)?,
    };
    Ok(now.format(&Rfc3339)?)
}

/// Progress on a terminal; elsewhere nothing is drawn.
struct Bar(ProgressBar);

impl Bar {
    fn new(task: &str) -> Self {
        let target = if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target).with_prefix(task.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {msg} {elapsed} left {eta}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn show(&self, event: &Event<'_>) -> ControlFlow<()> {
        let bar = &self.0;
        match event {
            Event::Prefix { done, total } => {
                bar.set_length(*total as u64);
                bar.set_position(*done as u64);
                bar.set_message("frozen layers");
            }
            Event::Resumed { step } => {
                bar.set_position(*step as u64);
                bar.reset_eta();
            }
            Event::Step { record, steps } => {
                bar.set_length(*steps as u64);
                bar.set_position(record.step as u64 + 1);
                bar.set_message(format!("loss {:.3}", record.loss));
            }
        }
        ControlFlow::Continue(())
    }
}
