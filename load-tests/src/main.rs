//! Runs one scenario against a server on this machine and prints a report.
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use delo_load::plan::Plan;
use delo_load::report::Report;
use delo_load::run::{Against, run};
use delo_load::scenario::{Rate, Scenario};
use delo_load::server::Launch;
use delo_load::{export, plot, samples};

/// Sends a scenario's requests to a delo server on this machine, at times that do not depend on its answers.
///
/// Exit codes: 0 what the scenario expects holds, 1 it does not or the run failed, 2 wrong usage.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  delo-load load-tests/scenarios/steady.toml --server http://127.0.0.1:50051
  delo-load load-tests/scenarios/overload.toml --spawn target/release/delo --json
  delo-load load-tests/scenarios/overload.toml --spawn target/release/delo --isolate
  delo-load load-tests/scenarios/burst.toml --spawn target/release/delo --plot burst.svg
  delo-load load-tests/scenarios/steady.toml --spawn target/release/delo -- --partitions runs/partitions
  delo-load load-tests/scenarios/steady.toml --export requests.json"
)]
struct Cli {
    /// The scenario's file
    scenario: PathBuf,
    /// A running server's URL, on a loopback address
    #[arg(long, value_name = "URL", required_unless_present_any = ["spawn", "export"], conflicts_with = "spawn")]
    server: Option<String>,
    /// That server's admin service, for scenarios that change partitions
    #[arg(long, value_name = "URL", requires = "server")]
    admin: Option<String>,
    /// That server's metrics, such as http://127.0.0.1:9464/metrics, for expectations of its batches
    #[arg(long, value_name = "URL", requires = "server")]
    metrics: Option<String>,
    /// A delo binary: its server is started for the run and ended after it
    #[arg(long, value_name = "PATH")]
    spawn: Option<PathBuf>,
    /// Keep one processor for the generator and give the started server the others, so that neither takes
    /// from the other (Linux)
    #[arg(long, requires = "spawn")]
    isolate: bool,
    /// Where the started server's output goes; nowhere without it
    #[arg(long, value_name = "FILE", requires = "spawn")]
    server_log: Option<PathBuf>,
    /// Instead of the scenario's: requests per second, or a multiple of capacity such as 2x
    #[arg(long, value_parser = clap::value_parser!(Rate))]
    rate: Option<Rate>,
    /// Instead of the scenario's: for how many seconds requests are due
    #[arg(long, value_name = "SECONDS")]
    duration: Option<u64>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Also draw latency, rates and memory over time into this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Send nothing: write the requests as JSON, which ghz takes as its --data-file
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["server", "spawn", "plot", "json"])]
    export: Option<PathBuf>,
    /// Further arguments of the started server's `serve`
    #[arg(last = true, requires = "spawn")]
    serve_args: Vec<String>,
}

// One thread: generator and server share the machine, and the generator should take little of it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match go(&cli).await {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(report)) => {
            if cli.json {
                println!("{}", serde_json::to_string_pretty(&report).expect("a report is numbers and strings"));
            } else {
                print!("{report}");
            }
            ExitCode::from(u8::from(!report.failed.is_empty()))
        }
        Err(error) => {
            eprintln!("delo-load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The report, unless the requests were only written.
async fn go(cli: &Cli) -> Result<Option<Report>, Box<dyn Error>> {
    let mut scenario = Scenario::read(&cli.scenario)?;
    scenario.rate = cli.rate.unwrap_or(scenario.rate);
    scenario.duration_seconds = cli.duration.unwrap_or(scenario.duration_seconds);
    scenario.check()?;
    let plan = Plan::new(&scenario, samples::read(&scenario)?);
    if let Some(file) = &cli.export {
        return Ok(export::write(&plan, file).map(|()| None)?);
    }
    let against = match (&cli.spawn, &cli.server) {
        (Some(program), _) => Against::Spawned(Launch {
            program: program.clone(),
            args: cli.serve_args.clone(),
            log: cli.server_log.clone(),
            isolate: cli.isolate,
        }),
        (None, Some(url)) => Against::Running { url: url.clone(), admin: cli.admin.clone(), metrics: cli.metrics.clone() },
        (None, None) => unreachable!("the command line requires one of --server, --spawn and --export"),
    };
    let (report, tally) = run(&scenario, Arc::new(plan), &against).await?;
    if let Some(file) = &cli.plot {
        std::fs::write(file, plot::svg(&report, &tally)).map_err(|e| format!("cannot write {}: {e}", file.display()))?;
    }
    Ok(Some(report))
}
