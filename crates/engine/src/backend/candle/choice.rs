//! Which processor computes, by its name in settings and flags.
use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device, Error, Result};

use delo_kernels::Precision;

/// The processor that computes: `auto`, `cpu`, `cuda:N` or `metal:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU that this build supports and that opens, else the CPU.
    Auto,
    /// The CPU, with this program's own kernels.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
    /// An Apple GPU, by its number.
    Metal(usize),
    /// The operations of a GPU on the CPU, in f32: for tests on a machine without a GPU. No setting names it.
    Candle,
}

/// An open device that candle computes on.
#[derive(Clone, Debug)]
pub struct OpenDevice {
    pub device: Device,
    /// Its name in settings.
    pub name: String,
}

impl DeviceChoice {
    /// The first GPU of each kind that this build supports.
    pub fn gpus() -> impl Iterator<Item = Self> {
        let built = [(Self::Cuda(0), cfg!(feature = "cuda")), (Self::Metal(0), cfg!(feature = "metal"))];
        built.into_iter().filter_map(|(gpu, built)| built.then_some(gpu))
    }

    /// Opens the device; `None` for the CPU with this program's own kernels. Blocking.
    ///
    /// # Errors
    /// A device that this build lacks, or that does not open.
    pub fn open(self) -> Result<Option<OpenDevice>> {
        let opened = match self {
            Self::Auto => return Ok(Self::gpus().find_map(Self::open_or_warn)),
            Self::Cpu => return Ok(None),
            Self::Cuda(number) => open_cuda(number),
            Self::Metal(number) => Device::new_metal(number),
            Self::Candle => Ok(Device::Cpu),
        };
        let device = opened.map_err(|e| Error::Msg(format!("{self} does not open: choose another device, or \"cpu\" ({e})")))?;
        Ok(Some(OpenDevice { device, name: self.to_string() }))
    }

    /// As [`Self::open`]; an error is logged as a warning and gives `None`.
    fn open_or_warn(self) -> Option<OpenDevice> {
        self.open().unwrap_or_else(|e| {
            tracing::warn!("{e}");
            None
        })
    }
}

/// Opens a GPU with one CUDA stream for all threads. candle's default is one stream for each thread, but a
/// batch may run on any thread of the pool.
fn open_cuda(number: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(number)?;
    #[cfg(feature = "cuda")]
    {
        let cuda = device.as_cuda_device()?;
        // SAFETY: every tensor of this device is allocated, used and freed on its one stream, in the order of
        // the calls, so that no event needs tracking.
        unsafe { cuda.disable_event_tracking() };
        keep_memory(cuda)?;
    }
    Ok(device)
}

/// Keeps the memory that a batch frees for the next batch. By default it returns to the driver each time the
/// CPU waits for the device.
#[cfg(feature = "cuda")]
fn keep_memory(device: &candle_core::CudaDevice) -> Result<()> {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::sys;
    let stream = device.cuda_stream();
    if !stream.context().has_async_alloc() {
        return Ok(());
    }
    let (mut pool, mut most) = (std::ptr::null_mut(), u64::MAX);
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is open. The attribute is a number of 64 bits, which the call reads before it
    // returns.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device()).result().w()?;
        sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut most).cast()).result().w()
    }
}

impl OpenDevice {
    /// The fastest number format whose answers differ little from f32's: bf16 where tensor cores multiply it.
    pub fn fastest(&self) -> Precision {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = &self.device {
            let major = device.cuda_stream().context().compute_capability().map_or(0, |(major, _)| major);
            // Ampere is the first generation that multiplies bf16.
            return if major >= 8 { Precision::Bf16 } else { Precision::F32 };
        }
        Precision::F32
    }

    /// candle's type for the operands of products.
    ///
    /// # Errors
    /// bf16 on a CPU, which candle does not multiply.
    pub fn dtype(&self, precision: Precision) -> Result<DType> {
        match precision {
            Precision::F32 => Ok(DType::F32),
            Precision::Bf16 if self.device.is_cpu() => candle_core::bail!("{} computes in f32 only: choose that precision", self.name),
            Precision::Bf16 => Ok(DType::BF16),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbered = text.split_once(':').and_then(|(kind, number)| Some((kind, number.parse().ok()?)));
        match (text, numbered) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(("cuda", number))) if cfg!(feature = "cuda") => Ok(Self::Cuda(number)),
            (_, Some(("metal", number))) if cfg!(feature = "metal") => Ok(Self::Metal(number)),
            (_, Some((kind @ ("cuda" | "metal"), _))) => {
                Err(format!("{text:?}: this build of delo has no {kind}: build it with `--features {kind}`, or choose {}", choices()))
            }
            _ => Err(format!("{text:?} is no device, choose {}", choices())),
        }
    }
}

/// The names that this build accepts, for messages.
fn choices() -> String {
    let names: Vec<String> = [DeviceChoice::Auto].into_iter().chain(DeviceChoice::gpus()).map(|choice| format!("\"{choice}\"")).collect();
    format!("{} or \"cpu\"", names.join(", "))
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal(number) => write!(f, "metal:{number}"),
            Self::Candle => f.write_str("candle"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_this_build_does_not_support_is_refused_with_advice() {
        for (kind, has) in [("cuda", cfg!(feature = "cuda")), ("metal", cfg!(feature = "metal"))] {
            match format!("{kind}:0").parse::<DeviceChoice>() {
                Ok(choice) => assert!(has && choice.to_string() == format!("{kind}:0")),
                Err(line) => assert!(!has && line.contains(&format!("--features {kind}")) && line.contains("\"cpu\""), "{line}"),
            }
        }
    }

    #[test]
    fn refuses_texts_that_name_no_device() {
        for text in ["", "gpu", "cuda", "cuda:", "cuda:x", "candle"] {
            assert!(text.parse::<DeviceChoice>().unwrap_err().contains("is no device"), "{text}");
        }
    }

    #[test]
    fn auto_takes_a_gpu_where_one_opens_and_the_cpu_elsewhere() {
        let any = DeviceChoice::gpus().any(|choice| choice.open().is_ok());
        assert_eq!(DeviceChoice::Auto.open().unwrap().is_some(), any);
        assert!(DeviceChoice::Cpu.open().unwrap().is_none());
    }
}
