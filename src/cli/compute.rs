//! Flags of every command that computes: on what.
use super::Failure;
use crate::engine::{DeviceChoice, Options};
use crate::kernels::{Isa, Precision, make_pool};

/// What a command computes with.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Compute")]
pub struct ComputeArgs {
    /// Threads of the compute pool [default: as many as the process may use cores]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// The best vector instructions to use: portable, avx2, avx512, avx512-bf16 or amx [default: the best there are]
    #[arg(long, value_name = "SET")]
    pub isa: Option<Isa>,
}

impl ComputeArgs {
    /// Makes the compute pool of this process, and says what the engine computes with.
    pub fn start(&self, precision: Option<Precision>, device: DeviceChoice) -> Result<Options, Failure> {
        make_pool(self.threads).map_err(|e| format!("the compute threads do not start: {e}"))?;
        Ok(Options { precision, isa: self.isa, device })
    }
}

pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "give a number above 0".to_owned())
}
