//! `delo serve`.
use std::future::Future;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::allocator;
use crate::config::{Config, Listen, LogFormat, Logging, Overrides};
use crate::engine::DeviceChoice;
use crate::kernels::{Isa, Precision, make_pool};
use crate::serve::Server;

/// Blocking work that is still going on when the server has stopped gets this long.
const LAST_WORK: Duration = Duration::from_secs(1);

/// Serves classification over gRPC.
///
/// Settings come from, later ones winning: defaults, the file given as --config, environment variables (DELO_BATCHING__MAX_TOKENS=4096), and these
/// flags.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  delo serve\n  delo serve --backbone vilt-b32-mlm --partitions partitions --listen 0.0.0.0:50051")]
pub struct ServeArgs {
    /// A TOML file of settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the classifier listens (127.0.0.1:50051 by default).
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where the admin service listens, or "off" (127.0.0.1:50052 by default).
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<Listen>,
    /// Where /metrics answers, or "off" (127.0.0.1:9464 by default).
    #[arg(long, value_name = "ADDRESS")]
    metrics_listen: Option<Listen>,
    /// A Hugging Face ViLT checkpoint directory (the one in the program by default).
    #[arg(long, value_name = "DIR")]
    backbone: Option<PathBuf>,
    /// A directory of partitions to load (those in the program by default).
    #[arg(long, value_name = "DIR")]
    partitions: Option<PathBuf>,
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
            ("model.backbone", self.backbone.as_ref().map(path).transpose()?),
            ("model.partitions", self.partitions.as_ref().map(path).transpose()?),
            ("model.device", self.device.clone()),
            ("model.precision", self.precision.clone()),
            ("model.isa", self.isa.clone()),
            ("model.threads", self.threads.map(|n| n.to_string())),
        ];
        Ok(flags.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
    }
}

pub fn run(args: ServeArgs) -> Result<(), Failure> {
    allocator::bound_arenas(std::thread::available_parallelism().map_or(1, usize::from));
    let config = Config::load(args.config.as_deref(), args.overrides()?)?;
    log_to_stderr(&config.logging)?;
    make_pool(Some(config.model.threads).filter(|n| *n > 0)).map_err(|e| format!("the compute threads do not start: {e}"))?;
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let asked = stop_asked()?;
        let server = Server::bind(config).await?;
        server.run(asked).await?;
        Ok::<_, Failure>(())
    });
    runtime.shutdown_timeout(LAST_WORK);
    served
}

fn log_to_stderr(logging: &Logging) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&logging.filter).map_err(|e| format!("configuration: logging.filter: {e}"))?;
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    match logging.format {
        LogFormat::Human => subscriber.init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Done when the process is asked to stop: SIGTERM or SIGINT.
#[cfg(unix)]
fn stop_asked() -> Result<impl Future<Output = ()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    // Both are caught before anything is loaded: a signal during start-up stops as well.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
        }
    })
}

#[cfg(not(unix))]
fn stop_asked() -> Result<impl Future<Output = ()>, Failure> {
    Ok(async {
        // Without a handler the system ends the process itself.
        let _ = tokio::signal::ctrl_c().await;
    })
}
