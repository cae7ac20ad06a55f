//! Pinned memory of the CPU, from which the GPU copies by itself. Patches are cut and rounded directly into
//! it.
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DeviceRepr, PinnedHostSlice, ValidAsZeroBits};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{DType, Result, Tensor};

use super::gpu::Gpu;
use crate::backend::candle::Patches;
use delo_kernels::{Float, bf16};

/// Images of one copy. While they are copied, the next ones are cut.
const PART: usize = 8;

/// Pinned memory for patches in the products' format. A batch takes the memory out and puts it back; a batch
/// that finds none allocates its own, so that no batch waits for another.
#[derive(Debug)]
pub(super) enum Staging {
    F32(Mutex<Option<Pinned<f32>>>),
    Bf16(Mutex<Option<Pinned<bf16>>>),
}

/// Pinned memory, and the CUDA stream of the copies from it.
#[derive(Debug)]
pub(super) struct Pinned<T> {
    memory: PinnedHostSlice<T>,
    stream: Arc<CudaStream>,
    /// The event after the last copy from the memory; `None` while copies may be under way whose event is not
    /// recorded yet.
    copied: Option<CudaEvent>,
}

impl Staging {
    pub fn new(dtype: DType) -> Self {
        if dtype == DType::BF16 { Self::Bf16(Mutex::default()) } else { Self::F32(Mutex::default()) }
    }

    /// Cuts the patches and copies them to the device, `[patches, 3 · patch · patch]`.
    pub fn upload(&self, gpu: &Gpu, patches: &Patches<'_>) -> Result<Tensor> {
        let slice = match self {
            Self::F32(pinned) => CudaStorageSlice::F32(uploaded(gpu, pinned, patches, |x| x)?),
            Self::Bf16(pinned) => CudaStorageSlice::BF16(uploaded(gpu, pinned, patches, bf16::of)?),
        };
        Ok(gpu.tensor(slice, patches.shape()))
    }
}

impl<T> Pinned<T> {
    fn new(stream: &Arc<CudaStream>, numbers: usize) -> Result<Self>
    where
        T: DeviceRepr,
    {
        // SAFETY: the memory is written before it is read.
        let memory = unsafe { stream.context().alloc_pinned(numbers.next_power_of_two()) }.w()?;
        Ok(Self { memory, copied: Some(stream.record_event(None).w()?), stream: stream.clone() })
    }

    /// Blocks until the copies from this memory have ended.
    fn settle(&self) -> Result<()> {
        match &self.copied {
            Some(copied) => copied.synchronize().w(),
            None => self.stream.synchronize().w(),
        }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        if let Err(e) = self.settle() {
            tracing::warn!("a GPU's copies did not end: {e}");
        }
    }
}

/// A copy of the patches in the device's memory; `of` converts to the products' format.
fn uploaded<T: DeviceRepr + ValidAsZeroBits + Copy + Send>(
    gpu: &Gpu,
    shared: &Mutex<Option<Pinned<T>>>,
    patches: &Patches<'_>,
    of: impl Fn(f32) -> T + Sync,
) -> Result<CudaSlice<T>> {
    let (stream, (count, width)) = (gpu.stream(), patches.shape());
    let numbers = count * width;
    // The lock is not held while patches are cut: a thread of the pool that waits for pieces of its work may
    // start other work meanwhile, also another batch, which takes this lock.
    let taken = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut pinned = match taken.filter(|pinned| pinned.memory.len() >= numbers) {
        Some(pinned) => pinned,
        None => Pinned::new(stream, numbers)?,
    };
    pinned.settle()?;
    pinned.copied = None;
    let memory = pinned.memory.as_mut_slice().w()?;
    // SAFETY: the copies below write all of the memory.
    let mut slice = unsafe { stream.alloc::<T>(numbers) }.w()?;
    let mut cut = 0;
    for part in patches.parts(PART) {
        let range = cut..cut + part.shape().0 * width;
        part.cut_into(&mut memory[range.clone()], &of)?;
        stream.memcpy_htod(&memory[range.clone()], &mut slice.slice_mut(range.clone())).w()?;
        cut = range.end;
    }
    pinned.copied = Some(stream.record_event(None).w()?);
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if shared.as_ref().is_none_or(|other| other.memory.len() < pinned.memory.len()) {
        // The memory that was there is dropped after the lock is released.
        let smaller = shared.replace(pinned);
        drop(shared);
        drop(smaller);
    }
    Ok(slice)
}
