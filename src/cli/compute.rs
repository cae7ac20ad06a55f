//! Flags of every command that computes: threads, instructions, number format, device.
use super::Failure;
use crate::config::MOST_THREADS;
use delo_engine::{DeviceChoice, Options};
use delo_kernels::{Isa, Precision, make_pool};

/// What a command computes with.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Compute")]
pub struct ComputeArgs {
    /// Threads of the compute pool [default: as many as the process may use cores]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub threads: Option<usize>,
    /// The best vector instructions to use: portable, avx2, avx512, avx512-bf16 or amx [default: the best
    /// there are]
    #[arg(long, value_name = "SET")]
    pub isa: Option<Isa>,
}

impl ComputeArgs {
    /// Makes the compute pool of this process, and says what the engine computes with.
    pub fn start(&self, precision: Option<Precision>, device: DeviceChoice) -> Result<Options, Failure> {
        make_pool(self.threads).map_err(|e| format!("the compute threads do not start: {e}"))?;
        Ok(Options { precision, isa: self.isa, device, training: None })
    }
}

/// What a command computes with that runs the engine as a server does; in f32 by default, so that its figures
/// do not depend on the processor.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Compute")]
pub struct InferenceArgs {
    /// Number format of the backbone's products: f32 or bf16
    #[arg(long, value_name = "FORMAT", default_value_t = Precision::F32)]
    precision: Precision,
    /// Where to compute: auto, cpu, cuda:N or metal:N; the GPUs in a build that has them
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl InferenceArgs {
    /// As [`ComputeArgs::start`].
    pub fn start(&self) -> Result<Options, Failure> {
        self.compute.start(Some(self.precision), self.device)
    }
}

pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=MOST_THREADS).contains(n)).ok_or_else(|| format!("give a number from 1 to {MOST_THREADS}"))
}
