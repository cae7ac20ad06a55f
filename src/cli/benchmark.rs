//! `delo benchmark`: tables of methods side by side.
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Failure;
use super::compute::{ComputeArgs, at_least_one};
use super::output::{print, table};
use super::train::created;
use crate::logging::say;
use delo_benchmark::cell::Sources;
use delo_benchmark::folder::CellRecord;
use delo_benchmark::jobs::{self, Job, JobEvent};
use delo_benchmark::pictures::{NamedFigure, pictures};
use delo_benchmark::plan::{self, CMML, Part};
use delo_benchmark::rows::Rows;
use delo_benchmark::run::{self, RunOptions};
use delo_benchmark::{Cell, CellFolder, Plan, State, table::markdown};
use delo_engine::DeviceChoice;
use delo_kernels::Precision;
use delo_process::durable::replace;
use delo_train::{Dataset, SignalStore};

/// The folder of the frozen backbones' signals, in the folder of the benchmark.
const SIGNALS: &str = "signals";
/// The name of the built-in plan.
const BUILT_IN: &str = "cmml";

/// Trains and evaluates the cells of a plan side by side, and writes their table.
///
/// A plan is a TOML file of cells: methods with their settings, data, missing modalities and seeds. Each cell
/// runs in a process of its own and keeps its configuration, log, partitions, samples and figures in
/// DIR/cells/NAME. The same command goes on where it was interrupted. The table is DIR/table.md and
/// DIR/table.json; docs/BENCHMARK.md tells how to read it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    delo benchmark plan.toml --out runs/benchmark\n  \
    delo benchmark plan.toml --out runs/benchmark --jobs 2 --only 'delo,*seed=0'\n  \
    delo benchmark plan.toml --out runs/benchmark --list\n  \
    delo benchmark cmml --data UPMC-Food101-CMML --backbone vilt-b32-mlm --out runs/paper --paper\n  \
    delo benchmark cmml --print-plan > plan.toml")]
pub struct BenchmarkArgs {
    /// The plan, or cmml: the built-in plan of the paper's tables on the data of --data
    #[arg(value_name = "PLAN.toml", required_unless_present = "run_cell")]
    plan: Option<PathBuf>,
    /// The folder of everything that is written
    #[arg(long, value_name = "DIR", required_unless_present_any = ["run_cell", "print_plan"])]
    out: Option<PathBuf>,
    /// Cells that run at a time, each in a process; they share the threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    jobs: usize,
    /// Run the cells whose names fit this pattern, as 'delo,*'; the table has all
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// Run one of N parts of the cells, K from 0 to N-1: for machines that write to one folder. The command without
    /// it writes the whole table when all are done
    #[arg(long, value_name = "K/N")]
    part: Option<Part>,
    /// Print the cells and how far each is, and run none
    #[arg(long)]
    list: bool,
    /// Print the rows of each table and figure of the paper and how far they are, and run none
    #[arg(long, conflicts_with = "list")]
    paper: bool,
    /// Print the built-in plan
    #[arg(long)]
    print_plan: bool,
    /// A setting of every cell that does not set it itself, as lr=1e-3 or seed=[0,1]; over the plan's
    /// defaults
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, serde_json::Value)>,
    /// A data set, in place of the plan's
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    data: Option<PathBuf>,
    /// A Hugging Face ViLT checkpoint directory, in place of the plan's
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    backbone: Option<PathBuf>,
    /// The folder of the frozen backbones' signals, which cells share; several runs may [default: OUT/signals]
    #[arg(long, value_name = "DIR")]
    signals: Option<PathBuf>,
    /// Memory for the states of the frozen layers, in MiB, of all cells together
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    cache_mib: usize,
    /// Steps between the checkpoints of a session; 0 means at the end of each epoch
    #[arg(long, value_name = "STEPS", default_value_t = 0)]
    checkpoint_every: usize,
    /// Run the cell of this folder in this process, until its standard input ends
    #[arg(long, value_name = "FOLDER", hide = true)]
    run_cell: Option<PathBuf>,
    /// Where cells compute whose methods make partitions: cpu, auto, cuda:N or metal:N, the GPUs in a build that
    /// has them; peers compute on the CPU
    #[arg(long, default_value_t = DeviceChoice::Cpu, help_heading = "Compute")]
    device: DeviceChoice,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub fn run(args: BenchmarkArgs) -> Result<(), Failure> {
    if let Some(folder) = &args.run_cell {
        return run_cell(&args, folder);
    }
    let built_in = args.plan.as_deref() == Some(Path::new(BUILT_IN));
    if args.print_plan {
        if !built_in {
            return Err(Failure::usage(format!("--print-plan goes with the built-in plan: delo benchmark {BUILT_IN} --print-plan")));
        }
        return print(CMML.trim_end());
    }
    // Both are required where no cell is named.
    let (Some(path), Some(out)) = (&args.plan, &args.out) else { return Err(Failure::usage("give a plan and --out")) };
    let defaults = args.settings.iter().cloned().collect();
    let sources = Sources { data: args.data.clone(), backbone: args.backbone.clone(), defaults, ..Sources::default() };
    let plan = if built_in { Plan::cmml(sources) } else { Plan::open(path, sources) }.map_err(Failure::usage)?;
    if args.paper {
        return paper(&plan, out);
    }
    let chosen = match &args.only {
        Some(pattern) => plan.only(pattern).map_err(Failure::usage)?,
        None => plan.cells.iter().map(|cell| cell.name.clone()).collect(),
    };
    let chosen = match args.part {
        Some(part) => plan.part(&chosen, part),
        None => chosen,
    };
    if args.list {
        return list(&plan, &chosen, out);
    }
    let jobs = prepare(&plan, &chosen, out)?;
    let finished = chosen.len() - jobs.len();
    if finished > 0 {
        print(&format!("{finished} of {} cells are finished already", chosen.len()))?;
    }
    let signals = args.signals.clone().unwrap_or_else(|| out.join(SIGNALS));
    let failed = jobs::run(&jobs, args.jobs, &|job| child(&args, &signals, job), &|event| match event {
        JobEvent::Started(job) => say(&format!("{}: started", job.cell)),
        JobEvent::Finished(job) => say(&format!("{}: finished", job.cell)),
        JobEvent::Failed(job, problem) => say(&format!("{}: FAILED: {problem}", job.cell)),
    });
    print(&finish(&plan, out)?)?;
    if failed > 0 {
        return Err(format!("{failed} of {} cells have no result; the same command tries them again", chosen.len()).into());
    }
    Ok(())
}

/// All that is made of the finished cells: DIR/table.md, DIR/table.json and the pictures. Returns the table.
fn finish(plan: &Plan, out: &Path) -> Result<String, Failure> {
    let rows = Rows::read(plan, out)?;
    let mut text = markdown(&rows);
    for NamedFigure { name, figure } in pictures(plan, out)? {
        for (extension, bytes) in [("svg", figure.svg()?.into_bytes()), ("png", figure.png()?)] {
            let path = out.join(format!("{name}.{extension}"));
            replace(&path, &bytes).map_err(|e| format!("can't write {}: {e}", path.display()))?;
        }
        text += &format!("\n![{}]({name}.svg)\n\n{}\n", figure.title(), figure.caption);
    }
    let mut json = serde_json::to_vec_pretty(&rows)?;
    json.push(b'\n');
    for (name, bytes) in [("table.md", text.as_bytes()), ("table.json", json.as_slice())] {
        let path = out.join(name);
        replace(&path, bytes).map_err(|e| format!("can't write {}: {e}", path.display()))?;
    }
    Ok(text)
}

/// The folders of the chosen cells, made or found; the jobs are those that are not finished.
fn prepare(plan: &Plan, chosen: &BTreeSet<String>, out: &Path) -> Result<Vec<Job>, Failure> {
    let (mut data, mut backbones) = (BTreeMap::new(), BTreeMap::new());
    let mut jobs = Vec::new();
    for cell in plan.cells.iter().filter(|cell| chosen.contains(&cell.name)) {
        if !data.contains_key(&cell.data) {
            data.insert(cell.data.clone(), Dataset::open(&cell.data)?.fingerprint()?);
        }
        if !backbones.contains_key(&cell.backbone) {
            backbones.insert(cell.backbone.clone(), run::backbone_fingerprint(cell)?);
        }
        let record = CellRecord {
            cell: cell.clone(),
            data_fingerprint: data[&cell.data].clone(),
            backbone_fingerprint: backbones[&cell.backbone].clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let folder = CellFolder::of(out, &cell.name);
        if folder.prepare(&record)? != State::Finished {
            jobs.push(Job { cell: cell.name.clone(), folder, after: cell.adapters_of.clone() });
        }
    }
    Ok(jobs)
}

fn list(plan: &Plan, chosen: &BTreeSet<String>, out: &Path) -> Result<(), Failure> {
    let state = |cell: &Cell| match CellFolder::of(out, &cell.name).state() {
        State::NotRun => "not run",
        State::Begun => "begun",
        State::Finished => "finished",
    };
    let mut rows = vec![["cell", "method", "state", "adapters of"].map(str::to_owned).to_vec()];
    for cell in plan.cells.iter().filter(|cell| chosen.contains(&cell.name)) {
        rows.push(vec![cell.name.clone(), cell.method.clone(), state(cell).to_owned(), cell.adapters_of.clone().unwrap_or_default()]);
    }
    print(&table(&rows))
}

/// Of each table and figure of the paper: its rows, and how many of their cells are finished.
fn paper(plan: &Plan, out: &Path) -> Result<(), Failure> {
    if plan.paper.is_empty() {
        return Err(Failure::usage(format!(
            "the plan has no [paper]: --paper goes with {BUILT_IN}, or a plan that says what its rows show"
        )));
    }
    let mut rows = vec![["of the paper", "row", "state"].map(str::to_owned).to_vec()];
    for (artefact, patterns) in &plan.paper {
        for row in plan.rows_of_paper(patterns)? {
            let cells: Vec<&Cell> = plan.cells.iter().filter(|cell| cell.row == row).collect();
            let finished = cells.iter().filter(|cell| CellFolder::of(out, &cell.name).state() == State::Finished).count();
            let state = match (finished, cells.len()) {
                (_, 0) => "not in this program".to_owned(),
                (0, _) => "not run".to_owned(),
                (finished, all) if finished == all => "run".to_owned(),
                (finished, all) => format!("{finished} of {all} seeds run"),
            };
            rows.push(vec![artefact.clone(), row, state]);
        }
    }
    print(&table(&rows))
}

/// `KEY=VALUE` with a value in TOML; a word that is none is a text.
fn setting(text: &str) -> Result<(String, serde_json::Value), String> {
    let (key, value) = text.split_once('=').ok_or("give KEY=VALUE, as lr=1e-3")?;
    Ok((key.trim().to_owned(), plan::value(value.trim())))
}

/// The process of one cell: this program, with its share of the threads and the memory.
fn child(args: &BenchmarkArgs, signals: &Path, job: &Job) -> Command {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (args.compute.threads.unwrap_or(usable) / args.jobs).max(1);
    let program = std::env::current_exe().unwrap_or_else(|_| "delo".into());
    let mut command = Command::new(program);
    command.args(["benchmark", "--run-cell"]).arg(job.folder.path()).arg("--signals").arg(signals);
    command.args(["--threads", &threads.to_string(), "--cache-mib", &(args.cache_mib / args.jobs).to_string()]);
    command.args(["--checkpoint-every", &args.checkpoint_every.to_string()]);
    command.args(["--device", &args.device.to_string()]);
    if let Some(isa) = args.compute.isa {
        command.args(["--isa", &isa.to_string()]);
    }
    command.env("RAYON_NUM_THREADS", threads.to_string());
    command
}

/// Runs one cell. The process ends with its parent: that holds the other end of the standard input.
fn run_cell(args: &BenchmarkArgs, folder: &Path) -> Result<(), Failure> {
    std::thread::spawn(|| {
        let mut input = std::io::stdin().lock();
        while input.read(&mut [0; 64]).is_ok_and(|n| n > 0) {}
        std::process::exit(1);
    });
    let store = args.signals.as_deref().ok_or_else(|| Failure::usage("--run-cell needs --signals"))?;
    let options = RunOptions {
        engine: args.compute.start(Some(Precision::F32), args.device)?,
        cache_bytes: args.cache_mib << 20,
        checkpoint_every: args.checkpoint_every,
        created: created()?,
        store: SignalStore::open(store).map_err(|e| format!("can't write {}: {e}", store.display()))?,
    };
    run::run(&CellFolder::at(folder.to_owned()), &options, &mut |line| drop(print(line)))?;
    Ok(())
}
