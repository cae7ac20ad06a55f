//! `delo serve`.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Failure;
use crate::config::{Config, Listen, Overrides, parse_address};
use crate::logging;
use crate::serve::{Requests, Server, try_to_start};
use delo_engine::DeviceChoice;
use delo_kernels::{Isa, Precision, make_pool};
use delo_process::allocator;

/// Blocking work that is still going on when the server has stopped gets this long.
const LAST_WORK: Duration = Duration::from_secs(1);
/// How long a thread for blocking work waits for more of it: a system that has run out of threads would leave
/// later work undone.
const KEPT: Duration = Duration::from_secs(3600);
/// Threads beside those of the runtime and the compute pool: the batcher's, and a few for blocking work.
const OTHER_THREADS: usize = 6;

/// Serves classification over gRPC.
///
/// Settings come from, later ones winning: defaults, the file given as --config, environment variables
/// (DELO_BATCHING__MAX_TOKENS=4096), and these flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  delo serve\n  delo serve --backbone vilt-b32-mlm --partitions partitions --listen 0.0.0.0:50051")]
pub struct ServeArgs {
    /// A TOML file of settings.
    #[arg(long, value_name = "FILE", env = "DELO_CONFIG")]
    config: Option<PathBuf>,
    /// Where the classifier listens (127.0.0.1:50051 by default).
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    listen: Option<SocketAddr>,
    /// Where the admin service listens, or "off" (127.0.0.1:50052 by default).
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<Listen>,
    /// Where /metrics answers, or "off" (127.0.0.1:9464 by default).
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<Listen>,
    /// Where JSON over HTTP and the page for browsers answer, or "off" (off by default).
    #[arg(long, value_name = "ADDRESS")]
    http_listen: Option<Listen>,
    /// A Hugging Face ViLT checkpoint directory (the one in the program by default).
    #[arg(long, value_name = "DIR")]
    backbone: Option<PathBuf>,
    /// A directory of partitions to load (those in the program by default).
    #[arg(long, value_name = "DIR")]
    partitions: Option<PathBuf>,
    /// Tokens of the longest text; the partitions must have been trained with the same number (the
    /// checkpoint's own number by default).
    #[arg(long, value_name = "N")]
    text_positions: Option<usize>,
    /// "auto", "cpu", "cuda:N" or "metal:N"; the GPUs in a build that has them.
    #[arg(long)]
    device: Option<String>,
    /// "auto", "f32" or "bf16".
    #[arg(long)]
    precision: Option<String>,
    /// The best vector instructions to use: "auto", "portable", "avx2", "avx512", "avx512-bf16" or "amx".
    #[arg(long, value_name = "SET")]
    isa: Option<String>,
    /// Threads of the compute pool (as many as the process may use cores by default).
    #[arg(long, value_name = "N", value_parser = super::compute::at_least_one)]
    threads: Option<usize>,
}

impl ServeArgs {
    fn overrides(&self) -> Result<Overrides, Failure> {
        fn check<T: std::str::FromStr<Err = String>>(flag: &str, value: Option<&String>) -> Result<(), Failure> {
            value.map_or(Ok(()), |text| text.parse::<T>().map(drop).map_err(|e| Failure::usage(format!("{flag} {e}"))))
        }
        check::<DeviceChoice>("--device", self.device.as_ref())?;
        let named = |value: &Option<String>| value.clone().filter(|text| text != "auto");
        check::<Precision>("--precision", named(&self.precision).as_ref())?;
        check::<Isa>("--isa", named(&self.isa).as_ref())?;
        let path = |p: &PathBuf| p.to_str().map(str::to_owned).ok_or_else(|| Failure::usage(format!("{} is no UTF-8 path", p.display())));
        let flags = [
            ("server.listen", self.listen.map(|a| a.to_string())),
            ("admin.listen", self.admin_listen.map(|a| a.to_string())),
            ("metrics.listen", self.metrics_listen.map(|a| a.to_string())),
            ("http.listen", self.http_listen.map(|a| a.to_string())),
            ("model.backbone", self.backbone.as_ref().map(path).transpose()?),
            ("model.partitions", self.partitions.as_ref().map(path).transpose()?),
            ("model.text_positions", self.text_positions.map(|n| n.to_string())),
            ("model.device", self.device.clone()),
            ("model.precision", self.precision.clone()),
            ("model.isa", self.isa.clone()),
            ("model.threads", self.threads.map(|n| n.to_string())),
        ];
        Ok(flags.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
    }
}

pub fn run(args: ServeArgs) -> Result<(), Failure> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    allocator::bound_arenas(cores);
    let config = Config::load(args.config.as_deref(), args.overrides()?)?;
    logging::start(&config.logging)?;
    let served = serve(config, cores);
    logging::flush();
    served
}

fn serve(config: Config, cores: usize) -> Result<(), Failure> {
    let compute = if config.model.threads == 0 { cores } else { config.model.threads };
    try_to_start(cores + compute + OTHER_THREADS)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(cores).thread_keep_alive(KEPT).enable_all().build()?;
    let requests = Requests::default();
    // Before anything is loaded: a signal during start-up counts as well.
    let signals = {
        let _context = runtime.enter();
        requests.of_signals()?
    };
    runtime.spawn(signals);
    make_pool(Some(config.model.threads).filter(|n| *n > 0)).map_err(|e| format!("the compute threads do not start: {e}"))?;
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let served = runtime.block_on(async {
        let server = Server::bind(config).await?;
        server.run_until_requested(requests.clone()).await
    });
    match requests.cut_by() {
        None => runtime.shutdown_timeout(LAST_WORK),
        Some(signal) => {
            runtime.shutdown_background();
            return Err(Failure::Signal(signal));
        }
    }
    Ok(served?)
}
