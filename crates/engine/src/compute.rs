//! Which processor and number format compute, and how a checkpoint is loaded for them.
use candle_core::Device;

use crate::Engine;
use crate::backend::candle::{CandleBackend, DeviceChoice};
use crate::backend::cpu::CpuBackend;
#[cfg(feature = "cuda")]
use crate::backend::cuda::CudaBackend;
use delo_kernels::{Isa, Precision, bf16};
use delo_model::model_dir::ModelDir;
use delo_model::vilt::{Loader, ViltError};

/// What the engine computes with. For `None` it takes the fastest that the processor has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Number format of the frozen products and of resident factors.
    pub precision: Option<Precision>,
    /// The best vector instructions that may be used. Only the CPU's kernels read it.
    pub isa: Option<Isa>,
    /// The processor.
    pub device: DeviceChoice,
    /// `Some` where tasks are trained: the number format of the products by frozen weights in
    /// [`Engine::run_task`] and [`Engine::run_adapted`], forward and backward. Everything else of a step is
    /// computed in f32, as are frozen passes. A GPU computes training with candle's operations, which have a
    /// backward pass, in f32.
    pub training: Option<Precision>,
}

/// The backbone in one number format on one processor.
#[derive(Debug)]
pub(crate) enum Compute {
    F32(CpuBackend<f32>),
    Bf16(CpuBackend<bf16>),
    #[cfg(feature = "cuda")]
    Cuda(CudaBackend),
    Candle(CandleBackend),
}

/// Evaluates an expression with the backend inside a [`Compute`], once for each type of backend.
macro_rules! with_backend {
    ($compute:expr, $backend:ident => $body:expr) => {
        match $compute {
            $crate::compute::Compute::F32($backend) => $body,
            $crate::compute::Compute::Bf16($backend) => $body,
            #[cfg(feature = "cuda")]
            $crate::compute::Compute::Cuda($backend) => $body,
            $crate::compute::Compute::Candle($backend) => $body,
        }
    };
}
pub(crate) use with_backend;

impl Engine {
    /// Loads a checkpoint directory. Blocking.
    ///
    /// `dummy_text`: the token ids of the empty text ([`delo_model::input::InputProcessor::dummy_text`]).
    ///
    /// # Errors
    /// See [`ViltError`]; the error of a tensor names the tensor. Also a device that does not open, and a
    /// number format that the device lacks.
    pub fn load(dir: &ModelDir, dummy_text: Vec<u32>, options: Options) -> Result<Self, ViltError> {
        Self::of(Loader::open(dir, &Device::Cpu)?, dummy_text, options)
    }

    /// Loads a checkpoint that is open already. Blocking.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn of(loader: Loader, dummy_text: Vec<u32>, options: Options) -> Result<Self, ViltError> {
        if let Some(open) = options.device.open()? {
            let precision = options.precision.unwrap_or(open.fastest());
            #[cfg(feature = "cuda")]
            if open.device.is_cuda() && options.training.is_none() && CudaBackend::fits(loader.config()) {
                let (cuda, backbone) = CudaBackend::load(loader, open, precision)?;
                return Ok(Self { compute: Compute::Cuda(cuda), backbone, dummy_text });
            }
            let (device, backbone) = CandleBackend::load(loader, open, precision)?;
            return Ok(Self { compute: Compute::Candle(device), backbone, dummy_text });
        }
        let isa = Isa::at_most(options.isa);
        let (compute, backbone) = match options.precision.unwrap_or(Precision::fastest(isa)) {
            Precision::F32 => {
                let (cpu, backbone) = CpuBackend::load(loader, isa, Precision::F32)?;
                (Compute::F32(cpu.learning_in(options.training.unwrap_or(Precision::F32))), backbone)
            }
            Precision::Bf16 => {
                let (cpu, backbone) = CpuBackend::load(loader, isa, Precision::Bf16)?;
                (Compute::Bf16(cpu), backbone)
            }
        };
        Ok(Self { compute, backbone, dummy_text })
    }

    /// The device on which the variables of a task that learns must lie
    /// ([`TaskModel::onto`](delo_model::TaskModel::onto)).
    pub fn learning_device(&self) -> Device {
        match &self.compute {
            Compute::Candle(backbone) => backbone.device().clone(),
            _ => Device::Cpu,
        }
    }
}
