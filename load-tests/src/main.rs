//! Runs one scenario against a server on this machine and prints what it showed.
use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use delo_load::arrivals::Arrivals;
use delo_load::report::Report;
use delo_load::scenario::{Rate, Scenario};
use delo_load::server::Spawned;
use delo_load::target::Server;
use delo_load::{closed_loop, open_loop, samples};

/// Sends a scenario's requests to a delo server on this machine, at times that do not depend on its answers.
///
/// Exit codes: 0 what the scenario expects holds, 1 it does not or the run failed, 2 wrong usage.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  delo-load load-tests/scenarios/steady.toml --server http://127.0.0.1:50051
  delo-load load-tests/scenarios/overload.toml --spawn target/release/delo --json
  delo-load load-tests/scenarios/steady.toml --spawn target/release/delo -- --partitions runs/partitions"
)]
struct Cli {
    /// The scenario's file
    scenario: PathBuf,
    /// A running server's URL, on a loopback address
    #[arg(long, value_name = "URL", required_unless_present = "spawn", conflicts_with = "spawn")]
    server: Option<String>,
    /// A delo binary: its server is started for the run and ended after it
    #[arg(long, value_name = "PATH")]
    spawn: Option<PathBuf>,
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
    /// Further arguments of the started server's `serve`
    #[arg(last = true, requires = "spawn")]
    serve_args: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli).await {
        Ok(report) => {
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

async fn run(cli: &Cli) -> Result<Report, Box<dyn Error>> {
    let mut scenario = Scenario::read(&cli.scenario)?;
    scenario.rate = cli.rate.unwrap_or(scenario.rate);
    scenario.duration_seconds = cli.duration.unwrap_or(scenario.duration_seconds);
    scenario.check()?;
    let samples = samples::read(&scenario)?;

    let spawned = match &cli.spawn {
        Some(program) => Some(Spawned::start(program, &cli.serve_args, cli.server_log.as_ref().map(File::create).transpose()?).await?),
        None => None,
    };
    let url = match (&spawned, &cli.server) {
        (Some(spawned), _) => spawned.url.clone(),
        (None, Some(url)) => url.clone(),
        (None, None) => unreachable!("the command line requires one of --server and --spawn"),
    };
    let deadline = Duration::from_secs_f64(scenario.deadline_seconds);
    let connect = async || Server::connect(&url, scenario.connections, samples.clone(), deadline, scenario.outcomes).await;

    let mut capacity = None;
    if let Some(probe) = scenario.capacity {
        let seconds = probe.warm_up_seconds + probe.seconds;
        eprintln!("measuring capacity: {} calls in flight for {seconds} s", probe.in_flight);
        let (warm_up, window) = (Duration::from_secs(probe.warm_up_seconds), Duration::from_secs(probe.seconds));
        capacity = Some(closed_loop::run(Arc::new(connect().await?), probe.in_flight, warm_up, window).await.goodput());
    }
    let rate = scenario.requests_per_second(capacity)?;
    let before = spawned.as_ref().and_then(Spawned::memory);

    eprintln!("{}: {rate:.1} requests/s for {} s", scenario.name, scenario.duration_seconds);
    let server = Arc::new(connect().await?);
    let arrivals = Arrivals::new(rate, scenario.duration(), scenario.seed);
    let tally = open_loop::run(Arc::clone(&server), arrivals, scenario.max_outstanding).await;

    let after = spawned.as_ref().and_then(Spawned::memory);
    let memory = before.zip(after).map(|(before, after)| [before, after]);
    let mut report = Report::new(&scenario, capacity, rate, &tally, &server.truth, memory);
    drop(server);
    if let Some(spawned) = spawned {
        let status = spawned.stop().await?;
        if !status.success() {
            report.failed.push(format!("the server did not drain: {status}"));
        }
    }
    Ok(report)
}
