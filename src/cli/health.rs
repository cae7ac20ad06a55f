//! `delo health`: whether the server on this machine serves.
use std::path::PathBuf;

use super::Failure;
use super::output::print;
use crate::config::Config;
use crate::serve::{Question, probe};

/// Asks the server on this machine whether it serves; the exit code is 0 if it does, else 1.
///
/// The settings say where to ask: the same file and environment variables as of `delo serve`. Flags of `delo
/// serve` are not known here. It asks the metrics port, or the classifier's where that is off, and needs no
/// token and no certificate.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  delo health\n  delo health --live --config /etc/delo/delo.toml")]
pub struct HealthArgs {
    /// The server's TOML file of settings.
    #[arg(long, value_name = "FILE", env = "DELO_CONFIG")]
    config: Option<PathBuf>,
    /// Ask only whether it is alive, as it is while it starts, drains, or has no partition.
    #[arg(long)]
    live: bool,
}

pub fn run(args: HealthArgs) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), Vec::new())?;
    let question = if args.live { Question::Alive } else { Question::Serving };
    let runtime = super::runtime()?;
    print(&runtime.block_on(probe(&config, question))?)
}
